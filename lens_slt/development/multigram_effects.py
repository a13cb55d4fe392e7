"""Which tokens the ablation of each head affects, at two checkpoints."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import xarray as xr

from lens_slt.arrays import BoolArray, FloatArray
from lens_slt.circuits.behaviour import Textless
from lens_slt.circuits.replacements import Ablation
from lens_slt.circuits.roles import nodes_of
from lens_slt.circuits.runs import Runs
from lens_slt.circuits.statistics import FEWEST_TOKENS
from lens_slt.data.checks import mask_from_pad_id
from lens_slt.data.columns import moved_back
from lens_slt.data.inputs import read_inputs
from lens_slt.data.patterns import label_patterns, ngram_counts
from lens_slt.models.adapter import adapt
from lens_slt.models.names import read_part
from lens_slt.statistics import ratio_of_sums

MULTIGRAM, INDUCTION, OTHER = "multigram", "induction", "other"
NEEDED = ("ngram", "skip_gram", "induction")  # patterns
MOST_AFFECTED = 0.05  # of the tokens


@dataclass(frozen=True)
class Effects:
    """Mean effects on the tokens of patterns; what is hurt most."""

    patterns: tuple[str, ...]
    effect: FloatArray  # [when, component, pattern], nats
    effect_se: FloatArray
    share: FloatArray  # [when, component, pattern] among the most affected tokens
    share_se: FloatArray
    token_share: FloatArray  # [pattern] among all tokens
    change: FloatArray  # [component, pattern] of the effect
    change_se: FloatArray


def multigram_patterns(
    tokens: Any, model: Any, mask: Any, pad_id: int | None = None
) -> xr.DataArray:
    """Labels of tokens with n-grams and skip-grams counted in them.

    Of a model without a tokenizer they are told by ids alone.
    """
    adapted = adapt(model)
    if mask is None and pad_id is not None:
        mask = mask_from_pad_id(read_inputs(tokens).ids, pad_id, "tokens")
    tokenizer = getattr(adapted.module, "tokenizer", None) or Textless(adapted.d_vocab)
    counts = ngram_counts(tokens, tokenizer, mask=mask)
    return label_patterns(tokens, tokenizer, mask=mask, counts=counts)


def affected(
    models: Iterable[Any],
    tokens: Any,
    heads: Sequence[str],
    components: Sequence[str],
    patterns: xr.DataArray,
    how: str | Ablation,
    options: Mapping[str, Any],
) -> Effects:
    """Effects of ablating each head of two models; of ``L0H*`` the mean over that layer's heads.

    Args:
        models: before and after.
        tokens, how, options: for :func:`lens_slt.ablate`.
        heads: to ablate, one by one.
        components: heads and layers, in the order of the result.
        patterns: labels with ``ngram`` and ``skip_gram``.

    Raises ValueError for patterns of other tokens, or fewer than 20 multigrams.
    """
    _refuse_without_multigrams(patterns)
    found = []
    for model in models:
        runs = Runs(adapt(model), tokens, how, **options)
        alone = {
            head: moved_back(runs.loss(nodes_of(head, runs.adapted)) - runs.base, runs.shift)
            for head in heads
        }
        found.append(np.stack([_mean_of(alone, name) for name in components]))
    effect = np.stack(found).astype(float)  # [when, component, sequence, position]
    real = np.isfinite(effect).all((0, 1))
    groups = _groups(patterns, real)
    total = np.stack([np.where(g, effect, 0).sum(-1) for g in groups.values()], 2)
    count = np.stack([g.sum(-1) for g in groups.values()])
    mean, se = _ratios(total, count)
    change, change_se = _ratios(total[1] - total[0], count)
    top = np.stack([[_most(one, real) for one in row] for row in effect])
    hits = np.stack([(top & g).sum(-1) for g in groups.values()], 2)
    share, share_se = _ratios(hits, top.sum(-1)[:, :, None])
    return Effects(
        tuple(groups), mean, se, share, share_se, count.sum(-1) / real.sum(), change, change_se
    )


def _mean_of(alone: Mapping[str, FloatArray], name: str) -> FloatArray:
    if name in alone:
        return alone[name]
    part = read_part(name)
    assert part is not None
    return np.mean([e for head, e in alone.items() if head.startswith(f"L{part.layer}H")], axis=0)


def _groups(patterns: xr.DataArray, real: BoolArray) -> dict[str, BoolArray]:
    """Tokens by pattern, each in one."""
    if patterns.shape[1:] != real.shape:
        raise ValueError(
            f"patterns are of other tokens: {patterns.shape[1:]} predictions, not {real.shape}"
        )
    labels = {name: patterns.sel(pattern=name).values.astype(bool) & real for name in NEEDED}
    again = labels["induction"]
    multigram = (labels["ngram"] | labels["skip_gram"]) & ~again
    if multigram.sum() < FEWEST_TOKENS:
        raise ValueError(
            f"tokens have {int(multigram.sum())} n-grams and skip-grams; at least {FEWEST_TOKENS} "
            "are needed: use more tokens"
        )
    return {MULTIGRAM: multigram, INDUCTION: again, OTHER: real & ~again & ~multigram}


def _refuse_without_multigrams(patterns: xr.DataArray) -> None:
    if not set(NEEDED) <= set(patterns["pattern"].values.tolist()):
        raise ValueError(
            f"patterns must have {', '.join(NEEDED)}: "
            "label_patterns(tokens, tokenizer, counts=ngram_counts(tokens, tokenizer))"
        )


def _ratios(total: FloatArray, count: Any) -> tuple[FloatArray, FloatArray]:
    """Σ total / Σ count over sequences, the last axis, and its error."""
    return ratio_of_sums(total, np.broadcast_to(count, total.shape))


def _most(effect: FloatArray, real: BoolArray) -> BoolArray:
    """The twentieth of the tokens whose loss rises most."""
    most = np.where(real, effect, -np.inf)
    edge = np.quantile(most[real], 1 - MOST_AFFECTED)
    return np.asarray(most >= edge)
