"""Loss and gradient on the whole weighted data set, and the check that they are the model's own."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Generator, Tensor

from benchmarks.zoo.functions import FunctionCase
from benchmarks.zoo.hmc import Potential
from benchmarks.zoo.train import weighted_loss
from lens_slt.models.adapter import AdaptedModel, adapt, copy_weights, trainable
from lens_slt.models.components import Component, parse_components
from lens_slt.models.prefix import Batch
from lens_slt.models.suffix import flatten_slots, make_groups, prefix_for, slot_sizes

LOSS_TOLERANCE = 2e-4  # of the loss
GRADIENT_TOLERANCE = 1e-2  # of its length
FORCE_N_BETA = 30.0


@dataclass(frozen=True)
class ComponentPotential:
    """One component of a model, at displacements from its given weights."""

    adapted: AdaptedModel
    component: Component
    star: Tensor  # [parameter]
    tokens: Tensor
    weights: Tensor  # [sequence, position - 1]
    potential: Potential


def component_potential(
    model: Any, name: str, tokens: Tensor, weights: Tensor | None
) -> ComponentPotential:
    """The fast path: everything that is frozen is computed once, all rows run together."""
    adapted = adapt(model)
    frozen = copy_weights(adapted)
    component = parse_components([name], adapted)[0]
    if weights is None:
        weights = torch.ones(len(tokens), tokens.shape[1] - 1)
    group = make_groups(adapted, frozen, [component])[0]
    share = weights / weights.sum()
    prefix = prefix_for(adapted, frozen, [group], Batch(tokens, share))
    star, flat = group.suffix.star(), share.double().flatten()

    def potential(u: Tensor) -> tuple[Tensor, Tensor]:
        losses, gradient = group.suffix.losses((star + u)[None], prefix, gradient=True)
        assert gradient is not None
        return (losses[0] - prefix.base_loss).double() @ flat, gradient[0]

    return ComponentPotential(adapted, component, star[0], tokens, weights, potential)


def function_potential(case: FunctionCase) -> Potential:
    """All rows of the data, in double precision."""
    star = case.point.double()
    data = () if case.data is None else (case.data.double(),)
    base = case.loss(star[None], *data)

    def potential(u: Tensor) -> tuple[Tensor, Tensor]:
        v = (star + u).requires_grad_(True)
        loss = case.loss(v, *data)
        gradient = torch.autograd.grad(loss.sum(), v)[0]
        return loss.detach() - base, gradient

    return potential


def check_against_model(of: ComponentPotential, gamma: float, seed: int = 0) -> tuple[float, float]:
    """Largest relative error of the paired loss and of the gradient at two random points.

    The comparison is with the model's own logits of the whole sequences and autograd.

    Raises ArithmeticError where they are not the model's.
    """
    generator = Generator().manual_seed(seed)
    n_parameters = len(of.star)
    u = torch.randn(2, n_parameters, generator=generator) / gamma**0.5
    u *= torch.tensor([0.1, 1.0])[:, None]
    losses, gradients = of.potential(u)
    base, _ = _model_loss(of, of.star)
    worst_loss = worst_gradient = 0.0
    for i in range(len(u)):
        loss, gradient = _model_loss(of, of.star + u[i])
        error = abs(float(losses[i]) - (loss - base)) / max(1.0, abs(loss), abs(base))
        worst_loss = max(worst_loss, error)
        # Of the force on a chain: where the loss is flat, what is left of g is rounding noise.
        prior = gamma / FORCE_N_BETA * float(u[i].norm())
        apart = float((gradients[i] - gradient).norm()) / (float(gradient.norm()) + prior)
        worst_gradient = max(worst_gradient, apart)
    if worst_loss > LOSS_TOLERANCE or worst_gradient > GRADIENT_TOLERANCE:
        raise ArithmeticError(
            f"{of.component.name}: not the model's own loss (relative error {worst_loss:.1e}) or "
            f"gradient ({worst_gradient:.1e})"
        )
    return worst_loss, worst_gradient


def _model_loss(of: ComponentPotential, row: Tensor) -> tuple[float, Tensor]:
    """Weighted mean loss of the model itself with ``row`` written into it, and its gradient."""
    names = list(dict.fromkeys(slot.name for slot in of.component.slots))
    leaves = {name: of.adapted.leaves[name] for name in names}
    parameters = list({id(x.parameter): x.parameter for x in leaves.values()}.values())
    with trainable(of.adapted):
        try:
            _write(of, row)
            loss = weighted_loss(of.adapted.module, of.tokens, of.weights)
            found = torch.autograd.grad(loss, parameters, allow_unused=True, materialize_grads=True)
        finally:
            _write(of, of.star)
    by_id = {id(p): g for p, g in zip(parameters, found, strict=True)}
    canonical = {name: leaf.view(by_id[id(leaf.parameter)]) for name, leaf in leaves.items()}
    return float(loss.detach()), flatten_slots(of.component, canonical)


def _write(of: ComponentPotential, row: Tensor) -> None:
    shapes = {name: leaf.view(leaf.parameter.data) for name, leaf in of.adapted.leaves.items()}
    sizes = slot_sizes(of.component, shapes)
    for slot, part in zip(of.component.slots, row.split(sizes), strict=True):
        target = shapes[slot.name]
        target = target if slot.index is None else target[slot.index]
        target.copy_(part.view_as(target))
