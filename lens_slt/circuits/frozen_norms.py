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

from lens_slt.models.adapter import AdaptedModel, attached_hooks
from lens_slt.models.captures import run_with
from lens_slt.models.norms import norms_of, small_parts


class FrozenNorms:
    """The norms of a model's residual stream, and their scales on some tokens.

    Args:
        adapted: from :func:`~lens_slt.models.adapter.adapt`.
        tokens: inputs ``[sequence, position]``.
        batches: rows that are run at a time.

    Raises ValueError where the scale of a norm cannot be told.
    """

    def __init__(self, adapted: AdaptedModel, tokens: Tensor, batches: Iterator[slice]) -> None:
        _refuse_hooked_norms(adapted)
        self._norms = norms_of(adapted.module, adapted.d_model)
        self._length = tokens.shape[1]
        parts: dict[str, list[Tensor]] = {name: [] for name in self._norms}
        for rows in batches:
            for name, scales in self._calls(adapted, tokens[rows]).items():
                if scales:  # a norm that the model never calls has no scale and needs none
                    parts[name].append(_the_one_scale(name, scales, len(tokens[rows])))
        self._scales = {name: torch.cat(scales) for name, scales in parts.items() if scales}

    def _calls(self, adapted: AdaptedModel, tokens: Tensor) -> dict[str, list[Tensor]]:
        """The scales of every norm, call by call, in a pass without interventions."""
        calls: dict[str, list[Tensor]] = {name: [] for name in self._norms}
        with self._hooked(lambda name: self._recorder(name, calls[name])):
            run_with(adapted, tokens, [])
        return calls

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


def _the_one_scale(name: str, scales: list[Tensor], n: int) -> Tensor:
    """What every call in a pass of ``n`` sequences divided by.

    A HookedTransformer calls the norm before attention for queries, keys and values in turn.
    """
    first = scales[0]
    if len(first) != n or not all(torch.equal(first, other) for other in scales[1:]):
        raise ValueError(
            f"frozen_norm: {name} is called for parts of a token's stream, so that it has no one "
            "scale there (a HookedTransformer does that with use_attn_in and use_split_qkv_input: "
            "switch them off)"
        )
    return first


def _refuse_hooked_norms(adapted: AdaptedModel) -> None:
    """Raise ValueError for hooks within norms: what they make of a norm has no known scale."""
    parts = [name for name, _ in small_parts(adapted.module, adapted.d_model)]
    within = [
        hook
        for hook in attached_hooks(adapted)
        if any(f"{hook}.".startswith(f"{part}.") for part in parts)
    ]
    if within:
        raise ValueError(
            f"frozen_norm: hooks are attached at {', '.join(within)}, within a norm, whose scale "
            "cannot be told apart from what they do; remove them, or use frozen_norm=False"
        )
