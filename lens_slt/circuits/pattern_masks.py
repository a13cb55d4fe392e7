"""Which tokens the patterns of hypotheses are about."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import xarray as xr
from torch import Tensor

from lens_slt.arguments import did_you_mean
from lens_slt.arrays import BoolArray
from lens_slt.circuits.hypothesis import CircuitHypothesis
from lens_slt.circuits.runs import Runs
from lens_slt.data.patterns import PATTERNS, checked_pattern, label_patterns
from lens_slt.schema import require, stamped

ALL = "all"  # the pattern of every prediction that counts


def pattern_masks(
    hypotheses: Sequence[CircuitHypothesis], patterns: Any, runs: Runs, tokenizer: Any
) -> dict[str, BoolArray]:
    """Labels of the tokens for every hypothesis's pattern, bool ``[sequence, position - 1]``.

    Raises ValueError for labels of other tokens, and patterns that they do not have.
    """
    names = list(dict.fromkeys(one.pattern for one in hypotheses))
    if ALL in names and (patterns is None or ALL not in _names_of(patterns)):
        rest = [one for one in hypotheses if one.pattern != ALL]
        found = pattern_masks(rest, patterns, runs, tokenizer) if rest else {}
        return found | {ALL: runs.real}
    move: Callable[[Any], Any] = runs.moved
    given = patterns
    if patterns is None:
        patterns, move = label_patterns(runs.tokens, tokenizer), lambda labels: labels
    if not isinstance(patterns, xr.DataArray):
        mask = checked_pattern(patterns, runs.real.shape, "patterns")
        if len(names) > 1:
            raise ValueError(
                f"patterns is one array, the hypotheses are about {', '.join(names)}: pass labels "
                "with names, from label_patterns"
            )
        return {name: move(mask) for name in names}
    patterns = require(patterns, "patterns", argument="patterns")
    known = [str(name) for name in patterns["pattern"].values]
    for name in names:
        if name not in known:
            hint = did_you_mean(name, known)
            if name in PATTERNS and given is None and tokenizer is None:
                hint = "; it is read off the text, and the model has no tokenizer: pass patterns="
            raise ValueError(
                f"pattern {name!r} is not among those of patterns: {', '.join(known)}{hint}"
            )
    if patterns.shape[1:] != runs.real.shape:
        raise ValueError(
            f"patterns label {patterns.shape[1]} sequences of {patterns.shape[2]} positions, "
            f"tokens have {runs.real.shape[0]} of {runs.real.shape[1]}: label these tokens"
        )
    there = patterns.coords.get("token_id")
    if there is not None:
        same = move(there.values) == runs.tokens[:, 1:].numpy()
        if not bool((same | ~runs.real).all()):
            raise ValueError("patterns label other tokens than these: label these tokens")
    return {name: move(patterns.sel(pattern=name).values.astype(bool)) for name in names}


def every_prediction(tokens: Tensor) -> xr.DataArray:
    """Labels of tokens ``[sequence, position]`` with one pattern, ``all``, which all of them have.

    Of a probe with position weights only those that count are in its matrices.
    """
    ids = tokens[:, 1:].numpy()
    patterns = xr.DataArray(
        np.ones((1, *ids.shape), dtype=bool),
        dims=("pattern", "sequence", "position"),
        coords={"pattern": [ALL], "token_id": (("sequence", "position"), ids)},
        name="patterns",
    )
    return stamped(patterns, "patterns")


def _names_of(patterns: Any) -> set[str]:
    """Names of the patterns of labels; none for a bare array, which may be of any name."""
    named = isinstance(patterns, xr.DataArray) and "pattern" in patterns.coords
    return {str(name) for name in patterns["pattern"].values} if named else {ALL}
