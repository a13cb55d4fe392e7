"""The caller's real parameters, seen in one canonical layout.

TransformerLens keeps the same matrix in many shapes: ``[head, d_model, d_head]`` in a
HookedTransformer, ``[head · d_head, d_model]`` in a bridge's ``nn.Linear``, transposed once more in
GPT-2's ``Conv1D``. A :class:`Leaf` holds the parameter that the forward pass reads and a function
that returns a *view* of it in the layout of :mod:`lens_slt.models.forward`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn


@dataclass(frozen=True)
class Leaf:
    """One parameter and its canonical layout.

    ``parameter`` is an ``nn.Parameter``, except for an unembedding bias that a bridge obtained by
    processing its weights and keeps in a buffer.
    ``view`` maps a tensor of ``parameter.shape`` (its data, or its gradient) to a view of that
    tensor in the canonical layout, so that writing into the view writes into the tensor.
    """

    parameter: Tensor
    view: Callable[[Tensor], Tensor]


def as_is(tensor: Tensor) -> Tensor:
    """The parameter already has the canonical layout."""
    return tensor


def hooked_leaves(model: Any) -> dict[str, Leaf]:
    """Leaves of a HookedTransformer: its own names, ``_W_K`` and ``_W_V`` being the real ones."""
    found = {
        name.replace("._W_", ".W_").replace("._b_", ".b_"): Leaf(parameter, as_is)
        for name, parameter in model.named_parameters(remove_duplicate=False)
    }
    return in_canonical_order(found)


def bridge_leaves(bridge: Any) -> dict[str, Leaf]:
    """Leaves of a TransformerBridge, wrapped or native.

    Parameters that have no canonical name (say a query norm) keep their path in the bridge. The
    fused query-key-value matrix that a bridge keeps beside its split parts is left out, because the
    forward pass does not read it, and so is the zero unembedding bias that it invents.
    """
    found: dict[str, Leaf] = {}
    unembed = _original(bridge.unembed)
    embedding = _original(bridge.embed).weight
    found["embed.W_E"] = Leaf(embedding, as_is)
    if "pos_embed" in bridge._modules:
        positions = _original(bridge.pos_embed)
        view = _from_row(getattr(positions, "offset", 0))
        found["pos_embed.W_pos"] = Leaf(positions.weight, view)
    for layer, block in enumerate(bridge.blocks):
        _add_attention(found, f"blocks.{layer}.attn", bridge.cfg, block.attn)
        if "mlp" in block._modules:
            _add_mlp(found, f"blocks.{layer}.mlp", block.mlp)
        for norm in ("ln1", "ln2"):
            if norm in block._modules:
                _add_norm(found, f"blocks.{layer}.{norm}", block._modules[norm])
    if "ln_final" in bridge._modules:
        _add_norm(found, "ln_final", bridge.ln_final)
    if unembed.weight is not embedding:
        found["unembed.W_U"] = Leaf(unembed.weight, _transposed)
    _add_unembed_bias(found, unembed)
    _add_unnamed(found, bridge)
    return in_canonical_order(found)


def padding_token(model: Any) -> int | None:
    """Token whose embedding torch gives no gradient (``nn.Embedding(padding_idx=…)``), or None."""
    return getattr(_original(model.embed), "padding_idx", None)


def in_canonical_order(leaves: dict[str, Leaf]) -> dict[str, Leaf]:
    """Embeddings, blocks from the first to the last, final norm, unembedding."""
    return {name: leaves[name] for name in sorted(leaves, key=_rank)}


_PARTS = ("embed", "pos_embed", "blocks", "ln_final", "unembed")
_BLOCK_PARTS = ("attn", "ln1", "ln2", "mlp")
_TENSORS: tuple[str, ...] = ("W_Q", "W_K", "W_V", "W_O", "b_Q", "b_K", "b_V", "b_O", "w", "b")
_TENSORS += ("W_gate", "b_gate", "W_in", "b_in", "W_out", "b_out", "W_E", "W_pos", "W_U", "b_U")


def _rank(name: str) -> tuple:
    head, *rest = name.split(".")
    layer, part = (int(rest[0]), rest[1]) if head == "blocks" else (0, "")
    tensor = rest[-1] if rest else ""
    return (_place(_PARTS, head), layer, _place(_BLOCK_PARTS, part), _place(_TENSORS, tensor), name)


def _place(order: tuple[str, ...], key: str) -> int:
    return order.index(key) if key in order else len(order)


def _original(component: Any) -> Any:
    """The module that a bridge component wraps."""
    return component._modules.get("_original_component", component)


def _transposed(tensor: Tensor) -> Tensor:
    return tensor.transpose(0, 1)


def _from_row(offset: int) -> Callable[[Tensor], Tensor]:
    """Position embeddings whose first rows are never read (OPT skips two)."""
    return (lambda tensor: tensor[offset:]) if offset else as_is


def _heads_in(count: int, conv1d: bool) -> Callable[[Tensor], Tensor]:
    """``[head · d_head, d_model] → [head, d_model, d_head]`` (Conv1D stores the transpose)."""
    if conv1d:
        return lambda t: t.unflatten(1, (count, -1)).permute(1, 0, 2)
    return lambda t: t.unflatten(0, (count, -1)).transpose(1, 2)


def _heads_out(count: int, conv1d: bool) -> Callable[[Tensor], Tensor]:
    """``[d_model, head · d_head] → [head, d_head, d_model]`` (Conv1D stores the transpose)."""
    if conv1d:
        return lambda t: t.unflatten(0, (count, -1))
    return lambda t: t.unflatten(1, (count, -1)).permute(1, 2, 0)


def _head_biases(count: int) -> Callable[[Tensor], Tensor]:
    return lambda t: t.unflatten(0, (count, -1))


def _linear(component: Any, where: str) -> tuple[Any, bool]:
    """The wrapped linear map and whether it stores ``[in, out]`` like GPT-2's Conv1D."""
    linear = _original(component)
    if isinstance(linear, nn.Linear):
        return linear, False
    if type(linear).__name__ == "Conv1D":
        return linear, True
    raise ValueError(
        f"model: {where} is a {type(linear).__name__}; lens_slt reads weights of nn.Linear and "
        "Conv1D only"
    )


