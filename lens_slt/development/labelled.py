"""Labelled curves over checkpoints as plain arrays, and results of unequal length as one array."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import xarray as xr

from lens_slt.arrays import FloatArray
from lens_slt.development.noise import check_steps

Labelled = xr.Dataset | xr.DataArray


def labelled_steps(curve: Labelled, argument: str) -> FloatArray:
    """The training steps of a curve.

    Raises ValueError without a dimension ``checkpoint`` with steps as its coordinate, and for what
    ``check_steps`` refuses.
    """
    if "checkpoint" not in curve.dims:
        raise ValueError(
            f"{argument} must have the dimension 'checkpoint'; "
            f"got {', '.join(map(str, curve.dims)) or 'none'}"
        )
    if "checkpoint" not in curve.coords or curve["checkpoint"].dtype.kind not in "iuf":
        raise ValueError(
            f"the dimension 'checkpoint' of {argument} needs the training steps as its coordinate: "
            f"{argument}.assign_coords(checkpoint=steps)"
        )
    steps = curve["checkpoint"].values.astype(float)
    check_steps(steps)
    return steps


def component_curves(curve: xr.Dataset) -> tuple[FloatArray, dict[str, dict[str, FloatArray]]]:
    """Steps, and by component ``values``, ``se`` and, if there, ``blocks``.

    Raises ValueError where ``llc`` or ``se`` is missing or has other dimensions.
    """
    missing = [name for name in ("llc", "se") if name not in curve]
    if missing:
        raise ValueError(f"curve must have llc and se; {' and '.join(missing)} is missing")
    steps = labelled_steps(curve, "curve")
    kept = curve[[name for name in ("llc", "se", "blocks") if name in curve]]
    if "component" not in kept.dims:
        kept = kept.expand_dims(component=["full"])
    wanted = {
        "llc": ("component", "checkpoint"), "se": ("component", "checkpoint"),
        "blocks": ("component", "block", "checkpoint"),
    }  # fmt: skip
    arrays = {}
    for name, variable in kept.data_vars.items():
        dims = wanted[str(name)]
        if set(variable.dims) != set(dims):
            raise ValueError(
                f"{name} of curve must have the dimensions {', '.join(dims)}; "
                f"got {', '.join(map(str, variable.dims))}"
            )
        arrays["values" if name == "llc" else str(name)] = variable.transpose(*dims).values
    names = [str(name) for name in kept["component"].values]
    return steps, {
        name: {key: array[i].astype(float) for key, array in arrays.items()}
        for i, name in enumerate(names)
    }


def observables(curves: Labelled, argument: str) -> dict[str, FloatArray]:
    """Curves by name: variables of a dataset, labels of another dimension, or one curve.

    Raises ValueError for more than one dimension besides ``checkpoint``.
    """
    if isinstance(curves, xr.Dataset):
        found: dict[str, FloatArray] = {}
        for name, variable in curves.data_vars.items():
            for label, values in observables(variable, f"{argument}[{name!r}]").items():
                found[f"{name} {label}" if variable.ndim > 1 else str(name)] = values
        return found
    others = [dim for dim in curves.dims if dim != "checkpoint"]
    if "checkpoint" not in curves.dims or len(others) > 1:
        raise ValueError(
            f"{argument} must have the dimension 'checkpoint' and at most one other; "
            f"got {', '.join(map(str, curves.dims)) or 'none'}"
        )
    if not others:
        return {str(curves.name or "curve"): curves.values.astype(float)}
    ordered = curves.transpose(others[0], "checkpoint")
    labels = [str(label) for label in ordered[others[0]].values]
    return dict(zip(labels, ordered.values.astype(float), strict=True))


def check_same_steps(curve: Labelled, steps: FloatArray, argument: str, of: str) -> None:
    """Refuse a curve over other checkpoints."""
    own = labelled_steps(curve, argument)
    if not np.array_equal(own, steps):
        raise ValueError(
            f"{argument} must be over the checkpoints of {of}; it has {len(own)} from step "
            f"{own[0]:g} to {own[-1]:g}, {of} {len(steps)} from {steps[0]:g} to {steps[-1]:g}"
        )


def one_interval(name: str, dims: tuple[str, ...], ends: FloatArray) -> dict[str, Any]:
    """Variables of a quantity ``[3, ...]``: the median and the ends of its interval."""
    return {key: (dims, ends[i]) for i, key in enumerate((name, f"{name}_low", f"{name}_high"))}


def with_interval(name: str, dims: tuple[str, ...], rows: Sequence[FloatArray]) -> dict[str, Any]:
    """The same of rows ``[3, ...]`` of unequal length."""
    return one_interval(name, dims, np.stack([padded([row[i] for row in rows]) for i in range(3)]))


def padded(rows: Sequence[Any], dtype: Any = float) -> Any:
    """Arrays whose first dimensions differ, as one; NaN, or empty text, where there is nothing."""
    most = max((len(row) for row in rows), default=0)
    rest = np.shape(rows[0])[1:] if len(rows) else ()
    made = np.full((len(rows), most, *rest), "" if dtype is str else np.nan,
                   dtype=object if dtype is str else dtype)  # fmt: skip
    for i, row in enumerate(rows):
        made[i, : len(row)] = row
    return made.astype(str) if dtype is str else made
