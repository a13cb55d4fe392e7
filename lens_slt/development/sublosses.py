"""The loss of every pattern of tokens, with errors that can be paired between checkpoints."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import xarray as xr

from lens_slt.arrays import BoolArray, FloatArray
from lens_slt.circuits.pattern_masks import ALL
from lens_slt.sampling.spread import blocks_of, number_of_blocks, pseudo_values
from lens_slt.schema import stamped
from lens_slt.statistics import mean_over_tokens


def sublosses(
    losses: Mapping[str, FloatArray],
    weights: Mapping[str, FloatArray],
    patterns: Mapping[str, xr.DataArray],
    tokens_hash: str,
) -> xr.Dataset:
    """Mean loss of the tokens of every pattern, in nats per token, of every probe.

    Args:
        losses: by probe, per token ``[sequence, position]``; NaN where a token does not count.
        weights: likewise, how much every token counts.
        patterns: by probe, labels (pattern, sequence, position); a probe without has ``all`` only.
        tokens_hash: of all these tokens.

    Returns:
        Dataset over (probe, pattern): ``loss``, its standard error over sequences ``se``, and
        ``n_tokens``; ``blocks`` over groups of sequences are the jackknife's values, and
        ``n_blocks`` says in how many of these groups the pattern is. NaN where a probe has no token
        of the pattern.
    """
    named = [str(name) for one in patterns.values() for name in one["pattern"].values]
    names = list(dict.fromkeys([ALL, *named]))
    n_blocks = min(number_of_blocks(5 * len(one)) for one in losses.values())
    shape = (len(losses), len(names))
    found = {key: np.full(shape, np.nan) for key in ("loss", "se")}
    counts, held = np.zeros(shape, dtype=int), np.zeros(shape, dtype=int)
    blocks = np.full((n_blocks, *shape), np.nan)
    for i, (probe, loss) in enumerate(losses.items()):
        real = np.isfinite(loss)
        for j, name in enumerate(names):
            chosen = real & _labels(patterns.get(probe), name, loss.shape)
            counts[i, j] = chosen.sum()
            weight = np.where(chosen, weights[probe], 0.0)
            if not weight.sum():
                continue
            found["loss"][i, j], found["se"][i, j] = mean_over_tokens(np.nan_to_num(loss), weight)
            blocks[:, i, j], held[i, j] = _blocks(np.nan_to_num(loss), weight, n_blocks)
    dims = ("probe", "pattern")
    data = xr.Dataset(
        {key: (dims, values) for key, values in found.items()}
        | {"n_tokens": (dims, counts), "n_blocks": (dims, held)}
        | {"blocks": (("block", *dims), blocks)},
        coords={"probe": list(losses), "pattern": names},
        attrs={"tokens_hash": tokens_hash},
    )
    return stamped(data, "sublosses")


def _labels(patterns: xr.DataArray | None, name: str, shape: tuple[int, ...]) -> BoolArray:
    if name == ALL:
        return np.ones(shape, dtype=bool)
    if patterns is None or name not in patterns["pattern"].values:
        return np.zeros(shape, dtype=bool)
    return patterns.sel(pattern=name).values.astype(bool)


def _blocks(loss: FloatArray, weight: FloatArray, n_blocks: int) -> tuple[FloatArray, int]:
    """The jackknife's values over groups of consecutive sequences, NaN if one holds all tokens; and
    how many hold any."""
    per_sequence = weight.sum(1)
    means = np.zeros(len(loss))
    np.divide((weight * loss).sum(1), per_sequence, out=means, where=per_sequence > 0)
    held = sum(bool(per_sequence[b].sum()) for b in blocks_of(len(loss), n_blocks))
    if held < 2:
        return np.full(n_blocks, np.nan), held
    return pseudo_values(means[None], per_sequence[None], n_blocks), held
