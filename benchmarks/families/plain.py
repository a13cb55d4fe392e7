"""A model that lens_slt never sees, and what torch hooks on it say.

:class:`Plain` holds an untouched copy of a Hugging Face model or HookedTransformer and the places
that :mod:`benchmarks.families.configs` declares. A place is the input or the output of a module,
read and replaced by torch's own hooks.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

PARTS = ("Q", "K", "V")
Read = Callable[[nn.Parameter], Tensor]
Change = Callable[[Tensor], Tensor | None]  # what stands there instead; None leaves it


@dataclass(frozen=True)
class Place:
    """The input of a module, or its output."""

    module: nn.Module
    before: bool = False


@dataclass(frozen=True)
class Layer:
    """Places of one block. ``mlp`` is None where it has none."""

    start: Place  # the residual stream that the block reads
    end: Place  # the one that it leaves
    z: Place  # head outputs side by side
    attended: Place  # what they become, before any norm or multiplier
    qkv: tuple[Place, Place, Place]
    mlp: Place | None


@dataclass(frozen=True)
class Plain:
    """The copy, its places, and which features belong to which head."""

    model: nn.Module
    logits_of: Callable[[Tensor], Tensor]
    blocks: tuple[nn.Module, ...]
    layers: tuple[Layer, ...]
    n_heads: int
    n_key_values: int
    d_head: int
    features: Callable[[str, int], Tensor]  # part and (key/value) head → places in the output
    mlps: Callable[[int], list[nn.Parameter]]  # matrices of its MLP
    matrix: Callable[[int, str, Read], Tensor]  # layer, Q, K, V, O → [in, out], head by head
    norm: Callable[[int], tuple[Tensor | None, bool]]  # weight before attention; takes mean out?

    def key_value(self, head: int) -> int:
        return head // (self.n_heads // self.n_key_values)

    @property
    def final(self) -> Place:
        """The last residual stream."""
        return self.layers[-1].end

    def at(self, part: str, head: int) -> Tensor:
        """Features of a head's queries, or of the keys or values that it reads."""
        return self.features(part, head if part == "Q" else self.key_value(head))

    def logits(self, tokens: Tensor, changes: dict[Place, Change] | None = None) -> Tensor:
        """Logits of ``tokens``, some places changed on the way."""
        with hooked(changes or {}):
            return self.logits_of(tokens)

    def values(
        self, tokens: Tensor, places: list[Place], changes: dict[Place, Change] | None = None
    ) -> list[Tensor]:
        """What stands at some places, in the end, in such a run."""
        kept: dict[Place, Tensor] = {}
        changes = changes or {}

        def keep(place: Place) -> Change:
            def change(value: Tensor) -> Tensor | None:
                new = changes[place](value) if place in changes else None
                kept[place] = (value if new is None else new).detach().clone()
                return new

            return change

        with torch.no_grad():
            self.logits(tokens, {**changes, **{place: keep(place) for place in places}})
        return [kept[place] for place in places]

    def head_matrix(self, layer: int, part: str, head: int, read: Read) -> Tensor:
        """A head's part of a matrix: ``[d_model, d_head]``, ``[d_head, d_model]`` for O."""
        own = head if part in "QO" else self.key_value(head)
        columns = slice(own * self.d_head, (own + 1) * self.d_head)
        whole = self.matrix(layer, part, read)
        return whole[columns] if part == "O" else whole[:, columns]

    def inner_norm(self, layer: int, part: str) -> Tensor | None:
        """Weight ``[d_head]`` of a norm that all heads' queries or keys pass, if there is one."""
        word = {"Q": ("q_norm", "query_layernorm"), "K": ("k_norm", "key_layernorm")}.get(part, ())
        for name, parameter in self.blocks[layer].named_parameters():
            if any(part in name.split(".") for part in word) and parameter.numel() == self.d_head:
                return parameter.detach()
        return None

    def only(self, head: int, value: Tensor, new: Tensor | float) -> Tensor:
        """Head outputs with those of one head replaced."""
        changed = value.clone().reshape(*value.shape[:2], self.n_heads, self.d_head)
        changed[:, :, head] = new
        return changed.reshape(value.shape)

    def change(self, tokens: Tensor, layer: int, head: int, place: Place) -> Tensor:
        """What a head alone brings to a place in the residual stream.

        The difference that its outputs make there while all other attention and all MLPs put out
        what they do anyway: norms and multipliers on the way included, whatever they are.
        """
        frozen = [one.attended for i, one in enumerate(self.layers) if i != layer]
        frozen += [one.mlp for one in self.layers if one.mlp is not None]
        *clean, there = self.values(tokens, [*frozen, place])
        changes: dict[Place, Change] = {
            one: (lambda value, kept=kept: kept) for one, kept in zip(frozen, clean, strict=True)
        }
        changes[self.layers[layer].z] = lambda z: self.only(head, z, 0.0)
        (without,) = self.values(tokens, [place], changes)
        return there - without

    def reread(self, tokens: Tensor, layer: int, change: Tensor) -> list[Tensor]:
        """Queries, keys and values of a layer that reads the stream without ``change``."""
        one = self.layers[layer]
        return self.values(tokens, list(one.qkv), {one.start: lambda x: x - change})


