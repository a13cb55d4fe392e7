"""The sampling loop with a clock at every step, and models of any size to run it on."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

from benchmarks.common import clock
from benchmarks.quiet import quiet
from lens_slt.sampling.driver import run_chains
from lens_slt.sampling.prepare import prepare
from lens_slt.sampling.settings import Settings
from lens_slt.sampling.store import open_store


def step_seconds(
    model: Any,
    tokens: Tensor,
    components: str | list[str],
    settings: Settings,
    device: str = "cpu",
    probes: dict[str, Tensor] | None = None,
) -> np.ndarray:
    """Seconds of every step after the first: prefix, losses, gradients, noise, update, storage.

    ``settings`` must give draws and step size, so that no component begins anew; one draw more is
    made, for after the last of them they are judged. What
    :func:`lens_slt.sample` does around the loop (checks, hashes, curvature, health) is not in it.
    """
    assert settings.draws is not None and settings.step_size is not None
    settings = settings.but(draws=settings.draws + 1)
    job = prepare(
        model, tokens, components, settings=settings, probes=probes, weights=None, mask=None,
        pad_id=None, engine="auto", device=device,
    )  # fmt: skip
    store = open_store(None, job.specs, {})
    marks: list[float] = []
    run_chains(job.target, settings, store, lambda book: marks.append(clock(device)))
    return np.diff(marks[:-1])


def random_model(
    *, n_layers: int, d_model: int, n_heads: int, d_vocab: int, n_ctx: int, mlp: bool = False
) -> Any:
    """A transformer with random weights: HookedTransformer where there is one, else a bridge."""
    sizes: dict[str, Any] = dict(
        n_layers=n_layers, d_model=d_model, n_heads=n_heads, d_head=d_model // n_heads,
        n_ctx=n_ctx, d_vocab=d_vocab, attn_only=not mlp, normalization_type="LNPre", seed=0,
    )  # fmt: skip
    if mlp:
        sizes |= dict(d_mlp=4 * d_model, act_fn="gelu")
    with quiet():
        try:
            from transformer_lens import HookedTransformer, HookedTransformerConfig
        except ImportError:
            return _native_bridge(sizes)
        return HookedTransformer(HookedTransformerConfig(device="cpu", **sizes)).eval()


def _native_bridge(sizes: dict[str, Any]) -> Any:
    from transformer_lens.config import TransformerBridgeConfig
    from transformer_lens.model_bridge import TransformerBridge

    config = TransformerBridgeConfig(**sizes)
    return TransformerBridge.boot_native(config, device="cpu").eval()


def random_tokens(d_vocab: int, n_sequences: int, length: int) -> Tensor:
    """Uniform tokens ``[sequence, position]``."""
    generator = torch.Generator().manual_seed(0)
    return torch.randint(0, d_vocab, (n_sequences, length), generator=generator)
