"""Loss and gradient of any component, one version of its weights at a time.

Two ways to the same numbers, with the same flat order of the weights as the faster third way for
single heads, :mod:`lens_slt.models.heads`:

- :class:`FunctionalSuffix` runs the functions of :mod:`lens_slt.models.forward` from the first
  block that the component touches;
- :class:`ModuleSuffix` writes the weights into the caller's model, runs its own later blocks on the
  cached residual stream and puts the weights back. It is correct for every TransformerLens model.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from lens_slt.arguments import choice
from lens_slt.models import forward
from lens_slt.models.adapter import (
    AdaptedModel,
    model_logits,
    model_logits_from,
    model_resid_pre,
    trainable,
)
from lens_slt.models.components import Component
from lens_slt.models.forward import Architecture, Weights
from lens_slt.models.heads import HeadSuffix
from lens_slt.models.loss import token_cross_entropy, unembed_loss
from lens_slt.models.prefix import Batch, Prefix, compute_prefix

ENGINES = ("auto", "functional", "modules")
OWN_BLOCKS = "the model's own blocks"


class Suffix(Protocol):
    """Evaluates the loss of several components that share their frozen prefix."""

    def star(self) -> Tensor:
        """The given weights, ``[component, parameter]``."""
        ...

    def of(self, members: tuple[int, ...]) -> Suffix:
        """The same for some of its components."""
        ...

    def losses(
        self, v: Tensor, prefix: Prefix, *, gradient: bool, chunk: int | None = None
    ) -> tuple[Tensor, Tensor | None]:
        """Per-token losses ``[component, chain, N]`` and the gradient of the mean loss."""
        ...

    def logits(self, v: Tensor, prefix: Prefix, tokens: Tensor) -> Iterator[Tensor]:
        """Logits ``[token, d_vocab_out]`` of some of the N tokens, for every component and chain.

        One after the other, components first: they are large.
        """
        ...


@dataclass(frozen=True)
class FunctionalSuffix:
    """One component of any kind, through the functional forward pass."""

    arch: Architecture
    weights: Weights
    component: Component

    def star(self) -> Tensor:
        return flatten_slots(self.component, self.weights)[None]

    def of(self, members: tuple[int, ...]) -> Suffix:
        return self

    def losses(
        self, v: Tensor, prefix: Prefix, *, gradient: bool, chunk: int | None = None
    ) -> tuple[Tensor, Tensor | None]:
        results = [self._one(row, prefix, gradient, chunk) for row in v[0]]
        loss = torch.stack([loss for loss, _ in results])[None]
        if not gradient:
            return loss, None
        return loss, torch.stack([grad for _, grad in results if grad is not None])[None]

    def logits(self, v: Tensor, prefix: Prefix, tokens: Tensor) -> Iterator[Tensor]:
        for row in v[0]:
            with torch.no_grad():
                x, weights = self._final(row, prefix)
                found = forward.unembed(self.arch, weights, x[tokens])
            yield found

    def _final(self, row: Tensor, prefix: Prefix) -> tuple[Tensor, Weights]:
        """Final states ``[N, d_model]`` at these weights of the component, and all weights."""
        weights = self._substitute(row)
        layer = self.component.layer
        if touches_embedding(self.component):
            resid = forward.embed(self.arch, weights, prefix.batch.inputs)
        else:
            resid = prefix.resid[layer]
        x = forward.run_from(self.arch, weights, layer, resid).flatten(0, 1)
        return x, weights

    def _one(
        self, row: Tensor, prefix: Prefix, gradient: bool, chunk: int | None
    ) -> tuple[Tensor, Tensor | None]:
        row = row.detach().requires_grad_(gradient)
        with torch.set_grad_enabled(gradient):
            x, weights = self._final(row, prefix)
            w_u, b_u = forward.unembedding(self.arch, weights)
        batch = prefix.batch
        loss, grads = unembed_loss(
            x, w_u, b_u, batch.targets, reference=batch.reference, chunk=chunk,
            weight=batch.weight.flatten() if gradient else None,
            unembed_grad=gradient and (w_u.requires_grad or _needs_grad(b_u)),
        )  # fmt: skip
        if grads is None:
            return loss, None
        pairs = [(x, grads.x), (w_u, grads.w_u), (b_u, grads.b_u)]
        live = [(out, g) for out, g in pairs if g is not None and out is not None]
        live = [(out, g) for out, g in live if out.requires_grad]
        grad = torch.autograd.grad([out for out, _ in live], row, [g for _, g in live])[0]
        return loss, grad

    def _substitute(self, row: Tensor) -> Weights:
        weights = dict(self.weights)
        fresh: set[str] = set()
        for slot, part in zip(
            self.component.slots, row.split(slot_sizes(self.component, self.weights)), strict=True
        ):
            star = self.weights[slot.name]
            if slot.index is None:
                weights[slot.name] = part.view_as(star)
                continue
            if slot.name not in fresh:
                weights[slot.name] = star.clone()
                fresh.add(slot.name)
            weights[slot.name][slot.index] = part.view_as(star[slot.index])
        return weights


@dataclass(frozen=True)
class ModuleSuffix:
    """One component, through the caller's own modules."""

    model: AdaptedModel
    weights: Weights  # canonical copies of the given weights, put back after every evaluation
    component: Component

    def star(self) -> Tensor:
        return flatten_slots(self.component, self.weights)[None]

    def of(self, members: tuple[int, ...]) -> Suffix:
        return self

    def losses(
        self, v: Tensor, prefix: Prefix, *, gradient: bool, chunk: int | None = None
    ) -> tuple[Tensor, Tensor | None]:
        results = [self._one(row, prefix, gradient) for row in v[0]]
        loss = torch.stack([loss for loss, _ in results])[None]
        if not gradient:
            return loss, None
        return loss, torch.stack([grad for _, grad in results if grad is not None])[None]

    def _one(self, row: Tensor, prefix: Prefix, gradient: bool) -> tuple[Tensor, Tensor | None]:
        with self.written(row), trainable(self.model) if gradient else torch.no_grad():
            loss = plain_loss(self._logits(prefix).flatten(0, 1), prefix.batch)
            if not gradient:
                return loss, None
            grad = self._gradient((loss * prefix.batch.weight.flatten()).sum())
            return loss.detach(), grad

    def logits(self, v: Tensor, prefix: Prefix, tokens: Tensor) -> Iterator[Tensor]:
        for row in v[0]:
            with self.written(row), torch.no_grad():
                found = self._logits(prefix).flatten(0, 1)[tokens]
            yield found

    def _logits(self, prefix: Prefix) -> Tensor:
        inputs, layer = prefix.batch.inputs, min(self.component.layer, self.model.n_layers - 1)
        if touches_embedding(self.component) or layer not in prefix.resid:
            return model_logits(self.model, inputs)
        return model_logits_from(self.model, inputs, prefix.resid[layer], layer)

    def _gradient(self, mean_loss: Tensor) -> Tensor:
        leaves = {slot.name: self.model.leaves[slot.name] for slot in self.component.slots}
        parameters = {id(leaf.parameter): leaf.parameter for leaf in leaves.values()}
        grads = torch.autograd.grad(
            mean_loss, list(parameters.values()), allow_unused=True, materialize_grads=True
        )
        by_parameter = dict(zip(parameters, grads, strict=True))
        canonical = {
            name: leaf.view(by_parameter[id(leaf.parameter)]) for name, leaf in leaves.items()
        }
        return flatten_slots(self.component, canonical)

    @contextmanager
    def written(self, row: Tensor) -> Iterator[None]:
        """Within the block the model has these weights of the component."""
        try:
            self._write(row)
            yield
        finally:
            self._write(flatten_slots(self.component, self.weights))

    def _write(self, row: Tensor) -> None:
        sizes = slot_sizes(self.component, self.weights)
        with torch.no_grad():
            for slot, part in zip(self.component.slots, row.split(sizes), strict=True):
                leaf = self.model.leaves[slot.name]
                target = leaf.view(leaf.parameter.data)
                target = target if slot.index is None else target[slot.index]
                target.copy_(part.view_as(target))


