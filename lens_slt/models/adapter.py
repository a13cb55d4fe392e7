"""One face for HookedTransformer and TransformerBridge.

:func:`adapt` finds the parameters that the forward pass reads, describes the model as an
:class:`~lens_slt.models.forward.Architecture` if :mod:`lens_slt.models.forward` computes the same
logits *and* the same gradients, and refuses models that cannot be sampled, saying why. Nothing in
the caller's model changes: no weight, hook, gradient, mode or random state.

Frozen parameters (``requires_grad=False``) are allowed. Code that differentiates the model's own
modules does so inside :func:`trainable`, which switches them on and restores them.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any, cast

import torch
from torch import Tensor

from lens_slt.models import forward
from lens_slt.models.architecture import bridge_architecture, hooked_architecture
from lens_slt.models.forward import Architecture, Weights
from lens_slt.models.leaves import Leaf, bridge_leaves, hooked_leaves, padding_token
from lens_slt.models.running import OutputForm, block_output_form, resid_pre, run_blocks_from
from lens_slt.models.validation import (
    kind_of,
    named_modules,
    refuse_unfit_weights,
    refuse_unsupported,
)

LOGIT_TOLERANCE = {torch.float32: 1e-3, torch.float64: 1e-6}  # log-probabilities
LARGE_LOGITS = 1e3  # rounding alone exceeds the tolerance beyond
TORCH_HOOKS = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")
GRADIENT_TOLERANCE = {torch.float32: 1e-2, torch.float64: 1e-5}  # relative, per weight
GRADIENT_FLOOR = 1e-5  # of the largest gradient in the same attention, MLP or norm: rounding noise
CHECK_SEQUENCES, CHECK_POSITIONS = 2, 64

__all__ = [
    "AdaptedModel",
    "Leaf",
    "adapt",
    "attached_hooks",
    "copy_weights",
    "forward_difference",
    "hooks_note",
    "model_logits",
    "model_logits_from",
    "model_resid_pre",
    "random_tokens",
    "trainable",
    "weights_hash",
]


@dataclass(frozen=True)
class AdaptedModel:
    """A TransformerLens model with its real parameters under canonical names."""

    module: Any  # the caller's model, a nn.Module
    kind: str
    name: str
    leaves: dict[str, Leaf]
    architecture: Architecture | None
    why_generic: str
    n_layers: int
    n_heads: int
    n_key_value_heads: int
    d_model: int
    d_head: int
    d_vocab: int
    d_vocab_out: int  # tokens that it predicts
    n_ctx: int
    attn_only: bool
    tied_embeddings: bool
    positions: str
    device: torch.device
    dtype: torch.dtype
    output_form: OutputForm
    check_positions: int = CHECK_POSITIONS  # of random tokens that the model can read
    restarts: bool = True  # a later block can be started on the residual stream before it

    @property
    def shapes(self) -> dict[str, torch.Size]:
        """Shape of every weight in the canonical layout."""
        with torch.no_grad():
            return {name: leaf.view(leaf.parameter).shape for name, leaf in self.leaves.items()}


def adapt(model: Any) -> AdaptedModel:
    """Adapt a HookedTransformer or TransformerBridge.

    Raises TypeError for anything else, and ValueError for a model that cannot be sampled: active
    dropout, quantised, sharded, half-precision or non-finite weights, mixture of experts,
    state-space, encoder and bidirectional models.
    """
    kind = kind_of(model)
    refuse_unsupported(model)
    leaves = hooked_leaves(model) if kind == "HookedTransformer" else bridge_leaves(model)
    refuse_unfit_weights(leaves)
    cfg = model.cfg
    embedding = leaves["embed.W_E"].parameter
    adapted = AdaptedModel(
        module=model,
        kind=kind,
        name=str(getattr(cfg, "model_name", None) or "custom"),
        leaves=leaves,
        architecture=None,
        why_generic="",
        n_layers=len(model.blocks),
        n_heads=cfg.n_heads,
        n_key_value_heads=getattr(cfg, "n_key_value_heads", None) or cfg.n_heads,
        d_model=cfg.d_model,
        d_head=cfg.d_head,
        d_vocab=cfg.d_vocab,
        d_vocab_out=_d_vocab_out(leaves, cfg.d_vocab),
        n_ctx=cfg.n_ctx,
        attn_only="blocks.0.mlp.W_in" not in leaves,
        tied_embeddings="unembed.W_U" not in leaves,
        positions=str(cfg.positional_embedding_type),
        device=embedding.device,
        dtype=embedding.dtype,
        output_form=OutputForm.TENSOR,
    )
    adapted = replace(adapted, check_positions=_check_positions(adapted))
    if kind == "TransformerBridge":
        adapted = replace(adapted, output_form=block_output_form(model, random_tokens(adapted)))
    gradients = _model_gradients(adapted)
    adapted = _only_read_leaves(adapted, gradients)
    hooks = attached_hooks(adapted)
    if hooks:
        why = f"hooks are attached at {', '.join(hooks)}"
        return replace(adapted, why_generic=why)
    found = _derive(adapted)
    why = found if isinstance(found, str) else _disagreement(adapted, found, gradients)
    if why:
        return replace(adapted, why_generic=why)
    return replace(adapted, architecture=cast(Architecture, found))


def attached_hooks(adapted: AdaptedModel) -> list[str]:
    """Names of the hook points and modules at which the caller has hooks.

    A module whose ``forward`` was replaced counts, as ``blocks.0.mlp.forward``: neither shows what
    it does on tokens that come later.
    """
    found: dict[int, str] = {}  # a bridge lists a point under its aliases too: the last is usual
    for name, point in adapted.module.hook_dict.items():
        if not all(_is_its_own(handle) for handle in (*point.fwd_hooks, *point.bwd_hooks)):
            found[id(point)] = name
    for name, module in named_modules(adapted.module):
        if id(module) not in found and _has_torch_hooks(module):
            found[id(module)] = name or type(module).__name__
        if "forward" in vars(module) and not _is_its_own(module.forward):
            found[id(module)] = f"{name}.forward" if name else "forward"
    return list(found.values())


def hooks_note(adapted: AdaptedModel) -> str:
    """What a caller whose model has hooks should know, or ""."""
    hooks = attached_hooks(adapted)
    if not hooks:
        return ""
    return (
        f"model: hooks are attached at {', '.join(hooks)}; the hooked model is measured "
        "(model.reset_hooks() removes those of TransformerLens)"
    )


def _has_torch_hooks(module: Any) -> bool:
    hooks = [hook for kind in TORCH_HOOKS for hook in (getattr(module, kind, None) or {}).values()]
    return not all(_is_its_own(hook) for hook in hooks)


def _is_its_own(hook: Any) -> bool:
    """Whether TransformerLens put a hook there itself, to wire a bridge or to fill a cache."""
    function = getattr(hook, "user_hook", hook)
    return str(getattr(function, "__module__", "")).startswith("transformer_lens.") and callable(
        function
    )


def copy_weights(adapted: AdaptedModel) -> Weights:
    """Detached contiguous copies of all weights in the canonical layout.

    A tied unembedding is left out: :func:`lens_slt.models.forward.unembedding` derives it.
    """
    return {
        name: leaf.view(leaf.parameter.detach()).clone(memory_format=torch.contiguous_format)
        for name, leaf in adapted.leaves.items()
    }


def model_logits(adapted: AdaptedModel, tokens: Tensor) -> Tensor:
    """The model's own logits ``[sequence, position, d_vocab_out]``, with gradients if on."""
    return adapted.module(tokens, return_type="logits")


