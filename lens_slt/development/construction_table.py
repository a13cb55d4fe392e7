"""The construction of circuits as a table that is read from the first stage to the last."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
import xarray as xr
from scipy import stats

from lens_slt.arguments import typed
from lens_slt.development.construction import (
    ALONE,
    BEHAVES,
    CRITERIA,
    NEEDED,
    SUPPORTED,
    behaviour_units,
)
from lens_slt.development.construction_cells import CIRCUIT
from lens_slt.development.curves import CHECKPOINT
from lens_slt.development.onsets import boundaries_of
from lens_slt.schema import require
from lens_slt.statistics import ENDS

NEVER, UNCLEAR = "not there at the end", "not clear"


@typed
def construction_table(result: xr.Dataset, stages: Any = None) -> pd.DataFrame:
    """One row per part and criterion: from when on it is there, what it does at the end, its stage.

    Args:
        result: from :func:`lens_slt.construction`.
        stages: of one curve, from ``stages(…)``; or boundaries as steps, or as (step, low, high).

    Returns:
        Columns ``circuit``, ``part``, ``kind``; ``criterion`` and ``what`` it says of the part;
        ``onset``, ``onset_low``, ``onset_high`` in steps; ``exists``, the same in words;
        ``end``, ``end_low``, ``end_high`` (95 %) at the last checkpoint in ``unit``, what is at
        least ``least`` where the part is there; ``verdict`` there; with stages, ``stage``, counted
        from 1: those that the interval reaches into. Rows are in the order of the circuit.

    Raises:
        TypeError, ValueError: something else than these.

    Example:
        >>> import lens_slt as ls
        >>> run = ls.checkpoints("attn-2l").at([1000, 5300])
        >>> text = ls.load_tokens("mix", n_sequences=16, length=64)
        >>> mine = ls.circuit("L0H2 -> L1H2.K", pattern="induction")
        >>> found = ls.construction(run, text, mine, trials="none", progress=False)
        >>> ls.construction_table(found)["part"].unique().tolist()
        ['L0H2', 'L1H2', 'L0H2→L1H2.K', 'induction']
    """
    result = require(result, "construction", argument="result", leading=(CHECKPOINT,))
    bounds = None if stages is None else boundaries_of(stages)
    rows = []
    for i in range(result.sizes["part"]):
        one = result.isel(part=i)
        for criterion in CRITERIA:
            if not _asked(one, criterion):
                continue
            row = _row(one, criterion, int(result[CHECKPOINT][0]))
            if bounds is not None:
                row["stage"] = bounds.stage(row["onset_low"], row["onset_high"])
            rows.append(row)
    return pd.DataFrame(rows)


def _asked(one: xr.Dataset, criterion: str) -> bool:
    """Whether a criterion is a question to a part, and has been asked."""
    if criterion == BEHAVES:
        return bool(str(one["behaves_as"].values))
    if criterion == SUPPORTED:
        return bool((one["verdict"] != "").any())
    return criterion == NEEDED or str(one["kind"].values) == CIRCUIT


def _row(one: xr.Dataset, criterion: str, first: int) -> dict[str, Any]:
    at = one.isel(criterion=CRITERIA.index(criterion))
    onset, low, high = (float(at[name]) for name in ("onset", "onset_low", "onset_high"))
    value, least, unit = _at_the_end(one.isel({CHECKPOINT: -1}), criterion, one.attrs)
    as_type = str(one["behaves_as"].values)
    return {
        "circuit": str(one["circuit"].values), "part": str(one["piece"].values),
        "kind": str(one["kind"].values), "criterion": criterion,
        "what": f"attends: {as_type}" if criterion == BEHAVES else criterion,
        "onset": onset, "onset_low": low, "onset_high": high,
        "exists": when(onset, low, high, first),
        "end": value[0], "end_low": value[1], "end_high": value[2], "least": least, "unit": unit,
        "verdict": str(one["verdict"].isel({CHECKPOINT: -1}).values),
    }  # fmt: skip


def when(onset: float, low: float, high: float, first: int) -> str:
    """An onset with its interval in words; ``first`` is the first checkpoint's step."""
    if np.isnan(onset):
        return NEVER
    if np.isnan(high):
        return f"{onset:.0f}, {UNCLEAR}"
    if high == first:
        return f"{first} or before"
    return f"{onset:.0f} ({'up to ' if np.isnan(low) else f'{low:.0f}–'}{high:.0f})"


def _at_the_end(
    last: xr.Dataset, criterion: str, attrs: dict[Any, Any]
) -> tuple[tuple[float, float, float], float, str]:
    """What a criterion measures at the last checkpoint with its interval, the least, the unit."""
    least, unit = float(attrs["least_effect"]), str(attrs["units"])
    if criterion == NEEDED:
        best = last.isel(context=int(np.nan_to_num(last["effect"].values, nan=-np.inf).argmax()))
        return _interval(best, "effect"), least, unit
    if criterion == ALONE:
        return _interval(last, "alone"), least, unit
    if criterion == BEHAVES:
        value, se = float(last["behaviour"]), float(last["behaviour_se"])
        wide = stats.t.ppf(ENDS[1], behaviour_units(attrs["sequences"]) - 1) * se
        return (value, value - wide, value + wide), float(last["behaves_least"]), "attention"
    return (np.nan, np.nan, np.nan), np.nan, ""


def _interval(row: xr.Dataset, name: str) -> tuple[float, float, float]:
    return float(row[name]), float(row[f"{name}_low"]), float(row[f"{name}_high"])
