"""How far each component's weights moved between two checkpoints, and in how many directions."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
import xarray as xr

from lens_slt.arguments import typed
from lens_slt.development.grafts import changed_weights, matrix_of
from lens_slt.models.adapter import adapt
from lens_slt.models.components import (
    HEAD_TENSORS,
    MLP_TENSORS,
    Component,
    parse_components,
)
from lens_slt.schema import stamped
from lens_slt.torch_state import plain_torch

MATRICES = (*HEAD_TENSORS, *MLP_TENSORS, "W_E", "W_pos", "W_U")


@typed
@plain_torch
def weight_change(before: Any, after: Any, components: Any = "heads") -> xr.Dataset:
    r"""How far each component's matrices moved between two models, and in how many directions.

    Args:
        before, after: two models of one architecture.
        components: as in :func:`lens_slt.sample`.

    Returns:
        Dataset over (component, matrix), NaN where a component has no such matrix: ``norm``
        ‖ΔW‖ (Frobenius), ``relative_norm`` ‖ΔW‖ / ‖W before‖, and ``stable_rank``
        ‖ΔW‖² / ‖ΔW‖₂², between 1 (one direction) and the rank of the matrix; of a random change
        of that shape ``random_stable_rank``, about mn/(√m + √n)².

    Raises ValueError for models of other shapes or without change, and for components with two
    matrices of one kind, such as ``L0H1+L1H3`` or ``full``.

    Example:
        >>> import lens_slt as ls
        >>> run = ls.checkpoints("attn-2l")
        >>> found = ls.weight_change(run.load(1000), run.load(2900), "L0H2, L1H2")
        >>> bool((found["stable_rank"].dropna("matrix") >= 1).all())
        True
    """
    model = adapt(before)
    start, change = changed_weights(model, adapt(after))
    chosen = parse_components(components, model)
    _refuse_several(chosen)
    names = ("norm", "relative_norm", "stable_rank", "random_stable_rank")
    found = {name: np.full((len(chosen), len(MATRICES)), np.nan) for name in names}
    for i, component in enumerate(chosen):
        for slot in component.slots:
            matrix = slot.name.rsplit(".", 1)[-1]
            if matrix not in MATRICES:
                continue
            moved, was = (matrix_of(slot, values) for values in (change, start))
            norm, largest = float(moved.norm()), float(torch.linalg.matrix_norm(moved, 2))
            m, n = moved.shape
            row = (
                norm, norm / max(float(was.norm()), 1e-30),
                (norm / largest) ** 2 if largest else np.nan, m * n / (m**0.5 + n**0.5) ** 2,
            )  # fmt: skip
            for name, value in zip(names, row, strict=True):
                found[name][i, MATRICES.index(matrix)] = value
    data = xr.Dataset(
        {name: (("component", "matrix"), values) for name, values in found.items()},
        coords={"component": [one.name for one in chosen], "matrix": list(MATRICES)},
    )
    return stamped(data.dropna("matrix", how="all"), "weight_change")


def _refuse_several(components: list[Component]) -> None:
    """Raise ValueError for a component with two matrices of one kind, such as a union of heads."""
    for component in components:
        kinds = [slot.name.rsplit(".", 1)[-1] for slot in component.slots]
        twice = [kind for kind in MATRICES if kinds.count(kind) > 1]
        if twice:
            raise ValueError(
                f"components: {component.name!r} has {kinds.count(twice[0])} matrices {twice[0]}; "
                "allowed are components with one of each: heads, attention, MLPs, layers, "
                "embeddings. Name them one by one"
            )
