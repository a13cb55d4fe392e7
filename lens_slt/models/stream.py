"""What attention and MLPs read from the residual stream and what enters it, as measured.

Formulas about paths, edges and composition take two things for granted: that queries, keys, values
and the input of an MLP are projections of a norm of the stream, and that z·W_O and the MLP's output
are added to it. Neither holds everywhere: OLMo 2 has no norm before attention and one behind it,
Granite multiplies what it adds. Here both are measured on a given model and a caller's tokens
before anything relies on them.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import cached_property
from typing import Any

import torch
from torch import Tensor, nn

from lens_slt.models.adapter import (
    AdaptedModel,
    attached_hooks,
    logit_tolerance,
    model_logits,
    model_logits_from,
    model_resid_pre,
)
from lens_slt.models.captures import Hook, captured, captured_until, run_with
from lens_slt.models.mlp_reader import MlpReader, mlp_inputs
from lens_slt.models.names import EMBEDDINGS, head_place, is_head, is_mlp, layer_of
from lens_slt.models.norms import MeasuredNorm, may_be_norm, norms_of

THROUGH = ("Q", "K", "V")
MOST_LOGITS = 2**24  # that one batch of sequences may have
TOLERANCE = {torch.float32: 1e-3, torch.float64: 1e-6}  # relative


class Stream:
    """The residual stream of one model.

    Args:
        adapted: from :func:`~lens_slt.models.adapter.adapt`.
        tokens: inputs ``[sequence, position]`` on which everything is measured: the first sequence;
            where hooks are attached, which may act on some only, as many as fit in a batch.

    Every method raises ValueError where the model does something else, and says what.
    """

    def __init__(self, adapted: AdaptedModel, tokens: Tensor) -> None:
        self.adapted = adapted
        n = max(1, MOST_LOGITS // (tokens.shape[1] * adapted.d_vocab))
        self.tokens = tokens[: n if attached_hooks(adapted) else 1].to(adapted.device)
        self._norms: dict[int, nn.Module | None] = {}
        self._factors: dict[str | int, float] = {}
        self._mlp_readers: dict[int, MlpReader] = {}
        self._starts: dict[int, tuple[int, Tensor] | None] = {}
        self._checked: set[tuple[Any, ...]] = set()

    def norm(self, layer: int) -> nn.Module | None:
        """The norm through which a layer's attention reads, found by what it computes.

        None where it reads the stream as it is.
        """
        if layer not in self._norms:
            self._norms[layer] = self._find_norm(layer)
        return self._norms[layer]

    def read(self, layer: int, resid: Tensor) -> Tensor:
        """What a layer's attention reads of a residual stream."""
        norm = self.norm(layer)
        return resid if norm is None else norm(resid)

    def projected(self, layer: int, through: str, resid: Tensor) -> Tensor:
        """Queries, keys or values ``[row, position, head, d_head]`` of a residual stream."""
        return self._project(layer, through, self.read(layer, resid))

    def factor(self, layer: int) -> float:
        """What z·W_O of a layer is multiplied with before it is added to the stream.

        Whatever else is in the stream passes the layer as it is, or this raises.
        """
        if layer not in self._factors:
            self._factors[layer] = self._measure_factor(layer)
        return self._factors[layer]

    def written_by(self, node: str) -> float:
        """What a node's output is multiplied with before it is added: a head's is z·W_O."""
        if node in EMBEDDINGS:
            return self._added(node, f"hook_{node}", "blocks.0.hook_resid_pre", "the embedding")
        layer = layer_of(node)
        if not is_mlp(node):
            return self.factor(layer)
        out = f"blocks.{layer}.hook_mlp_out"
        return self._added(node, out, f"blocks.{layer}.hook_resid_post", "the MLP's output")

    def written(self, node: str, output: Tensor) -> Tensor:
        """What an output of a node, or a change of it, adds to the stream; of a head z·W_O."""
        if is_head(node):
            layer, head = head_place(node)
            w_o = self.weight(layer, "W_O")
            assert w_o is not None
            output = output @ w_o[head]
        return self.written_by(node) * output

    def mlp_reader(self, layer: int) -> MlpReader:
        """How a layer's MLP reads the stream, found by what it is called with."""
        if layer not in self._mlp_readers:
            self._mlp_readers[layer] = self._find_mlp_reader(layer)
        return self._mlp_readers[layer]

    def check_heard(self, layer: int, through: str) -> None:
        """That attention reads what is written at its query, key or value hook."""
        if ("heard", layer, through) in self._checked:
            return
        self.norm(layer)
        place, z = f"blocks.{layer}.attn.hook_{through.lower()}", f"blocks.{layer}.attn.hook_z"
        clean = self._clean[place]
        # Attention so sharp that noise leaves it where it is turns to other keys if it is negated.
        changes: tuple[Hook, ...] = (
            (place, lambda x, hook: x + _noise_like(x, clean)), (place, lambda x, hook: -x),
        )  # fmt: skip
        if not any(
            float(
                (captured_until(self.adapted, self.tokens, z, [one]) - self._clean[z]).abs().max()
            )
            > 0
            for one in changes
        ):
            raise ValueError(
                f"model: {self.adapted.name} does not read what stands at {place}; paths into its "
                "heads cannot be told apart, ablate whole components"
            )
        self._checked.add(("heard", layer, through))

    def check_logits(self) -> None:
        """That logits are read from the last residual stream, where heads' outputs are added."""
        if ("logits",) in self._checked:
            return
        last = self.adapted.n_layers - 1
        factor = self.factor(last)
        change, hooks = self._shifted_z(last)
        through_head = run_with(self.adapted, self.tokens, hooks)
        place, written = f"blocks.{last}.hook_resid_post", factor * change
        direct = run_with(self.adapted, self.tokens, [(place, lambda x, hook: x + written)])
        difference = (direct.log_softmax(-1) - through_head.log_softmax(-1)).abs().max()
        if not float(difference) <= 10 * logit_tolerance(direct):
            raise ValueError(
                f"model: the logits of {self.adapted.name} are not read from {place} alone; paths "
                "into its logits cannot be told apart, ablate whole components"
            )
        self._checked.add(("logits",))

    def check_restart(self, layer: int) -> None:
        """That the model started at a block computes what the whole model does."""
        if ("restart", layer) in self._checked:
            return
        with torch.no_grad():
            whole = model_logits(self.adapted, self.tokens)
            resid = model_resid_pre(self.adapted, self.tokens, layer)
            model_logits(self.adapted, self.tokens.flip(1))  # lest a block remembers this very pass
            again = model_logits_from(self.adapted, self.tokens, resid, layer)
        difference = (whole.log_softmax(-1) - again.log_softmax(-1)).abs().max()
        if not float(difference) <= logit_tolerance(whole):
            raise ValueError(
                f"model: block {layer} of {self.adapted.name} reads more than the residual stream "
                "before it, so that it cannot be run alone"
            )
        self._checked.add(("restart", layer))

    @cached_property
    def final_norm(self) -> MeasuredNorm | None:
        """The norm before the unembedding, found by what the logits are."""
        return self._unembedded[0]

    @property
    def logit_factor(self) -> float:
        """What x·W_U of the normed last stream is multiplied with to give logits."""
        return self._unembedded[1]

    @cached_property
    def _unembedded(self) -> tuple[MeasuredNorm | None, float]:
        self.check_logits()
        leaves = self.adapted.leaves
        leaf = leaves.get("unembed.W_U")
        if leaf is None:
            w_u = leaves["embed.W_E"].view(leaves["embed.W_E"].parameter.detach()).T
        else:
            w_u = leaf.view(leaf.parameter.detach())
        final = self._at(self.adapted.n_layers - 1, "hook_resid_post")
        with torch.no_grad():
            logits = model_logits(self.adapted, self.tokens)
        bias = leaves.get("unembed.b_U")
        logits = logits if bias is None else logits - bias.view(bias.parameter.detach())
        norms = {
            n: m
            for n, m in norms_of(self.adapted.module, self.adapted.d_model).items()
            if "." not in n
        }
        for norm in (*norms.values(), None):
            with torch.no_grad():
                ours = (final if norm is None else norm.module(final)) @ w_u
            factor = float((ours * logits).sum() / ours.square().sum().clamp(min=1e-30))
            if self._near(factor * ours, logits):
                return norm, 1.0 if abs(factor - 1) < TOLERANCE[self.adapted.dtype] else factor
        raise ValueError(
            f"model: the logits of {self.adapted.name} are not a norm of the last residual stream "
            "times W_U (a cap on logits?), so what heads write cannot be told in logits"
        )

    @cached_property
    def _clean(self) -> dict[str, Tensor]:
        layers = range(self.adapted.n_layers)
        parts = ["hook_resid_pre", "hook_resid_mid", "hook_mlp_out", "hook_resid_post"]
        parts += [f"attn.hook_{part}" for part in "qkvz"]
        names = [f"blocks.{layer}.{part}" for layer in layers for part in parts]
        names += [f"hook_{name}" for name in EMBEDDINGS]
        return captured(self.adapted, self.tokens, names)

    def _at(self, layer: int, part: str) -> Tensor:
        return self._value(f"blocks.{layer}.{part}")

    def _value(self, name: str) -> Tensor:
        if name not in self._clean:
            raise ValueError(
                f"model: {self.adapted.name} has no {name}, which this needs; ablate whole "
                "components"
            )
        return self._clean[name]

    def weight(self, layer: int, name: str) -> Tensor | None:
        """A weight of attention in the canonical layout; None where the model has none."""
        leaf = self.adapted.leaves.get(f"blocks.{layer}.attn.{name}")
        return None if leaf is None else leaf.view(leaf.parameter.detach())

    def _project(self, layer: int, through: str, x: Tensor) -> Tensor:
        if self.adapted.positions == "shortformer" and through != "V":
            leaf = self.adapted.leaves["pos_embed.W_pos"]
            x = x + leaf.view(leaf.parameter.detach())[: x.shape[1]]
        weight, bias = self.weight(layer, f"W_{through}"), self.weight(layer, f"b_{through}")
        assert weight is not None
        out = torch.einsum("rpd,hde->rphe", x, weight)
        out = out if bias is None else out + bias
        shown = self._at(layer, f"attn.hook_{through.lower()}").shape[2]
        # Where keys and values are ungrouped, the heads of a group show copies of the same.
        return out if shown == out.shape[2] else out.repeat_interleave(shown // out.shape[2], 2)

    def _find_norm(self, layer: int) -> nn.Module | None:
        resid = self._at(layer, "hook_resid_pre")
        for norm in _norm_candidates(self.adapted.module.blocks[layer], self.adapted.d_model):
            x = _output(norm, resid)
            if x is not None and x.shape == resid.shape and self._reads(layer, x):
                return norm
        raise ValueError(
            f"model: what the attention of layer {layer} reads is not a norm of the residual "
            "stream times its weights (norms on queries and keys?), so paths and edges between "
            "heads of this model cannot be told apart; ablate whole components"
            f"{self._hooks_hint}"
        )

    @torch.no_grad()
    def _reads(self, layer: int, x: Tensor) -> bool:
        return all(
            self._near(self._project(layer, part, x), self._at(layer, f"attn.hook_{part.lower()}"))
            for part in THROUGH
        )

    @property
    def _hooks_hint(self) -> str:
        hooks = attached_hooks(self.adapted)
        return f"; are the hooks at {', '.join(hooks)} the reason?" if hooks else ""

    def _near(self, ours: Tensor, theirs: Tensor) -> bool:
        tolerance = TOLERANCE[self.adapted.dtype]
        error, size = (x.flatten(1).norm(dim=1) for x in (ours - theirs, theirs))
        return bool((error <= tolerance * size).all())

    def _shifted_z(self, layer: int) -> tuple[Tensor, list[Hook]]:
        """A change of z·W_O about as large as the stream, and hooks that make only it.

        The MLP's output stays, so that nothing but attention changes the stream of this layer.
        """
        place, mlp = f"blocks.{layer}.attn.hook_z", f"blocks.{layer}.hook_mlp_out"
        z, w_o = self._at(layer, "attn.hook_z"), self.weight(layer, "W_O")
        assert w_o is not None
        noise = _noise_like(z, z)
        change = torch.einsum("sphe,hed->spd", noise, w_o)
        size = float(self._at(layer, "hook_resid_post").norm()) / max(float(change.norm()), 1e-30)
        noise, change = size * noise, size * change
        moved = z + noise
        hooks: list[Hook] = [(place, lambda x, hook: moved)]
        if mlp in self._clean:
            pinned = self._clean[mlp]
            hooks.append((mlp, lambda x, hook: pinned))
        return change, hooks

    def _start(self, layer: int) -> tuple[int, Tensor] | None:
        """A layer and the stream before it, where the layer does the same as in the whole model."""
        if layer not in self._starts:
            pre, post = (f"blocks.{layer}.hook_resid_{when}" for when in ("pre", "post"))
            start = None
            if pre in self._clean and post in self._clean:
                start = layer, self._clean[pre]
                try:
                    again = captured_until(self.adapted, self.tokens, post, [], start)
                    start = start if self._near(again, self._clean[post]) else None
                except Exception:  # whatever a model says that cannot start there
                    start = None
            self._starts[layer] = start
        return self._starts[layer]

    def _added(self, node: str, place: str, into: str, what: str) -> float:
        """Factor by which a change at one hook enters the stream at another, alone."""
        if node not in self._factors:
            out, before = self._value(place), self._value(into)
            noise = _noise_like(before, before)
            start = None if node in EMBEDDINGS else self._start(layer_of(node))
            moved = captured_until(
                self.adapted, self.tokens, into, [(place, lambda x, hook: x + noise)], start
            )
            change = moved - before
            factor = float((change * noise).sum() / noise.square().sum())
            if factor == 0 or out.shape[1:] != before.shape[1:] or not self._near(
                change, factor * noise
            ):  # fmt: skip
                raise ValueError(
                    f"model: {what} at {place} is not added to the residual stream as it is (is "
                    f"there a norm behind it?), so paths from {node} cannot be told apart; ablate "
                    f"whole components{self._hooks_hint}"
                )
            near_one = abs(factor - 1) < TOLERANCE[self.adapted.dtype]
            self._factors[node] = 1.0 if near_one else factor
        return self._factors[node]

    @cached_property
    def _mlp_inputs(self) -> dict[int, list[Tensor]]:
        return mlp_inputs(self.adapted, self.tokens)

    def _find_mlp_reader(self, layer: int) -> MlpReader:
        block = self.adapted.module.blocks[layer]
        seen = self._mlp_inputs.get(layer, [])
        places = (f"blocks.{layer}.{part}" for part in ("hook_resid_mid", "hook_resid_pre"))
        called = [place for place in places if place in self._clean and len(seen) == 1]
        for place in called:
            for norm in _norm_candidates(block, self.adapted.d_model):
                x = _output(norm, self._clean[place])
                if x is not None and x.shape == seen[0].shape and self._near(x, seen[0]):
                    return MlpReader(block._modules["mlp"], norm, place)
        raise ValueError(
            f"model: what the MLP of layer {layer} reads is not a norm of the residual stream that "
            "it is called with, so paths into MLPs of this model cannot be told apart; ablate "
            f"whole components{self._hooks_hint}"
        )

    def _measure_factor(self, layer: int) -> float:
        pre, post = f"blocks.{layer}.hook_resid_pre", f"blocks.{layer}.hook_resid_post"
        change, hooks = self._shifted_z(layer)
        passing = _noise_like(change, change, seed=1)
        hooks = [(pre, lambda x, hook: x + passing), *hooks]
        moved = captured_until(self.adapted, self.tokens, post, hooks, self._start(layer))
        moved = moved - self._at(layer, "hook_resid_post")
        # Both changes are as large as the stream itself, so that rounding is far below the
        # tolerance.
        written = moved - passing
        factor = float((written * change).sum() / change.square().sum().clamp(min=1e-30))
        if factor == 0 or not self._near(moved, factor * change + passing):
            raise ValueError(
                f"model: what enters the residual stream of layer {layer} is not z·W_O of its "
                "heads beside the stream before (is there a norm after attention, or in the "
                "residual branch?), so paths and edges from heads of this model cannot be told "
                f"apart; ablate whole components{self._hooks_hint}"
            )
        return 1.0 if abs(factor - 1) < TOLERANCE[self.adapted.dtype] else factor


def _norm_candidates(block: Any, d_model: int) -> Iterator[nn.Module | None]:
    """The usual norm, no norm, every other part of a block that may be one."""
    parts = dict(block._modules)
    if "ln1" in parts:
        yield parts.pop("ln1")
    yield None
    for name, part in parts.items():
        if part is not None and may_be_norm(name, part, d_model):
            yield part


def _output(norm: nn.Module | None, resid: Tensor) -> Tensor | None:
    """What a part of a block makes of the stream; None for what is no norm, whatever it is."""
    if norm is None:
        return resid
    try:
        with torch.no_grad():
            x = norm(resid)
    except Exception:
        return None
    return x if isinstance(x, Tensor) else None


def _noise_like(x: Tensor, scale: Tensor, seed: int = 0) -> Tensor:
    noise = torch.randn(x.shape, generator=torch.Generator().manual_seed(seed)).to(x)
    return noise * float(scale.square().mean().sqrt() or 1.0)
