"""The folder of a sweep over checkpoints: what it is of, and one folder more for every step."""

from __future__ import annotations

import contextlib
import json
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import xarray as xr

from lens_slt.arrays import read_zarr, write_zarr
from lens_slt.json_files import read_json
from lens_slt.sampling.folder import folder_of
from lens_slt.schema import check_version

REFERENCES = "references"  # models that probes are compared with
PATTERNS = "patterns"  # labels of probes
SOURCE = "source"  # in the encoding of a tree of curves: the folder that it was read from


@contextlib.contextmanager
def sweep_folder(path: str | Path | None) -> Iterator[Path]:
    """The caller's folder, or one that is gone afterwards."""
    if path is not None:
        folder = folder_of(path)
        folder.mkdir(parents=True, exist_ok=True)
        yield folder
        return
    with tempfile.TemporaryDirectory(prefix="lens-slt-") as made:
        yield Path(made)


def open_sweep(folder: Path, description: str, result: str, identity: Mapping[str, Any]) -> None:
    """Begin a sweep here, or go on with the same one.

    ``description`` is the file that says what the sweep is of, ``identity`` what it says: what
    makes two sweeps the same, with the ``schema`` of ``result``.

    Raises ValueError where the folder holds anything else.
    """
    folder.mkdir(parents=True, exist_ok=True)
    file = folder / description
    if not file.exists():
        if any(one.name != REFERENCES for one in folder.iterdir()):
            raise ValueError(
                f"path: {str(folder)!r} is not empty and holds no sweep; use another path"
            )
        file.write_text(json.dumps(identity, indent=1), "utf-8")
        return
    there = read_json(file)
    check_version(result, there.get("schema"), "path")
    here = json.loads(json.dumps(identity))
    odd = [key for key in here if there.get(key) != here[key]]
    if odd:
        raise ValueError(
            f"path: {str(folder)!r} holds another sweep, which differs in {', '.join(odd)}: use "
            "another path, or delete it"
        )


def source_of(development: xr.DataTree) -> Path | None:
    """The folder that a tree of curves was read from; None where it has none."""
    source = development.encoding.get(SOURCE)
    return None if source is None else Path(source)


def write_patterns(folder: Path, labels: Mapping[str, xr.DataArray]) -> None:
    """Keep labels of probes with the sweep."""
    for name, one in labels.items():
        write_zarr(one.to_dataset(name=PATTERNS), folder / PATTERNS / f"{name}.zarr")


def read_patterns(folder: Path) -> dict[str, xr.DataArray]:
    """Labels of the sweep's next-token probes, by the probe."""
    files = sorted((folder / PATTERNS).glob("*.zarr"))
    return {file.stem: read_zarr(file)[PATTERNS].load() for file in files}


def step_folder(folder: Path, step: int) -> Path:
    """Where a checkpoint's results lie."""
    return folder / f"step-{step:08d}"
