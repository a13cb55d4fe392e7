r"""Which edges matter for a pattern, estimated from gradients: edge attribution patching.

An edge leads from what a head writes to the queries, keys or values of a later head, or to the
logits. Ablating it replaces what the source writes, in the input of that one reader, by its mean
over tokens. To first order the loss then changes by (ablated − clean)·∂L/∂(queries, keys, values),
the difference being exact, norm included: norm(stream − written + mean)·W − norm(stream)·W.

``steps=1`` takes the gradient where nothing is ablated (attribution patching, Syed et al. 2023,
arXiv 2310.10348): one backward pass for all edges. With ``steps`` from 2 on the gradient is the
mean over the midpoints of as many parts of a straight path (integrated gradients; Hanna et al.
2024, EAP-IG, arXiv 2403.17806, who walk from one prompt to another). Here the path is one of
activations, and there is one for each source and kind of reader: along it all of this source's
edges into queries (or keys, values, the logits) are ablated together, little by little, and nothing
else. So the effects of one source through one of them add up, over targets, to the true change of
the loss when these edges are ablated at once (exactly so where the targets are in one layer). That
costs ``steps`` passes through the later layers for every source and kind: with two layers ablating
every edge is no more work, with many it is far more.

Against true ablation of single edges, loss of induction tokens on three shipped models, the
correlations over edges are 0.98 and more for ``steps=5`` (and for 3), 1.00 for the logits. Where
several heads do the same work each of their edges is overrated, up to twice, because the path
ablates them together. With ``steps=1`` they are 0.94 and more for queries and keys, where the sizes
are nearer to the truth if heads share the work, but 0.83 to 0.97 for values and 0.45 to 0.71 for
the logits, where they are up to four times too small.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
import xarray as xr
from torch import Tensor

from lens_slt.arguments import choice, integer, typed
from lens_slt.circuits.hypothesis import LOGITS, THROUGH
from lens_slt.data.checks import check_tokens, loss_mask
from lens_slt.data.columns import moved
from lens_slt.models.adapter import AdaptedModel, adapt, copy_weights, model_logits_from
from lens_slt.models.captures import captured, keep_in, run_with
from lens_slt.models.components import head_names
from lens_slt.models.forward import Weights
from lens_slt.models.observable import Loss, Observable, Sites, as_observable, prepared
from lens_slt.models.padding import warn_of_padding
from lens_slt.models.stream import Stream
from lens_slt.schema import stamped
from lens_slt.torch_state import plain_torch

ABLATIONS = ("mean", "zero")

Hooks = list[tuple[str, Callable[..., Any]]]


@typed
@plain_torch
def edge_attribution(
    model: Any,
    tokens: Any,
    pattern_mask: Any,
    *,
    steps: int = 5,
    ablate: str = "mean",
    metric: Any = None,
    batch_size: int = 8,
    pad_id: int | None = None,
) -> xr.Dataset:
    """Estimated change of the mean loss on a pattern's tokens when single edges are ablated.

    Args:
        model: a HookedTransformer or TransformerBridge whose attention is added to the residual
            stream as it is (no norm after it).
        tokens: int ``[sequence, position]``.
        pattern_mask: bool ``[sequence, position - 1]``: which predictions of ``tokens[:, 1:]``
            count, such as ``label_patterns(tokens).sel(pattern="induction")``.
        steps: points on the path of integrated gradients; 1 is attribution patching.
        ablate: ``mean``: what the source writes becomes its mean over all tokens that predict one,
            as ``how="mean"`` of :func:`lens_slt.circuits.interventions.ablate_path`; ``zero``.
        metric: an observable instead of the loss, as in :func:`lens_slt.ablate`; it has to have a
            gradient (accuracy has none).
        batch_size: sequences at a time.
        pad_id: as in :func:`lens_slt.sample`.

    Returns:
        Dataset over (source, target, through): ``effect`` in nats, positive where ablating the edge
        raises the loss, or in the units of the metric. Targets are heads, through Q, K or V, and
        ``logits``, through ``""``, as in :class:`lens_slt.circuits.hypothesis.Edge`; NaN where
        there is no edge. Under grouped-query attention K and V belong to the group: each of its
        heads shows the effect of the whole. The attributes have the clean loss (or metric), its
        name and units, and the number of tokens.

    Raises:
        TypeError, ValueError: no such model or tokens (as :func:`lens_slt.sample`); a mask of
            another shape or without tokens; bad arguments; a model that computes something else.
    """
    choice("ablate", ablate, ABLATIONS)
    integer("steps", steps, at_least=1)
    integer("batch_size", batch_size, at_least=1)
    adapted = adapt(model)
    ids, mask, shift = check_tokens(
        tokens, d_vocab=adapted.d_vocab, n_ctx=adapted.n_ctx, d_vocab_out=adapted.d_vocab_out,
        model=adapted.module, pad_id=pad_id,
    )  # fmt: skip
    warn_of_padding(adapted, ids, shift, "tokens")
    real = loss_mask(mask)
    chosen = moved(_pattern_mask(pattern_mask, ids), shift) & real
    if not bool(chosen.any()):
        raise ValueError("pattern_mask is false everywhere: there are no tokens to take a loss of")
    weights = copy_weights(adapted)
    stream = _checked_stream(adapted, ids[:, :-1])
    replacement = _replacement(adapted, weights, ids[:, :-1], real, ablate, batch_size)
    observable: Observable = Loss() if metric is None else as_observable(metric)
    totals = _Totals.empty(adapted)
    rows_with_pattern = chosen.any(1).nonzero()[:, 0]
    n_tokens = int(chosen.sum())
    value, all_sites = 0.0, Sites.of(ids, chosen, shift)
    for rows in rows_with_pattern.split(batch_size):
        sites = all_sites.some(torch.isin(all_sites.sequence, rows))
        batch = _Batch.of(stream, weights, ids[rows], rows, sites, observable, replacement)
        value += batch.value / n_tokens
        batch.attribute(totals, steps)
    about: dict[str, Any] = {"n_tokens": n_tokens, "steps": steps, "ablate": ablate}
    about |= {observable.name: value, "metric": observable.name, "units": observable.units}
    return totals.dataset(about, n_tokens)


def _pattern_mask(pattern_mask: Any, ids: Tensor) -> Tensor:
    if isinstance(pattern_mask, Tensor):
        chosen = pattern_mask
    else:
        given = np.array(pattern_mask)
        if given.dtype.kind not in "biuf":
            raise TypeError(f"pattern_mask must be a bool array; got {type(pattern_mask).__name__}")
        chosen = torch.from_numpy(given)
    shape = (ids.shape[0], ids.shape[1] - 1)
    if chosen.dtype != torch.bool or tuple(chosen.shape) != shape:
        raise ValueError(
            f"pattern_mask must be bool [sequence, position - 1], here {list(shape)}, for tokens "
            f"of shape {list(ids.shape)}; got {str(chosen.dtype).removeprefix('torch.')} "
            f"{list(chosen.shape)}"
        )
    return chosen.cpu()


def _replacement(
    adapted: AdaptedModel,
    weights: Weights,
    inputs: Tensor,
    real: Tensor,
    ablate: str,
    batch_size: int,
) -> list[Tensor]:
    """What an ablated head writes instead before W_O, ``[head, d_head]`` for each layer."""
    layers = range(adapted.n_layers)
    total = [weights[f"blocks.{i}.attn.W_O"][:, :, 0].double() * 0 for i in layers]
    if ablate == "zero":
        return [part.to(adapted.dtype) for part in total]
    names = [f"blocks.{i}.attn.hook_z" for i in layers]
    for rows in torch.arange(len(inputs)).split(batch_size):
        kept = captured(adapted, inputs[rows], names)
        there = real[rows].to(adapted.device)
        for i, name in enumerate(names):
            total[i] += kept[name][there].double().sum(0)
    return [(part / int(real.sum())).to(adapted.dtype) for part in total]


@dataclass(frozen=True)
class _Totals:
    """Sums over batches; ``heads`` is [source layer, head, target layer, head, through]."""

    adapted: AdaptedModel
    heads: Tensor
    logits: Tensor  # [source layer, head]

    @classmethod
    def empty(cls, adapted: AdaptedModel) -> _Totals:
        shape = (adapted.n_layers, adapted.n_heads)
        heads = torch.zeros(*shape, *shape, len(THROUGH), dtype=torch.float64)
        for layer in range(adapted.n_layers):
            heads[layer, :, : layer + 1] = torch.nan  # no edge leads backwards
        return cls(adapted, heads, torch.zeros(shape, dtype=torch.float64))

    def dataset(self, attrs: dict[str, Any], n_tokens: int) -> xr.Dataset:
        n = self.adapted.n_layers * self.adapted.n_heads
        effect = np.full((n, n + 1, len(THROUGH) + 1), np.nan)
        effect[:, :n, : len(THROUGH)] = self.heads.reshape(n, n, -1).numpy() / n_tokens
        effect[:, n, len(THROUGH)] = self.logits.reshape(n).numpy() / n_tokens
        names = head_names(self.adapted)
        found = xr.Dataset(
            {"effect": (("source", "target", "through"), effect)},
            coords={"source": names, "target": [*names, LOGITS], "through": [*THROUGH, ""]},
            attrs=attrs,
        )
        return stamped(found, "edge_attribution")


@dataclass(frozen=True)
class _Batch:
    """Some sequences in the model as it is: what its heads read and write."""

    measured: Stream
    weights: Weights
    inputs: Tensor  # tokens that predict one, [sequence, position]
    sites: Sites  # where the observable is read; sequences of all tokens
    local: Tensor  # which sequence of the batch each site is in
    observable: Observable
    stream: list[Tensor]  # before each layer, [sequence, position, d_model]
    moved: list[Tensor]  # change of the stream if a head is ablated, [head, sequence, position, …]
    value: float  # of the observable, summed over sites

    @classmethod
    def of(
        cls,
        measured: Stream,
        weights: Weights,
        tokens: Tensor,
        rows: Tensor,
        sites: Sites,
        observable: Observable,
        replacement: list[Tensor],
    ) -> _Batch:
        adapted = measured.adapted
        tokens = tokens.to(adapted.device)
        streams = [f"blocks.{i}.hook_resid_pre" for i in range(adapted.n_layers)]
        written = [f"blocks.{i}.attn.hook_z" for i in range(adapted.n_layers)]
        kept: dict[str, Tensor] = {}
        keep = [keep_in(kept, name) for name in (*streams, *written)]
        logits = run_with(adapted, tokens[:, :-1], keep)
        moved = [
            measured.factor(i)
            * torch.einsum("sphe,hed->hspd", new - kept[name], weights[f"blocks.{i}.attn.W_O"])
            for i, (name, new) in enumerate(zip(written, replacement, strict=True))
        ]
        stream = [kept[name] for name in streams]
        local = torch.searchsorted(rows, sites.sequence)
        sites = replace(sites, index=torch.arange(len(local)))
        observable, values = prepared(observable, logits[local, sites.column], sites)
        return cls(
            measured, weights, tokens[:, :-1], sites, local, observable, stream, moved,
            float(values.double().sum()),
        )  # fmt: skip

    @property
    def adapted(self) -> AdaptedModel:
        return self.measured.adapted

    def attribute(self, totals: _Totals, steps: int) -> None:
        """Add the effects of all edges on this batch's part of the loss."""
        clean = self._clean_gradients() if steps == 1 else None
        for layer, moves in enumerate(self.moved):
            for head, move in enumerate(moves):
                for place, part in enumerate(THROUGH):
                    changes = self._changes(layer, move, part)
                    gradients = clean or self._path_gradients(layer + 1, changes, steps)
                    for target in range(layer + 1, self.adapted.n_layers):
                        name = _input(target, part)
                        effect = (changes[name] * gradients[name]).sum((0, 1, 3)).double().cpu()
                        # A key/value head shows its effect in every head of its group, also
                        # where the model keeps a copy for each of them.
                        n_own = (
                            self.adapted.n_heads if part == "Q" else self.adapted.n_key_value_heads
                        )
                        effect = effect.view(n_own, -1).sum(1)
                        effects = effect.repeat_interleave(self.adapted.n_heads // n_own)
                        totals.heads[layer, head, target, :, place] += effects
                last = self._last_stream
                gradients = clean or self._path_gradients(
                    self.adapted.n_layers - 1, {last: move}, steps
                )
                totals.logits[layer, head] += float((move * gradients[last]).sum())

    @property
    def _last_stream(self) -> str:
        return f"blocks.{self.adapted.n_layers - 1}.hook_resid_post"

    def _changes(self, layer: int, move: Tensor, part: str) -> dict[str, Tensor]:
        """Change of the later layers' queries (keys, values), ``[sequence, position, head, …]``."""
        changes = {}
        for target in range(layer + 1, self.adapted.n_layers):
            stream = self.stream[target]
            with torch.no_grad():
                change = self.measured.projected(target, part, stream + move)
                change = change - self.measured.projected(target, part, stream)
            changes[_input(target, part)] = change
        return changes

    def _clean_gradients(self) -> dict[str, Tensor]:
        """Of the loss with respect to all queries, keys, values and the last stream."""
        nothing = {self._last_stream: torch.zeros_like(self.stream[0])}
        for part in THROUGH:
            changes = self._changes(0, torch.zeros_like(self.stream[0]), part)
            nothing |= {name: torch.zeros_like(change) for name, change in changes.items()}
        return self._gradients(min(1, self.adapted.n_layers - 1), nothing)

    def _path_gradients(
        self, start: int, changes: dict[str, Tensor], steps: int
    ) -> dict[str, Tensor]:
        """Mean gradients on the way to these changes, at the midpoints of its parts."""
        total = {name: torch.zeros_like(change) for name, change in changes.items()}
        for step in range(steps) if changes else ():
            share = (step + 0.5) / steps
            shifts = {name: share * change for name, change in changes.items()}
            for name, gradient in self._gradients(start, shifts).items():
                total[name] += gradient / steps
        return total

    def _gradients(self, start: int, shifts: dict[str, Tensor]) -> dict[str, Tensor]:
        """Gradients of the loss with these shifts added; blocks from ``start`` on run."""
        leaves = {name: shift.clone().requires_grad_() for name, shift in shifts.items()}

        def add(leaf: Tensor) -> Callable[..., Tensor]:
            return lambda value, hook: value + leaf

        hooks = [(name, add(leaf)) for name, leaf in leaves.items()]
        with torch.enable_grad(), self.adapted.module.hooks(fwd_hooks=hooks):
            logits = model_logits_from(self.adapted, self.inputs, self.stream[start], start)
            value = self.observable(logits[self.local, self.sites.column], self.sites).sum()
            if not value.requires_grad:
                raise ValueError(
                    f"metric: {self.observable.name} has no gradient, which attribution needs; use "
                    "ablate_path, or a metric such as LogitDifference"
                )
            gradients = torch.autograd.grad(value, list(leaves.values()))
        return dict(zip(leaves, gradients, strict=True))


def _input(layer: int, part: str) -> str:
    return f"blocks.{layer}.attn.hook_{part.lower()}"


def _checked_stream(adapted: AdaptedModel, inputs: Tensor) -> Stream:
    """The residual stream of a model whose edges are what the estimate takes them for."""
    stream = Stream(adapted, inputs)
    stream.check_logits()
    for layer in range(adapted.n_layers):
        stream.factor(layer)
        if layer > 0:
            stream.check_restart(layer)
            for part in THROUGH:
                stream.check_heard(layer, part)
    return stream