def model_resid_pre(adapted: AdaptedModel, tokens: Tensor, layer: int) -> Tensor:
    """Residual stream before block ``layer``, ``[sequence, position, d_model]``."""
    if adapted.kind == "HookedTransformer":
        return adapted.module(tokens, stop_at_layer=layer)
    return resid_pre(adapted.module, tokens, layer)


def model_logits_from(adapted: AdaptedModel, tokens: Tensor, resid: Tensor, layer: int) -> Tensor:
    """The model's own logits of ``tokens`` from their residual stream before block ``layer``.

    Only blocks ``layer`` and later run; masks and positions are those of the tokens. Differentiable
    with respect to ``resid`` and the leaves that those blocks, the final norm and the unembedding
    read.
    """
    if adapted.kind == "TransformerBridge":
        return run_blocks_from(adapted.module, tokens, resid, layer, adapted.output_form)
    positions, mask = None, None
    if adapted.positions == "shortformer" or _masks_padding(adapted.module):
        _, _, positions, mask = adapted.module.input_to_embed(tokens)
    return adapted.module(
        resid, start_at_layer=layer, shortformer_pos_embed=positions, attention_mask=mask,
        return_type="logits",
    )  # fmt: skip


def _masks_padding(model: Any) -> bool:
    """Whether a HookedTransformer derives an attention mask from its tokens."""
    return getattr(getattr(model, "tokenizer", None), "padding_side", None) == "left"


