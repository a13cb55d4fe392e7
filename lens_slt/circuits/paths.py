"""Paths: what one node writes is replaced in what one other node reads, and nowhere else.

Heads read through queries, keys or values, which are computed again from the norm of the residual
stream without that part (``hook_q_input`` and its like are ignored by some models); MLPs are called
with the norm of the stream without it; the logits read the last stream.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor, nn

from lens_slt.circuits.hypothesis import LOGITS, Edge
from lens_slt.models.adapter import AdaptedModel
from lens_slt.models.captures import Hook, keep_in
from lens_slt.models.names import EMBEDDINGS, head_name, head_place, is_head, is_mlp, layer_of
from lens_slt.models.stream import Stream

Place = tuple[str, int | None]  # a hook, and the head's index in its values
Written = tuple[str, tuple[str, ...]]  # what a node writes at any of some roles


@dataclass
class PathHooks:
    """Hooks of one run: TransformerLens's own, and what MLPs are to be called with."""

    hooks: list[Hook] = field(default_factory=list)
    inputs: list[tuple[nn.Module, Callable[..., Any]]] = field(default_factory=list)

    @contextmanager
    def mlp_inputs(self) -> Iterator[None]:
        """Within the block MLPs read the changed streams."""
        with ExitStack() as stack:
            for module, change in self.inputs:
                stack.callback(module.register_forward_pre_hook(change).remove)
            yield


def place_of(node: str) -> Place:
    """The hook of a node's output, and the head's place in it."""
    if node in EMBEDDINGS:
        return f"hook_{node}", None
    if is_head(node):
        layer, head = head_place(node)
        return f"blocks.{layer}.attn.hook_z", head
    return f"blocks.{layer_of(node)}.hook_mlp_out", None


def check_paths(paths: Iterable[Edge], stream: Stream) -> None:
    """Raise ValueError where this model's nodes do not write or read as a path presumes."""
    n_layers = stream.adapted.n_layers
    for edge in sorted(paths):
        last = n_layers if edge.target == LOGITS else layer_of(edge.target)
        stream.written_by(edge.source)
        for layer in range(max(layer_of(edge.source), 0), last):
            stream.factor(layer)
        if edge.target == LOGITS:
            stream.check_logits()
        elif is_mlp(edge.target):
            reader = stream.mlp_reader(last)
            if layer_of(edge.source) == last and reader.beside_heads:
                raise ValueError(
                    f"paths: the MLP of layer {last} reads the stream before the heads of its own "
                    f"layer in {stream.adapted.name}, so there is no edge {edge}"
                )
        else:
            stream.check_heard(last, edge.through)


def as_read(edge: Edge, adapted: AdaptedModel) -> Edge:
    """The edge, into the first head of a group where its heads read the same keys and values."""
    group = adapted.n_heads // adapted.n_key_value_heads
    if group == 1 or edge.through not in ("K", "V"):
        return edge
    layer, head = head_place(edge.target)
    return replace(edge, target=head_name(layer, head // group * group))


def path_hooks(
    paths: Iterable[Edge],
    stream: Stream,
    instead: dict[str, Tensor],
    where: Callable[[str], Tensor | None],
) -> PathHooks:
    """Hooks that take what sources write out of what targets read.

    Paths are as they are read (:func:`as_read`). ``instead`` has what replaces the output of every
    source; ``where`` says of a role at which positions, bool ``[row, position]``, or None for
    everywhere.
    """
    found, live = PathHooks(), _Live(stream, instead, where)
    roles: dict[tuple[str, str, str], list[str]] = {}
    for edge in sorted(paths):
        roles.setdefault(edge.path, []).append(edge.role)
    readers: dict[tuple[str, str], list[Written]] = {}
    for (source, target, through), some in roles.items():
        readers.setdefault((target, through), []).append((source, tuple(some)))
    found.hooks += [
        keep_in(live.values, name)
        for name in sorted({place_of(source)[0] for source, _, _ in roles})
    ]
    # What readers in one layer lack the same sources is projected once for all of them.
    groups: dict[tuple[int, str], dict[tuple[Written, ...], list[int]]] = {}
    for (target, through), written in readers.items():
        if target == LOGITS:
            found.hooks.append(_into_logits(live, written))
        elif is_mlp(target):
            _into_mlp(found, live, layer_of(target), written)
        else:
            layer, head = head_place(target)
            groups.setdefault((layer, through), {}).setdefault(tuple(written), []).append(head)
    for (layer, through), by_sources in groups.items():
        found.hooks += _into_heads(live, layer, through, by_sources)
    return found


@dataclass
class _Live:
    """What nodes write in the run that is under way."""

    stream: Stream
    instead: dict[str, Tensor]
    where: Callable[[str], Tensor | None]
    values: dict[str, Tensor] = field(default_factory=dict)

    def removed(self, written: Iterable[Written]) -> Tensor:
        """What ablation takes from the residual stream, ``[row, position, d_model]``."""
        total = torch.zeros(())
        for source, roles in written:
            name, head = place_of(source)
            value = self.values[name]
            change = (value if head is None else value[:, :, head]) - self.instead[source]
            where = self._where(roles)
            if where is not None:
                change = change * where[:, :, None].to(change)
            change = self.stream.written(source, change)
            total = total.to(change.device) + change
        return total

    def _where(self, roles: tuple[str, ...]) -> Tensor | None:
        """Bool ``[row, position]`` of all of some roles together; None for everywhere."""
        masks = [mask for mask in map(self.where, roles) if mask is not None]
        return torch.stack(masks).any(0) if len(masks) == len(roles) else None


def _into_logits(live: _Live, sources: list[Written]) -> Hook:
    place = f"blocks.{live.stream.adapted.n_layers - 1}.hook_resid_post"
    return place, lambda x, hook: x - live.removed(sources)


def _into_mlp(found: PathHooks, live: _Live, layer: int, sources: list[Written]) -> None:
    reader = live.stream.mlp_reader(layer)

    def reread(module: nn.Module, inputs: tuple[Any, ...]) -> tuple[Any, ...]:
        return reader.read(live.values[reader.place] - live.removed(sources)), *inputs[1:]

    found.hooks.append(keep_in(live.values, reader.place))
    found.inputs.append((reader.module, reread))


def _into_heads(
    live: _Live, layer: int, through: str, by_sources: dict[tuple[Written, ...], list[int]]
) -> list[Hook]:
    stream, place = live.stream, f"blocks.{layer}.hook_resid_pre"

    def reread(value: Tensor, hook: Any) -> Tensor:
        value = value.clone()
        for sources, heads in by_sources.items():
            new = stream.projected(layer, through, live.values[place] - live.removed(sources))
            indices = _indices(stream.adapted, heads, through, new.shape[2])
            value[:, :, indices] = new[:, :, indices]
        return value

    return [keep_in(live.values, place), (f"blocks.{layer}.attn.hook_{through.lower()}", reread)]


def _indices(adapted: AdaptedModel, heads: list[int], through: str, shown: int) -> list[int]:
    """Where heads' queries, keys or values stand among those that a hook shows.

    Keys and values are those of a whole group, whether it shows them once or for each head.
    """
    if through == "Q":
        return heads
    group = adapted.n_heads // adapted.n_key_value_heads
    if shown == adapted.n_key_value_heads:
        return sorted({head // group for head in heads})
    starts = sorted({head // group * group for head in heads})
    return [start + i for start in starts for i in range(group)]