def losses(logits: Tensor, tokens: Tensor) -> Tensor:
    """Loss of every predicted token, ``[sequence, position - 1]``."""
    return -logits.log_softmax(-1).gather(-1, tokens[:, 1:, None])[..., 0]


@contextmanager
def hooked(changes: dict[Place, Change]) -> Iterator[None]:
    """Within the block torch hooks change what stands at the places."""
    handles = [_hook(place, change) for place, change in changes.items()]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _hook(place: Place, change: Change) -> Any:
    def before(module: nn.Module, args: tuple, kwargs: dict[str, Any]) -> tuple | None:
        new = change(args[0] if args else kwargs["hidden_states"])
        if new is None:
            return None
        if args:
            return (new, *args[1:]), kwargs
        return args, {**kwargs, "hidden_states": new}

    def after(module: nn.Module, args: tuple, output: Any) -> Any:
        several = isinstance(output, tuple | list)
        new = change(output[0] if several else output)
        if new is None:
            return None
        return type(output)([new, *output[1:]]) if several else new

    if place.before:
        return place.module.register_forward_pre_hook(before, with_kwargs=True)
    return place.module.register_forward_hook(after)


class Elements:
    """Every number of a model's parameters, found by its value.

    All values differ (:func:`benchmarks.families.build.randomise`), so a number of a flat vector
    says by itself which number of the plain model it is: no layout has to be known.
    """

    def __init__(self, model: nn.Module) -> None:
        self.parameters = list(model.parameters())
        self.star = torch.cat([p.detach().flatten() for p in self.parameters])
        self.order = self.star.argsort()
        self.sorted = self.star[self.order]
        if bool((self.sorted[1:] == self.sorted[:-1]).any()):
            raise AssertionError("two weights of the plain model have the same value")

    def find(self, values: Tensor) -> Tensor:
        """Where these values stand; −1 for what is no weight of the model."""
        place = torch.searchsorted(self.sorted, values.contiguous()).clamp(max=len(self.star) - 1)
        return torch.where(self.sorted[place] == values, self.order[place], -1)

    def of(self, parameters: list[nn.Parameter]) -> Tensor:
        """All places of some parameters."""
        wanted, start, found = {id(p) for p in parameters}, 0, []
        for p in self.parameters:
            if id(p) in wanted:
                found.append(torch.arange(start, start + p.numel()))
            start += p.numel()
        return torch.cat(found) if found else torch.arange(0)

    def mask(self, place: Tensor) -> Tensor:
        """True at these places."""
        found = torch.zeros(len(self.star), dtype=torch.bool)
        found[place] = True
        return found

    def at(self, parameter: nn.Parameter) -> Tensor:
        """The places of a parameter, in its shape."""
        return self.of([parameter]).view_as(parameter)

    def gradient(self, value: Tensor) -> Tensor:
        """Of a scalar, with respect to every number."""
        grads = torch.autograd.grad(
            value, self.parameters, allow_unused=True, materialize_grads=True
        )
        return torch.cat([g.flatten() for g in grads])

    @contextmanager
    def written(self, place: Tensor, values: Tensor) -> Iterator[None]:
        """Within the block the numbers at ``place`` have other values."""
        moved = self.star.clone()
        moved[place] = values
        try:
            self._write(moved)
            yield
        finally:
            self._write(self.star)

    def _write(self, flat: Tensor) -> None:
        with torch.no_grad():
            sizes = [p.numel() for p in self.parameters]
            for p, part in zip(self.parameters, flat.split(sizes), strict=True):
                p.copy_(part.view_as(p))