def logit_tolerance(logits: Tensor) -> float:
    """By how much log-probabilities of the same logits may differ from rounding."""
    return LOGIT_TOLERANCE[logits.dtype] * max(1.0, float(logits.abs().max()) / LARGE_LOGITS)


def forward_difference(adapted: AdaptedModel, weights: Weights, tokens: Tensor) -> float:
    """Largest difference in log-probability between ``forward.logits`` and the model's own."""
    if adapted.architecture is None:
        raise ValueError(f"adapted: the model has no fast path ({adapted.why_generic})")
    with torch.no_grad():
        ours = forward.logits(adapted.architecture, weights, tokens).log_softmax(-1)
        theirs = model_logits(adapted, tokens).log_softmax(-1)
        return float((ours - theirs).abs().max())


def weights_hash(adapted: AdaptedModel) -> str:
    """SHA-256 over the canonical names and the values of all weights."""
    digest = hashlib.sha256()
    for name, leaf in adapted.leaves.items():
        value = leaf.view(leaf.parameter.detach()).contiguous().cpu()
        digest.update(f"{name} {value.dtype} {tuple(value.shape)}\n".encode())
        digest.update(value.numpy().tobytes())
    return digest.hexdigest()


@contextmanager
def trainable(adapted: AdaptedModel) -> Iterator[None]:
    """Within the block every leaf requires a gradient; the caller's flags come back afterwards."""
    flags = [(leaf.parameter, leaf.parameter.requires_grad) for leaf in adapted.leaves.values()]
    try:
        for parameter, _ in flags:
            parameter.requires_grad_(True)
        with torch.enable_grad():
            yield
    finally:
        for parameter, flag in flags:
            parameter.requires_grad_(flag)


def _d_vocab_out(leaves: dict[str, Leaf], d_vocab: int) -> int:
    unembedding = leaves.get("unembed.W_U")  # absent where it is tied to the embedding
    return d_vocab if unembedding is None else unembedding.view(unembedding.parameter).shape[1]


def _derive(adapted: AdaptedModel) -> Architecture | str:
    if adapted.kind == "HookedTransformer":
        return hooked_architecture(adapted.module, adapted.leaves)
    return bridge_architecture(adapted.module, adapted.leaves)


def _only_read_leaves(adapted: AdaptedModel, gradients: dict[str, Tensor | None]) -> AdaptedModel:
    """Leave out parameters that do not reach the logits (position table of an ALiBi model)."""
    unread = {name for name, g in gradients.items() if g is None}
    leaves = {name: leaf for name, leaf in adapted.leaves.items() if name not in unread}
    essential = sorted(name for name in unread if ".W_" in name and name != "pos_embed.W_pos")
    if not essential:
        return replace(adapted, leaves=leaves)
    advice = "please report the model's architecture to lens_slt"
    if attached_hooks(adapted):
        advice = f"are the hooks at {', '.join(attached_hooks(adapted))} the reason?"
    if getattr(adapted.module, "_weights_processed", False):
        advice = (
            "this version of TransformerLens keeps processed weights outside the parameters; use "
            "enable_compatibility_mode(no_processing=True)"
        )
    raise ValueError(
        f"model: the forward pass does not read {', '.join(essential[:3])}, sampling them would "
        f"change nothing; {advice}"
    )


