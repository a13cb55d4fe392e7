"""Results of single checkpoints joined along the dimension ``checkpoint``."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

import numpy as np
import pandas as pd
import xarray as xr

from lens_slt.arguments import integer, typed
from lens_slt.schema import stamped
from lens_slt.schemas import SCHEMAS

CHECKPOINT = "checkpoint"
ALONE = ("draws", "patterns", "token_map", "map_stability", "clusters", "cluster_summary",
         "cluster_stability", "response", "faithfulness_curve", "effects")  # fmt: skip
PER_CHECKPOINT = ("model_hash", "written_on")  # attributes that tell checkpoints apart
OF_THE_RUN = ("steps_per_draw",)  # settings that do not make results incomparable


@typed
def join_checkpoints(results: Mapping[int, xr.Dataset]) -> xr.Dataset:
    """One result of every checkpoint as curves: ``checkpoint`` comes first in every variable.

    Args:
        results: by training step, what the same function returned for each: refined LLCs, matrices,
            behaviour scores, composition scores, … with the same settings, tokens and components.

    Returns:
        The same result with the dimension ``checkpoint``, the training step. Numbers that were
        attributes and differ, such as the mean loss, are variables.

    Raises:
        TypeError, ValueError: fewer than two; results of different functions, settings, tokens or
            components; steps that are no whole numbers.

    Example:
        >>> import lens_slt as ls
        >>> run = ls.checkpoints("attn-2l").at([1000, 2900])
        >>> curves = {step: ls.behaviour_scores(run.load(step)) for step in run}
        >>> ls.join_checkpoints(curves)["previous_token"].dims
        ('checkpoint', 'component')
    """
    for step in results:
        integer("a step of results", step, at_least=0)
    if len(results) < 2:
        raise ValueError(f"results must be of at least two checkpoints; got {len(results)}")
    steps = sorted(results)
    whole = [results[step] for step in steps]
    name = _name(steps, whole)
    _check_settings(steps, whole)
    labels = _common_labels(steps, whole)
    rows = [row.drop_vars([key for key in row.coords if key in labels]) for row in whole]
    joined = xr.concat(
        rows, pd.Index(steps, name=CHECKPOINT), data_vars="all", coords="all", join="override",
        compat="override", combine_attrs="drop_conflicts",
    ).assign_coords(labels)  # fmt: skip
    joined = joined.assign(_numbers(whole, joined))
    front = {
        key: value.transpose(CHECKPOINT, ...)
        for key, value in joined.variables.items()
        if CHECKPOINT in value.dims and key != CHECKPOINT
    }
    coords = {key: value for key, value in front.items() if key in joined.coords}
    data = {key: value for key, value in front.items() if key not in coords}
    return stamped(joined.assign_coords(coords).assign(data), name)


def _name(steps: list[int], whole: list[xr.Dataset]) -> str:
    """The one result that all of them are."""
    names = [str(row.attrs.get("result", "")) for row in whole]
    for step, row, name in zip(steps, whole, names, strict=True):
        if name not in SCHEMAS or name in ALONE or not isinstance(row, xr.Dataset):
            raise TypeError(
                f"results[{step}] must be what one function of lens_slt returned, such as "
                f"refined_llc(…); got {name or type(row).__name__}"
            )
        if name != names[0]:
            raise ValueError(f"results: {names[0]} at step {steps[0]}, {name} at step {step}")
        if CHECKPOINT in row.dims:
            raise ValueError(f"results[{step}] already has the dimension {CHECKPOINT!r}")
    return names[0]


def _check_settings(steps: list[int], whole: list[xr.Dataset]) -> None:
    """Raise ValueError where results were made otherwise, or of other tokens."""
    first = whole[0].attrs
    for step, row in zip(steps[1:], whole[1:], strict=True):
        there = settings_differences(first, row.attrs)
        if there:
            raise ValueError(
                f"results at steps {steps[0]} and {step} do not belong together: {'; '.join(there)}"
            )


def settings_differences(one: Mapping[Any, Any], other: Mapping[Any, Any]) -> list[str]:
    """What two results' attributes say of different settings and tokens, in words."""
    found = []
    restriction = [attrs.get("directions") or "all directions" for attrs in (one, other)]
    if restriction[0] != restriction[1]:
        found.append(f"{restriction[0]} and {restriction[1]}")
    for key in ("probe", "quantity", "tokens_hash", "seed", "n_random", "length"):
        if one.get(key) != other.get(key):
            words = f"{key} {one.get(key)} and {other.get(key)}"
            found.append("other tokens" if key == "tokens_hash" else words)
    here, there = (json.loads(attrs.get("settings", "{}")) for attrs in (one, other))
    found += [
        f"{key} {here.get(key)} and {there.get(key)}"
        for key in sorted({*here, *there})
        if key not in OF_THE_RUN and here.get(key) != there.get(key)
    ]
    return found


def _common_labels(steps: list[int], whole: list[xr.Dataset]) -> dict[str, xr.Variable]:
    """Labels of dimensions, and coordinates that all share."""
    found: dict[str, xr.Variable] = {}
    for key, variable in whole[0].coords.items():
        rest = [row.coords.get(key) for row in whole[1:]]
        if all(other is not None and variable.variable.equals(other.variable) for other in rest):
            found[str(key)] = variable.variable
        elif key in whole[0].dims or key in ("sequence", "position", "token_id"):
            odd = next(
                step for step, other in zip(steps[1:], rest, strict=True)
                if other is None or not variable.variable.equals(other.variable)
            )  # fmt: skip
            raise ValueError(f"results at steps {steps[0]} and {odd} differ in {key!r}")
    return found


def _numbers(whole: list[xr.Dataset], joined: xr.Dataset) -> dict[str, Any]:
    """Attributes that are numbers, or hashes, and differ, as variables."""
    found = {}
    for key, value in whole[0].attrs.items():
        values = [row.attrs.get(key) for row in whole]
        told = isinstance(value, int | float) or key in PER_CHECKPOINT
        differ = None not in values and any(v != value for v in values)
        if told and differ and key not in joined.variables:
            found[key] = (CHECKPOINT, np.array(values))
    return found
