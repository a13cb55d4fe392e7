"""Train a model on a task: the same seed and number of threads give the same weights."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Generator, Tensor, nn

from benchmarks.zoo.models import Shape
from benchmarks.zoo.tasks import Task
from lens_slt.models.adapter import adapt, trainable

BATCH = 64
WARM_UP = 20  # steps
TRAINING_SET = 4096  # sequences that are drawn once
STEP_COST = 1.7e9  # multiply-adds of all training steps together, per "full" training


@dataclass(frozen=True)
class Training:
    """How long and how; no steps leave the model untrained."""

    steps: int
    learning_rate: float = 2e-3
    weight_decay: float = 0.0


def full_steps(shape: Shape, length: int) -> int:
    """Steps that take seconds on one core whatever the shape."""
    width = shape.n_heads * shape.d_head
    per_token = shape.n_layers * (4 * shape.d_model * width + 2 * shape.d_model * shape.d_mlp)
    per_token += shape.d_model * shape.d_vocab
    per_step = BATCH * length * per_token + 1e6 * (1 + shape.n_layers)  # what a small step costs
    return int(min(1500, max(150, 25 * STEP_COST / per_step)))


def train(model: nn.Module, task: Task, training: Training, weights: Tensor, seed: int) -> None:
    """Minimise the weighted next-token loss by AdamW with a short warm-up, in place."""
    if training.steps == 0:
        return
    generator = Generator().manual_seed(seed)
    tokens = task.draw(TRAINING_SET, generator)
    adapted = adapt(model)
    parameters = list({id(x.parameter): x.parameter for x in adapted.leaves.values()}.values())
    optimizer = torch.optim.AdamW(
        parameters, lr=training.learning_rate, betas=(0.9, 0.98),
        weight_decay=training.weight_decay,
    )  # fmt: skip
    with trainable(adapted):
        for step in range(training.steps):
            rows = tokens[torch.randint(len(tokens), (BATCH,), generator=generator)]
            for group in optimizer.param_groups:
                group["lr"] = training.learning_rate * min(1.0, (step + 1) / WARM_UP)
            optimizer.zero_grad()
            weighted_loss(model, rows, weights.expand(len(rows), -1)).backward()
            torch.nn.utils.clip_grad_norm_(parameters, 1.0)
            optimizer.step()
    model.zero_grad(set_to_none=True)


def weighted_loss(model: nn.Module, tokens: Tensor, weights: Tensor) -> Tensor:
    """Σwℓ/Σw of the model's own logits; ``weights [sequence, position - 1]``."""
    logits = model(tokens[:, :-1], return_type="logits")
    losses = F.cross_entropy(logits.transpose(1, 2), tokens[:, 1:], reduction="none")
    return (losses * weights).sum() / weights.sum()
