"""How much every predicted token counts in a loss, and what a model then has to read."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

from lens_slt.data.checks import (
    check_ids,
    check_length,
    left_by_mask,
    left_padding,
    loss_mask,
    real_tokens,
    refuse_padding,
)
from lens_slt.data.columns import moved, moved_back
from lens_slt.data.inputs import Inputs, checked_mask, read_inputs, text_encoder


def weighted_tokens(
    tokens: Any,
    *,
    d_vocab: int,
    d_vocab_out: int,
    n_ctx: int,
    name: str = "tokens",
    model: Any = None,
    weights: Any = None,
    mask: Any = None,
    pad_id: int | None = None,
) -> tuple[Tensor, Tensor, Tensor]:
    """Tokens ``[sequence, position]``, position weights ``[sequence, position - 1]``, and a shift.

    Rows padded on the left come back moved to the left, tokens and weights alike, by the shift
    ``[sequence]``: see :mod:`lens_slt.data.columns`.

    A predicted token counts by its weight in ``weights`` (1 without), and only where ``mask``,
    ``pad_id`` and an attention mask that comes with the tokens let it. What an attention mask
    leaves out is padding. A ``mask`` that is false before it is true marks what counts: the tokens
    before are context, unless they look like padding (:func:`~lens_slt.data.checks.left_by_mask`).
    The last token is never read, so sequences may have ``n_ctx + 1``. Ids on which no loss depends
    may be anything; 0 stands for those that the model could not embed. Tokens are int64, weights
    float64, the largest is 1. A text is read by the tokenizer of ``model``.

    Raises TypeError for what is no integer array, ValueError for wrong values; both name the
    argument, the value and what is allowed.
    """
    given = read_inputs(tokens, name, text_encoder(model), fill=pad_id or 0)
    ids = given.ids
    check_length(ids, n_ctx, name, unread=1)
    weight = _checked_weights(weights, ids, name)
    if mask is None and pad_id is None and weights is not None and given.real is None:
        refuse_padding(ids, name, counts=weight > 0)
        shift = torch.zeros(len(ids), dtype=torch.int64)
    elif mask is not None and pad_id is None:
        counts, shift = _counts_of_mask(given, mask, name)
        weight = weight * counts
    else:
        real = real_tokens(given, mask, pad_id, name)
        weight, shift = weight * loss_mask(real), left_padding(real)
    counts = weight > 0
    if not counts.any():
        raise ValueError(
            f"{name} has no token that counts: its mask, pad_id and weights leave none of the "
            "predicted tokens (the first of a sequence is never predicted)"
        )
    nowhere = torch.zeros_like(counts[:, :1])
    predicted = torch.cat([nowhere, counts], 1)
    before = counts.int().flip(1).cummax(1).values.flip(1) > 0  # a token that counts depends on it
    before[:, 1:] |= counts[:, :-1]  # and what counts is embedded too, if it is not the last
    embedded = torch.cat([before, nowhere], 1)
    embedded &= torch.arange(ids.shape[1]) >= shift[:, None]  # no padding is read
    same = d_vocab_out == d_vocab
    check_ids(ids, embedded | predicted if same else embedded, d_vocab, name)
    check_ids(ids, predicted, d_vocab_out, name, "d_vocab_out")
    free = ~embedded & ~predicted & ((ids < 0) | (ids >= d_vocab))
    return (
        moved(ids.masked_fill(free, 0), shift),
        moved(weight / weight.max(), shift),
        shift,
    )


def _checked_weights(weights: Any, ids: Tensor, name: str) -> Tensor:
    n, length = len(ids), ids.shape[1] - 1
    if weights is None:
        return torch.ones(n, length, dtype=torch.float64)
    allowed = f"({n}, {length}) or ({length},), a number ≥ 0 for every predicted token"
    try:
        weight = torch.as_tensor(weights if isinstance(weights, Tensor) else np.asarray(weights))
    except (TypeError, ValueError):
        raise TypeError(
            f"weights of {name} must hold numbers, {allowed}; got {type(weights).__name__}"
        ) from None
    if weight.is_complex():
        raise TypeError(f"weights of {name} must hold real numbers; got dtype {weight.dtype}")
    weight = weight.detach().to("cpu", torch.float64)
    if weight.shape not in ((n, length), (length,)):
        hint = ""
        if weight.shape[-1:] == (length + 1,):
            hint = "; leave out the first position, which nothing predicts: weights[..., 1:]"
        raise ValueError(
            f"weights of {name} must have shape {allowed}; got {tuple(weight.shape)}{hint}"
        )
    wrong = ~(torch.isfinite(weight) & (weight >= 0))
    if wrong.any():
        place = wrong.nonzero()[0].tolist()
        raise ValueError(
            f"weights of {name} must be finite and not below 0; weights{place} is "
            f"{float(weight[tuple(place)]):g}"
        )
    if not weight.any():
        raise ValueError(f"weights of {name} are 0 everywhere; at least one must be above 0")
    return weight.expand(n, length)


def _counts_of_mask(given: Inputs, mask: Any, name: str) -> tuple[Tensor, Tensor]:
    """Predicted tokens that count by a mask of padding, or of what counts; and the left padding."""
    ids, real = given
    mask = checked_mask(ids, mask, f"mask of {name}")
    if real is None:
        hidden = left_by_mask(ids, mask, name)
        real = torch.ones_like(mask) if hidden is None else ~hidden
    mask, shift = moved(mask & real, left_padding(real)), left_padding(real)
    if (~mask[:, :-1] & mask[:, 1:]).any():
        counts = mask[:, 1:] & loss_mask(moved(real, shift))
    else:
        counts = loss_mask(real_tokens(Inputs(moved(ids, shift), None), mask, None, name))
    return moved_back(counts, shift), shift
