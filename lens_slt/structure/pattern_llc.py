"""What components hold on the tokens of each pattern, and beyond what they hold elsewhere."""

from __future__ import annotations

import numpy as np
import xarray as xr

from lens_slt.arguments import typed
from lens_slt.arrays import BoolArray, FloatArray
from lens_slt.schema import require, stamped
from lens_slt.statistics import error_of_mean
from lens_slt.structure.pattern_enrichment import FEWEST, labels_of


@typed
def pattern_llc(result: xr.Dataset, patterns: xr.DataArray) -> xr.Dataset:
    """The rLLC of every component on the tokens of each pattern, and beyond that on other tokens.

    The mean of the per-token rLLCs over a pattern's tokens is the data-refined LLC of a probe of
    these alone. Every token counts alike, also where the probe's own tokens have weights. All
    components hold more as weights grow, and all hold more on tokens that are hard; a component
    that works for a pattern stands out in the *contrast*, the mean on its tokens minus the mean on
    all others. Over checkpoints (:func:`lens_slt.join_checkpoints`) contrasts show which head
    takes a pattern up, and when: :func:`lens_slt.plot_curves`, :func:`lens_slt.transitions` and
    :func:`lens_slt.head_trajectories` take them.

    Errors are those of the draws, for these tokens: what other text would show is not in them.

    Args:
        result: per-token rLLCs, with their blocks.
        patterns: boolean (pattern, sequence, position), from :func:`lens_slt.label_patterns` of the
            same probe tokens.

    Returns:
        Dataset over (component, pattern): ``llc`` with ``se``, ``contrast`` with ``contrast_se``,
        all dimensionless; ``blocks`` of the contrast, of which the errors are made; ``n_tokens`` of
        every pattern. Patterns with fewer than 20 tokens, or that leave fewer than 20, are left
        out.

    Raises:
        ValueError: patterns of other tokens, none with enough of them, a matrix without blocks.

    Wang et al. 2024 (arXiv 2410.02984) for the data-refined LLC.

    Example:
        >>> import lens_slt as ls
        >>> model, text = ls.load_model("attn-2l"), ls.load_tokens("mix", n_sequences=8, length=64)
        >>> how = dict(settings=ls.Settings(draws=20, chains=2, steps_per_draw=1), progress=False)
        >>> draws = ls.sample(model, text, "L1H1, L1H2", probes={"mix": text}, **how)
        >>> held = ls.pattern_llc(ls.per_token_llc(draws), ls.label_patterns(text))
        >>> str(held["contrast"].sel(pattern="induction").idxmax("component").values)
        'L1H2'
    """
    result = require(result, "per_token_llc", argument="result")
    if result.sizes.get("block", 0) < 2:
        raise ValueError(
            "result has no blocks of draws, of which errors are made: per_token_llc(draws) keeps "
            "them; of a sweep over checkpoints open_checkpoint(folder, step) has them"
        )
    labels = labels_of(result, patterns)
    enough = (labels.sum(1) >= FEWEST) & ((~labels).sum(1) >= FEWEST)
    if not enough.any():
        raise ValueError(
            f"patterns: none has {FEWEST} tokens and leaves {FEWEST} others among the "
            f"{labels.shape[1]} of the probe: use more tokens"
        )
    labels, dims = labels[enough], ("component", "pattern")
    llc = result["llc"].transpose("component", "token").values
    blocks = result["blocks"].transpose("block", "component", "token").values
    on, elsewhere = _means(llc, labels), _means(llc, ~labels)
    block_on, block_elsewhere = _means(blocks, labels), _means(blocks, ~labels)
    found = xr.Dataset(
        {
            "llc": (dims, on), "se": (dims, error_of_mean(block_on)),
            "contrast": (dims, on - elsewhere),
            "contrast_se": (dims, error_of_mean(block_on - block_elsewhere)),
            "blocks": (("block", *dims), block_on - block_elsewhere),
            "n_tokens": ("pattern", labels.sum(1)),
        },
        coords={
            "component": result["component"].values, "pattern": patterns["pattern"].values[enough]
        },
        attrs=result.attrs,
    )  # fmt: skip
    return stamped(found, "pattern_llc")


def _means(values: FloatArray, labels: BoolArray) -> FloatArray:
    """Of ``values [..., token]`` over the tokens of each pattern: ``[..., pattern]``."""
    return np.asarray(values @ (labels / labels.sum(1, keepdims=True)).T, dtype=np.float64)
