"""Results in which every text that a user controls is markup for what shows it."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import xarray as xr

import lens_slt as ls
from lens_slt.circuits.trial_notes import Disagreement

MARK = "attacked"
HOSTILE = (
    f"<img src=x onerror='window.{MARK}=1'></script><script>window.{MARK}=1</script><!--<script>"
    f'"><a class="{MARK}" href="http://example.org/">link</a><b class={MARK}>bold</b>'
    f"[/1][red] $\\href{{javascript:{MARK}}}{{x}}$ %{{{MARK}}} \x1b[31m \\"
)
KEPT = {"quantity", "result", "schema", "settings", "kind", "unit", "estimator"}  # told apart by


def hostile(result: Any) -> Any:
    """The same result with markup after every name, label, reason and remark."""
    if isinstance(result, xr.DataTree):
        made = result.map_over_datasets(hostile)
        made.attrs = _attrs(result.attrs)
        return made
    if isinstance(result, xr.DataArray):
        coords = {name: _variable(one.variable) for name, one in result.coords.items()}
        return xr.DataArray(_variable(result.variable), coords, attrs=_attrs(result.attrs))
    if isinstance(result, xr.Dataset):
        variables = {name: _variable(one) for name, one in result.variables.items()}
        coords = {name: variables.pop(name) for name in result.coords}
        return xr.Dataset(variables, coords, _attrs(result.attrs))
    if isinstance(result, ls.CircuitHypothesis):
        return replace(result, name=result.name + HOSTILE, pattern=result.pattern + HOSTILE)
    if isinstance(result, ls.Trial):
        rows = tuple(replace(e, words=HOSTILE, null=HOSTILE) for e in result.evidence)
        settings = {k: v + HOSTILE if isinstance(v, str) else v for k, v in result.settings.items()}
        return replace(
            result, hypothesis=hostile(result.hypothesis), evidence=rows, settings=settings,
            reasons=(HOSTILE,), disagreements=(Disagreement("outside", HOSTILE, 1.0, HOSTILE),),
        )  # fmt: skip
    if isinstance(result, ls.Calibration):
        return replace(result, evidence=hostile(result.evidence), reason=HOSTILE)
    return result


def _variable(one: xr.Variable) -> xr.Variable:
    if one.dtype.kind not in "OU":
        return xr.Variable(one.dims, one.values)
    texts = [x + HOSTILE if isinstance(x, str) else x for x in one.values.ravel()]
    return xr.Variable(one.dims, np.array(texts, dtype=object).reshape(one.shape))


def _attrs(attrs: dict[str, Any]) -> dict[str, Any]:
    return {
        key: value + HOSTILE if isinstance(value, str) and key not in KEPT else value
        for key, value in attrs.items()
    }
