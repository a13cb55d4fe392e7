"""Which weights a graft takes first: orders of weights, of components, and of directions."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from lens_slt.development.grafts import Grafts, Weights, joined, split
from lens_slt.development.leading_curvature import leading_curvature
from lens_slt.models.components import Component, parse_components

SIZE, COMPONENTS, CURVATURE = "size", "components", "curvature"
RANDOM = "random"
PER_DECADE = 2  # shares

Masks = dict[str, Tensor]


@dataclass(frozen=True)
class Ranking:
    """The change of any share of the weights, the first ones of some order.

    Attributes:
        shares: to try.
        changes: of a share; several where chance decides.
        refines: whether shares between these make sense.
    """

    name: str
    shares: list[float]
    changes: Callable[[float], list[Weights]]
    refines: bool = False


def all_rankings(
    grafts: Grafts,
    scores: Mapping[str, float] | None,
    n_directions: int,
    n_null: int,
    seed: int,
) -> list[Ranking]:
    """Those of :func:`lens_slt.locality`."""
    places = _places({name: value.abs() for name, value in grafts.change.items()})
    shares = _decades(grafts.n_weights)

    def largest(share: float) -> list[Weights]:
        return [grafts.chosen(_first(places, share, grafts.n_weights))]

    def random(share: float) -> list[Weights]:
        masks = _first(places, share, grafts.n_weights)
        generators = [torch.Generator().manual_seed(1000 * seed + i) for i in range(n_null)]
        return [grafts.chosen(_shuffled(masks, generator)) for generator in generators]

    found = [Ranking(SIZE, shares, largest, refines=True), Ranking(RANDOM, shares, random)]
    if scores is not None:
        found.append(_of_components(grafts, scores))
    if n_directions:
        found.append(_of_curvature(grafts, n_directions, seed))
    return found


def _decades(n_weights: int) -> list[float]:
    """Shares from one weight to all of them."""
    count = int(np.ceil(PER_DECADE * np.log10(n_weights))) + 1
    return [float(share) for share in np.geomspace(1 / n_weights, 1, max(count, 2))]


def _places(scores: Weights) -> Masks:
    """Of every weight its place in the order of scores over all of them, the largest first."""
    flat = joined(scores)
    order = torch.empty(len(flat), dtype=torch.int64, device=flat.device)
    order[flat.argsort(descending=True, stable=True)] = torch.arange(len(flat), device=flat.device)
    return split(order, scores)


def _first(places: Masks, share: float, n_weights: int) -> Masks:
    count = max(1, round(share * n_weights))
    return {name: value < count for name, value in places.items()}


def _shuffled(masks: Masks, generator: torch.Generator) -> Masks:
    """As many weights of every matrix."""
    found = {}
    for name, mask in masks.items():
        order = torch.randperm(mask.numel(), generator=generator).to(mask.device)
        found[name] = mask.flatten()[order].view(mask.shape)
    return found


def _of_components(grafts: Grafts, scores: Mapping[str, float]) -> Ranking:
    """Whole components in the order of their scores; a selection's is that of each."""
    if not scores:
        raise ValueError("scores name no component; pass one number for every component to try")
    parts = [
        (component, float(score))
        for name, score in scores.items()
        for component in parse_components(name, grafts.model, argument="scores")
    ]
    parse_components([one.name for one, _ in parts], grafts.model, argument="scores")  # each once
    ordered = [one for one, _ in sorted(parts, key=lambda pair: -pair[1])]
    by_share = {}
    for count in range(1, len(ordered) + 1):
        masks = _whole(grafts, ordered[:count])
        taken = sum(int(mask.sum()) for mask in masks.values())
        by_share[taken / grafts.n_weights] = masks
    return Ranking(COMPONENTS, sorted(by_share), lambda share: [grafts.chosen(by_share[share])])


def _whole(grafts: Grafts, components: list[Component]) -> Masks:
    masks = {name: torch.zeros_like(v, dtype=torch.bool) for name, v in grafts.start.items()}
    for component in components:
        for slot in component.slots:
            masks[slot.name][... if slot.index is None else slot.index] = True
    return masks


def _of_curvature(grafts: Grafts, n_directions: int, seed: int) -> Ranking:
    """The change within the stiffest directions."""
    directions = leading_curvature(grafts, n_directions, seed)  # [direction, weight]
    along = directions @ joined(grafts.change)
    counts = sorted({min(2**i, n_directions) for i in range(n_directions.bit_length() + 1)})
    by_share = {count / grafts.n_weights: count for count in counts}

    def changes(share: float) -> list[Weights]:
        count = by_share[share]
        return [split(along[:count] @ directions[:count], grafts.change)]

    return Ranking(CURVATURE, list(by_share), changes)
