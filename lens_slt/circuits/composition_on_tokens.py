r"""Composition on tokens: whose output makes a head look where it looks, and write what it writes.

Composition scores compare weights, whatever the tokens. Here the same wires are followed on given
tokens, in the model as it is; nothing is ablated. Of a head at query position i, with attention
A_ij and scores s_ij before the softmax,

- its *drive* is Σ_j (A_ij − 1/n_i)·s_ij: by how many nats the scores of the positions that it
  attends to exceed those of all n_i that it may attend to. It is linear in queries and in keys;
- its *output* counts by Σ|o_i|², o = z·W_O minus its mean at each position; linear in values.

An MLP counts by its output too. What a source writes, minus its mean at each position over
sequences, is followed through the norm into queries, keys, values or the MLP's input: its share is
the inner product of that part with the gradient of the drive (or of Σ⟨o, o fixed⟩), over the whole.
Shares of all sources through one input, and of the embeddings, which are none here, add up to what
varies over sequences there, to first order in what the norm and an MLP do; they may be negative.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import numpy as np
import torch
import xarray as xr
from torch import Tensor

from lens_slt.arguments import integer, typed
from lens_slt.circuits.attention import attention_scores
from lens_slt.circuits.attribution_gradients import (
    Reader,
    Wiring,
    called_with,
    shifted,
    stand_ins,
)  # fmt: skip
from lens_slt.circuits.hypothesis import LOGITS, MLP_INPUT, THROUGH
from lens_slt.circuits.paths import place_of
from lens_slt.circuits.replacements import context
from lens_slt.data.columns import moved
from lens_slt.data.patterns import checked_pattern
from lens_slt.data.weights import weighted_tokens
from lens_slt.models.adapter import AdaptedModel, adapt
from lens_slt.models.captures import Hook, captured, traced
from lens_slt.models.components import node_names
from lens_slt.models.padding import warn_of_padding
from lens_slt.models.stream import Stream
from lens_slt.schema import stamped
from lens_slt.statistics import ratio_of_sums
from lens_slt.torch_state import plain_torch

LEAST_DRIVE = 0.3  # nats; a head that attends to nearly everything alike is driven by nothing


@typed
@plain_torch
def composition_on_tokens(
    model: Any,
    tokens: Any,
    pattern: Any = None,
    *,
    batch_size: int = 32,
    weights: Any = None,
    mask: Any = None,
    pad_id: int | None = None,
) -> xr.Dataset:
    """Share of what drives heads and MLPs, and of what they write, that each earlier node brings.

    Args:
        model: a HookedTransformer or TransformerBridge whose attention is added to the residual
            stream as it is.
        tokens: int ``[sequence, position]``; at least two sequences.
        pattern: bool ``[sequence, position - 1]``: predictions at whose positions heads are looked
            at, such as a pattern's; all that count by default.
        batch_size: sequences at a time.
        weights, mask, pad_id: which predictions count, as in :func:`lens_slt.sample`; all weights
            above 0 alike.

    Returns:
        Dataset over (source, target, through): ``share`` with its standard error ``se``
        (sequences are the unit; NaN for one), NaN where there is no such wire, and through Q and K
        where the target's drive, ``drive`` in nats over target, is below 0.3 or cannot be told
        (attention so sharp that it is 0 somewhere, of models that the fast path does not compute).
        Targets are heads, through Q, K or V, and MLPs, through ``""``; layer 0 reads no head. Under
        grouped-query attention K and V belong to the group; each of its heads shows its own drive.
        The attribute ``left_out`` says which MLPs have none.

    Raises:
        TypeError, ValueError: no such model or tokens (as :func:`lens_slt.sample`); ``pattern`` of
            another shape or false everywhere; fewer than two sequences.

    Example:
        >>> import lens_slt as ls
        >>> model, tokens = ls.load_model("attn-2l"), ls.load_tokens("mix", n_sequences=16)
        >>> induction = ls.label_patterns(tokens).sel(pattern="induction").values
        >>> found = ls.composition_on_tokens(model, tokens, induction)
        >>> float(found["share"].sel(source="L0H2", target="L1H2", through="K")) > 0.3
        True
    """
    return compositions_on_tokens(
        model, tokens, [pattern], batch_size=batch_size, weights=weights, mask=mask, pad_id=pad_id
    )[0]


@plain_torch
def compositions_on_tokens(
    model: Any,
    tokens: Any,
    wheres: Sequence[Any],
    *,
    batch_size: int = 32,
    weights: Any = None,
    mask: Any = None,
    pad_id: int | None = None,
) -> list[xr.Dataset]:
    """:func:`composition_on_tokens` at several sets of positions.

    Passes, means, what sources bring and how they are read are the same for all of them.
    """
    integer("batch_size", batch_size, at_least=1)
    adapted = adapt(model)
    ids, weight, shift = weighted_tokens(
        tokens, d_vocab=adapted.d_vocab, d_vocab_out=adapted.d_vocab_out, n_ctx=adapted.n_ctx,
        model=adapted.module, weights=weights, mask=mask, pad_id=pad_id,
    )  # fmt: skip
    if len(ids) < 2:
        raise ValueError(f"tokens must have at least 2 sequences; got {len(ids)}")
    warn_of_padding(adapted, ids, shift, "tokens")
    real = weight > 0
    chosen = torch.stack([real] * len(wheres))
    for i, where in enumerate(wheres):
        if where is not None:
            labels = torch.tensor(checked_pattern(where, tuple(real.shape), "pattern"))
            chosen[i] &= moved(labels, shift)
    if not bool(chosen.flatten(1).any(1).all()):
        raise ValueError("pattern is false everywhere: there are no positions to look at")
    wiring = Wiring.of(Stream(adapted, ids[:, :-1]), embeddings=False)
    parts = _Parts(wiring)
    places = sorted({place_of(source)[0] for source in wiring.sources})
    lends = torch.from_numpy(context(real.numpy()))
    means = stand_ins(adapted, places, ids[:, :-1], lends, "mean_position", batch_size)
    for rows in chosen.any(2).any(0).nonzero()[:, 0].split(batch_size):
        _Batch.of(wiring, ids[rows, :-1], chosen[:, rows], means).add_to(parts)
    return [parts.dataset(i) for i in range(len(wheres))]


@dataclass
class _Parts:
    """Numerators and denominators of shares, by sequence."""

    wiring: Wiring
    whole: dict[Reader, list[Tensor]] = field(default_factory=dict)  # [where, sequence, target]
    part: dict[tuple[str, Reader], list[Tensor]] = field(default_factory=dict)
    looked: list[Tensor] = field(default_factory=list)  # positions [where, sequence]

    def dataset(self, i: int) -> xr.Dataset:
        """Shares at the i-th set of positions; sequences without any do not count."""
        adapted = self.wiring.stream.adapted
        nodes = node_names(adapted)
        kinds = [*THROUGH, MLP_INPUT] if not adapted.attn_only else list(THROUGH)
        share, se = (np.full((len(nodes), len(nodes), len(kinds)), np.nan) for _ in range(2))
        drive = np.full(len(nodes), np.nan)
        looked = torch.cat(self.looked, 1)[i]
        n_looked, rows = float(looked.sum()), looked > 0
        for reader, batches in self.whole.items():
            whole = torch.cat(batches, 1)[i, rows].double().numpy()
            targets = [nodes.index(name) for name in reader.targets]
            enough = np.ones(len(targets), dtype=bool)
            if reader.kind in ("Q", "K"):
                drive[targets] = whole.sum(0) / n_looked
                enough = drive[targets] >= LEAST_DRIVE
            for source in self.wiring.sources:
                if (source, reader) in self.part:
                    mine = torch.cat(self.part[source, reader], 1)[i, rows].double().numpy()
                    place = nodes.index(source), targets, kinds.index(reader.kind)
                    value, error = ratio_of_sums(mine.T, whole.T)
                    share[place] = np.where(enough, value, np.nan)
                    se[place] = np.where(enough, error, np.nan)
        dims = ("source", "target", "through")
        found = xr.Dataset(
            {"share": (dims, share), "se": (dims, se), "drive": ("target", drive)},
            coords={"source": nodes, "target": nodes, "through": kinds},
            attrs={
                "n_positions": int(n_looked),
                "left_out": "; ".join(f"{a}: {b}" for a, b in self.wiring.left_out.items()),
            },
        )  # fmt: skip
        return stamped(found, "composition_on_tokens")


def _scores_of(pattern: Tensor) -> Tensor:
    """Scores, but for a constant, from attention ``[sequence, head, query, key]``.

    Keys to which no head attends in any sequence are masked; where a head's attention is 0 or
    nearly so elsewhere its scores are not known: NaN.
    """
    seen = pattern.detach()
    masked = (seen == 0).all(1, keepdim=True).all(0, keepdim=True)
    lost = ((seen < 1e-30) & ~masked).amax((2, 3), keepdim=True)
    scores = pattern.clamp(min=1e-30).log().masked_fill(masked, -torch.inf)
    return scores.masked_fill(lost & ~masked, torch.nan)


@dataclass(frozen=True)
class _Batch:
    """Some sequences in the model as it is."""

    wiring: Wiring
    inputs: Tensor
    chosen: Tensor  # bool [where, sequence, position]
    kept: dict[str, Tensor]
    means: dict[str, Tensor]

    @classmethod
    def of(cls, wiring: Wiring, inputs: Tensor, chosen: Tensor, means: dict[str, Tensor]) -> _Batch:
        adapted = wiring.stream.adapted
        names = {place_of(source)[0] for source in wiring.sources}
        names |= {reader.place for reader in wiring.readers if reader.kind != LOGITS}
        names |= {f"blocks.{i}.hook_resid_pre" for i in range(adapted.n_layers)}
        names |= {reader.hook for reader in wiring.readers if reader.kind in THROUGH}
        inputs = inputs.to(adapted.device)
        kept = captured(adapted, inputs, sorted(names))
        return cls(wiring, inputs, chosen.to(adapted.device), kept, means)

    @property
    def adapted(self) -> AdaptedModel:
        return self.wiring.stream.adapted

    @torch.no_grad()
    def add_to(self, parts: _Parts) -> None:
        """Add what every wire carries here."""
        parts.looked.append(self.chosen.sum(2).cpu())
        moves = {source: self._written(source) for source in self.wiring.sources}
        for reader in self.wiring.readers:
            if reader.kind == LOGITS:
                continue
            gradient, whole = self._gradient(reader)
            parts.whole.setdefault(reader, []).append(whole.cpu())
            resid = self.kept[reader.place]
            for source in self.wiring.sources:
                if reader not in self.wiring.behind(source):
                    continue
                change = reader.read(resid) - reader.read(resid - moves[source])
                if change.ndim == 3:
                    change = change[:, :, None]
                # Keys and values of a group are those of each of its heads.
                change = change.repeat_interleave(gradient.shape[3] // change.shape[2], 2)
                found = torch.einsum("sphe,wsphe->wsh", change, gradient)
                parts.part.setdefault((source, reader), []).append(found.cpu())

    def _written(self, source: str) -> Tensor:
        """What a node writes, minus its mean at each position ``[sequence, position, d_model]``."""
        place, head = place_of(source)
        value, mean = self.kept[place], self.means[place]
        if head is not None:
            value, mean = value[:, :, head], mean[..., head, :]
        return self.wiring.stream.written(source, value - mean)

    @torch.enable_grad()
    def _gradient(self, reader: Reader) -> tuple[Tensor, Tensor]:
        """Of what is shared out with respect to what is read, and its values.

        ``[where, sequence, position, head, d_head]`` and ``[where, sequence, head]``; an MLP is one
        head with ``d_model``.
        """
        if reader.kind == MLP_INPUT:
            return self._of_mlp(reader)
        q, k = f"blocks.{reader.layer}.attn.hook_q", f"blocks.{reader.layer}.attn.hook_k"
        leaf = torch.zeros_like(self.kept[reader.hook]).requires_grad_()
        added = (reader.hook, partial(shifted, leaf))
        if reader.kind == "V":
            each, whole = self._output(
                reader.layer, self._traced(reader.layer, "attn.hook_z", added)
            )
        elif self.adapted.architecture is not None:
            read = {**self.kept, reader.hook: self.kept[reader.hook] + leaf}
            each = whole = self._drive(attention_scores(self.adapted, read[q], read[k]))
        else:
            pattern = self._traced(reader.layer, "attn.hook_pattern", added)
            each = whole = self._drive(_scores_of(pattern))
        group = self.adapted.n_heads // leaf.shape[2]
        parts = [[_slope(one[:, i::group], leaf) for i in range(group)] for one in each]
        gradients = torch.stack([torch.stack(part, 3).flatten(2, 3) for part in parts])
        return gradients, whole.detach()

    def _traced(self, layer: int, place: str, change: Hook) -> Tensor:
        start = layer, self.kept[f"blocks.{layer}.hook_resid_pre"]
        return traced(self.adapted, self.inputs, f"blocks.{layer}.{place}", [change], start)

    def _drive(self, scores: Tensor) -> Tensor:
        """By how much scores are higher where a head attends, ``[where, sequence, head]``."""
        allowed = scores > -torch.inf
        weight = scores.detach().softmax(-1) - allowed / allowed.sum(-1, keepdim=True)
        each = (weight * scores.masked_fill(~allowed, 0.0)).sum(-1)
        return torch.einsum("shp,wsp->wsh", each, self.chosen.to(each))

    def _output(self, layer: int, z: Tensor) -> tuple[Tensor, Tensor]:
        """What heads write, along itself without its mean at each position; and that squared."""
        w_o = self.wiring.stream.weight(layer, "W_O")
        assert w_o is not None
        squares = w_o @ w_o.transpose(-1, -2)
        apart = z.detach() - self.means[f"blocks.{layer}.attn.hook_z"]
        along = torch.einsum("sphe,hef->sphf", apart, squares)
        chosen = self.chosen.to(z)
        each, whole = (
            torch.einsum("sph,wsp->wsh", (x * along).sum(-1), chosen) for x in (z, apart)
        )
        return each, whole

    def _of_mlp(self, reader: Reader) -> tuple[Tensor, Tensor]:
        place = f"blocks.{reader.layer}.hook_mlp_out"
        assert reader.module is not None
        leaf = torch.zeros_like(self.kept[reader.place]).requires_grad_()
        handle = reader.module.register_forward_pre_hook(partial(called_with, leaf))
        try:
            start = reader.layer, self.kept[f"blocks.{reader.layer}.hook_resid_pre"]
            out = traced(self.adapted, self.inputs, place, [], start)
        finally:
            handle.remove()
        apart = out.detach() - self.means[place]
        chosen = self.chosen.to(out)
        each, whole = (
            torch.einsum("sp,wsp->ws", (x * apart).sum(-1), chosen)[..., None] for x in (out, apart)
        )
        gradients = torch.stack([_slope(one, leaf) for one in each])
        return gradients[:, :, :, None], whole


def _slope(values: Tensor, leaf: Tensor) -> Tensor:
    """Of their sum; the graph is kept, for there are others behind the same pass."""
    return torch.autograd.grad(values.sum(), leaf, retain_graph=True)[0]
