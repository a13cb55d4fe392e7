"""Rows padded on the left, moved so that they begin with their first token, and moved back.

A causal model that masks padding and counts positions from the first real token computes for a row
padded on the left what it computes for the same row padded on the right. So models read moved rows,
and whatever a caller passes or gets by position stays in the caller's columns. ``shift [sequence]``
is how many columns of padding a row has on its left. Arrays over predictions, with one position
less than the tokens, move by the same number: what wraps around is padding.
"""

from __future__ import annotations

from typing import TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

Values = TypeVar("Values", Tensor, NDArray)  # [..., sequence, position]


def moved(values: Values, shift: Tensor) -> Values:
    """``[..., sequence, position]`` with every row moved to the left by its shift."""
    return _rolled(values, shift)


def moved_back(values: Values, shift: Tensor) -> Values:
    """Rows as the caller has them, from moved ones."""
    return _rolled(values, -shift)


def _rolled(values: Values, by: Tensor) -> Values:
    if not bool(by.any()):
        return values
    n, length = values.shape[-2:]
    rows = torch.arange(n)[:, None]
    columns = (torch.arange(length) + by.cpu()[:, None]) % length
    if isinstance(values, np.ndarray):
        return values[..., rows.numpy(), columns.numpy()]
    return values[..., rows.to(values.device), columns.to(values.device)]
