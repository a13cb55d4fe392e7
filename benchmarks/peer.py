"""devinterp 2.0.1, the peer, and the model on which both libraries are timed."""

from __future__ import annotations

import contextlib
import io
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from benchmarks.common import cpu_seconds, say
from benchmarks.engine import random_model
from benchmarks.quiet import quiet
from lens_slt.models import forward
from lens_slt.models.adapter import adapt, copy_weights
from lens_slt.training.train import loss_and_gradients

N_CLASSES = 50  # of tokens in the synthetic source
LEARNING_RATE = 3e-3
RELAXATIONS = 5  # of the prior, left out by the peer as burn-in


@dataclass(frozen=True)
class Size:
    """Shape of the model and its data."""

    d_model: int = 256
    n_heads: int = 8
    d_vocab: int = 5000
    length: int = 256
    training_steps: int = 150


TOY = Size(d_model=32, n_heads=2, d_vocab=100, length=16, training_steps=5)


@dataclass(frozen=True)
class PeerRun:
    """What one chain of the peer did."""

    losses: np.ndarray  # minibatch loss before every step
    seconds: np.ndarray  # CPU time of every step after the first


def synthetic_tokens(size: Size, n_sequences: int, seed: int) -> Tensor:
    """A Markov chain over classes of tokens; half of the sequences say their first half twice."""
    rng = np.random.default_rng(seed)
    source = np.random.default_rng(0)  # the same language for every seed
    jumps = source.integers(0, N_CLASSES, (N_CLASSES, 3))
    members = size.d_vocab // N_CLASSES
    ranks = 1 / np.arange(1, members + 1)
    classes = np.empty((n_sequences, size.length), dtype=np.int64)
    classes[:, 0] = rng.integers(0, N_CLASSES, n_sequences)
    for t in range(1, size.length):
        choice = rng.choice(3, n_sequences, p=[0.7, 0.2, 0.1])
        classes[:, t] = jumps[classes[:, t - 1], choice]
    member = rng.choice(members, classes.shape, p=ranks / ranks.sum())
    tokens = torch.from_numpy(classes * members + member)
    half = size.length // 2
    tokens[::2, half : 2 * half] = tokens[::2, :half]
    return tokens


def trained_model(size: Size, cache: Path | None) -> Any:
    """A two-layer attention-only HookedTransformer, briefly trained on the synthetic source."""
    model = random_model(
        n_layers=2, d_model=size.d_model, n_heads=size.n_heads, d_vocab=size.d_vocab,
        n_ctx=size.length,
    )  # fmt: skip
    name = f"peer-model-{size.d_model}-{size.d_vocab}-{size.training_steps}.safetensors"
    file = None if cache is None else cache / name
    if file is not None and file.exists():
        weights = load_file(file)
    else:
        weights = _train(model, size)
        if file is not None:
            file.parent.mkdir(parents=True, exist_ok=True)
            save_file({k: w.contiguous() for k, w in weights.items()}, file)
    with torch.no_grad():
        for name, leaf in adapt(model).leaves.items():
            leaf.view(leaf.parameter.data).copy_(weights[name])
    return model


def _train(model: Any, size: Size) -> forward.Weights:
    adapted = adapt(model)
    arch = adapted.architecture
    assert arch is not None
    weights = copy_weights(adapted)
    learned = {k: w.requires_grad_(True) for k, w in weights.items() if not k.endswith("b_U")}
    optimizer = torch.optim.AdamW(learned.values(), lr=LEARNING_RATE, betas=(0.9, 0.98))
    start, first, loss = cpu_seconds(), 0.0, 0.0
    for step in range(size.training_steps):
        optimizer.zero_grad()
        loss = loss_and_gradients(arch, weights, synthetic_tokens(size, 8, seed=step + 1))
        first = first or loss
        left = (size.training_steps - step) / size.training_steps
        for group in optimizer.param_groups:
            group["lr"] = LEARNING_RATE * min(1.0, (step + 1) / 20, 2 * left)
        optimizer.step()
    say(
        f"Trained the model {size.training_steps} steps: loss {first:.2f} → {loss:.2f}, "
        f"{cpu_seconds() - start:.0f} CPU s."
    )
    return {k: w.detach() for k, w in weights.items()}


def burn_in(lr: float, gamma: float = 200.0) -> int:
    """Steps that the peer leaves out."""
    return round(RELAXATIONS * 2 / (lr * gamma))


def token_rows(tokens: Tensor) -> Any:
    """Tokens as the peer reads them."""
    from datasets import Dataset

    rows = Dataset.from_dict({"input_ids": tokens.numpy()})
    rows.set_format("torch")
    return rows


def peer_chain(
    model: Any, head: str, tokens: Tensor, *, batch_size: int, steps: int, lr: float, seed: int
) -> PeerRun:
    """One SGLD chain of devinterp restricted to a head; minibatches in order, again and again."""
    from devinterp.optim import SGMCMC
    from devinterp.slt.lm_loss import make_evaluate_fn
    from devinterp.slt.sampler import sample_single_chain
    from devinterp.slt.weight_restrictions import create_param_masks

    rows = token_rows(tokens)
    losses: list[float] = []
    marks: list[float] = []
    with quiet(), contextlib.redirect_stderr(io.StringIO()):
        sample_single_chain(
            model, rows, make_evaluate_fn(None), create_param_masks(model, head.lower()),
            num_draws=steps, sampling_method=SGMCMC.sgld,
            sampling_method_kwargs=dict(lr=lr, nbeta=30.0, localization=200.0),
            seed=seed, batch_size=batch_size, shuffle=False,
            callbacks=[lambda *, loss, **_: losses.append(float(loss.mean()))],
            step_callback=lambda *_: marks.append(cpu_seconds()),
        )  # fmt: skip
    return PeerRun(np.array(losses), np.diff(marks))


def cycle_base_loss(model: Any, tokens: Tensor, batch_size: int) -> np.ndarray:
    """Loss at the given weights of every minibatch in the order of :func:`peer_chain`."""
    with torch.no_grad():
        return np.array(
            [float(model(batch, return_type="loss")) for batch in tokens.split(batch_size)]
        )
