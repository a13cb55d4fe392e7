"""What a norm does, read off what it computes."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn


def norm_weight(
    norm: Any, like: Float[Tensor, " d_model"]
) -> tuple[Float[Tensor, " d_model"], bool]:
    """Weight of a norm up to a factor, and whether the norm takes the mean out first.

    Read off what the norm does, because its parameter may be the weight, the weight less one
    (Gemma), or missing. ``like`` gives the size, dtype and device; None is no norm.
    """
    if norm is None:
        return torch.ones_like(like), False
    generator = torch.Generator().manual_seed(0)
    signs = 2.0 * torch.randint(2, like.shape, generator=generator) - 1
    signs[:2] = torch.tensor([1.0, -1.0])[: len(signs)]  # never all equal: LayerNorm would see zero
    x = signs.to(like)
    with torch.no_grad():
        out, mirrored, raised = (norm(row[None, None])[0, 0] for row in (x, -x, x + 1))
    centres = bool((out - raised).abs().max() < 1e-3 * (out - mirrored).abs().max())
    inner = x - x.mean() if centres else x
    return (out - mirrored) / 2 / inner, centres


def fold(
    matrix: Float[Tensor, "*head d_model out"], scale: Float[Tensor, " d_model"], centres: bool
) -> Float[Tensor, "*head d_model out"]:
    """A matrix that reads a norm's output, as one that reads its input up to the norm's size."""
    folded = matrix * scale[:, None]
    return folded - folded.mean(-2, keepdim=True) if centres else folded


@dataclass(frozen=True)
class MeasuredNorm:
    """A LayerNorm or RMSNorm, as it computes: ``bias + weight·(x − mean)/scale``."""

    module: nn.Module
    weight: Tensor  # up to a factor
    centres: bool  # takes the mean out
    bias: Tensor

    @classmethod
    def of(cls, module: nn.Module, like: Tensor) -> MeasuredNorm:
        """``like [d_model]`` gives the size, dtype and device."""
        weight, centres = norm_weight(module, like)
        with torch.no_grad():
            bias = module(torch.zeros_like(like)[None, None])[0, 0]
        return cls(module, weight, centres, bias)

    def scale(self, x: Tensor, output: Tensor) -> Tensor:
        """What the norm divided ``x [..., d_model]`` by, in units of its weight, ``[..., 1]``."""
        inner = self.weight * (x - x.mean(-1, keepdim=True) if self.centres else x)
        along = (inner * (output - self.bias)).sum(-1, keepdim=True)
        return inner.square().sum(-1, keepdim=True) / along

    def is_one(self) -> bool:
        """Whether this module really is such a norm, on random input."""
        noise = torch.randn(3, len(self.weight), generator=torch.Generator().manual_seed(1))
        x = noise.to(self.weight)[None]
        with torch.no_grad():
            out, large = self.module(x), self.module(1e3 * x)
        inner = self.weight * (x - x.mean(-1, keepdim=True) if self.centres else x)
        expected = self.bias + inner / self.scale(x, out)
        near = (out - expected).norm() <= 1e-3 * (out - self.bias).norm()
        return bool(near) and bool((large - out).norm() <= 1e-2 * out.norm())


def may_be_norm(name: str, part: nn.Module, d_model: int) -> bool:
    """Whether a part of a model or block is small enough for a norm of its residual stream."""
    n_parameters = sum(parameter.numel() for parameter in part.parameters())
    return not name.startswith("hook_") and name != "embed" and n_parameters <= 2 * d_model


def norms_of(module: nn.Module, d_model: int) -> dict[str, MeasuredNorm]:
    """The norms of a model's residual stream by name: in its blocks and before the unembedding."""
    found: dict[str, MeasuredNorm] = {}
    parameter = next(module.parameters())
    like = torch.ones(d_model, dtype=parameter.dtype, device=parameter.device)
    for name, part in small_parts(module, d_model):
        try:
            norm = MeasuredNorm.of(part, like)
            if norm.is_one():
                found[name] = norm
        except Exception:  # does not map [1, n, d_model] to itself: no norm of the stream
            continue
    return found


def small_parts(module: nn.Module, d_model: int) -> Iterator[tuple[str, nn.Module]]:
    """Parts of a model and of its blocks that may be norms, with their names."""
    places: list[tuple[str, nn.Module]] = [("", module)]
    places += [(f"blocks.{layer}.", block) for layer, block in enumerate(module.blocks)]  # type: ignore[arg-type]
    for prefix, place in places:
        for name, part in place._modules.items():
            if part is not None and may_be_norm(name, part, d_model):
                yield prefix + name, part
