"""Gradients of a loss along paths of activations: what one node's edges of one kind do together."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from lens_slt.circuits.hypothesis import LOGITS, MLP_INPUT, THROUGH
from lens_slt.circuits.paths import place_of
from lens_slt.models.adapter import AdaptedModel, model_logits, model_logits_from
from lens_slt.models.captures import Hook, captured, keep_in, run_with
from lens_slt.models.components import node_names
from lens_slt.models.names import depth_of, head_name, is_mlp, layer_of
from lens_slt.models.observable import Observable, Sites, prepared
from lens_slt.models.stream import Stream

KINDS = (*THROUGH, MLP_INPUT, LOGITS)  # of readers; a source's edges of one kind share a path

Gradients = dict["Reader", Tensor]


@dataclass(frozen=True, eq=False)
class Reader:
    """What a layer reads of the stream: queries (keys, values), an MLP's input, the last stream."""

    kind: str  # one of KINDS
    layer: int
    targets: tuple[str, ...]
    place: str  # hook of the stream that is read
    read: Callable[[Tensor], Tensor]
    hook: str = ""  # that shows what is read
    module: nn.Module | None = None  # that is called with it, where no hook shows it
    depth: int = 0  # what stands before this along the stream is read


@dataclass(frozen=True)
class Wiring:
    """Nodes that write to the residual stream of a model, and what reads it.

    ``left_out`` says of nodes that write or read otherwise why no edge of theirs is estimated.
    """

    stream: Stream
    sources: tuple[str, ...]
    readers: tuple[Reader, ...]
    left_out: Mapping[str, str]

    @classmethod
    def of(cls, stream: Stream, embeddings: bool) -> Wiring:
        """Raises ValueError where attention or the logits are not what the estimate presumes."""
        adapted = stream.adapted
        last = adapted.n_layers - 1
        stream.check_logits()
        readers: list[Reader] = []
        for layer in range(adapted.n_layers):
            stream.factor(layer)
            if layer > 0:
                stream.check_restart(layer)
            if layer > 0 or embeddings:
                readers += [_heads_reader(stream, layer, through) for through in THROUGH]
        resid = f"blocks.{last}.hook_resid_post"
        readers.append(
            Reader(LOGITS, last, (LOGITS,), resid, lambda x: x, hook=resid, depth=2 * last + 2)
        )
        sources: list[str] = []
        left_out: dict[str, str] = {}
        for node in node_names(adapted, embeddings=embeddings):
            try:
                stream.written_by(node)
                if is_mlp(node):
                    readers.append(_mlp_reader(stream, node))
                sources.append(node)
            except ValueError as error:
                left_out[node] = str(error)
        return cls(stream, tuple(sources), tuple(readers), left_out)

    def behind(self, source: str) -> list[Reader]:
        """What reads the stream behind a source."""
        return [one for one in self.readers if one.depth > depth_of(source)]


def _heads_reader(stream: Stream, layer: int, through: str) -> Reader:
    stream.check_heard(layer, through)
    heads = tuple(head_name(layer, i) for i in range(stream.adapted.n_heads))
    return Reader(
        through, layer, heads, f"blocks.{layer}.hook_resid_pre",
        partial(stream.projected, layer, through),
        hook=f"blocks.{layer}.attn.hook_{through.lower()}", depth=depth_of(heads[0]),
    )  # fmt: skip


def _mlp_reader(stream: Stream, node: str) -> Reader:
    layer = layer_of(node)
    found = stream.mlp_reader(layer)
    depth = depth_of(node) - found.beside_heads
    return Reader(
        MLP_INPUT, layer, (node,), found.place, found.read, module=found.module, depth=depth
    )