def touches_embedding(component: Component) -> bool:
    """Whether the component changes the residual stream before the first block."""
    return any(slot.name.startswith(("embed.", "pos_embed.")) for slot in component.slots)


def flatten_slots(component: Component, weights: Weights) -> Tensor:
    """The component's weights as one flat vector, slot by slot."""
    return torch.cat([_slot(weights, s.name, s.index).flatten() for s in component.slots])


def slot_sizes(component: Component, weights: Weights) -> list[int]:
    """Number of parameters of every slot."""
    return [_slot(weights, s.name, s.index).numel() for s in component.slots]


def module_prefix(model: AdaptedModel, batch: Batch, layers: set[int]) -> Prefix:
    """The prefix of a model that only its own modules can run.

    No stream is kept where the model cannot be started again at a block.
    """
    with torch.no_grad():
        last = model.n_layers - 1
        wanted = {min(n, last) for n in layers} if model.restarts else set()
        resid = {n: model_resid_pre(model, batch.inputs, n) for n in sorted(wanted)}
        if resid:
            deepest = max(resid)
            logits = model_logits_from(model, batch.inputs, resid[deepest], deepest)
        else:
            logits = model_logits(model, batch.inputs)
        return Prefix(batch, plain_loss(logits.flatten(0, 1), batch), resid, {}, {})


