"""Whether a model treats rows padded on the left as the same rows without padding."""

from __future__ import annotations

import warnings

import torch
from torch import Tensor

from lens_slt.data.columns import moved, moved_back
from lens_slt.models.adapter import AdaptedModel, logit_tolerance, model_logits

MOST_ROWS = 2  # the most padded, on which the model is asked


class PaddingWarning(UserWarning):
    """A model's own rule for padding on the left is another than lens_slt's."""


def warn_of_padding(adapted: AdaptedModel, tokens: Tensor, shift: Tensor, name: str) -> None:
    """Say where the model, given the attention mask, computes other logits than for moved rows.

    Args:
        adapted: from :func:`lens_slt.models.adapter.adapt`.
        tokens, shift: ``[sequence, position]`` and ``[sequence]``, from
            :func:`lens_slt.data.checks.check_tokens` or
            :func:`lens_slt.data.weights.weighted_tokens`.
        name: of the argument.
    """
    if not shift.any():
        return
    rows = shift.argsort(descending=True, stable=True)[:MOST_ROWS]
    why = _difference(adapted, tokens[rows.to(tokens.device), :-1], shift[rows])
    if why:
        warnings.warn(
            f"{name} is padded on the left. Every row is read from its first real token on, with "
            "positions counted from there and padding never attended to; this model's own forward "
            f"pass on the padded rows {why}",
            PaddingWarning,
            stacklevel=5,
        )


def _difference(adapted: AdaptedModel, inputs: Tensor, shift: Tensor) -> str:
    """How the model's pass over padded rows departs from that over moved ones; "" if nowhere."""
    inputs = inputs.to(adapted.device)
    places = torch.arange(inputs.shape[1])
    attended = (places >= shift[:, None]).to(inputs)
    with torch.no_grad():
        ours = model_logits(adapted, inputs).log_softmax(-1)
        try:
            theirs = adapted.module(
                moved_back(inputs, shift), attention_mask=attended, return_type="logits"
            )
        except Exception as error:  # whatever a model says that knows no attention masks
            return f"cannot be compared with that ({type(error).__name__}: {str(error)[:120]})"
    theirs = moved(theirs.log_softmax(-1).movedim(-1, 0), shift).movedim(0, -1)
    there = (places < inputs.shape[1] - shift[:, None]).to(ours.device)
    largest = float((ours - theirs).abs()[there].max())
    if largest <= logit_tolerance(theirs):
        return ""
    return f"with their attention mask does otherwise (logits differ by up to {largest:.2g})"
