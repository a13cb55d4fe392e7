"""Norms that keep the scale they have without interventions.

With every norm dividing by what it divides by in the whole model, the rest of the model sees
nothing but the missing output of an ablated part. Norms are found by what they compute, whatever
their kind and parameters.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from lens_slt.models.adapter import AdaptedModel
from lens_slt.models.captures import run_with
from lens_slt.models.norms import norms_of


class FrozenNorms:
    """The norms of a model's residual stream, and their scales on some tokens.

    Args:
        adapted: from :func:`~lens_slt.models.adapter.adapt`.
        tokens: inputs ``[sequence, position]``.
        batches: rows that are run at a time.
    """

    def __init__(self, adapted: AdaptedModel, tokens: Tensor, batches: Iterator[slice]) -> None:
        self._norms = norms_of(adapted.module, adapted.d_model)
        self._length = tokens.shape[1]
        parts: dict[str, list[Tensor]] = {name: [] for name in self._norms}
        for rows in batches:
            with self._hooked(lambda name: self._recorder(name, parts[name])):
                run_with(adapted, tokens[rows], [])
        # A norm that the model never calls has no scale and needs none.
        self._scales = {name: torch.cat(scales) for name, scales in parts.items() if scales}

    @contextmanager
    def on(self, rows: slice) -> Iterator[None]:
        """Within the block, which runs these sequences, scales are frozen."""
        with self._hooked(lambda name: self._rescaler(name, rows)):
            yield

    def _recorder(self, name: str, scales: list[Tensor]) -> Callable:
        norm = self._norms[name]

        def hook(module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
            # OPT flattens sequences and positions before its second norm.
            scales.append(norm.scale(inputs[0], output).reshape(-1, self._length, 1))

        return hook

    def _rescaler(self, name: str, rows: slice) -> Callable:
        norm = self._norms[name]

        def hook(module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> Tensor:
            scale = norm.scale(inputs[0], output)
            factor = scale / self._scales[name][rows].reshape(scale.shape)
            return (output - norm.bias) * factor + norm.bias

        return hook

    @contextmanager
    def _hooked(self, make: Callable[[str], Callable[..., Any]]) -> Iterator[None]:
        handles = []
        try:
            for name, norm in self._norms.items():
                handles.append(norm.module.register_forward_hook(make(name)))
            yield
        finally:
            for handle in handles:
                handle.remove()
