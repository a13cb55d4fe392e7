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
from lens_slt.circuits.frozen_norms import FrozenNorms
from lens_slt.circuits.hypothesis import LOGITS, Edge
from lens_slt.circuits.replacements import HOWS, Replacements, context
from lens_slt.data.weights import weighted_tokens
from lens_slt.models.adapter import AdaptedModel, hooks_note
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
from lens_slt.models.observable import Loss, Observable, Sites, as_observable, prepared
from lens_slt.models.stream import MOST_LOGITS, Stream

Losses = Float[np.ndarray, "sequence position"]


class Runs:
    """Losses of a model's tokens under interventions; each is computed once.

    Args:
        adapted: from :func:`lens_slt.models.adapter.adapt`.
        tokens: ``[sequence, position]``.
        how, reference, pattern, positions, reference_positions, seed: what replaces an ablated
            output, and where; see :class:`~lens_slt.circuits.replacements.Replacements`.
        frozen_norm: keep the scale of every LayerNorm or RMSNorm as it is without interventions.
        weights, mask, pad_id: which predictions count, as in :func:`lens_slt.sample`; losses of
            others are NaN.
        metric: an observable (see :mod:`lens_slt.models.observable`) instead of the loss. Where
            more of it is better, losses are what it lacks: minus the observable.

    Raises ValueError for a bad ``how``, tokens of another vocabulary, a reference that does not
    fit, and a metric that is no number at a prediction of the untouched model.
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
        weights: Any = None,
        mask: Any = None,
        pad_id: int | None = None,
        metric: Any = None,
        positions: Any = None,
        reference_positions: Any = None,
        seed: int = 0,
    ) -> None:
        choice("how", how, HOWS)
        integer("seed", seed, at_least=0)
        note = hooks_note(adapted)
        if note:
            warnings.warn(note, UserWarning, stacklevel=5)
        self._hooked = bool(note)  # looked up once: every module of the model is asked
        self.adapted, self.frozen_norm, self.how = adapted, frozen_norm, how
        sizes: dict[str, Any] = dict(
            d_vocab=adapted.d_vocab, d_vocab_out=adapted.d_vocab_out, n_ctx=adapted.n_ctx
        )
        self.tokens, weight = weighted_tokens(
            tokens, **sizes, weights=weights, mask=mask, pad_id=pad_id
        )
        self.weight = weight.numpy()
        self.real = self.weight > 0
        self.reference, reference_counts = self.tokens, self.real
        if reference is not None:
            self.reference, weight = weighted_tokens(
                reference, **sizes, pad_id=pad_id, name="reference",
                mask=mask if how == "interchange" else None,
            )  # fmt: skip
            reference_counts = weight.numpy() > 0
        self._replace = Replacements(
            how, context(self.real), context(reference_counts), same=reference is None,
            pattern=pattern, positions=positions, reference_positions=reference_positions,
            seed=seed,
        )  # fmt: skip
        self._sites = Sites.of(self.tokens, torch.from_numpy(self.real))
        self._values: dict[str, Tensor] = {}
        self._clean: dict[tuple[str, bool], Tensor] = {}
        self._frozen: FrozenNorms | None = None
        self._losses: dict[tuple[frozenset, ...], Losses] = {}
        self._streams: dict[int, Stream] = {}
        self.on_run: Callable[[int], None] = lambda n_runs: None  # told the number of runs so far
        self.metric: Observable = Loss()
        if metric is not None:
            clean = torch.cat([self._logits(rows, []) for rows in self._batches(len(self.tokens))])
            self.metric, _ = prepared(as_observable(metric), clean, self._sites)
        self.sign = self.metric.cost_sign or 1

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
        """Loss of every predicted token, NaN where none counts; in the units of the metric.

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
            with self._norms(rows):
                logits = self._logits(rows, hooks)
            sites = self._sites.of_rows(rows)
            values = self.sign * self.metric(logits, sites)
            found[sites.sequence, sites.position] = values.cpu().numpy()
        return found

    def _logits(self, rows: slice, hooks: list[Hook]) -> Tensor:
        """Logits ``[site, d_vocab_out]`` of the predictions that count in some sequences."""
        sites = self._sites.of_rows(rows)
        logits = run_with(self.adapted, self.tokens[rows, :-1], hooks)
        return logits[sites.sequence - rows.start, sites.position].float().cpu()

    def _batches(self, n: int) -> Iterator[slice]:
        each = max(1, MOST_LOGITS // (self.real.shape[1] * self.adapted.d_vocab))
        return (slice(start, min(start + each, n)) for start in range(0, n, each))

    def _node_hooks(
        self, ablated: frozenset[str], restored: frozenset[str], rows: slice
    ) -> list[Hook]:
        """Hooks that replace the outputs of nodes, one for each place in the model."""
        places: dict[str, list[tuple[int | None, Tensor, Tensor | None]]] = {}
        where = self._replace.where
        for node in sorted(ablated):
            place, head = _place(node)
            some = None if where is None else where[rows, :, None]
            places.setdefault(place, []).append((head, self._replacement(node, rows), some))
        for node in sorted(restored):
            place, head = _place(node)
            places.setdefault(place, []).append((head, self._clean_output(node, rows), None))

        def replace(
            changes: list[tuple[int | None, Tensor, Tensor | None]],
        ) -> Callable[[Tensor, Any], Tensor]:
            def hook(value: Tensor, hook: Any) -> Tensor:
                value = value.clone()
                for head, new, some in changes:
                    part = value if head is None else value[:, :, head]
                    part[:] = new if some is None else torch.where(some.to(part.device), new, part)
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
                if self._replace.where is not None:
                    change = change * self._replace.where[rows, :, None].to(change)
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
        start = rows.start if self._hooked else 0
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
            self._values[node] = self._replace.value(self._outputs(node, reference=True))
        value = self._values[node]
        return value[rows] if len(value) == len(self.tokens) else value

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
