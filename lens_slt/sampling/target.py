"""What the chains explore: a transformer's loss as a function of its components' weights."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from functools import cached_property

import torch
from torch import Tensor

from lens_slt.data.columns import moved_back
from lens_slt.models import forward
from lens_slt.models.adapter import AdaptedModel, model_logits
from lens_slt.models.forward import Weights
from lens_slt.models.loss import ReferenceState
from lens_slt.models.observable import Observable, Sites, prepared
from lens_slt.models.prefix import Batch, Prefix, prefix_bytes
from lens_slt.models.suffix import Group, Suffix, mean_weight, prefix_for, runs_own_blocks
from lens_slt.sampling.members import Evaluate, Members, Part, probe_array
from lens_slt.sampling.randomness import minibatch
from lens_slt.sampling.settings import Settings
from lens_slt.statistics import mean_over_tokens

PREFIX_CACHE_BYTES = 2**30
MOST_BASE_SEQUENCES = 64  # on which the loss at the given weights is taken


@dataclass(frozen=True)
class TokenSet:
    """Checked tokens on the compute device, and how much each predicted one counts.

    Rows padded on the left are moved to the left by ``shift [sequence]``, weights with them; what
    is recorded of a probe is moved back (:mod:`lens_slt.data.columns`).
    """

    tokens: Tensor  # [sequence, position]
    weight: Tensor  # [sequence, position - 1], at least 0, in the model's precision
    shift: Tensor  # [sequence]
    reference: ReferenceState | None = None
    observables: dict[str, Observable] = field(default_factory=dict)

    @cached_property
    def sites(self) -> Sites:
        """The predictions at which observables are read."""
        return Sites.of(self.tokens, self.mask, self.shift)

    def per_sequence(self, values: Tensor, sites: Sites, rows: slice) -> Tensor:
        """Weighted means ``[sequence]`` of values at sites; NaN where a sequence has none."""
        weight = self.weight[sites.sequence, sites.column]
        total = values.new_zeros(2, rows.stop - rows.start)
        local = sites.sequence - rows.start
        total.index_add_(1, local, torch.stack([weight * values, weight]).to(values.dtype))
        return total[0] / total[1]

    @cached_property
    def mask(self) -> Tensor:
        """Predicted tokens that count at all."""
        return self.weight > 0

    @cached_property
    def weight_per_sequence(self) -> float:
        return float(self.weight.sum(dtype=torch.float64)) / len(self.weight)

    def batch(self, index: Tensor) -> Batch:
        """Some sequences, weighted so that their weighted sum estimates the mean loss."""
        reference = self.reference
        if reference is not None:
            rows = torch.arange(self.weight.numel(), device=index.device).view(self.weight.shape)
            reference = ReferenceState(
                reference.x[rows[index].flatten()], reference.w_u, reference.b_u
            )
        weight = mean_weight(self.weight[index], self.weight_per_sequence)
        return Batch(self.tokens[index], weight, reference)


@dataclass(frozen=True)
class HalfPrecision:
    """The model's weights and suffixes in bfloat16."""

    weights: Weights
    suffixes: list[Group]


