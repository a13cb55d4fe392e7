"""Checkpoints as files or folders: which they are, their steps by name, and whether they fit.

Nothing is loaded for it: names and shapes of weights are read from the descriptions in the files.
"""

from __future__ import annotations

import glob
import hashlib
import json
import os
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from lens_slt.json_files import read_json
from lens_slt.models.own_file import WEIGHT_FILES, weights_of

HF_CONFIG = "config.json"
HF_WEIGHTS = ("model*.safetensors", "pytorch_model*.bin")
TOKENIZER_FILES = ("tokenizer.json", "vocab.json", "vocab.txt", "merges.txt", "*.model")
_NUMBER = re.compile(r"\d+")
_STEP_BEFORE = re.compile(r"(step|iter|checkpoint|ckpt)s?[^a-z0-9]{0,2}$", re.IGNORECASE)
_MOST_NAMED = 4
_NOT_COMPARED = ("transformers_version", "torch_dtype", "dtype", "use_cache")  # of config.json
_TOKENIZER_STATE = ("truncation", "padding")  # of tokenizer.json: of its last call


def is_pattern(source: str) -> bool:
    """Whether a text has signs of a glob pattern and is no path as it stands."""
    return glob.has_magic(source) and not os.path.lexists(os.path.expanduser(source))


def is_place(name: str) -> bool:
    """Whether a text means files: it is a path that exists, a pattern, or looks like a path."""
    path = Path(name).expanduser()
    looks = name.startswith((".", "/", "~")) or path.suffix in WEIGHT_FILES or path.is_absolute()
    return is_pattern(name) or looks or path.exists()


def find_files(source: str) -> list[Path]:
    """Files of weights, or folders of saved models, that a folder, pattern or path means.

    Of a folder they are the saved models in it, as Hugging Face's Trainer leaves them, and where
    there is none the files of weights in it. Raises FileNotFoundError where there is nothing.
    """
    path = Path(source).expanduser()
    if is_pattern(source):
        found = [Path(one) for one in glob.glob(os.path.expanduser(source), recursive=True)]
        found = [one for one in found if one.is_dir() or one.suffix in WEIGHT_FILES]
        if not found:
            raise FileNotFoundError(
                f"source: {source!r} matches no folder and no file of weights "
                f"({', '.join(WEIGHT_FILES)})"
            )
    elif path.is_dir() and (not (path / HF_CONFIG).is_file() or _holds_models(path)):
        inside = sorted(one for one in path.iterdir() if not one.name.startswith("."))
        kinds = {_NUMBER.sub("#", one.name) for one in inside if _looks_saved(one)}
        found = [one for one in inside if one.is_dir() and _NUMBER.sub("#", one.name) in kinds]
        found = found or [one for one in inside if one.suffix in WEIGHT_FILES and one.is_file()]
        if not found:
            raise FileNotFoundError(
                f"source: the folder {source!r} holds neither files of weights "
                f"({', '.join(WEIGHT_FILES)}) nor saved models (folders such as checkpoint-500); "
                "checkpoints in several folders are given by a pattern such as 'run/*/model.pt'"
            )
    else:
        found = [path]
        if not path.is_dir() and path.suffix not in WEIGHT_FILES:
            raise ValueError(
                f"source: {source!r} is no file of weights ({', '.join(WEIGHT_FILES)})"
            )
    return [one.absolute() for one in found]


def _holds_models(path: Path) -> bool:
    return any(_looks_saved(one) for one in path.iterdir())


def _looks_saved(path: Path) -> bool:
    """Whether a path is a folder, numbered, with what a saved model has, or some of it."""
    if not path.is_dir() or path.name.startswith(".") or not _NUMBER.search(path.name):
        return False
    return (path / HF_CONFIG).is_file() or any(path.glob(one) for one in HF_WEIGHTS)


def run_name(name: str) -> str:
    """Of a folder its own, of a pattern that of the folder in which it begins to vary."""
    parts = Path(name).expanduser().absolute().parts
    plain = [part for part in parts[:-1] if not is_pattern(part)] if is_pattern(name) else parts
    return plain[-1]


def steps_by_name(paths: Sequence[Path]) -> dict[int, Path]:
    """The step of every path: the one number that varies in their names, or follows "step".

    Raises ValueError where names are no series, tell no step, or tell one twice.
    """
    names = _relative(paths)
    _check_series(names)
    numbers = [_NUMBER.findall(name) for name in names]
    places = range(len(numbers[0]))
    varying = [i for i in places if len({row[i] for row in numbers}) > 1] or list(places)
    after_step = [i for i in varying if _STEP_BEFORE.search(_before(names[0], i))]
    chosen = varying if len(varying) == 1 else after_step
    if len(chosen) != 1:
        which = "no number" if not varying else f"{len(varying)} numbers"
        raise ValueError(
            f"source: the names of the files tell no step, {which} could be one "
            f"({_some(names)}); give steps={{step: file name, …}}"
        )
    found: dict[int, Path] = {}
    for path, row in zip(paths, numbers, strict=True):
        step = int(row[chosen[0]])
        if step in found:
            raise ValueError(
                f"source: step {step} is there twice, {str(found[step])!r} and {str(path)!r}; "
                "give a pattern that takes one of them, or steps={step: file name, …}"
            )
        found[step] = path
    return dict(sorted(found.items()))