@dataclass(frozen=True)
class Group:
    """Components that one suffix evaluates together."""

    components: tuple[Component, ...]
    suffix: Suffix
    layers: frozenset[int]  # blocks whose input stream the suffix reads
    head_layers: frozenset[int]  # blocks whose head outputs it reads
    path: str  # how it is evaluated, in words


def make_groups(
    model: AdaptedModel, weights: Weights, components: list[Component], engine: str = "auto"
) -> list[Group]:
    """Choose how each component is evaluated; single heads of a layer go together."""
    choice("engine", engine, ENGINES)
    arch = model.architecture
    if arch is None and engine == "functional":
        raise ValueError(f"engine='functional' cannot run this model: {model.why_generic}")
    if arch is None or engine == "modules":
        return [
            Group(
                (c,), ModuleSuffix(model, weights, c), frozenset({c.layer}), frozenset(),
                OWN_BLOCKS,
            )
            for c in components
        ]  # fmt: skip
    groups: list[Group] = []
    frozen = _without_zero_biases(weights)
    batched = [c for c in components if c.head is not None and engine == "auto"]
    for layer in sorted({c.layer for c in batched}):
        members = tuple(c for c in batched if c.layer == layer)
        heads = tuple(c.head for c in members if c.head is not None)
        suffix = HeadSuffix(arch, frozen, layer, heads)
        path = "low-rank last layer" if suffix.low_rank else "batched heads"
        groups.append(
            Group(
                members, suffix, frozenset(suffix.layers_needed),
                frozenset(suffix.head_layers_needed), path,
            )
        )  # fmt: skip
    for c in components:
        if c not in batched:
            suffix_one = FunctionalSuffix(arch, weights, c)
            groups.append(
                Group((c,), suffix_one, frozenset({c.layer}), frozenset(), "functional blocks")
            )
    return groups


def runs_own_blocks(groups: list[Group]) -> bool:
    """Whether some group is evaluated by the caller's modules."""
    return any(group.path == OWN_BLOCKS for group in groups)


def prefix_for(model: AdaptedModel, weights: Weights, groups: list[Group], batch: Batch) -> Prefix:
    """Everything frozen that any of the groups needs, computed once."""
    layers = {layer for group in groups for layer in group.layers}
    heads = {layer for group in groups for layer in group.head_layers}
    if model.architecture is None or runs_own_blocks(groups):
        return module_prefix(model, batch, layers)
    return compute_prefix(model.architecture, weights, batch, layers, heads=heads)


def mean_weight(weight: Tensor, weight_per_sequence: float) -> Tensor:
    """Position weights of a minibatch, scaled such that the weighted sum estimates the mean loss.

    Dividing by the expected rather than the actual weight of the minibatch keeps the estimate
    unbiased when sequences are padded to different lengths, or weigh differently.
    """
    return weight / (len(weight) * weight_per_sequence)


def _without_zero_biases(weights: Weights) -> Weights:
    """TransformerLens gives every model biases; adding those that are zero costs 3 % of a step."""
    return {
        name: w
        for name, w in weights.items()
        if not (name.split(".")[-1][0] == "b" and (w == 0).all())
    }


def _slot(weights: Weights, name: str, index: int | None) -> Tensor:
    return weights[name] if index is None else weights[name][index]


def _needs_grad(x: Tensor | None) -> bool:
    return x is not None and x.requires_grad


def plain_loss(logits: Tensor, batch: Batch) -> Tensor:
    """Loss of every predicted token ``[N]`` from logits ``[N, d_vocab_out]``."""
    log_ref = None if batch.reference is None else batch.reference.log_probs(slice(None))
    return token_cross_entropy(logits, batch.targets, log_ref)
