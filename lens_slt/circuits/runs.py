"""A model run on tokens with parts of it ablated: the losses of every token, remembered.

Parts are *nodes*, heads and MLPs, whose output is replaced, and *paths*, where only what one head
writes directly into a later head's Q, K or V input, or into the logits, is replaced. Everything
goes through hooks that work on HookedTransformer and on every TransformerBridge: ``hook_z``,
``hook_mlp_out``, ``hook_q/k/v``, ``hook_resid_pre``, ``hook_resid_post``. For a path into a head,
its queries, keys or values are computed again from ``ln1`` of the residual stream without that
part (``hook_q_input`` and its like are ignored by some models).
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from lens_slt.arguments import choice, integer
from lens_slt.arrays import BoolArray
from lens_slt.circuits.frozen_norms import FrozenNorms
from lens_slt.circuits.hypothesis import LOGITS, Edge
from lens_slt.data.checks import check_tokens, loss_mask
from lens_slt.models.adapter import AdaptedModel, attached_hooks, hooks_note
from lens_slt.models.captures import Hook, captured, keep_in, run_with
from lens_slt.models.components import head_names, parse_components
from lens_slt.models.names import (
    ATTENTION,
    HEAD,
    LAYER,
    MLP,
    head_name,
    head_place,
    layer_of,
    mlp_name,
    parts_of,
    read_part,
)
from lens_slt.models.stream import MOST_LOGITS, Stream

HOWS = ("mean", "mean_position", "mean_pattern", "resample", "zero")
Losses = Float[np.ndarray, "sequence position"]


class Runs:
    """Losses of a model's tokens under interventions; each is computed once.

    Args:
        adapted: from :func:`lens_slt.models.adapter.adapt`.
        tokens: ``[sequence, position]``.
        how: what replaces an ablated output: its ``mean`` over all tokens of the reference, its
            mean at each position (``mean_position``), its mean over the tokens that have a pattern
            and over those that do not, each for its own (``mean_pattern``), its value on another
            sequence at the same position (``resample``), or ``zero``.
        reference: tokens that means and resampled values come from; ``tokens`` by default.
        pattern: bool ``[sequence, position - 1]``, for ``mean_pattern``.
        frozen_norm: keep the scale of every LayerNorm or RMSNorm as it is without interventions.
        pad_id: as in :func:`lens_slt.sample`; losses of padding are NaN.
        seed: of ``resample``.

    Raises ValueError for a bad ``how``, tokens of another vocabulary, reference tokens of another
    length, and ``mean_pattern`` without a pattern.
    """

    def __init__(
        self,
        adapted: AdaptedModel,
        tokens: Any,
        *,
        how: str = "mean",
        reference: Any = None,
        pattern: Any = None,
        frozen_norm: bool = False,
        pad_id: int | None = None,
        seed: int = 0,
    ) -> None:
        choice("how", how, HOWS)
        integer("seed", seed, at_least=0)
        if hooks_note(adapted):
            warnings.warn(hooks_note(adapted), UserWarning, stacklevel=5)
        self.adapted, self.frozen_norm, self.how = adapted, frozen_norm, how
        sizes: dict[str, Any] = dict(d_vocab=adapted.d_vocab, n_ctx=adapted.n_ctx, pad_id=pad_id)
        self.tokens, mask = check_tokens(tokens, **sizes, d_vocab_out=adapted.d_vocab_out)
        self.real = loss_mask(mask).numpy()
        self.reference, self.reference_real = self.tokens, self.real
        if reference is not None:
            self.reference, mask = check_tokens(reference, name="reference", **sizes)
            self.reference_real = loss_mask(mask).numpy()
            if self.reference.shape[1] != self.tokens.shape[1]:
                raise ValueError(
                    f"reference has sequences of {self.reference.shape[1]} tokens, tokens of "
                    f"{self.tokens.shape[1]}: ablated values are taken position by position, cut "
                    "both to one length"
                )
        self.pattern = None
        if how == "mean_pattern":
            if pattern is None or reference is not None:
                raise ValueError(
                    "how='mean_pattern' needs pattern, labels of tokens, and no other reference"
                )
            self.pattern = np.asarray(pattern)
            if self.pattern.dtype != bool:  # NaN and texts would count as true
                raise TypeError(f"pattern must hold True and False; got dtype {self.pattern.dtype}")
            if self.pattern.shape != self.real.shape:
                raise ValueError(
                    f"pattern must have shape {self.real.shape}, one position less than tokens; "
                    f"got {self.pattern.shape}"
                )
        if how == "mean_position":
            _refuse_empty_positions(self.real, self.reference_real)
        if how == "resample" and reference is None and len(self.tokens) == 1:
            raise ValueError(
                "how='resample' takes values from other sequences, and tokens has only one; pass "
                "more sequences or a reference"
            )
        self._donors = _donors(self.real, self.reference_real, reference is None, seed)
        self._values: dict[str, Tensor] = {}
        self._clean: dict[tuple[str, bool], Tensor] = {}
        self._frozen: FrozenNorms | None = None
        self._losses: dict[tuple[frozenset, ...], Losses] = {}
        self._streams: dict[int, Stream] = {}
        self.on_run: Callable[[int], None] = lambda n_runs: None  # told the number of runs so far

    @property
    def base(self) -> Losses:
        """Losses without interventions."""
        return self.loss()

    @property
    def heads(self) -> tuple[str, ...]:
        """All heads of the model."""
        return tuple(head_names(self.adapted))

    @property
    def nodes(self) -> tuple[str, ...]:
        """All heads and MLPs of the model."""
        if self.adapted.attn_only:
            return self.heads
        return self.heads + tuple(mlp_name(i) for i in range(self.adapted.n_layers))

    def loss(
        self,
        ablated: Iterable[str] = (),
        paths: Iterable[Edge] = (),
        restored: Iterable[str] = (),
    ) -> Losses:
        """Loss in nats of every predicted token, NaN for padding.

        Args:
            ablated: nodes (see :func:`nodes_of`) whose output is replaced.
            paths: edges along which the source's output is replaced.
            restored: nodes whose output is set to what it is without interventions.
        """
        key = frozenset(ablated), frozenset(paths), frozenset(restored)
        if key not in self._losses:
            self._losses[key] = self._run(*key)
            self.on_run(len(self._losses))
        return self._losses[key]

    def _run(
        self, ablated: frozenset[str], paths: frozenset[Edge], restored: frozenset[str]
    ) -> Losses:
        found = np.full(self.real.shape, np.nan, dtype=np.float32)
        for rows in self._batches(len(self.tokens)):
            self._check_paths(paths, self._stream(rows))
            hooks = self._path_hooks(paths, rows)
            hooks = self._node_hooks(ablated, restored, rows) + hooks
            tokens = self.tokens[rows].to(self.adapted.device)
            with self._norms(rows):
                logits = run_with(self.adapted, tokens[:, :-1], hooks)
            real = torch.from_numpy(self.real[rows]).to(tokens.device)
            targets = tokens[:, 1:].masked_fill(~real, 0)  # padding may be no token of the output
            loss = -logits.float().log_softmax(-1).gather(-1, targets[..., None])[..., 0]
            found[rows] = loss.cpu().numpy()
        return np.where(self.real, found, np.float32(np.nan))

    def _batches(self, n: int) -> Iterator[slice]:
        each = max(1, MOST_LOGITS // (self.real.shape[1] * self.adapted.d_vocab))
        return (slice(start, min(start + each, n)) for start in range(0, n, each))

    def _node_hooks(
        self, ablated: frozenset[str], restored: frozenset[str], rows: slice
    ) -> list[Hook]:
        """Hooks that replace the outputs of nodes, one for each place in the model."""
        places: dict[str, list[tuple[int | None, Tensor]]] = {}
        for nodes, values in ((ablated, self._replacement), (restored, self._clean_output)):
            for node in sorted(nodes):
                place, head = _place(node)
                places.setdefault(place, []).append((head, values(node, rows)))

        def replace(changes: list[tuple[int | None, Tensor]]) -> Callable[[Tensor, Any], Tensor]:
            def hook(value: Tensor, hook: Any) -> Tensor:
                value = value.clone()
                for head, new in changes:
                    if head is None:
                        value[:] = new
                    else:
                        value[:, :, head] = new
                return value

            return hook

        return [(place, replace(changes)) for place, changes in places.items()]

    def _path_hooks(self, paths: frozenset[Edge], rows: slice) -> list[Hook]:
        """Hooks that take what sources write out of what targets read."""
        if not paths:
            return []
        live: dict[str, Tensor] = {}
        stream = self._stream(rows)
        # Found here, because a run cannot start inside the hooks of another.
        instead = {edge.source: self._replacement(edge.source, rows) for edge in paths}

        def removed(sources: tuple[str, ...]) -> Tensor:
            """What ablation takes from the residual stream, ``[row, position, d_model]``."""
            total = torch.zeros(())
            for source in sources:
                layer, head = head_place(source)
                change = live[_z(layer)][:, :, head] - instead[source]
                written = stream.factor(layer) * (change @ self._w_o(layer)[head])
                total = total.to(change.device) + written
            return total

        hooks: list[Hook] = [
            keep_in(live, _z(layer)) for layer in sorted({layer_of(edge.source) for edge in paths})
        ]
        readers: dict[tuple[str, str], list[str]] = {}
        for edge in sorted(paths):
            readers.setdefault((edge.target, edge.through), []).append(edge.source)
        # What readers in one layer lack the same sources is projected once for all of them.
        groups: dict[tuple[int, str], dict[tuple[str, ...], list[int]]] = {}
        for (target, through), written in readers.items():
            layer, head = (self.adapted.n_layers, 0) if target == LOGITS else head_place(target)
            groups.setdefault((layer, through), {}).setdefault(tuple(written), []).append(head)
        for (layer, through), by_sources in groups.items():
            if layer == self.adapted.n_layers:
                place = f"blocks.{layer - 1}.hook_resid_post"
                (unread,) = by_sources

                def to_logits(x: Tensor, hook: Any, unread: tuple[str, ...] = unread) -> Tensor:
                    return x - removed(unread)

                hooks.append((place, to_logits))
                continue

            def reread(
                value: Tensor, hook: Any, layer: int = layer, through: str = through,
                by_sources: dict[tuple[str, ...], list[int]] = by_sources,
            ) -> Tensor:  # fmt: skip
                value = value.clone()
                for sources, heads in by_sources.items():
                    resid = live[_resid_pre(layer)] - removed(sources)
                    new = stream.projected(layer, through, resid)
                    indices = self._indices(heads, through, new.shape[2])
                    value[:, :, indices] = new[:, :, indices]
                return value

            hooks.append(keep_in(live, _resid_pre(layer)))
            hooks.append((f"blocks.{layer}.attn.hook_{through.lower()}", reread))
        return hooks

    def _w_o(self, layer: int) -> Tensor:
        leaf = self.adapted.leaves[f"blocks.{layer}.attn.W_O"]
        return leaf.view(leaf.parameter.detach())

    def _indices(self, heads: list[int], through: str, shown: int) -> list[int]:
        """Where heads' queries, keys or values stand among those that a hook shows.

        Keys and values are those of a whole group, whether it shows them once or for each head.
        """
        if through == "Q":
            return heads
        group = self.adapted.n_heads // self.adapted.n_key_value_heads
        if shown == self.adapted.n_key_value_heads:
            return sorted({head // group for head in heads})
        starts = sorted({head // group * group for head in heads})
        return [start + i for start in starts for i in range(group)]

    def _stream(self, rows: slice) -> Stream:
        """The stream of these sequences. Hooks may act on some only, so each batch has its own."""
        start = rows.start if attached_hooks(self.adapted) else 0
        if start not in self._streams:
            self._streams[start] = Stream(self.adapted, self.tokens[rows, :-1])
        return self._streams[start]

    def _check_paths(self, paths: frozenset[Edge], stream: Stream) -> None:
        """Raise ValueError where this model's heads do not write or read as a path presumes."""
        for edge in sorted(paths):
            last = self.adapted.n_layers if edge.target == LOGITS else layer_of(edge.target)
            for layer in range(layer_of(edge.source), last):
                stream.factor(layer)
            if edge.target == LOGITS:
                stream.check_logits()
            else:
                stream.check_heard(last, edge.through)

    def _replacement(self, node: str, rows: slice) -> Tensor:
        """What an ablated node puts out: broadcasts to ``[row, position, width]``."""
        if node not in self._values:
            self._values[node] = self._ablated_value(node)
        value = self._values[node]
        return value[rows] if len(value) == len(self.tokens) else value

    def _ablated_value(self, node: str) -> Tensor:
        clean = self._outputs(node, reference=True)
        if self.how == "zero":
            return torch.zeros_like(clean[:1, :1])
        if self.how == "resample":
            return clean[self._donors]
        real = torch.from_numpy(self.reference_real).to(clean.device)[..., None].to(clean.dtype)
        if self.how == "mean_position":
            return (clean * real).sum(0, keepdim=True) / real.sum(0, keepdim=True).clamp(min=1)
        if self.pattern is None:
            return ((clean * real).sum((0, 1)) / real.sum())[None, None]
        found = torch.empty_like(clean)
        for member in (True, False):
            chosen = torch.from_numpy(self.pattern == member).to(clean.device)
            weight = chosen[..., None] * real
            mean = (clean * weight).sum((0, 1)) / weight.sum().clamp(min=1)
            found[chosen] = mean
        return found

    def _clean_output(self, node: str, rows: slice) -> Tensor:
        return self._outputs(node, reference=False)[rows]

    def _outputs(self, node: str, *, reference: bool) -> Tensor:
        """Outputs of a node without interventions, ``[sequence, position, width]``."""
        place, head = _place(node)
        reference = reference and self.reference is not self.tokens
        if (place, reference) not in self._clean:
            tokens = self.reference if reference else self.tokens
            batches = self._batches(len(tokens))
            parts = [captured(self.adapted, tokens[rows, :-1], [place])[place] for rows in batches]
            self._clean[place, reference] = torch.cat(parts)
        whole = self._clean[place, reference]
        return whole if head is None else whole[:, :, head]

    def _norms(self, rows: slice) -> AbstractContextManager[None]:
        """Within this context norms keep their scales, where that is asked for."""
        if not self.frozen_norm:
            return nullcontext()
        if self._frozen is None:
            inputs = self.tokens[:, :-1]
            self._frozen = FrozenNorms(self.adapted, inputs, self._batches(len(inputs)))
        return self._frozen.on(rows)


