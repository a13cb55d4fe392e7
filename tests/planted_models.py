"""What planted models do, by hooks of their own: losses under ablation, attention, composition."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from lens_slt.circuits.hypothesis import CircuitHypothesis
from lens_slt.circuits.planted import PlantedCircuit
from lens_slt.models.adapter import adapt, copy_weights
from lens_slt.models.names import head_place, is_mlp, layer_of


def losses(
    p: PlantedCircuit, without: tuple[str, ...] = (), *, by_position: bool = False
) -> np.ndarray:
    """Loss of every next token, with some heads' z and MLPs' outputs replaced by their means."""
    over = (0,) if by_position else (0, 1)

    def mean_of(value: Tensor) -> Tensor:
        return value.mean(over, keepdim=True).expand_as(value)

    def ablate(heads: list[int]):
        def hook(z: Tensor, hook: object) -> Tensor:
            z = z.clone()
            z[:, :, heads] = mean_of(z[:, :, heads])
            return z

        return hook

    by_layer: dict[int, list[int]] = {}
    hooks: list = []
    for component in without:
        if is_mlp(component):
            name = f"blocks.{layer_of(component)}.hook_mlp_out"
            hooks.append((name, lambda value, hook: mean_of(value)))
        else:
            layer, index = head_place(component)
            by_layer.setdefault(layer, []).append(index)
    hooks += [(f"blocks.{layer}.attn.hook_z", ablate(heads)) for layer, heads in by_layer.items()]
    return with_hooks(p, hooks)


def with_hooks(p: PlantedCircuit, hooks: list) -> np.ndarray:
    """Loss of every next token, with these hooks."""
    with torch.no_grad():
        logits = p.model.run_with_hooks(p.tokens, fwd_hooks=hooks, return_type="logits")
    log_probabilities = logits[:, :-1].log_softmax(-1)
    return -log_probabilities.gather(-1, p.tokens[:, 1:, None])[..., 0].numpy()


def cached(p: PlantedCircuit, name: str) -> Tensor:
    """One activation of a run on the instance's tokens."""
    with torch.no_grad():
        _, found = p.model.run_with_cache(p.tokens, names_filter=name)
    return found[name]


def on_pattern(p: PlantedCircuit, values: np.ndarray, pattern: str = "") -> float:
    return float(values[p.patterns.sel(pattern=pattern or p.pattern).values].mean())


def all_heads(p: PlantedCircuit) -> list[str]:
    cfg = p.model.cfg
    return [f"L{layer}H{head}" for layer in range(cfg.n_layers) for head in range(cfg.n_heads)]


def attention(p: PlantedCircuit, head: str) -> np.ndarray:
    layer, index = head_place(head)
    return cached(p, f"blocks.{layer}.attn.hook_pattern")[:, index].numpy()


def composition(p: PlantedCircuit, hypothesis: CircuitHypothesis) -> float:
    """‖W_OV W_X‖ / (‖W_OV‖ ‖W_X‖) of a hypothesis with one edge."""
    [edge] = hypothesis.edges
    weights = copy_weights(adapt(p.model))

    def matrix(head: str, name: str) -> Tensor:
        layer, index = head_place(head)
        return weights[f"blocks.{layer}.attn.W_{name}"][index]

    written = matrix(edge.source, "V") @ matrix(edge.source, "O")
    q, k, v, o = (matrix(edge.target, name) for name in "QKVO")
    read = {"Q": q @ k.T, "K": k @ q.T, "V": v @ o}[edge.through]
    return float((written @ read).norm() / (written.norm() * read.norm()))


def decoy(p: PlantedCircuit, name: str) -> CircuitHypothesis | None:
    return next((hypothesis for hypothesis in p.decoys if hypothesis.name == name), None)


def head_norms(p: PlantedCircuit, matrix: str) -> dict[str, float]:
    """Frobenius norm of every head's ``W_Q``, ``W_K``, ``W_V`` or ``W_O``."""
    weights = copy_weights(adapt(p.model))
    found = {}
    for head in all_heads(p):
        layer, index = head_place(head)
        found[head] = float(weights[f"blocks.{layer}.attn.{matrix}"][index].norm())
    return found
