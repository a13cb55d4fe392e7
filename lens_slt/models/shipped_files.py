"""The files of the models that come with the package: what there is, without loading any."""

from __future__ import annotations

from pathlib import Path

from lens_slt.arguments import nearest, typed

SHIPPED = ("attn-2l", "attn-2l-seed1", "attn-2l-seed2", "attn-1l", "gelu-4l")
ALIASES = {"attn-2l": "attn-2l-seed0"}  # name → name of its files
SHIPPED_NAMES = (*SHIPPED, *ALIASES.values())
SHIPPED_LIST = f"Shipped models: {', '.join(SHIPPED)}."
SHIPPED_FOLDER = Path(__file__).parent / "shipped"


@typed
def shipped_checkpoints(name: str) -> list[int]:
    """Training steps whose weights are shipped; empty for a model with its final weights only.

    Example:
        >>> import lens_slt as ls
        >>> ls.shipped_checkpoints("attn-2l")[-3:], ls.shipped_checkpoints("attn-1l")
        ([2900, 3200, 5300], [])
    """
    return sorted(_checkpoint_files(name))


def shipped_file(name: str, checkpoint: int | None = None) -> Path:
    """The file with the weights of a shipped model."""
    path = SHIPPED_FOLDER / f"{name_of_files(name)}.safetensors"
    if checkpoint is not None:
        checkpoints = _checkpoint_files(name)
        if checkpoint not in checkpoints:
            raise ValueError(_unknown_checkpoint(name, checkpoint, sorted(checkpoints)))
        path = checkpoints[checkpoint]
    if not path.is_file():
        raise FileNotFoundError(f"the weights of {name!r} are not in this installation: {path}")
    return path


def name_of_files(name: str) -> str:
    """What the files of a shipped model are called."""
    if name not in SHIPPED_NAMES:
        near = nearest(name, SHIPPED_NAMES, 0)
        raise ValueError(f"{name!r} is not a shipped model (nearest: {near!r}). {SHIPPED_LIST}")
    return ALIASES.get(name, name)


def _checkpoint_files(name: str) -> dict[int, Path]:
    paths = (SHIPPED_FOLDER / name_of_files(name)).glob("step-*.safetensors")
    return {int(path.stem.removeprefix("step-")): path for path in paths}


def _unknown_checkpoint(name: str, checkpoint: int, known: list[int]) -> str:
    if not known:
        return f"{name!r} has its final weights only, no checkpoints; got checkpoint={checkpoint!r}"
    near = min(known, key=lambda step: abs(step - checkpoint))
    return (
        f"{name!r} has no checkpoint {checkpoint!r} (nearest: {near}). "
        f"Its checkpoints: {', '.join(map(str, known))}."
    )
