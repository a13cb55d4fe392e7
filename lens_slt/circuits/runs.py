"""A model run on tokens with parts of it ablated: the losses of every token, remembered.

Parts are *nodes*, heads and MLPs, whose output is replaced, and *paths*, where only what one head
writes directly into a later head's Q, K or V input, or into the logits, is replaced. Everything
goes through hooks that work on HookedTransformer and on every TransformerBridge: ``hook_z``,
``hook_mlp_out``, ``hook_q/k/v``, ``hook_resid_pre``, ``hook_resid_post``. For a path into a head,
its queries, keys or values are computed again from ``ln1`` of the residual stream without that
part (``hook_q_input`` and its like are ignored by some models).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor, nn

from lens_slt.arguments import choice
from lens_slt.circuits.hypothesis import LOGITS, Edge
from lens_slt.data.checks import check_tokens, loss_mask
from lens_slt.models.adapter import AdaptedModel
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

HOWS = ("mean", "mean_position", "mean_pattern", "resample", "zero")
MOST_LOGITS = 2**24  # that one batch of sequences may have
TOLERANCE = 1e-3  # of recomputed queries, keys, values and head outputs, relative

Hook = tuple[str, Callable[[Tensor, Any], Tensor | None]]
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
        self.adapted, self.frozen_norm, self.how = adapted, frozen_norm, how
        sizes: dict[str, Any] = dict(d_vocab=adapted.d_vocab, n_ctx=adapted.n_ctx, pad_id=pad_id)
        self.tokens, mask = check_tokens(tokens, **sizes)
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
            self.pattern = np.asarray(pattern, dtype=bool)
            if self.pattern.shape != self.real.shape:
                raise ValueError(
                    f"pattern must have shape {self.real.shape}, one position less than tokens; "
                    f"got {self.pattern.shape}"
                )
        if frozen_norm and adapted.architecture is None:
            raise ValueError(
                "frozen_norm=True needs a model whose norms lens_slt knows; this one has none: "
                f"{adapted.why_generic}"
            )
        self._rows_of = _other_rows(len(self.tokens), len(self.reference), reference is None, seed)
        self._values: dict[str, Tensor] = {}
        self._clean: dict[tuple[str, bool], Tensor] = {}
        self._scales: dict[str, Tensor] = {}
        self._losses: dict[tuple[frozenset, ...], Losses] = {}
        self._paths_checked: set[int] = set()
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
        for layer in {layer_of(e.target) for e in paths if e.target != LOGITS}:
            self._check_paths(layer)
        found = np.full(self.real.shape, np.nan, dtype=np.float32)
        for rows in self._batches(len(self.tokens)):
            hooks = self._path_hooks(paths, rows)
            hooks = self._node_hooks(ablated, restored, rows) + hooks
            tokens = self.tokens[rows].to(self.adapted.device)
            with self._norms(rows):
                logits = self._forward(tokens[:, :-1], hooks)
            loss = -logits.float().log_softmax(-1).gather(-1, tokens[:, 1:, None])[..., 0]
            found[rows] = loss.cpu().numpy()
        return np.where(self.real, found, np.float32(np.nan))

    def _forward(self, tokens: Tensor, hooks: list[Hook]) -> Tensor:
        with torch.no_grad():
            return self.adapted.module.run_with_hooks(tokens, return_type="logits", fwd_hooks=hooks)

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
        # Found here, because a run cannot start inside the hooks of another.
        instead = {edge.source: self._replacement(edge.source, rows) for edge in paths}

        def keep(name: str) -> Callable[[Tensor, Any], None]:
            def hook(value: Tensor, hook: Any) -> None:
                live[name] = value

            return hook

        def removed(sources: tuple[str, ...]) -> Tensor:
            """What ablation takes from the residual stream, ``[row, position, d_model]``."""
            total = torch.zeros(())
            for source in sources:
                layer, head = head_place(source)
                change = live[f"z{layer}"][:, :, head] - instead[source]
                total = total.to(change.device) + change @ self._weight(layer, "W_O")[head]
            return total

        hooks: list[Hook] = [
            (f"blocks.{layer}.attn.hook_z", keep(f"z{layer}"))
            for layer in sorted({layer_of(edge.source) for edge in paths})
        ]
        readers: dict[tuple[str, str], list[str]] = {}
        for edge in sorted(paths):
            readers.setdefault((edge.target, edge.through), []).append(edge.source)
        # What readers in one layer lack the same sources is projected once for all of them.
        groups: dict[tuple[int, str], dict[tuple[str, ...], list[int]]] = {}
        for (target, through), written in readers.items():
            layer, head = (self.adapted.n_layers, 0) if target == LOGITS else head_place(target)
            index = self._index(head, through)
            groups.setdefault((layer, through), {}).setdefault(tuple(written), []).append(index)
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
                for sources, indices in by_sources.items():
                    new = self._projected(layer, through, live[f"x{layer}"] - removed(sources))
                    value[:, :, indices] = new[:, :, indices]
                return value

            hooks.append((f"blocks.{layer}.hook_resid_pre", keep(f"x{layer}")))
            hooks.append((f"blocks.{layer}.attn.hook_{through.lower()}", reread))
        return hooks

    def _weight(self, layer: int, name: str) -> Tensor:
        leaf = self.adapted.leaves[f"blocks.{layer}.attn.{name}"]
        return leaf.view(leaf.parameter.detach())

    def _index(self, head: int, through: str) -> int:
        """Where a head's queries, keys or values stand; grouped heads share theirs."""
        if through == "Q":
            return head
        return head // (self.adapted.n_heads // self.adapted.n_key_value_heads)

    def _projected(self, layer: int, through: str, resid: Tensor) -> Tensor:
        """Queries, keys or values ``[row, position, head, d_head]`` of a residual stream."""
        norm = self.adapted.module.blocks[layer]._modules.get("ln1")
        x = resid if norm is None else norm(resid)
        if self.adapted.positions == "shortformer" and through != "V":
            leaf = self.adapted.leaves["pos_embed.W_pos"]
            x = x + leaf.view(leaf.parameter.detach())[: x.shape[1]]
        out = torch.einsum("rpd,hde->rphe", x, self._weight(layer, f"W_{through}"))
        bias = f"b_{through}"
        if f"blocks.{layer}.attn.{bias}" in self.adapted.leaves:
            out = out + self._weight(layer, bias)
        return out

    def _check_paths(self, layer: int) -> None:
        """Raise ValueError where this model's heads do not read what `_projected` computes."""
        if layer in self._paths_checked:
            return
        parts = ("hook_q", "hook_k", "hook_v")
        names = [f"blocks.{layer}.hook_resid_pre", *(f"blocks.{layer}.attn.{p}" for p in parts)]
        before = [f"blocks.{i}.attn.hook_z" for i in range(layer)]
        before += [f"blocks.{i}.hook_attn_out" for i in range(layer)]
        kept = self._captured(self.tokens[:1], [*names, *before])
        pairs = [
            (self._projected(layer, part[-1].upper(), kept[names[0]]), kept[name])
            for part, name in zip(parts, names[1:], strict=True)
        ]
        for i in range(layer):
            out = torch.einsum("rphe,hed->rpd", kept[before[i]], self._weight(i, "W_O"))
            if f"blocks.{i}.attn.b_O" in self.adapted.leaves:
                out = out + self._weight(i, "b_O")
            pairs.append((out, kept[before[layer + i]]))
        for ours, theirs in pairs:
            if not torch.allclose(
                ours, theirs, rtol=TOLERANCE, atol=TOLERANCE * float(theirs.abs().max())
            ):
                raise ValueError(
                    "paths: this model changes what heads write or read (norms after attention or "
                    "on queries and keys), so paths between its heads cannot be ablated; ablate "
                    "whole components"
                )
        self._paths_checked.add(layer)

    def _captured(self, tokens: Tensor, names: list[str]) -> dict[str, Tensor]:
        """Values at hooks in a run without interventions."""
        kept: dict[str, Tensor] = {}

        def keep(name: str) -> Callable[[Tensor, Any], None]:
            def hook(value: Tensor, hook: Any) -> None:
                kept[name] = value

            return hook

        tokens = tokens.to(self.adapted.device)
        self._forward(tokens[:, :-1], [(name, keep(name)) for name in names])
        return kept

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
            return clean[self._rows_of]
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
            parts = [self._captured(tokens[rows], [place])[place] for rows in batches]
            self._clean[place, reference] = torch.cat(parts)
        whole = self._clean[place, reference]
        return whole if head is None else whole[:, :, head]

    @contextmanager
    def _norms(self, rows: slice) -> Iterator[None]:
        """Within the block every norm divides by the scale that it has without interventions."""
        if not self.frozen_norm:
            yield
            return
        norms = self._norm_modules()
        if not self._scales:
            parts: dict[str, list[Tensor]] = {name: [] for name in norms}
            for some in self._batches(len(self.tokens)):
                with _module_hooks(norms, self._recorder(parts)):
                    self._forward(self.tokens[some, :-1].to(self.adapted.device), [])
            self._scales = {name: torch.cat(scales) for name, scales in parts.items()}
        with _module_hooks(norms, self._rescaler(rows)):
            yield

    def _norm_modules(self) -> dict[str, nn.Module]:
        module, found = self.adapted.module, {}
        for layer, block in enumerate(module.blocks):
            for name in ("ln1", "ln2"):
                if name in block._modules:
                    found[f"blocks.{layer}.{name}"] = block._modules[name]
        if "ln_final" in module._modules:
            found["ln_final"] = module._modules["ln_final"]
        return {name: norm for name, norm in found.items() if self._norm_kind(name)}

    def _norm_kind(self, name: str) -> str | None:
        arch = self.adapted.architecture
        assert arch is not None  # checked at the start
        return arch.final_norm if name == "ln_final" else arch.norm

    def _scale(self, name: str, x: Tensor) -> Tensor:
        arch = self.adapted.architecture
        assert arch is not None
        if str(self._norm_kind(name)).startswith("LN"):
            x = x - x.mean(-1, keepdim=True)
        return (x.pow(2).mean(-1, keepdim=True) + arch.norm_eps).sqrt()

    def _recorder(self, parts: dict[str, list[Tensor]]) -> Callable[[str], Callable]:
        def make(name: str) -> Callable:
            def hook(module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
                scale = self._scale(name, inputs[0])
                # OPT flattens sequences and positions before its second norm.
                parts[name].append(scale.reshape(-1, self.real.shape[1], 1))

            return hook

        return make

    def _rescaler(self, rows: slice) -> Callable[[str], Callable]:
        def make(name: str) -> Callable:
            leaf = self.adapted.leaves.get(f"{name}.b")
            bias = 0.0 if leaf is None else leaf.view(leaf.parameter.detach())

            def hook(module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> Tensor:
                scale = self._scale(name, inputs[0])
                factor = scale / self._scales[name][rows].reshape(scale.shape)
                return (output - bias) * factor + bias

            return hook

        return make


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
        return f"blocks.{part.layer}.attn.hook_z", part.head
    return f"blocks.{part.layer}.hook_mlp_out", None


def _other_rows(n: int, n_reference: int, same: bool, seed: int) -> Tensor:
    """Which sequence of the reference stands in for each sequence; never itself where avoidable."""
    generator = torch.Generator().manual_seed(seed)
    if not same:
        return torch.randint(n_reference, (n,), generator=generator)
    order = torch.randperm(n, generator=generator)
    rows = torch.empty(n, dtype=torch.long)
    rows[order] = order.roll(1)
    return rows


@contextmanager
def _module_hooks(modules: dict[str, nn.Module], make: Callable[[str], Callable]) -> Iterator[None]:
    handles = [module.register_forward_hook(make(name)) for name, module in modules.items()]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()