def nodes_of(components: str | Iterable[str], adapted: AdaptedModel) -> frozenset[str]:
    """Heads and MLPs that components consist of.

    Raises ValueError for what the model does not have, and for embeddings.
    """
    names = components if isinstance(components, str) else list(components)
    found: set[str] = set()
    for component in parse_components(names, adapted):
        for name in parts_of(component.name):
            part = read_part(name)
            if part is None:
                raise ValueError(
                    f"components: {name!r} cannot be ablated; heads, MLPs and layers can"
                )
            if part.kind in (LAYER, ATTENTION):
                found |= {head_name(part.layer, head) for head in range(adapted.n_heads)}
            if part.kind == LAYER and not adapted.attn_only:
                found.add(mlp_name(part.layer))
            if part.kind in (HEAD, MLP):
                found.add(name)
    return frozenset(found)


def _place(node: str) -> tuple[str, int | None]:
    """The hook of a node's output, and the head's place in it."""
    part = read_part(node)
    assert part is not None
    if part.kind == HEAD:
        return _z(part.layer), part.head
    return f"blocks.{part.layer}.hook_mlp_out", None


def _z(layer: int) -> str:
    return f"blocks.{layer}.attn.hook_z"


def _resid_pre(layer: int) -> str:
    return f"blocks.{layer}.hook_resid_pre"


