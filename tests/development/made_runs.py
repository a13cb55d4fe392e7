"""Training runs made of a planted circuit: its parts come in one after another."""

from __future__ import annotations

from functools import lru_cache
from typing import Any

import torch

import lens_slt as ls
from lens_slt.models.names import head_place

STEPS = (0, 10, 30, 100, 300, 1000, 3000, 10000)
EARLY, LATE = 100, 1000  # from which step on the first and the second head work


@lru_cache
def planted(family: str = "induction") -> Any:
    return ls.plant(family, seed=1, n_heads=6, vocab=16)


def formed(step: int) -> Any:
    """The planted model, its first head from step 100 on, its second from step 1000 on."""
    model = ls.plant("induction", seed=1, n_heads=6, vocab=16).model
    early, late = planted().truth.heads
    for head, since in ((early, EARLY), (late, LATE)):
        _scale(model, head, 1.0 if step >= since else 0.0)
    return model


def without(step: int) -> Any:
    """A model that has no circuit at any step."""
    return ls.plant("empty", seed=1, n_heads=6, vocab=16).model


def _scale(model: Any, head: str, factor: float) -> None:
    layer, place = head_place(head)
    attention = model.blocks[layer].attn
    with torch.no_grad():
        attention.W_Q[place] *= factor
        attention.W_O[place] *= factor
