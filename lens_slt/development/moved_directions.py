"""The directions in which components moved between two checkpoints, for a sampler to look along."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
import xarray as xr
from torch import Tensor

from lens_slt.arguments import integer, typed
from lens_slt.development.grafts import changed_weights, matrix_of
from lens_slt.models.adapter import adapt
from lens_slt.models.components import Component, Slot, parse_components
from lens_slt.schema import stamped
from lens_slt.torch_state import plain_torch

LEAST = 1e-5  # singular value over the largest, below which a change has no such direction


@typed
@plain_torch
def moved_directions(
    before: Any, after: Any, components: Any = "heads", *, rank: int = 2, random: int | None = None
) -> xr.Dataset:
    r"""Directions in which each component's matrices moved between two models.

    Of every changed matrix ΔW = Σ s_k u_k v_kᵀ the products u_i v_jᵀ of its ``rank`` leading
    singular vectors: rank² orthonormal directions, which hold the best approximation of ΔW of that
    rank and how its singular vectors can turn into each other. :func:`lens_slt.sample` restricted
    to them measures the posterior where the training between the two went; the same number of
    random directions is the control.

    Args:
        before, after: two models of one architecture.
        components: as in :func:`lens_slt.sample`, all of the same number of parameters.
        rank: leading singular vectors of every matrix.
        random: a seed: singular vectors of a Gaussian matrix instead of the change, the control.

    Returns:
        Dataset with ``directions (component, direction, parameter)``, orthonormal, the weights in
        the order that ``sample`` has them, and ``captured``, the share of ‖ΔW‖² that lies in them;
        ``matrix (component, direction)`` says of which matrix a direction is.

    Raises ValueError for models of other shapes or without change, for components of different
    sizes or without change, and where a matrix moved in fewer than ``rank`` directions.

    Example:
        >>> import lens_slt as ls
        >>> run = ls.checkpoints("attn-2l")
        >>> found = ls.moved_directions(run.load(2100), run.load(2600), "L1H2", rank=2)
        >>> found["directions"].sizes["direction"]
        16
    """
    integer("rank", rank, at_least=1)
    if random is not None:
        integer("random", random, at_least=0)
    model = adapt(before)
    _, change = changed_weights(model, adapt(after))
    chosen = parse_components(components, model)
    names = [component.name for component in chosen]
    rows, captured, matrices = [], [], []
    for place, component in enumerate(chosen):
        parts = [matrix_of(slot, change) for slot in component.slots]
        followed = parts if random is None else _gaussian(parts, [random, place])
        pieces = [_leading(component, slot, part, rank)
                  for slot, part in zip(component.slots, followed, strict=True)]  # fmt: skip
        basis = torch.block_diag(*pieces)
        flat = torch.cat([part.flatten() for part in parts])
        rows.append(basis.numpy())
        length = flat.square().sum().clamp(min=torch.finfo(flat.dtype).tiny)
        captured.append(float((basis @ flat).square().sum() / length))
        matrices.append([
            slot.name.rsplit(".", 1)[-1]
            for slot, piece in zip(component.slots, pieces, strict=True) for _ in piece
        ])  # fmt: skip
    _refuse_unequal(names, rows)
    data = xr.Dataset(
        {
            "directions": (("component", "direction", "parameter"), np.stack(rows)),
            "captured": ("component", captured),
        },
        coords={"component": names, "matrix": (("component", "direction"), matrices)},
        attrs={"rank": rank, "random": "" if random is None else str(random)},
    )
    return stamped(data, "moved_directions")


def _gaussian(parts: list[Tensor], seed: list[int]) -> list[Tensor]:
    draw = np.random.default_rng(seed)
    return [torch.from_numpy(draw.normal(size=tuple(part.shape))) * part.any() for part in parts]


def _leading(component: Component, slot: Slot, change: Tensor, rank: int) -> Tensor:
    """Products of the leading singular vectors ``[direction, weight of the matrix]``."""
    u, s, vh = torch.linalg.svd(change, full_matrices=False)
    n = min(rank, len(s))
    moved = int((s > LEAST * s[0]).sum())
    if not moved:
        return change.new_zeros(0, change.numel())
    if moved < n:
        raise ValueError(
            f"rank must be at most {moved} for {component.name}: its {slot.name} changed in no "
            f"more directions; got {rank}"
        )
    return torch.einsum("ai,jb->ijab", u[:, :n], vh[:n]).reshape(n * n, -1)


def _refuse_unequal(names: list[str], rows: list[np.ndarray]) -> None:
    """One array holds components of one size only, which moved in as many directions."""
    for name, row in zip(names, rows, strict=True):
        if not len(row):
            raise ValueError(f"components: {name} did not change between the models; leave it out")
        if row.shape != rows[0].shape:
            sizes = ["{} directions of {} parameters".format(*one.shape) for one in (rows[0], row)]
            raise ValueError(
                f"components: {names[0]} moved in {sizes[0]}, {name} in {sizes[1]}; call once for "
                "each kind"
            )
