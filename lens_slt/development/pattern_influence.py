"""Bayesian influence between patterns of tokens over checkpoints: sign, size, and their turns.

Over training influences change sign, and are largest at transitions (arXiv 2510.12071).
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import xarray as xr
from scipy import stats

from lens_slt.arguments import choice, integer, typed
from lens_slt.arrays import BoolArray, FloatArray
from lens_slt.circuits.statistics import FEWEST_TOKENS
from lens_slt.development.curves import CHECKPOINT
from lens_slt.development.develop import kept_draws
from lens_slt.development.folder import read_patterns, source_of
from lens_slt.observables.influence import chosen_draws, negative_covariance
from lens_slt.observables.per_token import ProbeReader, open_probe
from lens_slt.sampling.folder import folder_of
from lens_slt.schema import require, stamped
from lens_slt.statistics import ENDS, SIGNIFICANT, holm

HELPS, HURTS, UNCLEAR = "helps", "hurts", "unclear"


@typed
def pattern_influence(
    draws: Mapping[int, xr.DataTree] | xr.DataTree | str | Path,
    patterns: xr.DataArray | None = None,
    component: str | None = None,
    *,
    probe: str | None = None,
    n_bootstrap: int = 400,
    seed: int = 0,
) -> xr.Dataset:
    """Influence of the tokens of every pattern on those of every other, at every checkpoint.

    It is −Cov of the mean losses of both patterns over the draws, as :func:`lens_slt.influence`
    has it for sequences: negative where more of the source lowers the loss of the query. Of a
    pattern on itself it is minus a variance, and tokens that two patterns share pull it down.

    Args:
        draws: the ``path`` of ``develop(…, keep_draws=True)``, or what it or
            :func:`lens_slt.open_development` returned; or draws by training step, from
            :func:`lens_slt.sample` with the same probe.
        patterns: labels of the probe's tokens, from :func:`lens_slt.label_patterns`; those with
            fewer than 20 tokens are left out. A sweep has them already.
        component: whose draws; may be left out where there is one.
        probe: which one, where there are several.
        n_bootstrap, seed: of errors that could have been, for the interval of the peak.

    Returns:
        Dataset over (query, source), by checkpoint: ``influence`` in nats² and ``se``;
        ``correlation`` (−Corr) and ``correlation_se``; ``effect``: ``helps`` or ``hurts`` where the
        sign is clear after Holm's correction over all, else ``unclear``. Over (query, source):
        ``flips``, how often the sign of one clear value differs from that of the clear one before;
        ``peak``, the step of the largest absolute influence, with ``peak_low`` and ``peak_high``
        (95 %); ``peak_ratio``, its size over the median one's.

    Raises:
        TypeError, ValueError: fewer than two checkpoints, a sweep that kept no draws, draws or
            labels of other tokens, no pattern with 20 tokens, as :func:`lens_slt.influence`.

    Example:
        >>> import lens_slt as ls
        >>> run, tokens = ls.checkpoints("attn-2l"), ls.load_tokens("mix", n_sequences=8, length=16)
        >>> few = ls.Settings(draws=12, chains=2, burn_in=4, steps_per_draw=1)
        >>> sampled = {
        ...     step: ls.sample(
        ...         run.load(step),
        ...         tokens,
        ...         "L1H2",
        ...         settings=few,
        ...         probes={"mix": tokens},
        ...         progress=False,
        ...     )
        ...     for step in (1000, 2900)
        ... }
        >>> ls.pattern_influence(sampled, ls.label_patterns(tokens))["influence"].dims
        ('checkpoint', 'query', 'source')
    """
    integer("n_bootstrap", n_bootstrap, at_least=20)
    integer("seed", seed, at_least=0)
    if isinstance(draws, str | Path | xr.DataTree):
        draws, patterns, probe = _of_sweep(draws, patterns, component, probe)
    patterns = require(patterns, "patterns", argument="patterns")
    if len(draws) < 2:
        raise ValueError(f"draws must be of at least two checkpoints; got {len(draws)}")
    steps = sorted(draws)
    groups: dict[str, BoolArray] = {}
    tokens = None
    rows, fewest = [], []
    for step in steps:
        reader = open_probe(draws[step], probe)
        own = reader.probe["tokens"].values
        if tokens is None:
            tokens, groups = own, _groups(patterns, reader)
        elif not np.array_equal(own, tokens):
            raise ValueError(f"draws[{step}] has other tokens in its probe than step {steps[0]}")
        rows.append(_at(reader, groups, component))
        fewest.append(reader.n_blocks)
    arrays = dict(zip(("influence", "se", "correlation", "correlation_se"),
                      np.stack(rows, 1), strict=True))  # fmt: skip
    return _result(steps, list(groups), arrays, fewest, n_bootstrap, seed)


def _of_sweep(
    sweep: xr.DataTree | str | Path,
    patterns: xr.DataArray | None,
    component: str | None,
    probe: str | None,
) -> tuple[dict[int, xr.DataTree], xr.DataArray, str]:
    """Draws, labels and name of the probe of a sweep that kept them."""
    if isinstance(sweep, xr.DataTree):
        require(sweep, "development", argument="draws", leading=(CHECKPOINT,))
        folder = source_of(sweep)
        if folder is None:
            raise ValueError(
                "draws: these curves are of no folder: call develop(…, path=…, keep_draws=True)"
            )
    else:
        folder = folder_of(sweep)
    draws = kept_draws(folder, component)
    labels = read_patterns(folder)
    if probe is None and len(labels) == 1:
        probe = next(iter(labels))
    choice("probe", probe, labels)
    return draws, labels[str(probe)] if patterns is None else patterns, str(probe)


def turns(effect: Any) -> Any:
    """How often clear signs ``[checkpoint, ...]`` (1, −1, or 0 for unclear) change."""
    found = np.zeros(effect.shape[1:], dtype=int)
    before = np.zeros(effect.shape[1:], dtype=int)
    for sign in effect:
        found += (sign != 0) & (before != 0) & (sign != before)
        before = np.where(sign != 0, sign, before)
    return found


def _groups(patterns: xr.DataArray, reader: ProbeReader) -> dict[str, BoolArray]:
    """Real tokens of every pattern ``[sequence, position]``."""
    if patterns.shape[1:] != reader.real.shape:
        raise ValueError(
            f"patterns are of other tokens: {patterns.shape[1:]} predictions, the probe has "
            f"{reader.real.shape}"
        )
    found = {
        str(name): patterns.sel(pattern=name).values.astype(bool) & reader.real
        for name in patterns["pattern"].values
    }
    found = {name: where for name, where in found.items() if where.sum() >= FEWEST_TOKENS}
    if not found:
        raise ValueError(f"no pattern has {FEWEST_TOKENS} tokens in this probe: use a larger one")
    return found


def _at(reader: ProbeReader, groups: Mapping[str, BoolArray], component: str | None) -> Any:
    """Influence, error, correlation, error ``[4, query, source]`` of one checkpoint."""
    component, weight = chosen_draws(reader, component)
    drawn = slice(reader.n_draws(component))
    loss = reader.probe["paired_loss"].sel(component=component)[:, drawn].values.astype(np.float64)
    counts = reader.probe["weight"].values
    series = np.stack(
        [np.average(loss[:, :, at], axis=-1, weights=counts[at]) for at in groups.values()], -1
    )
    blocks = reader.blocks(component)
    return [
        one
        for correlation in (False, True)
        for one in negative_covariance(series, series, weight, blocks, correlation)
    ]


def _result(
    steps: list[int],
    names: list[str],
    arrays: dict[str, FloatArray],
    blocks: list[int],
    n: int,
    seed: int,
) -> xr.Dataset:
    value, se = arrays["influence"], arrays["se"]
    z = np.divide(value, se, out=np.zeros_like(value), where=se > 0)
    freedom = np.array(blocks)[:, None, None] - 1
    p = holm(2 * stats.t.sf(np.abs(z), freedom).ravel()).reshape(z.shape)
    sign = np.where(p < SIGNIFICANT, np.sign(value), 0).astype(int)
    drawn = value + se * np.random.default_rng(seed).normal(size=(n, *value.shape))
    at = np.array(steps)
    low, high = np.quantile(np.abs(drawn).argmax(1), ENDS, axis=0, method="inverted_cdf").astype(
        int
    )
    peak, size = np.abs(value).argmax(0), np.abs(value)
    over, once = (CHECKPOINT, "query", "source"), ("query", "source")
    median = np.median(size, axis=0)
    data: dict[str, Any] = {name: (over, array) for name, array in arrays.items()}
    data |= {
        "effect": (over, np.choose(sign + 1, [HELPS, UNCLEAR, HURTS])),
        "flips": (once, turns(sign)), "peak": (once, at[peak]),
        "peak_low": (once, at[np.minimum(low, peak)]),
        "peak_high": (once, at[np.maximum(high, peak)]),
        "peak_ratio": (once, size.max(0) / np.where(median > 0, median, np.nan)),
    }  # fmt: skip
    coords = {CHECKPOINT: steps, "query": names, "source": names}
    return stamped(xr.Dataset(data, coords), "pattern_influence")
