"""What results of other functions say in a clause, for the first screen of a report."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import xarray as xr

from lens_slt.report.tables import with_error
from lens_slt.report.tables_phases import count
from lens_slt.structure.match import AMBIGUOUS, SURELY


def clauses(results: Sequence[xr.Dataset]) -> list[str]:
    """One for every result that has something to say."""
    said = [_SAYS[one.attrs["result"]](one) for one in results if one.attrs["result"] in _SAYS]
    return [words for words in said if words]


def carried_over(result: xr.Dataset) -> str:
    """How many circuits hold where a match maps them, of what :func:`lens_slt.transfer` found."""
    held, n = int((result["verdict"] == "supported").sum()), result.sizes["circuit"]
    are = "is" if n == 1 else "are"
    return f"{held} of {n} circuit{'s' * (n > 1)} {are} supported where the match maps them"


def with_partners(result: xr.Dataset) -> str:
    """How many components :func:`lens_slt.match` names a partner of."""
    n, n_rivals = (
        int(np.isin(result["verdict"], SURELY).sum()),
        int((result["verdict"] == AMBIGUOUS).sum()),
    )
    more = f", {n_rivals} more one that a rival equals" if n_rivals else ""
    return f"{n} of {result.sizes['component']} components have a partner in the other model{more}"


def _transferred(result: xr.Dataset) -> str:
    about = result.attrs
    return f"{carried_over(result)} ({about['chance_rate']:.0%} by chance, p {about['p']:.2g})"


def _wished(result: xr.Dataset) -> str:
    asked = result.isel(observable=np.flatnonzero(np.isfinite(result["wish"].values)))
    strength = result.attrs["strength"]
    changes = [
        f"{one['observable'].item()} by "
        f"{with_error(float(one['predicted']), float(one['predicted_se']))} "
        f"({strength * float(one['wish']):.3g} wished)"
        for one in (asked.sel(observable=name) for name in asked["observable"].values)
    ]
    return f"weights of the data are predicted to change {', '.join(changes)}" if changes else ""


def _came_true(result: xr.Dataset) -> str:
    one = result.sel(kind="wish", strength=result.attrs["strength"])
    if not np.isfinite(float(one["share"])):
        return ""
    share = f"{with_error(100 * float(one['share']), 100 * float(one['share_se']))} %"
    return f"retraining for {result.attrs['steps']} steps made {share} of that come true"


def _crossed(result: xr.Dataset) -> str:
    at = [
        f"n = {count(one['n'])} ({count(one['n_low'])}"
        + ("–" + count(one["n_high"]) if np.isfinite(one["n_high"]) else " or more")
        + ")"
        for one in (result.isel(crossing=i) for i in range(result.sizes["crossing"]))
    ]
    about = result.attrs
    unsure = "may cross" if result.sizes.get("undecided") else "do not cross"
    where = f"cross at {' and '.join(at)}" if at else unsure
    return f"the phases {about['one']} and {about['other']} {where}"


_SAYS: dict[str, Callable[[xr.Dataset], str]] = {
    "match": with_partners, "transfer": _transferred, "patterning": _wished,
    "patterning_check": _came_true, "crossing": _crossed,
}  # fmt: skip
