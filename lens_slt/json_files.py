"""JSON files that people write or edit: what is wrong with one is said with its name."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any


def read_json(path: str | Path) -> Any:
    """The values in a JSON file.

    Raises OSError where it cannot be read, ValueError for what is not JSON in UTF-8 or says a key
    twice.
    """
    path = Path(path).expanduser()
    if path.is_dir():
        raise IsADirectoryError(f"{path} is a folder; a JSON file is needed")
    if not path.exists():
        raise FileNotFoundError(f"there is no file {path}")
    try:
        text = path.read_bytes().decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise ValueError(
            f"{path} is not UTF-8 text (byte {error.start}): save it with this encoding"
        ) from None
    if not text.strip():
        raise ValueError(f"{path} is empty; a JSON file is needed")
    try:
        return json.loads(text, object_pairs_hook=_each_key_once)
    except json.JSONDecodeError as error:
        raise ValueError(f"{path} is no JSON file: {error}") from None
    except RecursionError:
        raise ValueError(f"{path} cannot be read: its values are nested too deep") from None
    except KeyError as error:
        raise ValueError(f"{path} says {error} twice in one object: keep one") from None


def plain_fields(fields: Mapping[str, Any]) -> dict[str, Any]:
    """Those that JSON can hold, as it holds them."""
    found = {}
    for key, value in fields.items():
        try:
            found[key] = json.loads(json.dumps(value, sort_keys=True))
        except (TypeError, ValueError):
            continue
    return found


def _each_key_once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for key, value in pairs:
        if key in found:
            raise KeyError(key)
        found[key] = value
    return found
