"""The migration of multigrams: what leaves the heads of layer 0 for those of later layers.

Wang et al. 2024 (arXiv 2410.02984) refine the LLC by the predictions of a model with one layer,
which knows n-grams and skip-grams. In a model with two layers that LLC rises, peaks, and falls in
layer 0 while it rises in layer 1: the later layer takes multigrams over. Which tokens the ablation
of each head affects, before and after, says whether it does.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import xarray as xr
from scipy import stats

from lens_slt.arguments import choice, integer, typed
from lens_slt.arrays import FloatArray
from lens_slt.circuits.replacements import Ablation
from lens_slt.development.curves import CHECKPOINT
from lens_slt.development.head_curves import (
    WEIGHT_REFINED,
    HeadCurves,
    read_head_curves,
    refined_curves,
)
from lens_slt.development.multigram_effects import (
    MULTIGRAM,
    Effects,
    affected,
    multigram_patterns,
)
from lens_slt.models.checkpoints import Checkpoints
from lens_slt.schema import require, stamped
from lens_slt.statistics import ENDS, HALF_WIDTH, SIGNIFICANT, holm
from lens_slt.torch_state import plain_torch

FEWEST_CHECKPOINTS = 5
FALLS, RISES, UNSHOWN = "falls", "rises", "no change shown"
BOTH, BY_LLC, BY_ABLATION, NONE, UNCONFIRMED = (
    "multigrams migrate", "by rLLC only", "by ablation only", "no migration shown",
    "by rLLC, not looked for by ablation",
)  # fmt: skip


@dataclass(frozen=True)
class Change:
    """Changes of curves from one checkpoint to a later one, with simultaneous errors."""

    change: FloatArray  # [curve]
    low: FloatArray
    high: FloatArray
    p: FloatArray  # corrected for all curves and for a start that was chosen

    @property
    def words(self) -> np.ndarray:
        """``falls``, ``rises`` or ``no change shown``."""
        return words_of(self.change, self.p)


@dataclass(frozen=True)
class Moved:
    """What curves of heads, and of layers after them, do after the peak of layer 0."""

    curves: HeadCurves  # heads, then means over the heads of each layer
    peak: int  # index of the checkpoint
    peak_low: int
    peak_high: int
    to_peak: Change  # of layer 0, from the first checkpoint: one curve
    after_peak: Change  # of all curves
    migrates: bool


def find_migration(
    curves: HeadCurves,
    *,
    before: int | None = None,
    after: int | None = None,
    n_bootstrap: int = 400,
    seed: int = 0,
) -> Moved:
    """The migration in curves of one refinement: the function under :func:`migration`, on arrays.

    Args:
        curves: of heads of two layers or more, in one refinement.
        before, after: indices of checkpoints; the peak of layer 0 and the last one by default.
        n_bootstrap, seed: of errors that could have been.

    Raises ValueError for one layer, fewer than five checkpoints, an ``after`` that is not later.
    """
    integer("n_bootstrap", n_bootstrap, at_least=20)
    integer("seed", seed, at_least=0)
    layers, n = np.unique(curves.layers), len(curves.steps)
    if len(layers) < 2 or n < FEWEST_CHECKPOINTS:
        raise ValueError(
            f"a migration needs heads of two layers and {FEWEST_CHECKPOINTS} checkpoints; got "
            f"{len(layers)} and {n}"
        )
    both = _with_layers(curves, layers)
    first = len(curves.heads)  # index of the mean of the lowest layer
    noise = both.noise(n_bootstrap, np.random.default_rng(seed))[:, 0]
    values = both.values[0]
    after = n - 1 if after is None else after
    peak = int(values[first, :after].argmax()) if before is None else before
    if not 0 <= peak < after < n:
        raise ValueError(
            f"after must be a later checkpoint than before; got {curves.steps[after]:g} and "
            f"{curves.steps[peak]:g}"
        )
    peaks = (values[first] + noise[:, first])[:, :after].argmax(1)
    low, high = np.quantile(peaks, ENDS, method="inverted_cdf").astype(int)
    to_peak = _change(values[[first]], noise[:, [first]], 0, peak, chosen=peak)
    change = _change(values, noise, peak, after, chosen=peak)
    rest = change.words[first + 1 :]
    migrates = (
        to_peak.words[0] == RISES and change.words[first] == FALLS and bool((rest == RISES).any())
    )
    return Moved(both, peak, min(low, peak), max(high, peak), to_peak, change, migrates)


@typed
@plain_torch
def migration(
    development: xr.DataTree | xr.Dataset,
    checkpoints: Checkpoints | None = None,
    tokens: Any = None,
    *,
    probe: str | None = None,
    before: int | None = None,
    after: int | None = None,
    patterns: xr.DataArray | None = None,
    how: str | Ablation = "auto",
    weights: Any = None,
    mask: Any = None,
    pad_id: int | None = None,
    n_bootstrap: int = 400,
    seed: int = 0,
) -> xr.Dataset:
    """Whether multigrams leave the heads of the first layer for those of later ones.

    Two looks: the LLC refined by a one-layer model's predictions, after its peak in layer 0; and
    what the ablation of each head costs on multigrams, at that peak and at the end.

    Args:
        development: from :func:`lens_slt.develop` with a probe whose ``reference`` is a one-layer
            model, or curves of refined LLCs; heads of two layers or more, five checkpoints or more.
        checkpoints: the run, to ablate heads of two of its models. Without it nothing is ablated.
        tokens: ``[sequence, position]`` to ablate on, enough to count n-grams in; not needed to be
            those that were sampled.
        probe: which has the one-layer reference; may be left out where there is one such.
        before, after: steps to compare; the peak of layer 0's mean curve and the last one by
            default.
        patterns: labels of ``tokens`` from :func:`lens_slt.label_patterns` with ``ngram`` and
            ``skip_gram``; by default with counts of ``tokens`` themselves.
        how, weights, mask, pad_id: as for :func:`lens_slt.ablate`.
        n_bootstrap, seed: of the curves' errors.

    Returns:
        Dataset over component: heads, and ``L0H*``, … for means over the heads of a layer. Of the
        rLLC: ``llc`` and ``se`` by checkpoint; ``before``, ``after``, their difference ``change``
        with ``change_low`` and ``change_high`` (simultaneous for all components and for a peak that
        was chosen, 95 %), ``p`` corrected likewise, and ``word``: ``falls``, ``rises``, ``no change
        shown``. With ``checkpoints`` also, over pattern (``multigram``, that is ``ngram`` or
        ``skip_gram``; ``induction``; ``other``; a token that is said twice counts as induction
        alone) and when (``before``, ``after``): ``effect``, the mean effect of the ablation in
        nats, and ``effect_se`` over sequences; ``affected_share``, the share of the pattern among
        the twentieth of the tokens that it hurts most, to hold against ``token_share``;
        ``effect_change``, with error, interval, ``effect_change_p`` (Holm over components) and
        ``effect_word``. Attributes: ``before_step``, ``after_step``, ``peak_low`` and ``peak_high``
        (steps, 95 %), ``to_peak``, the word for layer 0 from the first checkpoint to the peak, and
        ``verdict``: ``multigrams migrate`` if layer 0's mean rLLC rose to its peak and falls after
        it, a later layer's rises, and so do effects on multigrams; ``by rLLC only``, ``by ablation
        only``, ``no migration shown``, or ``by rLLC, not looked for by ablation``.

    Raises:
        TypeError, ValueError: one layer, no such probe, too few checkpoints, patterns without
            ``ngram`` or too few tokens of them, steps that are not there.

    Example:
        >>> import lens_slt as ls
        >>> run = ls.checkpoints("attn-2l").at([0, 300, 1000, 1800, 2900])
        >>> text = ls.load_tokens("mix", n_sequences=8, length=16)
        >>> probes = {"one_layer": ls.Probe(text, reference=ls.load_model("attn-1l"))}
        >>> how = dict(
        ...     settings=ls.Settings(draws=12, chains=2, steps_per_draw=1),
        ...     progress=False,
        ...     probes=probes,
        ... )
        >>> draws = {step: ls.sample(run.load(step), text, "L0H2, L1H2", **how) for step in run}
        >>> curves = ls.join_checkpoints({step: ls.refined_llc(one) for step, one in draws.items()})
        >>> ls.migration(curves)["word"].dims
        ('component',)
    """
    curves = read_head_curves(development, [_model_refined(development, probe)])
    where = [_index(curves, name, s) for name, s in (("before", before), ("after", after))]
    found = find_migration(
        curves, before=where[0], after=where[1], n_bootstrap=n_bootstrap, seed=seed
    )
    last = len(curves.steps) - 1 if where[1] is None else where[1]
    result = _of_curves(found, last)
    if checkpoints is None:
        verdict = UNCONFIRMED if found.migrates else NONE
        return stamped(result.assign_attrs(verdict=verdict), "migration")
    if tokens is None:
        raise ValueError("tokens are missing: heads of checkpoints are ablated on them")
    steps = [int(curves.steps[i]) for i in (found.peak, last)]
    checkpoints = checkpoints.at(steps)
    models = (checkpoints.load(step) for step in steps)
    options = {"weights": weights, "mask": mask, "pad_id": pad_id}
    if patterns is None:
        patterns = multigram_patterns(tokens, checkpoints.load(steps[-1]), mask, pad_id)
    patterns = require(patterns, "patterns", argument="patterns")
    effects = affected(models, tokens, curves.heads, found.curves.heads, patterns, how, options)
    result = result.assign(_of_ablation(effects))
    result = result.assign_coords(when=["before", "after"], pattern=list(effects.patterns))
    words = result["effect_word"].sel(pattern=MULTIGRAM).values[len(curves.heads) :]
    ablation = words[0] == FALLS and bool((words[1:] == RISES).any())
    verdict = {(1, 1): BOTH, (1, 0): BY_LLC, (0, 1): BY_ABLATION, (0, 0): NONE}[
        int(found.migrates), int(ablation)
    ]
    return stamped(result.assign_attrs(verdict=verdict), "migration")


def words_of(change: FloatArray, p: FloatArray) -> np.ndarray:
    """What a change is called."""
    return np.where(p > SIGNIFICANT, UNSHOWN, np.where(change < 0, FALLS, RISES))


def _with_layers(curves: HeadCurves, layers: np.ndarray) -> HeadCurves:
    """Curves of heads, and after them the means over heads of each layer."""
    groups = {head: np.array([i]) for i, head in enumerate(curves.heads)}
    groups |= {f"L{layer}H*": np.flatnonzero(curves.layers == layer) for layer in layers}
    return curves.means_over_heads(groups)


def _change(values: FloatArray, noise: FloatArray, start: int, end: int, *, chosen: int) -> Change:
    """Of curves ``[curve, checkpoint]`` with errors ``[resample, curve, checkpoint]``.

    One of both ends was ``chosen`` for its value. The change is held against what errors make of
    the largest one between the other end and any checkpoint, of any curve.
    """
    change = values[:, end] - values[:, start]
    apart = noise - noise[..., [start if chosen == end else end]]
    sd = apart.std(0, ddof=1)
    scaled = np.divide(np.abs(apart), sd, out=np.zeros_like(apart), where=sd > 0)
    largest = scaled.reshape(len(noise), -1).max(1)
    se = (noise[..., end] - noise[..., start]).std(0, ddof=1)
    z = np.divide(np.abs(change), se, out=np.full_like(change, np.inf), where=se > 0)
    p = (1 + (largest >= z[:, None] - 1e-12).sum(1)) / (1 + len(largest))
    width = np.quantile(largest, 1 - SIGNIFICANT) * se
    return Change(change, change - width, change + width, p)


def _model_refined(development: Any, probe: str | None) -> str:
    """The probe with the one-layer reference."""
    found = refined_curves(development, "development")
    probes = [str(name) for name in found["probe"].values] if "probe_llc" in found else []
    if probe is not None:
        choice("probe", probe, [WEIGHT_REFINED, *probes])
        return probe
    if isinstance(development, xr.DataTree) and "per_token_llc" in development.children:
        own = set(development["per_token_llc"].children)  # of next-token probes
        probes = [name for name in probes if name not in own]
    if len(probes) != 1:
        what = (
            f"one of {', '.join(probes)}" if probes else "there: develop with a Probe(reference=…)"
        )
        raise ValueError(f"probe, the one whose reference is a one-layer model, must be {what}")
    return probes[0]


def _index(curves: HeadCurves, name: str, step: int | None) -> int | None:
    if step is None:
        return None
    places = np.flatnonzero(curves.steps == step)
    if not len(places):
        known = ", ".join(f"{s:g}" for s in curves.steps)
        raise ValueError(f"{name}: there is no checkpoint {step}; there are {known}")
    return int(places[0])


def _of_curves(found: Moved, last: int) -> xr.Dataset:
    curves, change = found.curves, found.after_peak
    names = list(curves.heads)
    by_checkpoint = (CHECKPOINT, "component")
    data: dict[str, Any] = {
        "llc": (by_checkpoint, curves.values[0].T), "se": (by_checkpoint, curves.se[0].T),
    }  # fmt: skip
    single = {
        "before": curves.values[0, :, found.peak], "after": curves.values[0, :, last],
        "change": change.change, "change_low": change.low, "change_high": change.high,
        "p": change.p, "word": change.words,
    }  # fmt: skip
    data |= {name: ("component", values) for name, values in single.items()}
    steps = curves.steps.astype(int)
    attrs = {
        "probe": curves.refinements[0], "before_step": int(steps[found.peak]),
        "after_step": int(steps[last]), "peak_low": int(steps[found.peak_low]),
        "peak_high": int(steps[found.peak_high]), "to_peak": str(found.to_peak.words[0]),
    }  # fmt: skip
    return xr.Dataset(data, {CHECKPOINT: steps, "component": names}, attrs)


def _of_ablation(effects: Effects) -> dict[str, Any]:
    over, each = ("when", "component", "pattern"), ("component", "pattern")
    change, se = effects.change, effects.change_se
    wide = HALF_WIDTH
    z = np.divide(np.abs(change), se, out=np.full_like(change, np.nan), where=se > 0)
    p = np.stack([holm(column) for column in (2 * stats.norm.sf(z)).T], 1)
    known = np.isfinite(p)
    return {
        "effect": (over, effects.effect), "effect_se": (over, effects.effect_se),
        "affected_share": (over, effects.share), "affected_share_se": (over, effects.share_se),
        "token_share": ("pattern", effects.token_share),
        "effect_change": (each, change), "effect_change_se": (each, se),
        "effect_change_low": (each, change - wide * se),
        "effect_change_high": (each, change + wide * se), "effect_change_p": (each, p),
        "effect_word": (each, words_of(change, np.where(known, p, 1.0))),
    }  # fmt: skip
