"""Detect weight processing that changes the parametrisation.

TransformerLens can fold norms into the following weights, centre weights and move value biases.
The model's predictions stay the same, but not the local geometry of its weights: refined LLCs of a
processed model are those of another parametrisation.
"""

from __future__ import annotations

import torch
from torch import Tensor

from lens_slt.models.adapter import AdaptedModel

CENTRED = 1e-4  # of the root mean square: rounding leaves about 1e-7, training about 1e-1


def weight_processing(adapted: AdaptedModel) -> str:
    """Processing of the weights in words, "" when there is none.

    A model that was trained with parameter-free norms and has nothing centred is not processed.
    """
    cfg = adapted.module.cfg
    found: list[str] = []
    if adapted.kind == "TransformerBridge":
        processed = bool(getattr(adapted.module, "_weights_processed", False))
        folded = processed and _norms_are_one(adapted)
    else:
        pretrained = getattr(cfg, "original_architecture", None) is not None
        folded = pretrained and str(cfg.normalization_type).endswith("Pre")
        processed = folded
    if folded:
        found.append("norms folded into the weights (fold_ln)")
    if _writing_weights_centred(adapted):
        found.append("writing weights centred (center_writing_weights)")
    if _unembedding_centred(adapted):
        found.append("unembedding centred (center_unembed)")
    if (found or processed) and _value_biases_folded(adapted):
        found.append("value biases folded (fold_value_biases)")
    if processed and adapted.kind == "TransformerBridge":
        return "compatibility mode" + (f": {', '.join(found)}" if found else "")
    return ", ".join(found)


def _value(adapted: AdaptedModel, name: str) -> Tensor | None:
    leaf = adapted.leaves.get(name)
    return None if leaf is None else leaf.view(leaf.parameter.detach())


def _norms_are_one(adapted: AdaptedModel) -> bool:
    norms = [f"blocks.{layer}.ln1.w" for layer in range(adapted.n_layers)]
    values = [_value(adapted, name) for name in norms]
    return all(value is None or bool((value == 1).all()) for value in values)


def _writing_weights_centred(adapted: AdaptedModel) -> bool:
    names = ["embed.W_E"] + [f"blocks.{layer}.attn.W_O" for layer in range(adapted.n_layers)]
    names += [f"blocks.{layer}.mlp.W_out" for layer in range(adapted.n_layers)]
    values = [_value(adapted, name) for name in names]
    return all(value is None or _is_centred(value) for value in values)


def _unembedding_centred(adapted: AdaptedModel) -> bool:
    value = _value(adapted, "unembed.W_U")
    return value is not None and _is_centred(value)


def _is_centred(value: Tensor) -> bool:
    """Whether every row has mean zero along the last axis (d_model, or d_vocab for W_U)."""
    size = float(value.pow(2).mean().sqrt())
    return size > 0 and float(value.mean(-1).abs().max()) <= CENTRED * size


def _value_biases_folded(adapted: AdaptedModel) -> bool:
    values = [_value(adapted, f"blocks.{layer}.attn.b_V") for layer in range(adapted.n_layers)]
    outputs = [_value(adapted, f"blocks.{layer}.attn.b_O") for layer in range(adapted.n_layers)]
    if any(value is None for value in values + outputs):
        return False
    moved = all(not bool(torch.any(value)) for value in values if value is not None)
    return moved and any(bool(torch.any(output)) for output in outputs if output is not None)
