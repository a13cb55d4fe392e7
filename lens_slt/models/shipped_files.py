"""The files of the models that come with the package: what there is, without loading any."""

from __future__ import annotations

from pathlib import Path

from lens_slt.arguments import did_you_mean, nearest, typed

SHIPPED = ("attn-2l", "attn-2l-seed1", "attn-2l-seed2", "attn-1l", "gelu-4l")
ALIASES = {"attn-2l": "attn-2l-seed0"}  # name → name of its files
SHIPPED_NAMES = (*SHIPPED, *ALIASES.values())
SHIPPED_LIST = f"Shipped models: {', '.join(SHIPPED)}."
SHIPPED_FOLDER = Path(__file__).parent / "shipped"
TYPO = 0.85  # likeness from which an unknown name is taken for a misspelt shipped one


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


def misspelt(name: str) -> str:
    """Which shipped model a name that is none is taken for, as a message ends; "" for others."""
    return did_you_mean(name, SHIPPED_NAMES, TYPO)


def step_file(folder: Path, step: int) -> Path:
    """The weights of a training step."""
    return folder / f"step-{step:06d}.safetensors"


def step_files(folder: Path) -> dict[int, Path]:
    """The weights of all training steps in a folder, in their order."""
    found = {int(p.stem.removeprefix("step-")): p for p in folder.glob("step-*.safetensors")}
    return dict(sorted(found.items()))


def _checkpoint_files(name: str) -> dict[int, Path]:
    return step_files(SHIPPED_FOLDER / name_of_files(name))


def _unknown_checkpoint(name: str, checkpoint: int, known: list[int]) -> str:
    if not known:
        return f"{name!r} has its final weights only, no checkpoints; got checkpoint={checkpoint!r}"
    near = min(known, key=lambda step: abs(step - checkpoint))
    return (
        f"{name!r} has no checkpoint {checkpoint!r} (nearest: {near}). "
        f"Its checkpoints: {', '.join(map(str, known))}."
    )