def steps_as_given(source: str, steps: Mapping[int, str]) -> dict[int, Path]:
    """The files that a dict of steps names, within a folder or as they are.

    Raises FileNotFoundError for one that is not there.
    """
    base = Path(source).expanduser()
    base = base if base.is_dir() else Path()
    found = {step: (base / Path(name).expanduser()).absolute() for step, name in steps.items()}
    for step, path in found.items():
        if not path.exists():
            raise FileNotFoundError(f"steps[{step}]: there is no file {str(path)!r}")
    return found


def broken_and_odd(paths: Mapping[int, Path]) -> tuple[dict[int, str], dict[int, str]]:
    """What cannot be read, by step, and what is of another architecture or tokenizer than most."""
    broken: dict[int, str] = {}
    marks: dict[int, dict[str, Any]] = {}
    for step, path in paths.items():
        try:
            marks[step] = _marks(path)
        except (OSError, ValueError) as error:
            broken[step] = str(error)
    return broken, odd_ones(marks)


def odd_ones(marks: Mapping[int, Mapping[str, Any]]) -> dict[int, str]:
    """Where steps differ from most, in words.

    Each has the same kinds of marks: a plain value, or a dict of values by name.
    """
    found: dict[int, str] = {}
    for kind in dict.fromkeys(key for one in marks.values() for key in one):
        texts = {step: json.dumps(one.get(kind), sort_keys=True) for step, one in marks.items()}
        usual, _ = Counter(texts.values()).most_common(1)[0]
        first = next(step for step, text in texts.items() if text == usual)
        for step, text in texts.items():
            if text != usual and step not in found:
                found[step] = _difference(kind, marks[step].get(kind), marks[first].get(kind))
    return found


def weight_files(path: Path) -> list[Path]:
    """The files with the weights of a checkpoint: itself, or those in a saved model's folder.

    Raises ValueError where such a folder is not complete.
    """
    if not path.is_dir():
        return [path]
    if not (path / HF_CONFIG).is_file():
        raise ValueError(f"{str(path)!r} holds no {HF_CONFIG}, so it is no saved model")
    for kind in HF_WEIGHTS:
        found = sorted(path.glob(kind))
        if found:
            index = path / f"{kind.replace('*', '')}.index.json"
            named = set(read_json(index)["weight_map"].values()) if index.is_file() else set()
            if missing := sorted(named - {one.name for one in found}):
                raise ValueError(f"{str(path)!r} lacks the file {missing[0]!r} of its weights")
            return found
    raise ValueError(f"{str(path)!r} holds no weights ({' or '.join(HF_WEIGHTS)})")


def file_digest(path: Path) -> str:
    """SHA-256 over the bytes of a checkpoint's files of weights."""
    digest = hashlib.sha256()
    for one in weight_files(path):
        with one.open("rb") as file:
            while block := file.read(2**22):
                digest.update(block)
    return digest.hexdigest()


def _marks(path: Path) -> dict[str, Any]:
    """What checkpoints of one run have in common."""
    files = weight_files(path)
    tensors = {k: w for one in files for k, w in weights_of(one, shapes_only=True).items()}
    marks: dict[str, Any] = {"shapes": {name: list(w.shape) for name, w in tensors.items()}}
    if path.is_dir():
        config = read_json(path / HF_CONFIG)
        marks["config.json"] = {
            k: v for k, v in config.items() if k not in _NOT_COMPARED and not k.startswith("_")
        }
        marks["tokenizer"] = _tokenizer_marks(path)
    return marks


def _tokenizer_marks(folder: Path) -> dict[str, str]:
    found = {}
    for path in sorted(one for kind in TOKENIZER_FILES for one in folder.glob(kind)):
        content = path.read_bytes()
        if path.name == "tokenizer.json":
            values = read_json(path)
            plain = {key: value for key, value in values.items() if key not in _TOKENIZER_STATE}
            content = json.dumps(plain, sort_keys=True).encode()
        found[path.name] = hashlib.sha256(content).hexdigest()
    return found


def _difference(kind: str, here: Any, usual: Any) -> str:
    """What tells one from most, by names where there are any."""
    if not (isinstance(here, dict) and isinstance(usual, dict)):
        return f"{kind}: {here!r}, where most have {usual!r}"
    apart = [name for name in {**usual, **here} if here.get(name) != usual.get(name)]
    if kind == "tokenizer":
        return f"another tokenizer ({', '.join(apart[:_MOST_NAMED])})"
    said = [
        f"{name} is {here.get(name, 'absent')}, {usual.get(name, 'absent')} in most"
        for name in apart[:_MOST_NAMED]
    ]
    more = f" and {len(apart) - _MOST_NAMED} more" * (len(apart) > _MOST_NAMED)
    return f"{kind}: {'; '.join(said)}{more}"


def _relative(paths: Sequence[Path]) -> list[str]:
    """Names below the folder that all have in common."""
    common = os.path.commonpath([str(path.parent) for path in paths])
    return [path.relative_to(common).as_posix() for path in paths]


def _check_series(names: Sequence[str]) -> None:
    """ValueError unless names are the same but for numbers."""
    kinds = Counter(_NUMBER.sub("#", name) for name in names)
    if len(kinds) > 1:
        said = ", ".join(f"{n} × {kind!r}" for kind, n in kinds.most_common(_MOST_NAMED))
        raise ValueError(
            f"source: its files are of {len(kinds)} kinds, {said}; give a pattern that takes one "
            "kind, such as 'run/step-*.pt', or steps={step: file name, …}"
        )


def _before(name: str, place: int) -> str:
    """The text before the number at a place."""
    return name[: list(_NUMBER.finditer(name))[place].start()]


def _some(names: Sequence[str]) -> str:
    return ", ".join(names[:2]) + ", …" * (len(names) > 2)