@dataclass
class TransformerTarget:
    """Paired losses and gradients of a model's components on shared minibatches."""

    model: AdaptedModel
    weights: Weights
    suffixes: list[Group]
    data: TokenSet
    probes: dict[str, TokenSet]
    settings: Settings
    drift: HalfPrecision | None = None  # set: the gradient, and only that, is computed with it
    _prefixes: dict[str, list[Prefix]] = field(default_factory=dict)
    _parts: dict[tuple[int, tuple[int, ...], bool], Suffix] = field(default_factory=dict)

    @cached_property
    def groups(self) -> list[Members]:
        return [
            Members([c.name for c in suffix.components], suffix.suffix.star())
            for suffix in self.suffixes
        ]

    def minibatch(self, key: int | str, parts: list[Part]) -> Evaluate:
        n, s = len(self.data.tokens), self.settings
        if s.batch(n) == n and self.drift is None:
            return self.everything()
        index = minibatch(n, s.batch(n), s.seed, key)
        batch = self.data.batch(index.to(self.data.tokens.device))
        return self.on_batch(batch, parts)

    def on_batch(self, batch: Batch, parts: list[Part]) -> Evaluate:
        """The loss on given sequences."""
        prefix = prefix_for(self.model, self.weights, self._chosen(self.suffixes, parts), batch)
        half, largest = None, torch.ones(())
        if self.drift is not None:
            chosen = self._chosen(self.drift.suffixes, parts)
            # Weights are relative to the largest until the end: those of 0 and 1 then are exact.
            largest = batch.weight.max().clamp(min=torch.finfo(batch.weight.dtype).tiny)
            half_batch = replace(batch, weight=(batch.weight / largest).bfloat16())
            half = prefix_for(self.model, self.drift.weights, chosen, half_batch)

        def evaluate(part: Part, u: Tensor, *, gradient: bool) -> tuple[Tensor, Tensor | None]:
            v = self._star(part) + u
            full = gradient and half is None
            token_loss, grad = self._suffix(part).losses(v, prefix, gradient=full)
            if gradient and half is not None and self.drift is not None:
                drift = self._suffix(part, self.drift)
                _, grad = drift.losses(v.bfloat16(), half, gradient=True)
                grad = None if grad is None else grad.to(v.dtype) * largest
            return _paired_mean(token_loss, prefix), grad

        return evaluate

    def everything(self) -> Evaluate:
        def evaluate(part: Part, u: Tensor, *, gradient: bool) -> tuple[Tensor, Tensor | None]:
            v = self._star(part) + u
            total, grads = u.new_zeros(u.shape[:2]), torch.zeros_like(u) if gradient else None
            for prefix in self._fixed("data", self.data):
                share = len(prefix.batch.tokens) / len(self.data.tokens)
                token_loss, grad = self._suffix(part).losses(v, prefix, gradient=gradient)
                total += share * _paired_mean(token_loss, prefix)
                if grads is not None and grad is not None:
                    grads += share * grad
            return total, grads

        return evaluate

    def probe_values(self, part: Part, u: Tensor) -> dict[str, Tensor]:
        found = {}
        v, suffix = self._star(part) + u, self._suffix(part)
        for name, probe in self.probes.items():
            losses: list[Tensor] = []
            read: dict[str, list[Tensor]] = {key: [] for key in probe.observables}
            for rows, prefix in self._pieces(name):
                shape = prefix.batch.weight.shape
                token_loss, _ = suffix.losses(v, prefix, gradient=False)
                losses.append((token_loss - prefix.base_loss).unflatten(-1, shape))
                for key, values in self._read(name, suffix, v, prefix, rows).items():
                    read[key].append(values)
            values = torch.cat(losses, dim=2).masked_fill(~probe.mask, float("nan"))
            found[probe_array(name)] = moved_back(values, probe.shift)
            for key, pieces in read.items():
                found[probe_array(name, key)] = torch.cat(pieces, dim=2)
        return found

    def _read(
        self, name: str, suffix: Suffix, v: Tensor, prefix: Prefix, rows: slice
    ) -> dict[str, Tensor]:
        """Observables ``[component, chain, sequence]`` of some sequences of a probe."""
        probe, observables = self.probes[name], self._prepared[name]
        if not observables:
            return {}
        sites = probe.sites.of_rows(rows)
        found: dict[str, list[Tensor]] = {key: [] for key in observables}
        for logits in suffix.logits(v, prefix, _flat(sites, rows, prefix)):
            for key, (observable, _) in observables.items():
                values = observable(logits, sites)
                found[key].append(probe.per_sequence(values, sites, rows))
        return {key: torch.stack(rows).view(*v.shape[:2], -1) for key, rows in found.items()}

    @cached_property
    def _prepared(self) -> dict[str, dict[str, tuple[Observable, Tensor]]]:
        """Every probe's observables, knowing the untouched model, and their values at its sites."""
        found: dict[str, dict[str, tuple[Observable, Tensor]]] = {}
        for name, probe in self.probes.items():
            found[name] = {}
            if not probe.observables:
                continue
            logits = torch.cat(
                [
                    self._base_logits(prefix, _flat(probe.sites.of_rows(rows), rows, prefix))
                    for rows, prefix in self._pieces(name)
                ]
            )
            for key, observable in probe.observables.items():
                found[name][key] = prepared(observable, logits, probe.sites)
        return found

    def _base_logits(self, prefix: Prefix, tokens: Tensor) -> Tensor:
        """Logits of some of the N tokens at the given weights, whatever components there are."""
        inputs, arch = prefix.batch.inputs, self.model.architecture
        own_blocks = runs_own_blocks(self.suffixes)
        with torch.no_grad():
            if arch is None or own_blocks:
                return model_logits(self.model, inputs).flatten(0, 1)[tokens]
            x = forward.run_from(arch, self.weights, 0, forward.embed(arch, self.weights, inputs))
            return forward.unembed(arch, self.weights, x.flatten(0, 1)[tokens])

    @cached_property
    def base_observables(self) -> dict[str, dict[str, Tensor]]:
        """Observables ``[sequence]`` at the given weights, of every probe.

        Raises ValueError for one that is no number there.
        """
        return {
            name: {
                key: probe.per_sequence(values, probe.sites, slice(0, len(probe.tokens)))
                for key, (_, values) in self._prepared[name].items()
            }
            for name, probe in self.probes.items()
        }

    def _pieces(self, name: str) -> Iterator[tuple[slice, Prefix]]:
        """Parts of a probe: their sequences, and what is frozen of them."""
        start = 0
        for prefix in self._fixed(f"probe {name}", self.probes[name]):
            stop = start + len(prefix.batch.tokens)
            yield slice(start, stop), prefix
            start = stop

    def _chosen(self, suffixes: list[Group], parts: list[Part]) -> list[Group]:
        return [suffixes[group] for group, _ in parts]

    def _star(self, part: Part) -> Tensor:
        return self.groups[part[0]].star[list(part[1]), None]

    def _suffix(self, part: Part, drift: HalfPrecision | None = None) -> Suffix:
        """What evaluates some of the components of a group; kept, for it may hold products."""
        key = (*part, drift is None)
        if key not in self._parts:
            suffixes = self.suffixes if drift is None else drift.suffixes
            self._parts[key] = suffixes[part[0]].suffix.of(part[1])
        return self._parts[key]

    def probe_base_losses(self) -> dict[str, Tensor]:
        """Per-token losses at the given weights ``[sequence, position]`` of every probe, in the
        caller's columns."""
        found = {}
        for name, probe in self.probes.items():
            pieces = [
                prefix.base_loss.view(prefix.batch.weight.shape)
                for prefix in self._fixed(f"probe {name}", probe)
            ]
            loss = torch.cat(pieces).masked_fill(~probe.mask, float("nan"))
            found[name] = moved_back(loss, probe.shift)
        return found

    @cached_property
    def base_losses(self) -> tuple[Tensor, Tensor]:
        """Losses at the given weights ``[sequence, position]`` and how much each counts.

        Of at most ``MOST_BASE_SEQUENCES`` sequences, evenly chosen; in double precision.
        """
        data, n = self.data, min(len(self.data.tokens), MOST_BASE_SEQUENCES)
        rows = torch.arange(n, device=data.tokens.device) * len(data.tokens) // n
        loss, weight = [], []
        for index in rows.split(self.settings.batch(len(data.tokens))):
            found = prefix_for(self.model, self.weights, self.suffixes[:1], data.batch(index))
            weight.append(data.weight[index].cpu().double())
            loss.append(found.base_loss.cpu().double().view(weight[-1].shape))
        return torch.cat(loss), torch.cat(weight)

    def base_loss(self) -> tuple[float, float]:
        """Weighted mean loss at the given weights, and its standard error over sequences.

        Of the sequences of :attr:`base_losses`; a single one has no error.
        """
        loss, weight = self.base_losses
        return mean_over_tokens(loss.numpy(), weight.numpy())

    @property
    def uniform_loss(self) -> float:
        """Loss of a guess that gives every token the same chance."""
        return math.log(self.model.d_vocab_out)

    def _fixed(self, key: str, data: TokenSet) -> list[Prefix] | _Recomputed:
        """Prefixes of a fixed token set: kept where they fit in memory, else recomputed."""
        if key in self._prefixes:
            return self._prefixes[key]
        device = data.tokens.device
        pieces = torch.arange(len(data.tokens), device=device).split(
            self.settings.batch(len(data.tokens))
        )

        def compute(index: Tensor) -> Prefix:
            return prefix_for(self.model, self.weights, self.suffixes, data.batch(index))

        arch = self.model.architecture
        layers = {layer for group in self.suffixes for layer in group.layers}
        if arch is not None:
            size = prefix_bytes(arch, data.mask.numel(), len(layers))
        else:
            size = 4 * data.mask.numel() * self.model.d_model * len(layers)
        if size > PREFIX_CACHE_BYTES:
            return _Recomputed(compute, pieces)
        self._prefixes[key] = [compute(index) for index in pieces]
        return self._prefixes[key]


@dataclass(frozen=True)
class _Recomputed:
    """Prefixes that are too large to keep."""

    compute: Callable[[Tensor], Prefix]
    pieces: tuple[Tensor, ...]

    def __iter__(self):  # type: ignore[no-untyped-def]
        return map(self.compute, self.pieces)


def _flat(sites: Sites, rows: slice, prefix: Prefix) -> Tensor:
    """Where sites stand among the flattened predictions of a piece."""
    return (sites.sequence - rows.start) * prefix.batch.weight.shape[1] + sites.column


def _paired_mean(token_loss: Tensor, prefix: Prefix) -> Tensor:
    return ((token_loss - prefix.base_loss) * prefix.batch.weight.flatten()).sum(-1)
