"""When each head differentiates, and in which refinement of its LLC.

A head differentiates at the first checkpoint from which its curve is outside a band: that of the
other heads of its layer, or that around its own value at the first checkpoint.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import xarray as xr
from numpy.typing import NDArray
from scipy import stats

from lens_slt.arguments import choice, integer, number, typed
from lens_slt.arrays import BoolArray, FloatArray
from lens_slt.development.curves import CHECKPOINT
from lens_slt.development.head_curves import HeadCurves, read_head_curves
from lens_slt.development.onsets import first_lasting
from lens_slt.schema import stamped
from lens_slt.statistics import ENDS, SIGNIFICANT

AGAINST = ("layer", "start")
FEWEST_IN_LAYER = 5  # the others of a head need quartiles
FENCE = 1.5  # interquartile ranges beyond the quartiles (Tukey's fences)
MARGIN = 0.1  # of the range of a layer's curves
LEAST_SUPPORT = 0.5  # of resampled curves, for an interval
INSIDE = float(stats.norm.ppf(SIGNIFICANT))  # standard errors: clearly back in the band
DIFFERENTIATES, FROM_START, RETURNS, STAYS = (
    "differentiates", "apart from the start", "leaves and comes back", "stays in the band",
)  # fmt: skip
NOWHERE = -1  # in place of a checkpoint


@dataclass(frozen=True)
class Differentiation:
    """When curves leave their bands; arrays are ``[refinement, head, …]``.

    ``onset`` and ``low``, ``high`` are indices of checkpoints, −1 where there is none; that of
    ``low`` is of the checkpoint before, since which it may have happened.
    """

    band: FloatArray  # [2, refinement, head, checkpoint]
    excess: FloatArray  # [.., checkpoint] beyond the band, negative inside
    se: FloatArray  # [.., checkpoint]
    p: FloatArray  # [.., checkpoint] corrected for all heads, refinements and checkpoints
    onset: NDArray[np.int_]
    low: NDArray[np.int_]
    high: NDArray[np.int_]
    support: FloatArray  # share of resampled curves with an onset
    above: BoolArray  # whether above the band, where farthest from it
    verdict: NDArray[np.str_]


def find_differentiation(
    curves: HeadCurves,
    *,
    against: str = "layer",
    margin: float = MARGIN,
    n_bootstrap: int = 400,
    seed: int = 0,
) -> Differentiation:
    """When heads differentiate: the function under :func:`differentiation`, on arrays."""
    choice("against", against, AGAINST)
    number("margin", margin, at_least=0)
    integer("n_bootstrap", n_bootstrap, at_least=20)
    integer("seed", seed, at_least=0)
    layers = curves.layers
    if against == "layer":
        _refuse_few(layers)
    drawn = curves.values + curves.noise(n_bootstrap, np.random.default_rng(seed))
    width = margin * _ranges(curves.values, layers)
    low, high = _bands(curves.values, layers, against, width)
    excess = _beyond(curves.values, low, high)
    ends = _bands(drawn, layers, against, width)
    resampled = _beyond(drawn, *ends)
    se = resampled.std(0, ddof=1)
    z = _in_errors(excess, se)
    largest = _in_errors(resampled - resampled.mean(0), se).reshape(n_bootstrap, -1).max(1)
    critical = float(np.quantile(largest, 1 - SIGNIFICANT))
    p = (1 + (largest >= z[..., None] - 1e-12).sum(-1)) / (1 + n_bootstrap)
    ends_above = (curves.values - high >= low - curves.values)[..., -1:]
    own = _in_errors(np.where(ends_above, curves.values - high, low - curves.values), se)
    again = _in_errors(np.where(ends_above, drawn - ends[1], ends[0] - drawn), se)
    onset, left = _onsets(own, critical), (z > critical).any(-1)
    support = (_onsets(again, critical) != NOWHERE).mean(0)
    crossed = first_lasting(again > 0)  # not when it was clear, but when it went outside for good
    first, last = _interval(crossed)
    sure = ((crossed != NOWHERE).mean(0) >= LEAST_SUPPORT) & (onset != NOWHERE)
    words = np.where(left, RETURNS, STAYS)
    words = np.where(onset == NOWHERE, words, np.where(onset == 0, FROM_START, DIFFERENTIATES))
    farthest = excess.argmax(-1)[..., None]
    above = np.take_along_axis(curves.values - high > 0, farthest, -1)[..., 0]
    return Differentiation(
        np.stack([low, high]), excess, se, p, onset,
        np.where(sure, np.minimum(np.maximum(first - 1, 0), onset), NOWHERE),
        np.where(sure, np.maximum(last, onset), NOWHERE), support, above, words,
    )  # fmt: skip


@typed
def differentiation(
    development: xr.DataTree | xr.Dataset,
    *,
    refinements: Sequence[str] | None = None,
    against: str = "layer",
    margin: float = MARGIN,
    n_bootstrap: int = 400,
    seed: int = 0,
) -> xr.Dataset:
    """When each head differentiates, and in which refinement of its LLC.

    A head differentiates at the first checkpoint at which its curve is beyond its band, by more
    than errors explain, and after which it is never clearly back inside. The p-values of all heads,
    refinements and checkpoints are corrected together, by the largest deviation of resampled
    curves: one false statement in 20 such tables. Above the band and below it are different sides:
    a curve that crosses the band is outside, on its last side, from then on.

    Args:
        development: from :func:`lens_slt.develop`, or curves of refined LLCs.
        refinements: ``"llc"`` and names of probes; all by default, each for itself.
        against: ``layer``: the band of the other heads of the layer, from 1.5 interquartile ranges
            below their lower quartile to as much above the upper one; a layer needs five heads.
            ``start``: the head's own value at the first checkpoint, give or take ``margin``.
        margin: as a share of the range of all curves of the layer; for ``start``.
        n_bootstrap: curves with errors added, for errors and intervals.
        seed: of the resampling.

    Returns:
        Dataset over (component, refinement): ``step``, the first checkpoint outside, NaN where a
        head stays; ``step_low`` and ``step_high``: between them it crossed the end of the band, in
        95 % of resampled curves, the gap to the checkpoint before included; ``support``, the share
        of resampled curves that clearly leave; ``side``, ``above`` or ``below`` at the farthest;
        ``verdict``: ``differentiates``, ``apart from the start`` (outside at the first checkpoint
        already), ``leaves and comes back``, ``stays in the band``. By checkpoint: ``excess``, how
        far beyond the band (negative inside), ``excess_se``, ``p`` corrected, ``band_low`` and
        ``band_high``. Over component: ``first_refinement``, the one in which it differentiates
        first; "" for none.

    Raises:
        TypeError, ValueError: no curves of heads, gaps in them, unknown refinements, layers of
            fewer than five heads.

    Example:
        >>> import lens_slt as ls
        >>> run = ls.checkpoints("attn-2l").at([0, 1000, 2900])
        >>> text = ls.load_tokens("mix", n_sequences=8, length=16)
        >>> how = dict(settings=ls.Settings(draws=12, chains=2, steps_per_draw=1), progress=False)
        >>> draws = {step: ls.sample(run.load(step), text, "L1H2", **how) for step in run}
        >>> curves = ls.join_checkpoints({step: ls.refined_llc(one) for step, one in draws.items()})
        >>> ls.differentiation(curves, against="start")["step"].dims
        ('component', 'refinement')
    """
    curves = read_head_curves(development, refinements)
    found = find_differentiation(
        curves, against=against, margin=margin, n_bootstrap=n_bootstrap, seed=seed
    )
    steps = curves.steps
    step, low, high = (_steps(i, steps) for i in (found.onset, found.low, found.high))
    lasting = np.where(found.verdict == DIFFERENTIATES, step, np.inf)
    names = np.array([*curves.refinements, ""])
    first = names[np.where(np.isfinite(lasting).any(0), lasting.argmin(0), -1)]
    once, over = ("component", "refinement"), (CHECKPOINT, "component", "refinement")
    data: dict[str, Any] = {
        "step": step, "step_low": low, "step_high": high, "support": found.support,
        "side": np.where(found.above, "above", "below"), "verdict": found.verdict,
    }  # fmt: skip
    by_checkpoint = {
        "excess": found.excess, "excess_se": found.se, "p": found.p, "band_low": found.band[0],
        "band_high": found.band[1],
    }  # fmt: skip
    result = xr.Dataset(
        {name: (once, array.T) for name, array in data.items()}
        | {name: (over, array.transpose(2, 1, 0)) for name, array in by_checkpoint.items()}
        | {"first_refinement": ("component", first)},
        {
            CHECKPOINT: steps.astype(int), "component": list(curves.heads),
            "refinement": list(curves.refinements),
        },
        {"against": against} | ({"margin": margin} if against == "start" else {}),
    )  # fmt: skip
    return stamped(result, "differentiation")


def _refuse_few(layers: NDArray[np.int_]) -> None:
    for layer, n in zip(*np.unique(layers, return_counts=True), strict=True):
        if n < FEWEST_IN_LAYER:
            raise ValueError(
                f"layer {layer} has {n} heads here; a band of the others needs {FEWEST_IN_LAYER}: "
                "use against='start', or leave the layer out"
            )


def _ranges(values: FloatArray, layers: NDArray[np.int_]) -> FloatArray:
    """Range of all curves of a head's layer ``[refinement, head]``."""
    found = np.empty(values.shape[:2])
    for layer in np.unique(layers):
        own = layers == layer
        found[:, own] = np.ptp(values[:, own], axis=(1, 2))[:, None]
    return found


