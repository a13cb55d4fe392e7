"""Train a shipped model: ``python -m lens_slt.training.train --out runs/attn-2l-seed0``.

The recipe grows an induction circuit in minutes on a CPU: rotary positions, parameter-free
LayerNorm, a byte-level vocabulary of 512, and three eighths of every batch made of repeated
segments (half of them random tokens). Without the repeats, or with a vocabulary of 2048, two
attention-only layers of this width had not formed one after 6000 steps.
"""

from __future__ import annotations

import argparse
import json
import math
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from rich.progress import MofNCompleteColumn, Progress
from torch import Tensor

from lens_slt.data.corpora import CORPORA, corpus
from lens_slt.data.tokenizer import BOS_ID, VOCABULARY_SIZE, shipped_tokenizer
from lens_slt.models import forward
from lens_slt.models.forward import Architecture, Weights
from lens_slt.models.loss import unembed_loss
from lens_slt.models.shipped import shipped_architecture
from lens_slt.models.shipped_files import step_file
from lens_slt.training.saver import save_weights

TRANSITION = 2.0  # nats by which the second half of a repeat becomes cheaper


@dataclass(frozen=True)
class Recipe:
    """Everything that decides the weights, written beside them."""

    n_layers: int = 2
    mlps: bool = False
    seed: int = 0
    most_steps: int = 12000
    batch: int = 32
    length: int = 128
    code_share: float = 0.75
    repeat_share: float = 0.375
    shortest_period: int = 8
    longest_period: int = 50
    learning_rate: float = 3e-3
    betas: tuple[float, float] = (0.9, 0.98)
    weight_decay: float = 0.01
    warmup: int = 100
    settle: int = 1500  # steps at the full rate after induction has formed
    decay: int = 1500  # steps of linear decay at the end
    last_rate: float = 0.02  # share of the learning rate that is left at the end


def training_batch(
    recipe: Recipe, streams: dict[str, Tensor], generator: torch.Generator
) -> Tensor:
    """One batch ``[sequence, position]``: real text, and repeats in the last rows."""
    n_repeats = round(recipe.batch * recipe.repeat_share)
    rows = [
        real_text(recipe, streams, recipe.length - 1, generator)
        for _ in range(recipe.batch - n_repeats)
    ]
    rows += [repeats(recipe, streams, bool(i % 2), generator) for i in range(n_repeats)]
    return torch.cat([torch.full((recipe.batch, 1), BOS_ID), torch.stack(rows).long()], dim=1)


def real_text(
    recipe: Recipe, streams: dict[str, Tensor], length: int, generator: torch.Generator
) -> Tensor:
    """So many tokens from anywhere in the code or the prose."""
    is_code = float(torch.rand(1, generator=generator)) < recipe.code_share
    stream = streams["code" if is_code else "prose"]
    start = _integer(0, len(stream) - length, generator)
    return stream[start : start + length]


