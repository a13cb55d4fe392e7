"""Which patterns of tokens a mode or a component goes with."""

from __future__ import annotations

import numpy as np
import xarray as xr
from numpy.typing import NDArray
from scipy import stats

from lens_slt.arrays import BoolArray, FloatArray
from lens_slt.schema import require, stamped
from lens_slt.schemas import MATRICES
from lens_slt.statistics import ENDS, false_discovery
from lens_slt.structure.standardize import standardized

FEWEST = 20  # tokens of a pattern, and tokens without it, for a statement about it


def enrichment(result: xr.Dataset, patterns: xr.DataArray) -> xr.Dataset:
    """How well each mode, or each component, tells the tokens of a pattern from the others.

    The effect is the AUC: the chance that a token of the pattern has a higher value than one
    without it; 0.5 is no relation, above it is enriched at the high end, below it depleted. Tokens
    of a sequence are not independent: intervals and p-values treat whole sequences as the unit
    (Obuchowski 1997, Nonparametric analysis of clustered ROC curve data, with Student's t).

    Args:
        result: modes, or a matrix: its standardised columns are tested then. On susceptibilities a
            component expresses a pattern where the AUC is under 0.5 and suppresses it above.
        patterns: boolean (pattern, sequence, position), from :func:`lens_slt.label_patterns` of the
            same probe tokens.

    Returns:
        Dataset over (mode or component, pattern): ``auc``, ``low``, ``high`` (95 %), ``p`` against
        0.5, ``q``, p after Benjamini–Hochberg over the whole table; ``n_tokens`` and
        ``n_sequences`` of every pattern. NaN where a pattern has, or leaves, fewer than 20 tokens
        or fewer than three sequences with some.

    Raises:
        ValueError: patterns of other tokens.

    Example:
        >>> import lens_slt as ls
        >>> model, text = ls.load_model("attn-1l"), ls.load_tokens("mix", n_sequences=8, length=16)
        >>> how = dict(settings=ls.Settings(draws=20, chains=2, steps_per_draw=1), progress=False)
        >>> draws = ls.sample(model, text, "L0H0, L0H1, L0H2", probes={"mix": text}, **how)
        >>> found = ls.modes(ls.per_token_llc(draws), n_modes=3, n_bootstrap=0)
        >>> ls.enrichment(found, ls.label_patterns(text))["auc"].dims
        ('mode', 'pattern')
    """
    result = require(result, "modes", *MATRICES, argument="result")
    labels = labels_of(result, patterns)
    if "mode" in result.dims:
        rows, names = result["score"].values, result["mode"]
    else:
        rows, names = standardized(result).T, result["component"]
    _, sequence = np.unique(result["sequence"].values, return_inverse=True)
    auc, se = np.array([clustered_auc(row, labels, sequence) for row in rows]).transpose(1, 0, 2)
    n_sequences, n_others = (
        np.array([len(np.unique(sequence[row])) for row in side]) for side in (labels, ~labels)
    )
    fewest = np.minimum(n_sequences, n_others)  # an AUC is of both sides alike
    few = (labels.sum(1) < FEWEST) | ((~labels).sum(1) < FEWEST) | (fewest < 3)
    auc, se = np.where(few, np.nan, auc), np.where(few, np.nan, se)
    freedom = np.maximum(fewest - 1, 1)
    p = 2 * stats.t.sf(np.abs(auc - 0.5) / se, freedom)
    half = stats.t.ppf(ENDS[1], freedom) * se
    dims = (str(names.dims[0]), "pattern")
    enriched = xr.Dataset(
        {
            "auc": (dims, auc),
            "low": (dims, np.maximum(auc - half, 0)),
            "high": (dims, np.minimum(auc + half, 1)),
            "p": (dims, p),
            "q": (dims, false_discovery(p)),
            "n_tokens": ("pattern", labels.sum(1)),
            "n_sequences": ("pattern", n_sequences),
        },
        coords={dims[0]: names.values, "pattern": patterns["pattern"].values},
        attrs={"quantity": result.attrs["quantity"]},
    )
    return stamped(enriched, "enrichment")


def labels_of(result: xr.Dataset, patterns: xr.DataArray) -> BoolArray:
    """Labels ``[pattern, token]`` of the tokens of a matrix or of modes.

    Raises ValueError where the patterns cannot belong to them.
    """
    ordered = require(patterns, "patterns", argument="patterns")
    sequence, position = result["sequence"].values, result["position"].values
    needed = (int(sequence.max()) + 1, int(position.max()) + 1)
    if any(n > there for n, there in zip(needed, ordered.shape[1:], strict=True)):
        raise ValueError(
            f"patterns label {ordered.shape[1]} sequences of {ordered.shape[2]} positions; the "
            f"matrix has {needed[0]} of {needed[1]}: label the tokens of its probe"
        )
    there = ordered.coords.get("token_id")
    if there is not None:
        same = there.values[sequence, position]
        differing = int((same != result["token_id"].values).sum())
        if differing:
            raise ValueError(
                f"patterns label other tokens than the matrix has ({differing} of {len(same)} "
                "differ): label the tokens of its probe, with the model's tokenizer"
            )
    return ordered.values[:, sequence, position].astype(bool)


def clustered_auc(
    score: FloatArray, labels: BoolArray, sequence: NDArray[np.integer]
) -> tuple[FloatArray, FloatArray]:
    """AUC of ``score [token]`` for ``labels [pattern, token]`` and its cluster-robust error."""
    order = np.argsort(score, kind="stable")
    ranked, positive = score[order], labels[:, order]
    # Ties count half: the mean of the counts before the first and after the last of them.
    first = np.searchsorted(ranked, ranked, "left")
    last = np.searchsorted(ranked, ranked, "right")
    n_pos = positive.sum(1, keepdims=True)
    n_neg = positive.shape[1] - n_pos

    def share_below(mask: BoolArray, n: FloatArray) -> FloatArray:
        below = np.concatenate([np.zeros((len(mask), 1)), mask.cumsum(1)], axis=1)
        return (below[:, first] + below[:, last]) / 2 / np.maximum(n, 1)

    v, w = share_below(~positive, n_neg), 1 - share_below(positive, n_pos)
    auc = np.where(positive, v, 0).sum(1) / np.maximum(n_pos[:, 0], 1)
    part = np.where(
        positive,
        (v - auc[:, None]) / np.maximum(n_pos, 1),
        (w - auc[:, None]) / np.maximum(n_neg, 1),
    )
    n_sequences = int(sequence.max()) + 1
    sums = np.array([np.bincount(sequence[order], row, n_sequences) for row in part])
    factor = n_sequences / max(n_sequences - 1, 1)
    return auc, np.sqrt(factor * (sums**2).sum(1))
