"""What the tokens of a cluster have in common: their patterns and their components."""

from __future__ import annotations

from typing import Any

import numpy as np
import xarray as xr
from scipy.stats import hypergeom

from lens_slt.arguments import integer
from lens_slt.arrays import BoolArray, FloatArray
from lens_slt.schema import require, stamped
from lens_slt.schemas import MATRICES
from lens_slt.statistics import HALF_WIDTH, false_discovery
from lens_slt.structure.pattern_enrichment import labels_of
from lens_slt.structure.standardize import standardized


def cluster_summary(
    result: xr.Dataset,
    patterns: xr.DataArray,
    matrix: xr.Dataset,
    *,
    permutations: int = 1999,
    seed: int = 0,
) -> xr.Dataset:
    """Size, mean response and enriched patterns of every cluster.

    Tokens of one sequence are not independent: a pattern and a cluster that meet in one document
    meet many times. ``p`` therefore permutes whole sequences: each keeps its clusters and gets
    the pattern labels of another at the same positions, so that only the number of *sequences*
    counts. It is two-sided, (1 + as extreme) / (1 + permutations) doubled, and so no smaller than
    2 / (1 + permutations); ``q`` is corrected over clusters × patterns (Benjamini & Hochberg).
    ``p_token``, Fisher's exact test, takes tokens as independent and is too small. The interval
    of the odds ratio is of that kind too.

    Args:
        result: from :func:`clusters`.
        patterns: bool over pattern × sequence × position, from ``label_patterns`` of the tokens
            that ``matrix`` was measured on.
        matrix: what ``result`` was made of.
        permutations: of sequences.
        seed: of the permutations. The global random state is not touched.

    Returns:
        Dataset over ``label``: ``size``; ``mean`` (component) of the standardised columns; over
        ``pattern``: ``count`` of the cluster's tokens, ``share`` of the cluster, ``share_outside``
        of all other tokens, ``odds_ratio`` with ``odds_low`` and ``odds_high`` (95 %, half a token
        added to each cell: Haldane 1956), ``p``, ``q`` and ``p_token``. Its ``to_dataframe()`` is
        a table.

    Raises ValueError where the labels do not belong to these tokens.

    Example:
        >>> import lens_slt as ls
        >>> model, text = ls.load_model("attn-1l"), ls.load_tokens("mix", n_sequences=8, length=16)
        >>> how = dict(settings=ls.Settings(draws=20, chains=2, steps_per_draw=1), progress=False)
        >>> draws = ls.sample(model, text, "L0H0, L0H1, L0H2", probes={"mix": text}, **how)
        >>> matrix = ls.per_token_llc(draws)
        >>> found = ls.clusters(matrix, method="hdbscan", min_size=5)
        >>> table = ls.cluster_summary(found, ls.label_patterns(text), matrix, permutations=19)
        >>> table["share"].dims
        ('label', 'pattern')
    """
    integer("permutations", permutations, at_least=1)
    integer("seed", seed, at_least=0)
    result = require(result, "clusters", argument="result")
    matrix = require(matrix, *MATRICES, argument="matrix")
    n_tokens = matrix.sizes["token"]
    if result.sizes["token"] != n_tokens or not _same_tokens(result, matrix):
        raise ValueError(
            f"result has clusters of {result.sizes['token']} tokens and matrix has {n_tokens}: "
            "pass the matrix that the clusters are of"
        )
    labelled = labels_of(matrix, patterns)
    table = patterns.transpose("pattern", "sequence", "position").values.astype(bool)
    points = standardized(matrix)
    member = result["cluster"].values[None] == result["label"].values[:, None]
    size = member.sum(1)
    if (size == 0).any():
        raise ValueError(f"result has no token in cluster {result['label'].values[size == 0][0]}")
    count = (member.astype(float) @ labelled.T.astype(float)).round().astype(int)
    total = labelled.sum(1)[None]
    p = _permuted(member, table, matrix, count, permutations, seed)
    odds, low, high = _odds(count, size[:, None], total, n_tokens)
    both = ("label", "pattern")
    data: dict[str, Any] = {
        "size": ("label", size),
        "mean": (("label", "component"), member @ points / size[:, None]),
        "count": (both, count),
        "share": (both, count / size[:, None]),
        "share_outside": (both, (total - count) / np.maximum(n_tokens - size, 1)[:, None]),
        "odds_ratio": (both, odds),
        "odds_low": (both, low),
        "odds_high": (both, high),
        "p": (both, p),
        "q": (both, false_discovery(p)),
        "p_token": (both, _fisher(count, size[:, None], total, n_tokens)),
    }
    coords = {
        "label": result["label"].values,
        "pattern": patterns["pattern"].values,
        "component": matrix["component"].values,
    }
    attrs = {"permutations": permutations, "seed": seed}
    return stamped(xr.Dataset(data, coords=coords, attrs=attrs), "cluster_summary")


def _same_tokens(found: xr.Dataset, matrix: xr.Dataset) -> bool:
    return all(
        np.array_equal(found[name].values, matrix[name].values) for name in ("sequence", "position")
    )


def _permuted(
    member: BoolArray,
    table: BoolArray,
    matrix: xr.Dataset,
    count: np.ndarray,
    permutations: int,
    seed: int,
) -> FloatArray:
    """Two-sided p ``[cluster, pattern]`` of ``count`` under permutations of the sequences."""
    rng = np.random.default_rng(seed)
    rows, inverse = np.unique(matrix["sequence"].values, return_inverse=True)
    cluster, tokens = np.nonzero(member)
    starts = np.searchsorted(cluster, np.arange(len(member)))
    as_high, as_low = np.ones(count.shape), np.ones(count.shape)
    if not len(tokens):
        return np.ones(count.shape)
    here, at = inverse[tokens], matrix["position"].values[tokens]
    for _ in range(permutations):
        drawn = rows[rng.permutation(len(rows))]
        labels = table[:, drawn[here], at]
        made = np.add.reduceat(labels, starts, axis=1, dtype=int).T
        as_high += made >= count
        as_low += made <= count
    return np.minimum(1.0, 2 * np.minimum(as_high, as_low) / (permutations + 1))


def _odds(
    count: np.ndarray, size: np.ndarray, total: np.ndarray, n_tokens: int
) -> tuple[FloatArray, FloatArray, FloatArray]:
    cells = np.stack([count, size - count, total - count, n_tokens - size - total + count]) + 0.5
    log = np.log(cells[0] * cells[3] / (cells[1] * cells[2]))
    error = HALF_WIDTH * np.sqrt((1 / cells).sum(0))
    return np.exp(log), np.exp(log - error), np.exp(log + error)


def _fisher(count: np.ndarray, size: np.ndarray, total: np.ndarray, n_tokens: int) -> FloatArray:
    """Fisher's exact p, twice the smaller tail."""
    high = hypergeom.sf(count - 1, n_tokens, total, size)
    low = hypergeom.cdf(count, n_tokens, total, size)
    return np.minimum(1.0, 2 * np.minimum(high, low))