def _bands(
    values: FloatArray, layers: NDArray[np.int_], against: str, width: FloatArray
) -> tuple[FloatArray, FloatArray]:
    """Lower and upper ends for curves ``[..., refinement, head, checkpoint]``."""
    if against == "start":
        start = np.broadcast_to(values[..., :1], values.shape)
        return start - width[..., None], start + width[..., None]
    low, high = np.empty_like(values), np.empty_like(values)
    for head in range(len(layers)):
        others = (layers == layers[head]) & (np.arange(len(layers)) != head)
        lower, upper = np.quantile(values[..., others, :], [0.25, 0.75], axis=-2)
        low[..., head, :] = lower - FENCE * (upper - lower)
        high[..., head, :] = upper + FENCE * (upper - lower)
    return low, high


def _beyond(values: FloatArray, low: FloatArray, high: FloatArray) -> FloatArray:
    return np.asarray(np.maximum(values - high, low - values))


def _in_errors(excess: FloatArray, se: FloatArray) -> FloatArray:
    """Excess in standard errors; where there is none, as at a head's own start, it is inside."""
    return np.divide(excess, se, out=np.where(excess > 0, np.inf, -np.inf), where=se > 0)


def _onsets(z: FloatArray, critical: float) -> NDArray[np.int_]:
    """First checkpoint ``[...]`` that is clearly outside, none after it being clearly inside, or
    −1."""
    inside = z < INSIDE
    later = np.flip(np.maximum.accumulate(np.flip(inside, -1), -1), -1)
    lasting = (z > critical) & ~later
    return np.where(lasting.any(-1), lasting.argmax(-1), NOWHERE)


def _interval(onsets: NDArray[np.int_]) -> tuple[NDArray[np.int_], NDArray[np.int_]]:
    """Ends over resampled curves ``[resample, ...]`` that have an onset."""
    there = onsets != NOWHERE
    known = np.where(there, onsets.astype(float), np.nan)
    known[:, ~there.any(0)] = NOWHERE
    ends = [np.nanquantile(known, end, axis=0, method="inverted_cdf") for end in ENDS]
    return ends[0].astype(int), ends[1].astype(int)


def _steps(index: NDArray[np.int_], steps: FloatArray) -> FloatArray:
    return np.where(index == NOWHERE, np.nan, steps[index])
