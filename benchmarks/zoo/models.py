"""Small transformers of many shapes, their initial weights and their rescalings."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Generator, Tensor, nn

from benchmarks.quiet import quiet
from lens_slt.models.adapter import adapt
from lens_slt.models.shipped import has_hooked_transformer


@dataclass(frozen=True)
class Shape:
    """What decides a model's architecture; ``d_mlp`` 0 is attention only."""

    n_layers: int
    n_heads: int
    d_model: int
    d_head: int
    d_mlp: int
    norm: str | None
    positions: str
    d_vocab: int
    n_ctx: int


@dataclass(frozen=True)
class Rescaling:
    """Weights multiplied by a factor.

    ``preserving``, after training, multiplies the queries (values) of each head and divides its
    keys (output): the function is the same, its curvature is not. Any other kind multiplies the
    initial weights whose names begin with it, which leads training elsewhere.
    """

    kind: str = "none"
    factor: float = 1.0


def new_model(shape: Shape, generator: Generator) -> nn.Module:
    """A model with TransformerLens's usual initial weights, drawn from ``generator``."""
    with quiet(), torch.random.fork_rng():
        model = _hooked(shape) if has_hooked_transformer() else _native(shape)
    spread = 0.8 / shape.d_model**0.5
    with torch.no_grad():
        for name, leaf in adapt(model).leaves.items():
            weight, last = leaf.view(leaf.parameter), name.split(".")[-1]
            if last.startswith("W_"):
                weight.copy_(spread * torch.randn(weight.shape, generator=generator))
            else:
                weight.fill_(1.0 if last == "w" else 0.0)
    return model.eval()


def weights_of(model: nn.Module) -> dict[str, Tensor]:
    """Copies of all weights, to be kept on disk."""
    return {
        name: leaf.view(leaf.parameter.detach()).clone().contiguous()
        for name, leaf in adapt(model).leaves.items()
    }


def load_weights(model: nn.Module, weights: dict[str, Tensor]) -> None:
    """Put weights from :func:`weights_of` into a model of the same shape."""
    with torch.no_grad():
        for name, leaf in adapt(model).leaves.items():
            leaf.view(leaf.parameter).copy_(weights[name])


def rescale(model: nn.Module, rescaling: Rescaling) -> None:
    """Multiply weights in place; see :class:`Rescaling`."""
    factor = rescaling.factor
    with torch.no_grad():
        for name, leaf in adapt(model).leaves.items():
            weight, last = leaf.view(leaf.parameter), name.split(".")[-1]
            if rescaling.kind == "preserving":
                if last in ("W_Q", "b_Q", "W_V", "b_V"):
                    weight.mul_(factor)
                if last in ("W_K", "b_K", "W_O"):
                    weight.div_(factor)
            elif name.startswith(rescaling.kind) and last.startswith("W_"):
                weight.mul_(factor)


def _hooked(shape: Shape) -> nn.Module:
    from transformer_lens import HookedTransformer, HookedTransformerConfig

    return HookedTransformer(HookedTransformerConfig(device="cpu", **_options(shape)))


def _native(shape: Shape) -> nn.Module:
    from transformer_lens.config import TransformerBridgeConfig
    from transformer_lens.model_bridge import TransformerBridge

    return TransformerBridge.boot_native(TransformerBridgeConfig(**_options(shape)), device="cpu")


def _options(shape: Shape) -> dict[str, Any]:
    options = asdict(shape) | {"normalization_type": shape.norm, "attn_only": not shape.d_mlp}
    options["positional_embedding_type"] = shape.positions
    if shape.positions == "rotary":
        options["rotary_dim"] = shape.d_head
    if shape.d_mlp:
        options["act_fn"] = "relu"
    for name in ("norm", "positions", *([] if shape.d_mlp else ["d_mlp"])):
        del options[name]
    return options
