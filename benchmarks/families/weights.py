"""Losses and gradients at other weights, and which weights a component has."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from benchmarks.families.plain import PARTS, losses
from benchmarks.families.verdict import Error, relative
from lens_slt.models.adapter import AdaptedModel, adapt, copy_weights
from lens_slt.models.components import parse_components
from lens_slt.models.names import HEAD, LAYER, MLP, read_part
from lens_slt.models.prefix import Batch
from lens_slt.models.suffix import ENGINES, make_groups, prefix_for

if TYPE_CHECKING:
    from benchmarks.families.measure import Subject

COMPONENTS = ("L0H1", "L1H2", "L1H3", "L0MLP", "L1MLP", "L0", "L1", "embed", "unembed", "full")
STEP = 0.1  # standard deviation by which every weight moves


@dataclass(frozen=True)
class Moved:
    """A component away from the given weights, as lens_slt has it and as the plain model does."""

    name: str
    engine: str
    place: Tensor  # of every weight in the plain model; -1 for what is none of its weights
    loss: Tensor
    gradient: Tensor
    right_loss: Tensor
    right_gradient: Tensor


def moved(subject: Subject) -> Iterator[Error]:
    """Losses at other weights; that a component has its weights, and no others."""
    for one in _all_moved(subject):
        if bool((one.place < 0).any()):
            yield f"{one.name}: not the plain model's weights", float("inf")
        yield f"{one.name}: other weights", float(_misplaced(subject, one))
        yield f"{one.name}, {one.engine}", subject.gap(one.loss, one.right_loss)


def gradients(subject: Subject) -> Iterator[Error]:
    """Gradients of the mean loss at those weights."""
    for one in _all_moved(subject):
        yield f"{one.name}, {one.engine}", relative(one.gradient, one.right_gradient)


def _all_moved(subject: Subject) -> Iterator[Moved]:
    adapted = adapt(subject.model)
    weights, tokens, elements = copy_weights(adapted), subject.tokens, subject.elements
    components = parse_components(_names(adapted), adapted)
    generator = torch.Generator().manual_seed(1)
    for engine in ENGINES:
        if engine == "functional" and adapted.architecture is None:
            continue
        groups = make_groups(adapted, weights, components, engine)
        prefix = prefix_for(adapted, weights, groups, Batch(tokens, subject.weight))
        for group in groups:
            star = group.suffix.star()
            v = star + STEP * torch.randn(star.shape, generator=generator)
            loss, gradient = group.suffix.losses(v[:, None], prefix, gradient=True)
            assert gradient is not None
            for i, component in enumerate(group.components):
                place = elements.find(star[i])
                known = place.clamp(min=0)
                with elements.written(known, v[i]):
                    right = losses(subject.plain.logits(subject.inputs), tokens)
                    flat = elements.gradient((right * subject.weight).sum())
                yield Moved(
                    component.name, engine, place, loss[i, 0].view_as(right), gradient[i, 0],
                    right.detach(), flat[known],
                )  # fmt: skip


def _names(adapted: AdaptedModel) -> list[str]:
    absent = ["unembed"] if adapted.tied_embeddings else []
    absent += [name for name in COMPONENTS if adapted.attn_only and name.endswith("MLP")]
    return [name for name in COMPONENTS if name not in absent]


def _misplaced(subject: Subject, one: Moved) -> int:
    """How many weights the component has too many, or too few."""
    elements, plain = subject.elements, subject.plain
    own = elements.mask(one.place.clamp(min=0))
    reached = subject.reached
    if one.name == "full":
        return int((reached & ~own).sum())
    part = read_part(one.name)
    if part is None:  # embeddings: rows that no token reads may be left out
        return 0
    if part.kind == HEAD and part.head is not None:
        matrices = [
            plain.head_matrix(part.layer, kind, part.head, elements.at).flatten()
            for kind in (*PARTS, "O")
        ]
        return int((elements.mask(torch.cat(matrices)) != own).sum())
    if part.kind == MLP:
        return int((elements.mask(elements.of(plain.mlps(part.layer))) != own).sum())
    assert part.kind == LAYER
    inside = elements.mask(elements.of(list(plain.blocks[part.layer].parameters())))
    return int((reached & inside & ~own).sum() + (own & ~inside).sum())