def _refuse_empty_positions(real: BoolArray, reference_real: BoolArray) -> None:
    empty = np.flatnonzero(real.any(0) & ~reference_real.any(0))
    if len(empty):
        raise ValueError(
            f"reference has nothing but padding at position {empty[0]}, where tokens has losses: "
            "how='mean_position' needs a reference at every position; cut tokens, pass a longer "
            "reference, or use how='mean'"
        )


def _donors(
    real: BoolArray, reference_real: BoolArray, same: bool, seed: int
) -> tuple[Tensor, Tensor]:
    """Sequence and position of the reference that stand in for each token, never padding.

    All of a sequence comes from one other sequence, as far as that is no padding there; the rest
    from others at the same position, or from anywhere in others where no other is that long.
    """
    n, n_reference = len(real), len(reference_real)
    generator = torch.Generator().manual_seed(seed)
    if same:
        order = torch.randperm(n, generator=generator)
        rows = torch.empty(n, dtype=torch.long)
        rows[order] = order.roll(1)
    else:
        rows = torch.randint(n_reference, (n,), generator=generator)
    chosen = rows[:, None].repeat(1, real.shape[1])
    places = torch.arange(real.shape[1]).repeat(n, 1)
    pick = np.random.default_rng(seed)
    for row, place in zip(*np.nonzero(real & ~reference_real[rows.numpy()]), strict=True):
        there = np.flatnonzero(reference_real[:, place])
        there = there[there != row] if same else there
        if len(there):
            chosen[row, place] = int(pick.choice(there))
            continue
        rest = np.flatnonzero(reference_real)
        rest = rest[rest // real.shape[1] != row] if same else rest
        if len(rest):
            chosen[row, place], places[row, place] = divmod(int(pick.choice(rest)), real.shape[1])
        else:  # a single sequence: there is nothing else
            chosen[row, place] = int(row)
    return chosen, places
