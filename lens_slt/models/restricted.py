"""Components that may move in given directions only."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
import xarray as xr
from torch import Tensor

from lens_slt.models.components import Component
from lens_slt.models.prefix import Prefix
from lens_slt.models.suffix import Group, Suffix

ORTHONORMAL = 1e-4  # largest deviation of a product of two directions that is rounding


@dataclass(frozen=True)
class RestrictedSuffix:
    """A suffix at the given weights plus combinations of orthonormal directions.

    Its parameters are the coordinates along the directions, 0 at the given weights.
    """

    suffix: Suffix
    given: Tensor  # weights, [component, parameter]
    directions: Tensor  # [component, direction, parameter]

    def star(self) -> Tensor:
        return self.directions.new_zeros(self.directions.shape[:2])

    def of(self, members: tuple[int, ...]) -> RestrictedSuffix:
        rows = list(members)
        return RestrictedSuffix(self.suffix.of(members), self.given[rows], self.directions[rows])

    def losses(
        self, v: Tensor, prefix: Prefix, *, gradient: bool, chunk: int | None = None
    ) -> tuple[Tensor, Tensor | None]:
        loss, grad = self.suffix.losses(self._weights(v), prefix, gradient=gradient, chunk=chunk)
        return loss, None if grad is None else grad @ self.directions.mT.to(grad.dtype)

    def logits(self, v: Tensor, prefix: Prefix, tokens: Tensor) -> Iterator[Tensor]:
        return self.suffix.logits(self._weights(v), prefix, tokens)

    def _weights(self, v: Tensor) -> Tensor:
        return self.given[:, None].to(v.dtype) + v @ self.directions.to(v.dtype)


def checked_directions(directions: Any, groups: list[Group]) -> dict[str, Tensor] | None:
    """Directions ``[direction, parameter]`` of every component, on its device.

    Raises ValueError for a component without any, of another number of parameters, or of another
    number of directions than the others, and where they are not orthonormal.
    """
    if directions is None:
        return None
    given = _by_name(directions)
    found: dict[str, Tensor] = {}
    for group in groups:
        star = group.suffix.star()
        for component in group.components:
            name = component.name
            if name not in given:
                raise ValueError(
                    f"directions has none of {name!r}; it has those of {', '.join(given) or '-'}: "
                    "leave the component out or give its directions"
                )
            rows = torch.as_tensor(given[name]).to(star)
            _check(name, rows, star.shape[1], next(iter(found.values()), rows))
            found[name] = rows
    return found


def restricted(groups: list[Group], directions: Mapping[str, Tensor] | None) -> list[Group]:
    """The same groups, of components that move in their directions only."""
    if directions is None:
        return groups
    found = []
    for group in groups:
        rows = torch.stack([directions[component.name] for component in group.components])
        suffix = RestrictedSuffix(group.suffix, group.suffix.star(), rows)
        found.append(replace(group, suffix=suffix))
    return found


def noted(components: list[Component], groups: list[Group]) -> list[Component]:
    """The same components; those that are restricted say so."""
    kept: dict[str, str] = {}
    for group in groups:
        if isinstance(group.suffix, RestrictedSuffix):
            of, n = group.suffix.given.shape[1], group.suffix.directions.shape[1]
            words = f"moves in {n} given directions of {of}"
            kept |= {component.name: words for component in group.components}
    return [
        replace(one, note="; ".join(filter(None, (one.note, kept.get(one.name, "")))))
        for one in components
    ]


def _by_name(directions: Any) -> dict[str, Any]:
    if isinstance(directions, xr.DataArray):
        wanted = ("component", "direction", "parameter")
        if set(directions.dims) != set(wanted):
            raise ValueError(
                f"directions must have the dimensions {', '.join(wanted)}, as those of "
                f"moved_directions; got {', '.join(map(str, directions.dims))}"
            )
        array = directions.transpose(*wanted)
        return {str(one.component.item()): one.values for one in array}
    if not isinstance(directions, Mapping):
        raise TypeError(
            "directions must be an array of moved_directions or a mapping from components to "
            f"arrays [direction, parameter]; got {type(directions).__name__}"
        )
    return {str(name): value for name, value in directions.items()}


def _check(name: str, rows: Tensor, n_parameters: int, first: Tensor) -> None:
    what = f"directions[{name!r}]"
    if rows.ndim != 2 or rows.shape[1] != n_parameters or not len(rows):
        raise ValueError(
            f"{what} must be [direction, parameter] with the component's {n_parameters} "
            f"parameters; got shape {tuple(rows.shape)}"
        )
    if len(rows) != len(first):
        raise ValueError(
            f"{what} has {len(rows)} directions, another component {len(first)}; give every "
            "component as many, or sample them in runs of their own"
        )
    product = rows.double() @ rows.double().mT
    off = float((product - torch.eye(len(rows)).to(product)).abs().max())
    if not off <= ORTHONORMAL:
        raise ValueError(
            f"{what} are not orthonormal: their products differ from those of orthonormal ones "
            f"by up to {off:.2g}; pass the rows of torch.linalg.qr(directions.T).Q.T"
        )