def repeats(
    recipe: Recipe, streams: dict[str, Tensor], of_random: bool, generator: torch.Generator
) -> Tensor:
    """A sequence without BOS: a segment of random tokens, or of real text, again and again."""
    body = recipe.length - 1
    period = _integer(recipe.shortest_period, recipe.longest_period + 1, generator)
    if of_random:
        segment = torch.randint(1, VOCABULARY_SIZE, (period,), generator=generator)
    else:
        segment = real_text(recipe, streams, period, generator)
    return segment.repeat(body // period + 1)[:body]


def _integer(low: int, high: int, generator: torch.Generator) -> int:
    return int(torch.randint(low, high, (1,), generator=generator))


def loss_and_gradients(arch: Architecture, weights: Weights, tokens: Tensor) -> float:
    """Mean next-token loss; leaves its gradients in the weights' ``.grad``."""
    x = forward.run_from(arch, weights, 0, forward.embed(arch, weights, tokens[:, :-1]))
    x = x.flatten(0, 1)
    weight = x.new_full((len(x),), 1 / len(x))
    w_u, b_u = forward.unembedding(arch, weights)
    loss, grads = unembed_loss(
        x, w_u, b_u, tokens[:, 1:].flatten(), weight=weight, unembed_grad=True
    )
    assert grads is not None
    x.backward(grads.x)
    weights["unembed.W_U"].grad = grads.w_u
    return float(loss.mean())


def repeated_tokens(d_vocab: int, length: int, seed: int, sequences: int = 32) -> Tensor:
    """A BOS token and random tokens said twice, ``[sequence, position]``, at most ``length``."""
    generator = torch.Generator().manual_seed(seed)
    segment = torch.randint(1, d_vocab, (sequences, (length - 1) // 2), generator=generator)
    return torch.cat([torch.full((sequences, 1), BOS_ID), segment, segment], dim=1)


def repeat_losses(arch: Architecture, weights: Weights, length: int) -> tuple[float, float]:
    """Loss on the first and on the second half of random tokens said twice."""
    tokens = repeated_tokens(arch.d_vocab, length, seed=1234)
    half = tokens.shape[1] // 2
    with torch.no_grad():
        logits = forward.logits(arch, weights, tokens[:, :-1])
    loss = torch.nn.functional.cross_entropy(
        logits.transpose(1, 2), tokens[:, 1:], reduction="none"
    ).mean(0)
    return float(loss[:half].mean()), float(loss[half + 1 :].mean())


def is_checkpoint(step: int) -> bool:
    """Every 50 steps, and log-spaced before that."""
    return step % 50 == 0 or step in {round(10 ** (i / 4)) for i in range(8)}


def rate(recipe: Recipe, step: int, end: int) -> float:
    """Learning rate at a step: linear warm-up, constant, linear decay until ``end``."""
    warm = (step + 1) / recipe.warmup
    left = (end - step) / recipe.decay
    return recipe.learning_rate * max(recipe.last_rate, min(1.0, warm, left))


def train(recipe: Recipe, out: Path) -> None:
    """Train one model; write half-precision checkpoints and ``training.json`` into ``out``.

    The learning rate starts to decay ``settle`` steps after induction has formed (the second half
    of repeated random tokens costs 2 nats less than the first), so that every seed ends equally
    far beyond its own transition.
    """
    out.mkdir(parents=True, exist_ok=True)
    arch = shipped_architecture(recipe.n_layers, recipe.mlps)
    generator = torch.Generator().manual_seed(recipe.seed)
    weights = initial_weights(arch, generator)
    for tensor in weights.values():
        tensor.requires_grad_(True)
    streams = {name: token_stream(name) for name in CORPORA}
    optimizer = torch.optim.AdamW(
        weights.values(), lr=recipe.learning_rate, betas=recipe.betas,
        weight_decay=recipe.weight_decay, fused=True,
    )  # fmt: skip
    curve: list[dict[str, float]] = []
    step, end, recent, formed = 0, recipe.most_steps, math.log(VOCABULARY_SIZE), False
    with Progress(*Progress.get_default_columns(), MofNCompleteColumn()) as progress:
        bar = progress.add_task("training", total=end)
        while True:
            if is_checkpoint(step) or step == end:
                save_weights(weights, step_file(out, step))
            if step % 50 == 0 or step == end:
                first, second = repeat_losses(arch, weights, recipe.length)
                curve.append({"step": step, "loss": recent, "first": first, "second": second})
                text = json.dumps({"recipe": asdict(recipe), "curve": curve}, indent=1)
                (out / "training.json").write_text(text)
                note = f"loss {recent:.3f} repeats {first:.2f} → {second:.2f}"
                progress.update(bar, description=note)
                if step % 500 == 0:
                    print(f"{step:6d} {note}", flush=True)
                if not formed and first - second > TRANSITION:
                    formed, end = True, min(end, step + recipe.settle + recipe.decay)
                    progress.update(bar, total=end)
            if step == end:
                break
            for group in optimizer.param_groups:
                group["lr"] = rate(recipe, step, end)
            optimizer.zero_grad()
            loss = loss_and_gradients(arch, weights, training_batch(recipe, streams, generator))
            recent = 0.98 * recent + 0.02 * loss
            optimizer.step()
            step += 1
            progress.advance(bar)


def initial_weights(arch: Architecture, generator: torch.Generator, scale: float = 0.02) -> Weights:
    """Initial weights for training: normal, in all matrices by their number of inputs.

    MLPs are four times as wide as the residual stream, and models that have them have biases;
    norms start at weight one and bias zero where they have parameters.
    """
    weights = {
        name: torch.randn(shape, generator=generator)
        * (scale if name in ("embed.W_E", "pos_embed.W_pos") else 1 / math.sqrt(inputs))
        for name, (inputs, shape) in _matrices(arch).items()
    }
    for name, length in _vectors(arch).items():
        weights[name] = torch.ones(length) if name.endswith(".w") else torch.zeros(length)
    return weights


def _matrices(arch: Architecture) -> dict[str, tuple[int, tuple[int, ...]]]:
    """Inputs of one output, and shape, of every matrix of a model without grouped queries."""
    d, h, e, m = arch.d_model, arch.n_heads, arch.d_head, 4 * arch.d_model
    found: dict[str, tuple[int, tuple[int, ...]]] = {"embed.W_E": (1, (arch.d_vocab, d))}
    if arch.positions == "standard":
        found["pos_embed.W_pos"] = (1, (arch.n_ctx, d))
    found["unembed.W_U"] = (d, (d, arch.d_vocab))
    for layer in range(arch.n_layers):
        for name in ("W_Q", "W_K", "W_V"):
            found[f"blocks.{layer}.attn.{name}"] = (d, (h, d, e))
        found[f"blocks.{layer}.attn.W_O"] = (h * e, (h, e, d))
        if not arch.attn_only:
            found[f"blocks.{layer}.mlp.W_in"] = (d, (d, m))
            found[f"blocks.{layer}.mlp.W_out"] = (m, (m, d))
    return found


def _vectors(arch: Architecture) -> dict[str, tuple[int, ...]]:
    """Shapes of the parameters of norms, and of the biases of a model with MLPs."""
    d, h, e = arch.d_model, arch.n_heads, arch.d_head
    found: dict[str, tuple[int, ...]] = {}
    for layer in range(arch.n_layers):
        block = f"blocks.{layer}"
        if not arch.attn_only:
            found |= {f"{block}.attn.b_{part}": (h, e) for part in "QKV"}
            found |= {f"{block}.attn.b_O": (d,)}
            found |= {f"{block}.mlp.b_in": (4 * d,), f"{block}.mlp.b_out": (d,)}
        if arch.norm == "LN":
            norms = ("ln1",) if arch.attn_only else ("ln1", "ln2")
            found |= {f"{block}.{norm}.{part}": (d,) for norm in norms for part in "wb"}
    if arch.final_norm == "LN":
        found |= {f"ln_final.{part}": (d,) for part in "wb"}
    return found


def token_stream(name: str) -> Tensor:
    """All documents of a built-in corpus as one stream of token ids."""
    tokenizer = shipped_tokenizer()
    ids = tokenizer(list(corpus(name)), add_special_tokens=False)["input_ids"]
    return torch.cat([torch.tensor(document, dtype=torch.int16) for document in ids])


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--layers", type=int, default=2)
    parser.add_argument("--mlps", action="store_true", help="like GPT-2: MLPs, learned positions")
    parser.add_argument("--rate", type=float, default=Recipe.learning_rate, help="learning rate")
    parser.add_argument("--steps", type=int, default=Recipe.most_steps)
    args = parser.parse_args()
    recipe = Recipe(
        n_layers=args.layers, mlps=args.mlps, seed=args.seed, most_steps=args.steps,
        learning_rate=args.rate,
    )  # fmt: skip
    train(recipe, args.out)


if __name__ == "__main__":
    main()