def _disagreement(
    adapted: AdaptedModel, arch: Architecture, gradients: dict[str, Tensor | None]
) -> str:
    """Where the fast path departs from the model, in words; "" if nowhere.

    The gradient of every weight is compared too: at a bias of zero, or with small weights, logits
    alone would hide a formula that becomes wrong as soon as the weights move.
    """
    weights, tokens = copy_weights(adapted), random_tokens(adapted)
    difference = forward_difference(replace(adapted, architecture=arch), weights, tokens)
    with torch.no_grad():
        tolerated = logit_tolerance(model_logits(adapted, tokens))
    if not difference <= tolerated:
        return f"the fast path's log-probabilities differ by {difference:.2g}"
    ours = _forward_gradients(arch, weights, tokens)
    tolerance = GRADIENT_TOLERANCE[adapted.dtype]
    part = {name: name.rpartition(".")[0] for name in ours}  # e.g. blocks.0.attn
    for name, gradient in ours.items():
        expected = gradients[name]
        assert expected is not None  # unread leaves were dropped before
        largest = max(float(g.norm()) for other, g in ours.items() if part[other] == part[name])
        floor = GRADIENT_FLOOR * largest
        error, size = float((gradient - expected).norm()), float(expected.norm())
        if not error <= tolerance * size + floor:
            relative = error / size if size else float("inf")
            return f"the fast path's gradient of {name} differs by {100 * relative:.2g} %"
    return ""


def _check_positions(adapted: AdaptedModel) -> int:
    """Positions that the model really reads; its configuration may claim more (MPT's bridge)."""
    n = min(CHECK_POSITIONS, adapted.n_ctx)
    while True:
        try:
            with torch.no_grad():
                model_logits(adapted, random_tokens(replace(adapted, check_positions=n)))
            return n
        except Exception as error:
            if n <= 2:
                raise ValueError(
                    f"model: it cannot be run on tokens ({type(error).__name__}: {error}); "
                    'model(tokens, return_type="logits") must give logits'
                ) from error
            n //= 2


def random_tokens(adapted: AdaptedModel) -> Tensor:
    """Random tokens ``[2, position]`` that this model can read, for checks that no caller sees."""
    generator = torch.Generator().manual_seed(0)
    shape = (CHECK_SEQUENCES, adapted.check_positions)
    tokens = torch.randint(adapted.d_vocab, shape, generator=generator)
    padding = padding_token(adapted.module)
    if padding is not None:  # torch drops the gradient of its row of the embedding
        tokens[tokens == padding] = (padding + 1) % adapted.d_vocab
    return tokens.to(adapted.device)


def _direction(logits: Tensor) -> Tensor:
    """A scalar that depends on every log-probability with a different weight."""
    generator = torch.Generator().manual_seed(1)
    weight = torch.randn(logits.shape, generator=generator).to(logits)
    return (logits.log_softmax(-1) * weight).sum()


def _model_gradients(adapted: AdaptedModel) -> dict[str, Tensor | None]:
    """Gradients through the caller's leaves, None where the forward pass does not read one."""
    names = list(adapted.leaves)
    with trainable(adapted):
        value = _direction(model_logits(adapted, random_tokens(adapted)))
        parameters = [adapted.leaves[name].parameter for name in names]
        gradients = torch.autograd.grad(value, parameters, allow_unused=True)
    return {
        name: None if g is None else adapted.leaves[name].view(g)
        for name, g in zip(names, gradients, strict=True)
    }


def _forward_gradients(arch: Architecture, weights: Weights, tokens: Tensor) -> Weights:
    with torch.enable_grad():
        leaves = {name: value.detach().requires_grad_() for name, value in weights.items()}
        value = _direction(forward.logits(arch, leaves, tokens))
        gradients = torch.autograd.grad(value, list(leaves.values()), materialize_grads=True)
    return dict(zip(leaves, gradients, strict=True))