def _add_attention(found: dict[str, Leaf], name: str, cfg: Any, attn: Any) -> None:
    n_key_value_heads = getattr(cfg, "n_key_value_heads", None) or cfg.n_heads
    for part, count in (("q", cfg.n_heads), ("k", n_key_value_heads), ("v", n_key_value_heads)):
        linear, conv1d = _linear(_part(attn, part, name), f"{name}.{part}")
        found[f"{name}.W_{part.upper()}"] = Leaf(linear.weight, _heads_in(count, conv1d))
        if linear.bias is not None:
            found[f"{name}.b_{part.upper()}"] = Leaf(linear.bias, _head_biases(count))
    linear, conv1d = _linear(_part(attn, "o", name), f"{name}.o")
    found[f"{name}.W_O"] = Leaf(linear.weight, _heads_out(cfg.n_heads, conv1d))
    _add_bias(found, f"{name}.b_O", linear)


def _add_mlp(found: dict[str, Leaf], name: str, mlp: Any) -> None:
    for part in ("gate", "in", "out"):
        if part == "gate" and part not in mlp._modules:
            continue
        linear, conv1d = _linear(_part(mlp, part, name), f"{name}.{part}")
        found[f"{name}.W_{part}"] = Leaf(linear.weight, as_is if conv1d else _transposed)
        _add_bias(found, f"{name}.b_{part}", linear)


def _add_norm(found: dict[str, Leaf], name: str, norm: Any) -> None:
    original = _original(norm)
    if getattr(original, "weight", None) is not None:
        found[f"{name}.w"] = Leaf(original.weight, as_is)
    if getattr(original, "bias", None) is not None:
        found[f"{name}.b"] = Leaf(original.bias, as_is)


def _add_bias(found: dict[str, Leaf], name: str, linear: Any) -> None:
    if getattr(linear, "bias", None) is not None:
        found[name] = Leaf(linear.bias, as_is)


def _add_unembed_bias(found: dict[str, Leaf], unembed: Any) -> None:
    """The bridge invents a zero bias where a model has none: leave that one out."""
    bias = getattr(unembed, "bias", None)
    if bias is not None and bool(torch.any(bias.detach())):
        found["unembed.b_U"] = Leaf(bias, as_is)


def _part(module: Any, part: str, where: str) -> Any:
    if part in module._modules:
        return module._modules[part]
    raise ValueError(
        f"model: {where} has no part '{part}' (it is a {type(module).__name__}); lens_slt needs "
        "attention with separate q, k, v, o and an MLP with in and out"
    )


def _add_unnamed(found: dict[str, Leaf], bridge: Any) -> None:
    """Parameters without a canonical name, except fused copies and the invented zero bias."""
    storages = {leaf.parameter.untyped_storage().data_ptr() for leaf in found.values()}
    left_out = {id(_original(bridge.unembed).bias)}
    for module in bridge.modules():
        for part in ("qkv", "gate_up"):
            if part in module._modules:
                left_out |= {id(parameter) for parameter in module._modules[part].parameters()}
    # A bridge does not register every module that it wraps (OPT's norm before a projection).
    inner = getattr(bridge, "original_model", None)
    named = list(nn.Module.named_parameters(bridge))
    named += [] if inner is None else list(nn.Module.named_parameters(inner))
    for path, parameter in named:
        storage = parameter.untyped_storage().data_ptr()
        if storage not in storages and id(parameter) not in left_out:
            found[path.replace("_original_component.", "")] = Leaf(parameter, as_is)
            storages.add(storage)