@dataclass(frozen=True)
class Batch:
    """Some sequences in the model as it is: what its nodes read and write."""

    wiring: Wiring
    inputs: Tensor  # tokens that predict one, [sequence, position]
    sites: Sites  # where the observable is read; sequences of all tokens
    local: Tensor  # which sequence of the batch each site is in
    weight: Tensor  # of each site
    observable: Observable
    kept: dict[str, Tensor]  # what nodes write, and the stream where it is read
    replacement: Mapping[str, Tensor]  # what stands in for what nodes write, by hook
    value: float  # of the observable, its weighted sum over sites

    @classmethod
    def of(
        cls,
        wiring: Wiring,
        inputs: Tensor,
        rows: Tensor,
        sites: Sites,
        weight: Tensor,
        observable: Observable,
        replacement: Mapping[str, Tensor],
    ) -> Batch:
        """``inputs`` are the sequences ``rows`` of all tokens, to which ``sites`` refer."""
        adapted = wiring.stream.adapted
        inputs = inputs.to(adapted.device)
        kept: dict[str, Tensor] = {}
        names = {place_of(source)[0] for source in wiring.sources}
        names |= {reader.place for reader in wiring.readers if reader.kind != LOGITS}
        names |= {f"blocks.{i}.hook_resid_pre" for i in range(adapted.n_layers)}
        logits = run_with(adapted, inputs, [keep_in(kept, name) for name in sorted(names)])
        local = torch.searchsorted(rows, sites.sequence)
        sites = replace(sites, index=torch.arange(len(local)))
        observable, values = prepared(observable, logits[local, sites.column], sites)
        value = float((values.double() * weight.to(values.device)).sum())
        return cls(wiring, inputs, sites, local, weight, observable, kept, replacement, value)

    @property
    def adapted(self) -> AdaptedModel:
        return self.wiring.stream.adapted

    def effects(self, steps: int) -> Iterable[tuple[str, Reader, Tensor]]:
        """Source, reader and effects ``[target]`` of all edges on this batch's part of the loss."""
        clean = self._clean_gradients() if steps == 1 else None
        for source in self.wiring.sources:
            move = self._move(source)
            for kind in KINDS:
                readers = [one for one in self.wiring.behind(source) if one.kind == kind]
                changes = self._changes(readers, move)
                gradients = clean or self._path_gradients(changes, steps)
                for reader, change in changes.items():
                    yield source, reader, self._by_target(reader, change * gradients[reader])

    def _by_target(self, reader: Reader, products: Tensor) -> Tensor:
        """Their sums ``[target]``, of heads' ``[sequence, position, head, d_head]`` or others'.

        A key/value head shows its effect in every head of its group, also where the model keeps a
        copy for each of them.
        """
        if reader.kind not in THROUGH:
            return products.sum().double().cpu()[None]
        adapted = self.adapted
        n_own = adapted.n_heads if reader.kind == "Q" else adapted.n_key_value_heads
        effect = products.sum((0, 1, 3)).double().cpu().view(n_own, -1).sum(1)
        return effect.repeat_interleave(adapted.n_heads // n_own)

    def _move(self, source: str) -> Tensor:
        """Change of the stream if a node is ablated, ``[sequence, position, d_model]``."""
        place, head = place_of(source)
        instead, written = self.replacement[place], self.kept[place]
        if head is not None:
            instead, written = instead[..., head, :], written[:, :, head]
        moved = self.wiring.stream.written(source, instead - written)
        return moved.expand(len(self.inputs), *moved.shape[1:])  # positions may come once for all

    @torch.no_grad()
    def _changes(self, readers: Iterable[Reader], move: Tensor) -> Gradients:
        """By how much what they read changes, in the shape of what they read."""
        changes = {}
        for reader in readers:
            if reader.kind == LOGITS:
                changes[reader] = move
                continue
            resid = self.kept[reader.place]
            changes[reader] = reader.read(resid + move) - reader.read(resid)
        return changes

    def _clean_gradients(self) -> Gradients:
        """Of the loss with respect to everything that is read."""
        nothing = torch.zeros_like(self.kept["blocks.0.hook_resid_pre"])
        return self._gradients(self._changes(self.wiring.readers, nothing))

    def _path_gradients(self, changes: Gradients, steps: int) -> Gradients:
        """Mean gradients on the way to these changes, at the midpoints of its parts."""
        total = {reader: torch.zeros_like(change) for reader, change in changes.items()}
        for step in range(steps) if changes else ():
            share = (step + 0.5) / steps
            shifts = {reader: share * change for reader, change in changes.items()}
            for reader, gradient in self._gradients(shifts).items():
                total[reader] += gradient / steps
        return total

    def _gradients(self, shifts: Gradients) -> Gradients:
        """Of the loss with these shifts added; the run starts at the first block that reads one."""
        leaves = {reader: shift.clone().requires_grad_() for reader, shift in shifts.items()}
        hooks: list[Hook] = []
        with torch.enable_grad(), ExitStack() as stack:
            for reader, leaf in leaves.items():
                if reader.module is None:
                    hooks.append((reader.hook, partial(shifted, leaf)))
                else:
                    handle = reader.module.register_forward_pre_hook(partial(called_with, leaf))
                    stack.callback(handle.remove)
            stack.enter_context(self.adapted.module.hooks(fwd_hooks=hooks))
            logits = self._logits_from(min(reader.layer for reader in leaves))
            values = self.observable(logits[self.local, self.sites.column], self.sites)
            value = (values * self.weight.to(values)).sum()
            if not value.requires_grad:
                raise ValueError(
                    f"metric: {self.observable.name} has no gradient, which attribution needs; use "
                    "ablate_path, or a metric such as LogitDifference"
                )
            gradients = torch.autograd.grad(value, list(leaves.values()))
        return dict(zip(leaves, gradients, strict=True))

    def _logits_from(self, start: int) -> Tensor:
        if start == 0:
            return model_logits(self.adapted, self.inputs)
        resid = self.kept[f"blocks.{start}.hook_resid_pre"]
        return model_logits_from(self.adapted, self.inputs, resid, start)


def shifted(leaf: Tensor, value: Tensor, hook: Any) -> Tensor:
    """A hook, but for its first argument, which it adds."""
    return value + leaf


def called_with(leaf: Tensor, module: nn.Module, inputs: tuple[Any, ...]) -> tuple[Any, ...]:
    """A forward pre-hook, but for its first argument, which it adds."""
    return inputs[0] + leaf, *inputs[1:]


def stand_ins(
    adapted: AdaptedModel,
    places: list[str],
    inputs: Tensor,
    lends: Tensor,
    how: str,
    batch_size: int,
) -> dict[str, Tensor]:
    """What stands in for what is written at these hooks, ``[position or 1, …]`` of each.

    ``lends``, bool ``[sequence, position]``, marks the tokens whose mean is taken.
    """
    total: dict[str, Tensor] = {}
    for rows in torch.arange(len(inputs)).split(batch_size):
        kept = captured(adapted, inputs[rows], places)
        there = lends[rows].to(adapted.device, torch.float64)
        for place in places:
            value = kept[place].double()
            value = value.expand(len(rows), *value.shape[1:])
            total[place] = total.get(place, 0) + torch.einsum("sp,sp...->p...", there, value)
    count = lends.sum(0).to(adapted.device, torch.float64)
    found = {}
    for place, value in total.items():
        if how == "zero":
            mean = torch.zeros_like(value[:1])
        elif how == "mean":
            mean = value.sum(0, keepdim=True) / count.sum()
        else:
            mean = value / count.clamp(min=1).view(-1, *[1] * (value.ndim - 1))
        found[place] = mean.to(adapted.dtype)
    return found
