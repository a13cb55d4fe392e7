"""At which steps to keep checkpoints of a training run: decided before it, or by its loss."""

from __future__ import annotations

import math
from bisect import bisect_left, bisect_right
from collections.abc import Mapping, Sequence
from typing import Literal, get_args

import numpy as np

from lens_slt.arguments import choice, integer, typed

Spacing = Literal["log", "linear", "both"]
WINDOW = 0.05  # of a step, to both sides: the losses that are averaged there
FEWEST = 3  # steps to both sides in which noise is measured, at least
NOISE = 2.0  # standard errors by which a loss has to leave the line between its neighbours


@typed
def checkpoint_schedule(n_steps: int, *, n: int = 32, spacing: Spacing = "both") -> list[int]:
    """Steps at which to keep a checkpoint: ``n`` different ones, 0 and ``n_steps`` among them.

    Args:
        n_steps: steps of the whole training run, at least 1.
        n: how many, 2 to ``n_steps + 1``.
        spacing: ``log`` takes every step at first, then steps of equal ratio; ``linear`` takes
            steps of equal distance; ``both`` takes half of them as ``log`` does and halves the
            largest gaps with the others, as early training is fast and late training long.

    Raises ValueError for numbers out of these ranges or another spacing.

    Example:
        >>> import lens_slt as ls
        >>> ls.checkpoint_schedule(1000, n=8, spacing="log")
        [0, 1, 3, 10, 32, 101, 318, 1000]
        >>> ls.checkpoint_schedule(1000, n=8)
        [0, 1, 32, 153, 274, 516, 758, 1000]
    """
    integer("n_steps", n_steps, at_least=1)
    integer("n", n, at_least=2, at_most=n_steps + 1, note="0 to n_steps")
    choice("spacing", spacing, get_args(Spacing))
    if spacing == "linear":
        return [round(i * n_steps / (n - 1)) for i in range(n)]
    steps = _log_steps(n_steps, n if spacing == "log" else max(2, n // 2))
    while len(steps) < n:
        place = max(range(1, len(steps)), key=lambda i: steps[i] - steps[i - 1])
        steps.insert(place, (steps[place - 1] + steps[place]) // 2)
    return steps


def _log_steps(n_steps: int, n: int) -> list[int]:
    """0, then steps of one ratio, which rises where two of them would be the same."""
    if n == 2:
        return [0, n_steps]
    steps = [0, 1]
    while len(steps) < n:
        left = n - len(steps)
        step = round(steps[-1] * (n_steps / steps[-1]) ** (1 / left))
        steps.append(max(step, steps[-1] + 1))
    return steps


class LossCurve:
    """The losses of a run so far, and where between checkpoints they bend."""

    def __init__(self) -> None:
        self.steps: list[int] = []
        self.losses: list[float] = []

    def add(self, step: int, loss: float) -> None:
        """The loss at a later step than all before; one that is not finite tells nothing."""
        if math.isfinite(loss):
            self.steps.append(step)
            self.losses.append(loss)

    def at(self, step: int) -> tuple[float, float] | None:
        """Mean loss around a step and its standard error; None where there is no loss near."""
        near = self._between(step * (1 - WINDOW), step * (1 + WINDOW))
        if not len(near):
            return None
        reach = max(FEWEST, step * WINDOW)
        wide = self._between(step - reach, step + reach)
        # Differences of neighbours, in which a trend hardly shows, have twice the noise's variance.
        noise = math.sqrt(float(np.square(np.diff(wide)).mean()) / 2) if len(wide) > 1 else 0.0
        return float(near.mean()), noise / math.sqrt(len(near))

    def _between(self, first: float, last: float) -> np.ndarray:
        low, high = bisect_left(self.steps, first), bisect_right(self.steps, last)
        return np.array(self.losses[low:high])


def least_bend(
    steps: Sequence[int], removable: Sequence[int], loss: Mapping[int, tuple[float, float] | None]
) -> int | None:
    """The removable step whose removal changes the drawn loss curve least; None if there is none.

    A step counts by the triangle that it forms with its neighbours among ``steps``: by how much its
    loss leaves the line between theirs, beyond ``NOISE`` standard errors, times the decades of
    steps that they span (Visvalingam and Whyatt's rule for simplifying lines). Of steps on the line
    the one in the narrowest gap goes. The first and the last step are never removed.
    """
    inner = [i for i in range(1, len(steps) - 1) if steps[i] in set(removable)]
    if not inner:
        return None
    return steps[
        min(inner, key=lambda i: _triangle([(s, loss.get(s)) for s in steps[i - 1 : i + 2]]))
    ]


def _triangle(corners: list[tuple[int, tuple[float, float] | None]]) -> tuple[float, float]:
    """Its area in nats × decades beyond noise, and the decades that it spans."""
    x0, x, x1 = (math.log10(1 + step) for step, _ in corners)
    known = [value for _, value in corners if value is not None]
    if len(known) < 3:
        return 0.0, x1 - x0
    share = (x - x0) / (x1 - x0)
    (y0, e0), (y, e), (y1, e1) = known
    distance = abs(y - (1 - share) * y0 - share * y1)
    error = math.hypot(e, (1 - share) * e0, share * e1)
    return max(0.0, distance - NOISE * error) * (x1 - x0) / 2, x1 - x0
