"""Where two phases have equal free energies."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import xarray as xr
from scipy import stats
from scipy.optimize import brentq

from lens_slt.arguments import number, typed
from lens_slt.arrays import FloatArray
from lens_slt.phases.losses import check_pattern, losses_of
from lens_slt.phases.phase import Phase, check_phases
from lens_slt.schema import stamped

LEAST_LOG, MOST_LOG = 1.0, 60.0  # of n: below e log log n is negative, e⁶⁰ is beyond all data
GRID = 20_001  # places of log n between which ends of intervals are looked for
CURVE = 200  # places of n of the curve
BEYOND = 100.0  # times the last crossing, where the curve ends
LEAST_END = 1e4


@dataclass(frozen=True)
class Difference:
    """F of one phase minus that of another as a function of x = log n.

    Attributes:
        loss, llc, logs, constant: ΔL, Δλ, Δ(m − 1) and Δc.
        loss_se, llc_se, constant_se: standard errors.
    """

    loss: float
    llc: float
    logs: float = 0.0
    constant: float = 0.0
    loss_se: float = 0.0
    llc_se: float = 0.0
    constant_se: float = 0.0

    def value(self, x: FloatArray | float) -> FloatArray:
        """exp(x)·ΔL + Δλ·x − Δ(m − 1)·log x + Δc."""
        x = np.asarray(x, dtype=float)
        return np.exp(x) * self.loss + self.llc * x - self.logs * np.log(x) + self.constant

    def error(self, x: FloatArray | float) -> FloatArray:
        """Standard error of :meth:`value`."""
        x = np.asarray(x, dtype=float)
        parts = (np.exp(x) * self.loss_se) ** 2 + (x * self.llc_se) ** 2 + self.constant_se**2
        return np.sqrt(parts)

    def slope(self, x: float) -> float:
        """Derivative of :meth:`value`."""
        return float(np.exp(x) * self.loss + self.llc - self.logs / x)

    def roots(self) -> list[float]:
        """All zeros of :meth:`value` between log n = 1 and 60.

        (x·value′)′ = (1 + x)·exp(x)·ΔL + Δλ is monotone, so it has one zero at most; between its
        zeros x·value′ is monotone, and between those of x·value′ so is value: three zeros at most,
        and none is missed.
        """
        bends = _zeros(lambda x: (1 + x) * np.exp(x) * self.loss + self.llc, [])
        turns = _zeros(lambda x: x * self.slope(x), bends)
        return _zeros(lambda x: float(self.value(x)), turns)


@typed
def crossing(
    one: Phase,
    other: Phase,
    *,
    pattern: str | None = None,
    share: float = 1.0,
    level: float = 0.95,
    constant_se: float = 0.0,
    trust: bool = False,
) -> xr.Dataset:
    """The numbers of data n at which two phases exchange, with intervals.

    All solutions n > e of F_other(n) = F_one(n), that is of
    n·ΔL + Δλ·log n − Δm·log log n + Δc = 0 (Watanabe 2009; phases: Chen et al. 2023,
    arXiv 2310.06301). Below a crossing one phase has the higher posterior weight, above it the
    other. This is a Bayesian transition, in n; what training does over its steps is another
    matter (:func:`lens_slt.transitions`).

    An interval holds every n at which the two free energies do not differ by more than their error
    allows, with the errors of ΔL and Δλ̂ as normal; it may reach to infinity. The loss of both
    phases on the same blocks of data has a difference sharper than its parts; errors of λ̂ add up.

    Args:
        one, other: phases of the same data and architecture.
        pattern: a subloss; then the data are of this pattern, to the ``share`` that is given, and
            λ is taken not to change with it.
        share: of the pattern, 0 to 1.
        level: of the intervals.
        constant_se: standard error of Δc, which is often not known at all: the shift of log n by a
            unit of Δc is ``shift_per_constant``.
        trust: use λ̂ that is not certified.

    Returns:
        Dataset over ``crossing``: ``n``, ``n_low``, ``n_high`` (infinite where no n is large enough
        to tell), ``favoured``, the phase of lower free energy above it, ``shift_per_constant``.
        Over ``undecided``: intervals of n, ``from_n`` to ``to_n``, that hold no crossing of the
        estimates and still cannot tell the phases apart. Over ``n_grid``: ``difference`` F_other −
        F_one and its standard error ``difference_se``. ΔL and Δλ with errors are
        ``loss_difference`` and ``llc_difference``. Attribute ``notes``, what is not known.

    Raises:
        ValueError: phases of other data, architectures or components; λ̂ not certified; a pattern
            that a phase does not know; two phases without any difference.

    Example:
        >>> import lens_slt as ls
        >>> five = ls.Phase("5", loss=0.06874, llc=7, constant=3.62417)
        >>> six = ls.Phase("6", loss=0.04819, llc=8.5, constant=6.37767)
        >>> found = ls.crossing(five, six)
        >>> found["n"].values.round(), found["favoured"].values
        (array([601.]), array(['6'], dtype='<U1'))
    """
    number("level", level, above=0, below=1)
    number("constant_se", constant_se, at_least=0)
    notes = check_phases([one, other], trust)
    if pattern is not None:
        check_pattern([one, other], pattern, share)
        notes.append("λ is taken as that of the whole data, also on the pattern")
    change = difference(one, other, pattern, share, constant_se)
    if change == Difference(0, 0):
        raise ValueError(f"{one.name!r} and {other.name!r} have the same free energy at every n")
    roots, gaps = _with_intervals(change, float(stats.norm.ppf((1 + level) / 2)))
    x = np.linspace(LEAST_LOG, _end(roots), CURVE)
    names = [(other if change.slope(root) < 0 else one).name for root, _, _ in roots]
    slopes = np.array([change.slope(root) for root, _, _ in roots])
    data = {
        **{
            key: ("crossing", np.exp([row[i] for row in roots]))
            for i, key in enumerate(("n", "n_low", "n_high"))
        },
        "favoured": ("crossing", np.array(names, dtype=str)),
        "shift_per_constant": ("crossing", -1 / slopes),
        "from_n": ("undecided", np.exp([low for low, _ in gaps])),
        "to_n": ("undecided", np.exp([high for _, high in gaps])),
        "difference": ("n_grid", change.value(x)),
        "difference_se": ("n_grid", change.error(x)),
        "loss_difference": change.loss, "loss_difference_se": change.loss_se,
        "llc_difference": change.llc, "llc_difference_se": change.llc_se,
    }  # fmt: skip
    attrs = {
        "one": one.name, "other": other.name, "level": level, "notes": "; ".join(notes),
        "pattern": pattern or "", "share": share,
    }  # fmt: skip
    found = xr.Dataset(data, coords={"n_grid": np.exp(x)}, attrs=attrs)
    return stamped(found, "crossing")


def difference(
    one: Phase, other: Phase, pattern: str | None, share: float, constant_se: float
) -> Difference:
    """F_other − F_one; unknown constants are taken as equal, unknown multiplicities as 1."""
    losses, covariance = losses_of([one, other], pattern, share)
    step = np.array([-1.0, 1.0])
    known = one.constant is not None and other.constant is not None
    return Difference(
        loss=float(step @ losses),
        llc=other.llc - one.llc,
        logs=(other.multiplicity or 1) - (one.multiplicity or 1),
        constant=float(other.constant or 0) - float(one.constant or 0) if known else 0.0,
        loss_se=float(np.sqrt(max(step @ covariance @ step, 0.0))),
        llc_se=float(np.hypot(one.llc_se, other.llc_se)),
        constant_se=constant_se,
    )


def _zeros(function: Callable[[float], float], turns: Sequence[float]) -> list[float]:
    """Zeros of a function that is monotone between its turns."""
    ends = [LEAST_LOG, *turns, MOST_LOG]
    found = []
    for low, high in pairwise(ends):
        if low < high and function(low) * function(high) < 0:
            found.append(float(brentq(function, low, high, xtol=1e-13, rtol=1e-14)))
    return found


def _with_intervals(
    change: Difference, wide: float
) -> tuple[list[tuple[float, float, float]], list[tuple[float, float]]]:
    """Roots in log n with the piece of the confidence set around each, and pieces without one."""
    roots = change.roots()
    pieces = _undecided(change, wide)
    rows = []
    for root in roots:
        around = [piece for piece in pieces if piece[0] <= root <= piece[1]]
        rows.append((root, *(around[0] if around else (root, root))))
    gaps = [piece for piece in pieces if not any(piece[0] <= root <= piece[1] for root in roots)]
    return rows, gaps


def _undecided(change: Difference, wide: float) -> list[tuple[float, float]]:
    """All intervals of log n in which |F_other − F_one| is below ``wide`` standard errors."""

    def margin(x: FloatArray | float) -> FloatArray:
        return wide * change.error(x) - np.abs(change.value(x))

    grid = np.unique([*np.linspace(LEAST_LOG, MOST_LOG, GRID), *change.roots()])
    inside = np.concatenate([[False], margin(grid) > 0, [False]])
    begins, ends = (np.flatnonzero(np.diff(inside.astype(int)) == sign) for sign in (1, -1))
    found = []
    for begin, end in zip(begins, ends - 1, strict=True):
        low = grid[0] if begin == 0 else brentq(margin, grid[begin - 1], grid[begin])
        last = end == len(grid) - 1
        high = np.inf if last else brentq(margin, grid[end], grid[end + 1])
        found.append((float(low), float(high)))
    return found


def _end(roots: Sequence[tuple[float, float, float]]) -> float:
    """Log of the last n of the curve."""
    last = max((root for root, _, _ in roots), default=0.0)
    return min(max(np.log(LEAST_END), last + np.log(BEYOND)), MOST_LOG)
