"""Differences between two results, with intervals that know what the two share."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd
import xarray as xr
from scipy import stats

from lens_slt.arguments import typed
from lens_slt.circuits.trial import Trial, compare_trials
from lens_slt.development.curves import CHECKPOINT, settings_differences
from lens_slt.development.head_curves import LEAST_BLOCKS
from lens_slt.schema import require, stamped
from lens_slt.schemas import LEADING
from lens_slt.statistics import ENDS, false_discovery

# Of every result that can be compared: its quantities, each with standard error and blocks.
QUANTITIES: dict[str, dict[str, tuple[str, str]]] = {
    "refined_llc": {"llc": ("se", "blocks"), "probe_llc": ("probe_se", "probe_blocks")},
    "per_token_llc": {"llc": ("se", "blocks")},
    "susceptibility": {"chi": ("se", "blocks")},
    "refined_observable": {"shift": ("se", "")},
    "sublosses": {"loss": ("se", "blocks")},
    "behaviour_scores": {
        name: (f"{name}_se", "")
        for name in (
            "previous_token", "current_token", "first_token", "duplicate_token", "prefix_matching",
            "induction", "ngram", "skip_gram",
        )
    },
}  # fmt: skip
NOISE_SETTINGS = ("seed", "chains", "draws", "burn_in", "batch_size", "antithetic", "thin")


@typed
def compare(
    one: Sequence[Trial] | xr.Dataset, other: xr.Dataset | None = None
) -> pd.DataFrame | xr.Dataset:
    """Trials side by side, or the difference of two results with its error.

    Two results may be of two checkpoints, of two settings, or of two models whose components have
    equal names; curves are compared with curves at the same steps, or with one checkpoint.

    Args:
        one: from a function of lens_slt (refined LLCs, a per-token matrix, behaviour scores,
            sublosses, refined observables); or trials, without ``other``: the table of
            :func:`lens_slt.circuits.trial.compare_trials`.
        other: the same of something else.

    Returns:
        Dataset of ``other`` minus ``one`` for what both have: by quantity ``{name}``,
        ``{name}_se``, ``{name}_low`` and ``{name}_high`` (95 %), ``{name}_p`` of no difference and
        ``{name}_q`` after Benjamini–Hochberg over all of that quantity; ``paired``, whether errors
        are those of paired differences. In JSON: ``differs``, the settings that are not the same;
        ``left_out``, components that only one has.

    Errors are paired, block of draws by block of draws, where both were drawn with the same noise
    step by step: equal seed, draws and batches, and for the component equal step sizes. Elsewhere
    they add up as those of independent runs, which is too wide for runs that share a part.

    Raises:
        TypeError, ValueError: results of different functions, of different tokens, or nothing that
            both have.

    Example:
        >>> import lens_slt as ls
        >>> run = ls.checkpoints("attn-2l")
        >>> before, after = (ls.behaviour_scores(run.load(step)) for step in (1000, 2900))
        >>> change = ls.compare(before, after)["prefix_matching"]
        >>> str(change.idxmax("component").values)[:2]
        'L1'
    """
    if not isinstance(one, xr.Dataset):
        if other is not None:
            raise TypeError(f"one must be a result like other; got {type(one).__name__}")
        return compare_trials(one)
    if other is None:
        raise TypeError("other is missing: the result to compare with")
    return differences(one, other)


def differences(one: xr.Dataset, other: xr.Dataset) -> xr.Dataset:
    """What :func:`compare` says of two results."""
    one = require(one, *QUANTITIES, argument="one", leading=LEADING)
    name = str(one.attrs["result"])
    other = require(other, name, argument="other", leading=LEADING)
    if one.attrs.get("tokens_hash") != other.attrs.get("tokens_hash"):
        raise ValueError(
            "one and other were measured on different tokens, whose difference would be in it: "
            "measure both on the same"
        )
    one, other, left_out = _aligned(one, other)
    paired = _paired(one, other)
    found: dict[str, Any] = {"paired": paired}
    for quantity, names in QUANTITIES[name].items():
        if quantity in one and quantity in other:
            found |= _difference(one, other, (quantity, *names), paired)
    attrs = {
        "compared": name,
        "differs": json.dumps(settings_differences(one.attrs, other.attrs)),
        "left_out": json.dumps(left_out),
    }
    return stamped(xr.Dataset(found, attrs=attrs), "differences")


def _aligned(one: xr.Dataset, other: xr.Dataset) -> tuple[xr.Dataset, xr.Dataset, list[str]]:
    """What both have, in the order of the first, and the components that only one has."""
    left_out: list[str] = []
    for dim in ("component", CHECKPOINT):
        if not (dim in one.dims and dim in other.dims):
            continue
        here, there = one[dim].values.tolist(), other[dim].values.tolist()
        both = [label for label in here if label in there]
        if not both:
            raise ValueError(f"one and other have no {dim} in common: {here} and {there}")
        one, other = one.sel({dim: both}), other.sel({dim: both})
        left_out += [str(label) for label in [*here, *there] if label not in both]
    for dim in ("probe", "pattern", "observable"):
        if dim in one.dims and one[dim].values.tolist() != other[dim].values.tolist():
            here, there = (", ".join(map(str, data[dim].values)) for data in (one, other))
            raise ValueError(f"one and other have different {dim}s: {here}; {there}")
    if "token" in one.dims:
        places = ("sequence", "position", "token_id")
        if any(not np.array_equal(one[key].values, other[key].values) for key in places):
            raise ValueError("one and other were read off different tokens: use the same probe")
    return one, other, left_out


def _paired(one: xr.Dataset, other: xr.Dataset) -> xr.DataArray:
    """Whether the noise is the same, step by step, of every component."""
    if one.attrs["result"] == "sublosses":  # the same sequences
        return xr.DataArray(True)
    here, there = (json.loads(data.attrs.get("settings", "{}")) for data in (one, other))
    same = bool(here) and all(here.get(key) == there.get(key) for key in NOISE_SETTINGS)
    if "step_size" not in one or "step_size" not in other:
        return xr.DataArray(False)
    return same & (one["step_size"] == other["step_size"]) & (one["n_draws"] == other["n_draws"])


def _difference(
    one: xr.Dataset, other: xr.Dataset, names: tuple[str, str, str], paired: xr.DataArray
) -> dict[str, xr.DataArray]:
    """One quantity's difference with error, interval and p-values."""
    quantity, error, blocks = names
    difference = other[quantity] - one[quantity]
    se = (one[error] ** 2 + other[error] ** 2) ** 0.5
    known = bool(blocks) and blocks in one and blocks in other
    # Errors are known no better than the fewer blocks allow; without blocks, as if exactly.
    freedom = (np.minimum(_n_blocks(one), _n_blocks(other)) - 1).clip(1) if known else np.inf
    freedom = xr.DataArray(freedom).broadcast_like(difference).transpose(*difference.dims).values
    if known and one.sizes["block"] == other.sizes["block"] >= LEAST_BLOCKS:
        apart = other[blocks] - one[blocks]
        own = apart.std("block", ddof=1) / apart.sizes["block"] ** 0.5
        se = xr.where(paired, own, se).transpose(*difference.dims)
    wide = stats.t.ppf(ENDS[1], freedom)
    z = np.abs(difference.values) / np.where(se.values > 0, se.values, np.nan)
    p = 2 * stats.t.sf(z, freedom)
    return {
        quantity: difference, f"{quantity}_se": se, f"{quantity}_low": difference - wide * se,
        f"{quantity}_high": difference + wide * se, f"{quantity}_p": difference.copy(data=p),
        f"{quantity}_q": difference.copy(data=false_discovery(p)),
    }  # fmt: skip


def _n_blocks(result: xr.Dataset) -> xr.DataArray:
    """How many blocks tell something: of the loss of a pattern, those that it is in."""
    return result.get("n_blocks", xr.DataArray(result.sizes["block"]))
