"""A model run on tokens with parts of it ablated: the losses of every token, remembered.

Parts are *nodes*, heads, MLPs and embeddings, whose output is replaced, and *paths*, where only
what one node writes directly into what another one reads is replaced
(:mod:`lens_slt.circuits.paths`). Everything goes through hooks that work on HookedTransformer and
on every TransformerBridge, and a run starts at the first block that it changes.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Hashable, Iterable, Iterator, Mapping
from contextlib import AbstractContextManager, nullcontext
from functools import cached_property
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from lens_slt.circuits.frozen_norms import FrozenNorms
from lens_slt.circuits.hypothesis import LOGITS, Edge
from lens_slt.circuits.paths import PathHooks, as_read, check_paths, path_hooks, place_of
from lens_slt.circuits.replacements import AUTO, Ablation, Replacements, context
from lens_slt.circuits.role_masks import RoleMasks
from lens_slt.circuits.roles import node_of, split_role
from lens_slt.data.columns import moved
from lens_slt.data.tokenizer import TokenizerWarning
from lens_slt.data.weights import weighted_tokens
from lens_slt.models.adapter import AdaptedModel, hooks_note, model_logits_from
from lens_slt.models.captures import Hook, captured, run_with
from lens_slt.models.components import head_names
from lens_slt.models.names import depth_of, is_mlp, layer_of, mlp_name
from lens_slt.models.observable import Loss, Observable, Sites, as_observable, prepared
from lens_slt.models.padding import warn_of_padding
from lens_slt.models.stream import MOST_LOGITS, Stream
from lens_slt.sampling.health import in_words_if_guessing

Losses = Float[np.ndarray, "sequence position"]

LEARNED_POSITIONS = ("standard", "shortformer")
MOST_STREAMS = 2**26  # numbers of the residual stream before each block that are kept


class Runs:
    """Losses of a model's tokens under interventions; each is computed once.

    Args:
        adapted: from :func:`lens_slt.models.adapter.adapt`.
        tokens: ``[sequence, position]``.
        ablation: what replaces an ablated output, and where.
        weights, mask, pad_id: which predictions count, as in :func:`lens_slt.sample`; losses of
            others are NaN.
        roles: positions of the roles that nodes and edges may have: bool
            ``[sequence, position - 1]``, or ints ``[sequence]`` or ``[sequence, place]``.
        metric: an observable (see :mod:`lens_slt.models.observable`) instead of the loss. Where
            more of it is better, losses are what it lacks: minus the observable.

    Raises ValueError for tokens of another vocabulary, a reference that does not fit, and a metric
    that is no number at a prediction of the untouched model.
    """

    def __init__(
        self,
        adapted: AdaptedModel,
        tokens: Any,
        ablation: str | Ablation = AUTO,
        *,
        weights: Any = None,
        mask: Any = None,
        pad_id: int | None = None,
        metric: Any = None,
        roles: Mapping[str, Any] | None = None,
    ) -> None:
        ablation = Ablation.of(ablation)
        note = hooks_note(adapted)
        if note:
            warnings.warn(note, UserWarning, stacklevel=5)
        self._hooked = bool(note)  # looked up once: every module of the model is asked
        self.adapted = adapted
        sizes: dict[str, Any] = dict(
            d_vocab=adapted.d_vocab, d_vocab_out=adapted.d_vocab_out, n_ctx=adapted.n_ctx
        )
        sizes["model"] = adapted.module
        self.tokens, weight, self.shift = weighted_tokens(
            tokens, **sizes, weights=weights, mask=mask, pad_id=pad_id
        )
        warn_of_padding(adapted, self.tokens, self.shift, "tokens")
        self.weight = weight.numpy()
        self.real = self.weight > 0
        self.roles = RoleMasks(roles, context(self.real), self.shift)
        self.reference, reference_counts, there = self.tokens, self.real, self.shift
        if ablation.reference is not None:
            self.reference, weight, there = weighted_tokens(
                ablation.reference, **sizes, pad_id=pad_id, name="reference",
                mask=mask if ablation.how == "interchange" else None,
            )  # fmt: skip
            reference_counts = weight.numpy() > 0
        ablation = ablation.moved(self.shift, there, self.moved)
        self.ablation = ablation.resolved(reference_counts, self._learned_positions)
        self._replace = Replacements(self.ablation, context(self.real), context(reference_counts))
        self.sites = Sites.of(self.tokens, torch.from_numpy(self.real), self.shift)
        self._values: dict[str, Tensor] = {}
        self._clean: dict[tuple[str, bool], Tensor] = {}
        self._frozen: FrozenNorms | None = None
        self._losses: dict[tuple[frozenset, ...], Losses] = {}
        self._streams: dict[int, Stream] = {}
        self._notes: dict[Hashable, Any] = {}
        self._resids: list[Tensor] | None = None  # before each block; empty where too many
        self.on_run: Callable[[int], None] = lambda n_runs: None  # told the number of runs so far
        self.metric: Observable = Loss()
        if metric is not None:
            clean = torch.cat([self._logits(rows) for rows in self.batches()])
            self.metric, _ = prepared(as_observable(metric), clean, self.sites)
        self.sign = self.metric.cost_sign or 1

    def moved(self, values: Any) -> Any:
        """What a caller passes by prediction, as losses stand here; other shapes as they are."""
        if values is None or not self.shift.any():
            return values
        array = np.asarray(values)
        return moved(array, self.shift) if array.shape[-2:] == self.real.shape else values

    @property
    def how(self) -> str:
        """What replaces an ablated output, in a word."""
        return self.ablation.how

    @property
    def _learned_positions(self) -> bool:
        return self.adapted.positions in LEARNED_POSITIONS

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

    def can_read(self, target: str, source: str) -> bool:
        """Whether a node, or the logits, reads the stream behind another one."""
        if target == LOGITS:
            return True
        same_layer = is_mlp(target) and layer_of(source) == layer_of(target)
        if same_layer and self._mlps_beside_heads:
            return False
        return depth_of(source) < depth_of(target)

    @cached_property
    def _mlps_beside_heads(self) -> bool:
        """Whether MLPs read the stream before the heads of their own layer (GPT-J)."""
        try:
            return self._stream(next(self.batches())).mlp_reader(0).beside_heads
        except ValueError:  # a path into one says why
            return False

    def loss(
        self,
        ablated: Iterable[str] = (),
        paths: Iterable[Edge] = (),
        restored: Iterable[str] = (),
    ) -> Losses:
        """Loss of every predicted token, NaN where none counts; in the units of the metric.

        Args:
            ablated: nodes (see :func:`lens_slt.circuits.roles.nodes_of`) whose output is replaced;
                of a node at a role its output there.
            paths: edges along which the source's output is replaced.
            restored: nodes whose output is set to what it is without interventions.

        Raises ValueError for a role of which no positions are known.
        """
        read = frozenset(as_read(edge, self.adapted) for edge in paths)
        key = frozenset(ablated), read, frozenset(restored)
        if key not in self._losses:
            self._losses[key] = self._run(*key)
            if not any(key) and isinstance(self.metric, Loss):
                self._warn_if_guessing(self._losses[key])
            self.on_run(len(self._losses))
        return self._losses[key]

    def _warn_if_guessing(self, base: Losses) -> None:
        """Say that the model knows nothing of these tokens, as health does of a run's."""
        weight = self.weight[self.real.any(1)]
        each = np.average(np.nan_to_num(base[self.real.any(1)]), axis=1, weights=weight)
        mean = float(np.average(each, weights=weight.sum(1)))
        error = float(each.std() / np.sqrt(len(each)))
        words = in_words_if_guessing(mean, error, float(np.log(self.adapted.d_vocab_out)))
        if words:
            warnings.warn(f"tokens: {words}", TokenizerWarning, stacklevel=6)

    def _run(
        self, ablated: frozenset[str], paths: frozenset[Edge], restored: frozenset[str]
    ) -> Losses:
        found = np.full(self.real.shape, np.nan, dtype=np.float32)
        changed = [*ablated, *restored, *(edge.writer for edge in paths)]
        self.roles.check(split_role(name)[1] for name in changed)
        first = max(min((layer_of(node_of(name)) for name in changed), default=0), 0)
        for rows in self.batches():
            on_paths = self._path_hooks(paths, rows) if paths else PathHooks()
            hooks = self._node_hooks(ablated, restored, rows) + on_paths.hooks
            resid = self._resid(first, rows) if first > 0 else None
            with self._norms(rows), on_paths.mlp_inputs():
                logits = self._logits(rows, hooks, first, resid)
            sites = self.sites.of_rows(rows)
            values = self.sign * self.metric(logits, sites)
            found[sites.sequence, sites.column] = values.cpu().numpy()
        return found

    def _logits(
        self, rows: slice, hooks: Iterable[Hook] = (), first: int = 0, resid: Tensor | None = None
    ) -> Tensor:
        """Logits ``[site, d_vocab_out]`` of the predictions that count in some sequences.

        With the stream before block ``first`` the run starts there.
        """
        sites, inputs = self.sites.of_rows(rows), self.tokens[rows, :-1]
        if resid is None:
            logits = run_with(self.adapted, inputs, hooks)
        else:
            inputs = inputs.to(self.adapted.device)
            with torch.no_grad(), self.adapted.module.hooks(fwd_hooks=list(hooks)):
                logits = model_logits_from(self.adapted, inputs, resid, first)
        return logits[sites.sequence - rows.start, sites.column].float().cpu()

    def _resid(self, layer: int, rows: slice) -> Tensor | None:
        """The stream before a block, without interventions; None if a run cannot start there."""
        if self._resids is None:
            n = self.adapted.n_layers
            names = [f"blocks.{i}.hook_resid_pre" for i in range(n)]
            few = n * (self.tokens.numel() - len(self.tokens)) * self.adapted.d_model
            parts = [
                captured(self.adapted, self.tokens[batch, :-1], names)
                for batch in (self.batches() if few <= MOST_STREAMS else ())
            ]
            there = bool(parts) and all(name in part for part in parts for name in names)
            self._resids = [torch.cat([p[name] for p in parts]) for name in names if there]
        if not self._resids:
            return None
        try:
            self._stream(rows).check_restart(layer)
        except ValueError:  # its blocks read more than the stream
            self._resids = []
            return None
        return self._resids[layer][rows]

    def remembered(self, key: Hashable, compute: Callable[[], Any]) -> Any:
        """Whatever else is worth computing once for these tokens."""
        if key not in self._notes:
            self._notes[key] = compute()
        return self._notes[key]

    def batches(self) -> Iterator[slice]:
        """Sequences that are run at a time."""
        return self._batches(len(self.tokens))

    def _batches(self, n: int) -> Iterator[slice]:
        each = max(1, MOST_LOGITS // (self.real.shape[1] * self.adapted.d_vocab))
        return (slice(start, min(start + each, n)) for start in range(0, n, each))

    def _node_hooks(
        self, ablated: frozenset[str], restored: frozenset[str], rows: slice
    ) -> list[Hook]:
        """Hooks that replace the outputs of nodes, one for each place in the model."""
        places: dict[str, list[tuple[int | None, Tensor, Tensor | None]]] = {}
        clean = {name: self._clean_output(node_of(name), rows) for name in restored}
        instead = {name: self.replacement(node_of(name), rows) for name in ablated}
        for values, where in ((instead, self.where), (clean, self._at_role)):
            for name in sorted(values):
                node, role = split_role(name)
                place, head = place_of(node)
                some = where(role, rows)
                some = None if some is None else some[:, :, None]
                places.setdefault(place, []).append((head, values[name], some))

        def replace(
            changes: list[tuple[int | None, Tensor, Tensor | None]],
        ) -> Callable[[Tensor, Any], Tensor]:
            def hook(value: Tensor, hook: Any) -> Tensor:
                n = max(len(x) for _, *xs in changes for x in (value, *xs) if x is not None)
                value = value.expand(n, *value.shape[1:]).clone()  # positions may come once for all
                for head, new, some in changes:
                    part = value if head is None else value[:, :, head]
                    part[:] = new if some is None else torch.where(some.to(part.device), new, part)
                return value

            return hook

        return [(place, replace(changes)) for place, changes in places.items()]

    def _path_hooks(self, paths: frozenset[Edge], rows: slice) -> PathHooks:
        """Hooks that take what sources write out of what targets read."""
        stream = self._stream(rows)
        check_paths(paths, stream)
        # Found here, because a run cannot start inside the hooks of another.
        instead = {edge.source: self.replacement(edge.source, rows) for edge in paths}
        return path_hooks(paths, stream, instead, lambda role: self.where(role, rows))

    def _at_role(self, role: str, rows: slice) -> Tensor | None:
        """Bool ``[row, position]`` of a role; None for everywhere."""
        found = self.roles(role)
        return None if found is None else found[rows]

    def where(self, role: str, rows: slice) -> Tensor | None:
        """Bool ``[row, position]`` where a node at a role is ablated; None for everywhere."""
        here, some = self._replace.where, self._at_role(role, rows)
        if here is None:
            return some
        return here[rows] if some is None else here[rows] & some

    def _stream(self, rows: slice) -> Stream:
        """The stream of these sequences. Hooks may act on some only, so each batch has its own."""
        start = rows.start if self._hooked else 0
        if start not in self._streams:
            self._streams[start] = Stream(self.adapted, self.tokens[rows, :-1])
        return self._streams[start]

    def replacement(self, node: str, rows: slice) -> Tensor:
        """What an ablated node puts out: broadcasts to ``[row, position, width]``."""
        if node not in self._values:
            self._values[node] = self._replace.value(self._outputs(node, reference=True))
        value = self._values[node]
        return value[rows] if len(value) == len(self.tokens) else value

    def _clean_output(self, node: str, rows: slice) -> Tensor:
        return self._outputs(node, reference=False)[rows]

    def _outputs(self, node: str, *, reference: bool) -> Tensor:
        """Outputs of a node without interventions, ``[sequence, position, width]``."""
        place, head = place_of(node)
        reference = reference and self.reference is not self.tokens
        if (place, reference) not in self._clean:
            tokens = self.reference if reference else self.tokens
            batches = self._batches(len(tokens))
            parts = [self._captured(tokens[rows, :-1], place) for rows in batches]
            self._clean[place, reference] = torch.cat(parts)
        whole = self._clean[place, reference]
        return whole if head is None else whole[:, :, head]

    def _captured(self, inputs: Tensor, place: str) -> Tensor:
        found = captured(self.adapted, inputs, [place])
        if place not in found:
            raise ValueError(f"components: {self.adapted.name} has no {place}, cannot ablate it")
        return found[place].expand(len(inputs), *found[place].shape[1:])

    def _norms(self, rows: slice) -> AbstractContextManager[None]:
        """Within this context norms keep their scales, where that is asked for."""
        if not self.ablation.frozen_norm:
            return nullcontext()
        if self._frozen is None:
            inputs = self.tokens[:, :-1]
            self._frozen = FrozenNorms(self.adapted, inputs, self._batches(len(inputs)))
        return self._frozen.on(rows)
