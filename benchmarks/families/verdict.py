"""Right, refused in words, silently wrong, or crashed."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
from torch import Tensor

TOLERANCE = 1e-4  # nats, or relative to the largest entry
Error = tuple[str, float]  # what, and by how much


@dataclass(frozen=True)
class Cell:
    """One measurement of one family; ``words`` say what was refused, raised or wrong."""

    kind: str  # right, refused, wrong, crash, or none: there is nothing of this kind
    error: float = 0.0
    words: str = ""

    def __str__(self) -> str:
        if self.kind == "wrong":
            return f"WRONG {self.error:.1g}"
        return self.kind


def judged(measure: Callable[[], Iterator[Error]]) -> Cell:
    """The verdict on one measurement. A refusal in words is no fault, also after numbers."""
    worst, where = 0.0, "none"
    try:
        for what, error in measure():
            if where == "none" or not error <= worst:  # NaN too
                worst, where = error, what
            if not error <= TOLERANCE:
                break
    except Exception as raised:  # whatever it is: that is the question
        words = f"{type(raised).__name__}: {raised}"
        return Cell("refused" if _refusal(raised) else "crash", words=words)
    if not worst <= TOLERANCE:
        return Cell("wrong", float(worst), where)
    return Cell("none" if where == "none" else "right", float(worst), where)


def _refusal(raised: Exception) -> bool:
    """Whether lens_slt itself says in a sentence what it does not do."""
    frame = raised.__traceback__
    while frame is not None and frame.tb_next is not None:
        frame = frame.tb_next
    where = "" if frame is None else frame.tb_frame.f_globals.get("__name__", "")
    sentence = " " in str(raised) and type(raised) in (ValueError, TypeError)
    return sentence and where.startswith("lens_slt.")


def relative(found: Tensor, right: Tensor) -> float:
    """Largest difference, relative to the largest right value."""
    error = float((found - right).abs().max() / right.abs().max().clamp(min=1e-12))
    return error if np.isfinite(error) else float("inf")
