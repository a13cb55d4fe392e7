"""What the parts of a shipped model do, by intervention, and when they came; for the model card."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np
import torch
import xarray as xr

from lens_slt.arrays import BoolArray
from lens_slt.circuits.behaviour import behaviour_scores
from lens_slt.circuits.hypothesis import THROUGH, Edge
from lens_slt.circuits.interventions import ablate, ablate_path
from lens_slt.data.patterns import label_patterns
from lens_slt.data.tokens import load_tokens
from lens_slt.models import forward
from lens_slt.models.forward import Weights
from lens_slt.models.names import layer_of, mlp_name
from lens_slt.models.shipped import architecture_of, build_model
from lens_slt.statistics import ratio_of_sums
from lens_slt.training.train import repeat_losses, repeated_tokens

SEQUENCES = 16  # of random tokens said twice, and of text
SEED = 7
SITUATIONS = ("repeats", "text", "induction in text")
HOW = "mean_position"  # where positions are learned, a mean over all of them is not neutral
INDUCTION = "induction"  # a type of behaviour_scores, and a pattern of label_patterns


@dataclass(frozen=True)
class Effect:
    """A mean over tokens in nats, with its standard error over sequences."""

    mean: float
    se: float

    def __str__(self) -> str:
        return f"{self.mean:.2f} ± {self.se:.2f}"


@dataclass(frozen=True)
class Circuits:
    """By how much ablations raise the loss."""

    head_types: dict[str, str]
    components: dict[str, dict[str, Effect]]  # component → situation → effect
    induction_heads: dict[str, Effect] | None  # all of them at once: one stands in for another
    edges: dict[Edge, Effect]  # into the induction heads, on repeats; the largest first
    together: dict[str, dict[str, Effect]]  # head → Q, K, V → its paths into all induction heads


@dataclass(frozen=True)
class Stage:
    """What one checkpoint can do."""

    step: int
    text: float  # loss on text
    first: float  # loss on the first half of random tokens said twice
    second: float
    previous: tuple[str, float]  # the head with the largest previous-token score, and that score
    prefix: tuple[str, float]  # the same of prefix matching


def circuits(model: Any, sequences: int = SEQUENCES) -> Circuits:
    """Ablate every head and MLP, and every path from a head into an induction head."""
    cfg = model.cfg
    repeats = repeated_tokens(cfg.d_vocab, cfg.n_ctx, SEED, sequences)
    again = np.zeros((sequences, repeats.shape[1] - 1), dtype=bool)
    again[:, repeats.shape[1] // 2 + 1 :] = True
    text = _text(sequences)
    labels = label_patterns(text, model.tokenizer).sel(pattern=INDUCTION).values
    scores = behaviour_scores(model)
    types = dict(zip(scores["component"].values.tolist(), scores["head_type"].values, strict=True))
    mlps = [] if cfg.attn_only else [mlp_name(layer) for layer in range(cfg.n_layers)]

    def effects(names: Sequence[str]) -> dict[str, Effect]:
        on_repeats = ablate(model, repeats, names, how=HOW)
        on_text = ablate(model, text, names, how=HOW)
        found = ((on_repeats, again), (on_text, np.ones_like(labels)), (on_text, labels))
        return {situation: _mean(*one) for situation, one in zip(SITUATIONS, found, strict=True)}

    def path_effect(edges: Sequence[Edge]) -> Effect:
        return _mean(ablate_path(model, repeats, edges, how=HOW), again)

    heads = [name for name, kind in types.items() if kind == INDUCTION]
    edges = _edges_into(heads, types)
    alone = {edge: path_effect([edge]) for edge in edges}
    together: dict[str, dict[str, Effect]] = {}
    for source, through in dict.fromkeys((edge.source, edge.through) for edge in edges):
        mine = [edge for edge in edges if (edge.source, edge.through) == (source, through)]
        together.setdefault(source, {})[through] = path_effect(mine)
    return Circuits(
        head_types=types,
        components={name: effects([name]) for name in (*types, *mlps)},
        induction_heads=effects(heads) if len(heads) > 1 else None,
        edges=dict(sorted(alone.items(), key=lambda item: -item[1].mean)),
        together=together,
    )


def stage(step: int, weights: Weights, sequences: int = SEQUENCES) -> Stage:
    """Losses and leading heads of one checkpoint."""
    arch = architecture_of(weights)
    model = build_model(weights, f"step {step}", "auto", torch.device("cpu"))
    scores = behaviour_scores(model)
    text = _text(sequences)
    with torch.no_grad():
        logits = forward.logits(arch, weights, text[:, :-1])
    loss = torch.nn.functional.cross_entropy(logits.flatten(0, 1), text[:, 1:].flatten())
    first, second = repeat_losses(arch, weights, arch.n_ctx)

    def leading(score: str) -> tuple[str, float]:
        best = scores[score].isel(component=int(scores[score].argmax("component")))
        return str(best["component"].item()), float(best)

    return Stage(
        step, float(loss), first, second, leading("previous_token"), leading("prefix_matching")
    )


@cache
def _text(sequences: int) -> torch.Tensor:
    return load_tokens("mix", n_sequences=sequences, seed=SEED)


def _edges_into(targets: Sequence[str], heads: Iterable[str]) -> list[Edge]:
    """Every earlier head to every target, through Q, K and V."""
    return [
        Edge(source, target, through)
        for target in targets
        for source in heads
        if layer_of(source) < layer_of(target)
        for through in THROUGH
    ]


def _mean(found: xr.Dataset, where: BoolArray) -> Effect:
    """Mean effect on some tokens; whole sequences are the unit of its standard error."""
    total = np.where(where, found["effect"].values, 0.0).sum(1)
    mean, se = ratio_of_sums(total, where.sum(1))
    return Effect(float(mean), float(se))
