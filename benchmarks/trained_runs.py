"""Training runs of the shipped recipe with other seeds or data, kept in a folder."""

from __future__ import annotations

from pathlib import Path

import lens_slt as ls
from benchmarks import common
from lens_slt.training.train import Recipe, train

TRAINED = {  # other data: the shipped models have three quarters of code
    "half code": Recipe(seed=11, code_share=0.5), "mostly prose": Recipe(seed=12, code_share=0.2),
}  # fmt: skip


def trained_run(name: str, cache: Path) -> ls.Checkpoints:
    """Its checkpoints, trained unless they are there."""
    folder = cache / name.replace(" ", "-")
    if not (folder / "finished").exists():
        common.say(f"training {name}")
        train(TRAINED[name], folder)
        (folder / "finished").touch()
    return ls.checkpoints(folder, config=ls.load_model("attn-2l").cfg)
