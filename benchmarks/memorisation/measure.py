"""Train one model to near its least loss, and measure λ̂, ablation loss and weight norm."""

from __future__ import annotations

import hashlib
import json
import math
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Generator, Tensor, nn

import lens_slt as ls
from benchmarks.common import cpu_seconds
from benchmarks.memorisation.tasks import BLANK_SHARE, Facts, Family
from benchmarks.zoo.models import new_model, weights_of
from lens_slt.models.adapter import adapt, trainable

RECIPE = 1  # changes when kept measurements may no longer be used
EXCESS = 0.005  # share of what there is to learn at which training stops
MOST_STEPS = 3000
LEARNING_RATE = 5e-3
WARM_UP = 20  # steps
SETTINGS = ls.Settings(n_beta=30.0, gamma=300.0, chains=2, target_se=0.08, draws=1000)


@dataclass(frozen=True)
class Measured:
    """One trained model."""

    family: str
    size: int
    seed: int
    steps: int
    learned: float  # share of what there is to learn
    bits: float  # that the weights have learned of the answers
    llc: float
    llc_se: float
    certificate: str
    heads: float  # sum of the heads' λ̂
    heads_se: float
    heads_certified: int
    n_heads: int
    ablation: float  # sum over the heads of what mean ablation adds to the mean loss, nats
    norm: float  # of all weights
    cpu_seconds: float


def measured(
    family: Family, size: int, seed: int, settings: ls.Settings, cache: Path | None, steps: int
) -> Measured:
    """The measurement of one model, from the cache folder where it is known."""
    key = json.dumps(
        [RECIPE, family.name, asdict(family.shape), size, seed, settings.as_dict(), steps, EXCESS,
         LEARNING_RATE, BLANK_SHARE]
    )  # fmt: skip
    name = hashlib.sha256(key.encode()).hexdigest()[:32]
    file = None if cache is None else cache / "memorisation" / f"{name}.json"
    if file is not None and file.exists():
        return Measured(**json.loads(file.read_text()))
    found = measure(family, size, seed, settings, steps)
    if file is not None:
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(json.dumps(asdict(found)))
    return found


def measure(
    family: Family, size: int, seed: int, settings: ls.Settings, steps: int = MOST_STEPS
) -> Measured:
    """Train, sample, ablate."""
    began = cpu_seconds()
    facts = family.make(size, Generator().manual_seed(1000 * seed + size))
    model = new_model(family.shape, Generator().manual_seed(1000 * seed + size))
    taken, loss = train(model, facts, steps)
    heads = [f"L{i}H{h}" for i in range(family.shape.n_layers) for h in range(family.shape.n_heads)]
    draws = ls.sample(
        model, facts.rows, ["full", *heads], weights=facts.weights, progress=False,
        settings=settings.but(seed=seed, batch_size=min(128, len(facts.rows))),
    )  # fmt: skip
    found = ls.refined_llc(draws)
    full, of_heads = found.sel(component="full"), found.sel(component=heads)
    learned = 1 - (loss - facts.floor) / facts.to_learn
    norm = math.sqrt(sum(float(w.double().square().sum()) for w in weights_of(model).values()))
    return Measured(
        family.name, size, seed, taken, learned,
        learned * facts.to_learn * len(facts.contexts) / math.log(2),
        float(full["llc"]), float(full["se"]), str(full["certificate"].item()),
        float(of_heads["llc"].sum()), float(np.sqrt((of_heads["se"] ** 2).sum())),
        int((of_heads["certificate"] == "certified").sum()), len(heads),
        sum(ablation_loss(model, facts, head) for head in heads), norm, cpu_seconds() - began,
    )  # fmt: skip


def train(model: nn.Module, facts: Facts, most_steps: int) -> tuple[int, float]:
    """AdamW on all contexts until the loss is near its least, in place: steps and last loss."""
    adapted = adapt(model)
    parameters = list({id(x.parameter): x.parameter for x in adapted.leaves.values()}.values())
    optimizer = torch.optim.AdamW(parameters, lr=LEARNING_RATE, weight_decay=0.0)
    enough = facts.floor + EXCESS * facts.to_learn
    with trainable(adapted):
        for step in range(most_steps + 1):
            loss = answer_loss(model, facts)
            if step == most_steps or loss.item() <= enough:
                break
            for group in optimizer.param_groups:
                group["lr"] = LEARNING_RATE * min(1.0, (step + 1) / WARM_UP)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    model.zero_grad(set_to_none=True)
    return step, loss.item()


def answer_loss(model: nn.Module, facts: Facts) -> Tensor:
    """Mean loss at the answers, in nats, the blank in its share."""
    log_p = model(facts.contexts, return_type="logits")[:, -1].log_softmax(-1)
    right = log_p.gather(1, facts.answers[:, None])[:, 0]
    return -((1 - BLANK_SHARE) * right + BLANK_SHARE * log_p[:, facts.blank]).mean()


def ablation_loss(model: Any, facts: Facts, head: str) -> float:
    """What mean ablation of a head, position by position, adds to the mean loss at the answers."""
    found = ls.ablate(model, facts.rows, head, how="mean_position", weights=facts.weights)
    weights = facts.weights.numpy()
    return float(np.nansum(found["effect"].values * weights) / weights.sum())
