"""How much every predicted token counts in a loss, and what a model then has to read."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

from lens_slt.data.checks import (
    check_ids,
    check_length,
    checked_mask,
    left_padding,
    loss_mask,
    padding_side,
    real_tokens,
    refuse_padding,
    token_array,
)


def weighted_tokens(
    tokens: Any,
    *,
    d_vocab: int,
    d_vocab_out: int,
    n_ctx: int,
    name: str = "tokens",
    weights: Any = None,
    mask: Any = None,
    pad_id: int | None = None,
) -> tuple[Tensor, Tensor]:
    """Tokens as int64 ``[sequence, position]`` and position weights ``[sequence, position - 1]``.

    A predicted token counts by its weight in ``weights`` (1 without), and only where ``mask`` and
    ``pad_id`` let it. A mask that is false before it is true marks what counts: the tokens before
    are context, unless they look like padding. The last token is never read, so sequences may have
    ``n_ctx + 1``. Ids on which no loss depends may be anything; 0 stands for those that the model
    could not embed. Weights come back as float64, the largest is 1.

    Raises TypeError for what is no integer array, ValueError for wrong values; both name the
    argument, the value and what is allowed.
    """
    ids = token_array(tokens, name)
    check_length(ids, n_ctx, name, unread=1)
    weight = _checked_weights(weights, ids, name)
    if mask is None and pad_id is None and weights is not None:
        refuse_padding(ids, name, counts=weight > 0)
    elif mask is not None and pad_id is None:
        weight = weight * _checked_mask(ids, mask, name)
    else:
        weight = weight * loss_mask(real_tokens(ids, mask, pad_id, name))
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
    same = d_vocab_out == d_vocab
    check_ids(ids, embedded | predicted if same else embedded, d_vocab, name)
    check_ids(ids, predicted, d_vocab_out, name, "d_vocab_out")
    free = ~embedded & ~predicted & ((ids < 0) | (ids >= d_vocab))
    return ids.masked_fill(free, 0), weight / weight.max()


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


def _checked_mask(ids: Tensor, mask: Any, name: str) -> Tensor:
    """Which predicted tokens count by a mask of padding, or of what counts."""
    mask = checked_mask(ids, mask, name)
    if not (~mask[:, :-1] & mask[:, 1:]).any():
        return loss_mask(real_tokens(ids, mask, None, name))
    skipped = (mask.int().cummax(1).values == 0) & mask.any(1, keepdim=True)
    n_skipped = skipped.sum(1)[mask.any(1)]
    found = padding_side(ids)
    if found is not None and found[0] == "left":
        what = f"rows begin with runs of token {found[1]}"
    elif ids[skipped].unique().numel() == 1 and not (n_skipped == 1).all():
        what = f"before its mask is true there is only token {int(ids[skipped][0])}"
    else:
        return mask[:, 1:]
    raise ValueError(
        f"{left_padding(name, what)}. If these tokens are real, pass weights= and pad_id=-1 "
        "instead of mask="
    )
