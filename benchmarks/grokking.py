"""A transformer that groks modular addition: memorising and generalising as phases.

One layer, trained with weight decay on a part of all sums. The checkpoint that has memorised the
training sums and the last one, which knows the others too, are phases of the same data; λ̂ of all
weights, by ``lens_slt.limit_llc`` over nβ/γ where it is certified, and the n at which one replaces
the other. That n is a Bayesian one; the step at which training moves is printed beside it.
"""

from __future__ import annotations

import argparse
import copy
from typing import Any

import numpy as np
import torch
from torch import Generator, Tensor

import lens_slt as ls
from benchmarks import common
from benchmarks.common import WithError
from benchmarks.zoo.models import Shape, new_model

PRIME, SHARE = 23, 0.6
STEPS, RATE, DECAY = 1500, 2e-3, 1.0
LEARNED, KNOWN = 0.99, 0.9  # accuracy on the training sums, on the others
RATIOS, GAMMA = (0.1, 0.3, 1.0), 100.0


def sums(seed: int) -> tuple[Tensor, Tensor]:
    """All sums as tokens ``[sum, 5]``, those for training and the others."""
    a, b = torch.cartesian_prod(torch.arange(PRIME), torch.arange(PRIME)).T
    columns = [torch.zeros_like(a), a + 1, b + 1, a * 0 + PRIME + 1, (a + b) % PRIME + 1]
    tokens = torch.stack(columns, 1)
    tokens = tokens[torch.randperm(len(tokens), generator=Generator().manual_seed(seed))]
    n = int(SHARE * len(tokens))
    return tokens[:n], tokens[n:]


def accuracy(model: Any, tokens: Tensor) -> float:
    with torch.no_grad():
        return float((model(tokens)[:, 3].argmax(-1) == tokens[:, 4]).float().mean())


def trained(args: argparse.Namespace) -> dict[int, Any]:
    """Checkpoints by step: where the training sums are learned, and the last."""
    train, rest = sums(args.seed)
    shape = Shape(
        n_layers=1, n_heads=4, d_model=32, d_head=8, d_mlp=64, norm=None, positions="standard",
        d_vocab=PRIME + 2, n_ctx=5,
    )  # fmt: skip
    model = new_model(shape, Generator().manual_seed(args.seed))
    optimizer = torch.optim.AdamW(
        torch.nn.Module.parameters(model), lr=RATE, weight_decay=DECAY, betas=(0.9, 0.98)
    )
    kept: dict[int, Any] = {}
    steps, every = (20, 10) if args.quick else (STEPS, 50)
    for step in range(1, steps + 1):
        loss = torch.nn.functional.cross_entropy(model(train)[:, 3], train[:, 4])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        if step % every and step < steps:
            continue
        here, there = accuracy(model, train), accuracy(model, rest)
        if step % 500 == 0:
            common.say(f"step {step}: loss {loss.item():.4f}, right {here:.0%}, others {there:.0%}")
        if (here >= LEARNED or args.quick) and not kept:
            kept[step] = copy.deepcopy(model)
    kept[steps] = model
    return kept


def phase_of(model: Any, step: int, args: argparse.Namespace) -> tuple[ls.Phase | None, list[str]]:
    """A checkpoint as a phase, and λ̂ of every rung in words; None without a limit."""
    train, _ = sums(args.seed)
    weights = torch.tensor([0.0, 0, 0, 1])
    rungs = []
    for ratio in RATIOS:
        size: dict[str, Any] = (
            {"draws": 8, "chains": 2} if args.quick else {"target_se": 0.05, "draws": 200}
        )
        settings = ls.Settings(n_beta=ratio * GAMMA, gamma=GAMMA, seed=args.seed, **size)
        draws = ls.sample(model, train, "full", settings=settings, weights=weights, progress=False)
        rungs.append(ls.refined_llc(draws))
    words = [
        f"{WithError(float(one['llc'][0]), float(one['se'][0]))} {one['certificate'].values[0]}"
        for one in rungs
    ]
    try:
        limit = ls.limit_llc(rungs, trust=args.quick)
        loss, error = (float(rungs[0].attrs[key]) for key in ("base_loss", "base_loss_se"))
        found = ls.phase(limit, f"step {step}", loss=loss, loss_se=error)
    except ValueError as error:
        common.say(f"step {step}: {error}")
        return None, words
    return found, words


def main() -> None:
    args = common.parser(__doc__).parse_args()
    common.one_thread()
    kept = trained(args)
    train, rest = sums(args.seed)
    rows, phases = [], []
    for step, model in kept.items():
        found, words = phase_of(model, step, args)
        value = "" if found is None else str(WithError(found.llc, found.llc_se))
        loss = "" if found is None else found.loss
        rows.append([step, accuracy(model, train), accuracy(model, rest), loss, *words, value])
        phases += [] if found is None else [found]
    columns = ["step", "right", "others right", "loss", *(f"nβ/γ {r:g}" for r in RATIOS), "limit"]
    common.show_table("Checkpoints as phases", columns, rows)
    figures: dict[str, Any] = {"phases": len(phases)}
    if len(phases) == 2:
        crossing = ls.crossing(*phases, trust=args.quick)
        figures["llc_change"] = phases[1].llc - phases[0].llc
        figures["loss_change"] = phases[1].loss - phases[0].loss
        figures["crossings"] = np.round(crossing["n"].values).tolist()
        common.say(f"Notes: {crossing.attrs['notes']}.")
    common.finish(args, figures)


if __name__ == "__main__":
    main()
