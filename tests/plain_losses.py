"""Losses and gradients by plain autograd through a model's own forward pass, in float64."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from lens_slt.models.adapter import adapt, trainable
from lens_slt.models.components import parse_components
from lens_slt.models.suffix import flatten_slots, slot_sizes


def plain_losses(
    make: Callable[[], nn.Module], tokens: Tensor, component: str, row: Tensor, weight: Tensor
) -> tuple[Tensor, Tensor]:
    """Per-token losses ``[sequence, position - 1]`` of a model from ``make`` whose component has
    the weights ``row``, and the gradient of Σ weight·loss with respect to them.

    A target that the model cannot predict has to have weight 0; its loss means nothing.
    """
    adapted = adapt(make().double())
    (part,) = parse_components(component, adapted)
    leaves = {slot.name: adapted.leaves[slot.name] for slot in part.slots}
    stars = {name: leaf.view(leaf.parameter.detach()) for name, leaf in leaves.items()}
    for slot, values in zip(part.slots, row.double().split(slot_sizes(part, stars)), strict=True):
        target = stars[slot.name] if slot.index is None else stars[slot.name][slot.index]
        target.copy_(values.view_as(target))
    with trainable(adapted):
        scores = adapted.module(tokens[:, :-1], return_type="logits").log_softmax(-1)
        targets = tokens[:, 1:].masked_fill(weight == 0, 0)
        loss = -scores.gather(-1, targets[..., None]).squeeze(-1)
        parameters = [leaf.parameter for leaf in leaves.values()]
        grads = torch.autograd.grad((weight.double() * loss).sum(), parameters)
    found = {name: leaf.view(g) for (name, leaf), g in zip(leaves.items(), grads, strict=True)}
    return loss.detach(), flatten_slots(part, found)
