"""A transformer that groks modular addition, by the calls of phases: λ̂ before and after.

One layer, trained with weight decay on a part of all sums: the checkpoint that has just learned the
training sums and the last one, which knows most of the others too, with λ̂ of all weights at nβ 10
and 30 and γ 100. The first is on no plateau, its loss still falls, and λ̂ is of the local posterior
at this nβ and γ: at larger nβ/γ the last checkpoint is not certified. These settings were chosen
for that: two earlier ones, with a limit over nβ/γ, were given up because rungs were not certified.
There is no target.
"""

from __future__ import annotations

import argparse
import copy
from typing import Any

import torch
from torch import Generator, Tensor

import lens_slt as ls
from benchmarks import common
from benchmarks.common import WithError
from benchmarks.zoo.models import Shape, new_model

PRIME, SHARE = 23, 0.6
STEPS, RATE, DECAY = 1500, 2e-3, 1.0
LEARNED = 0.99  # accuracy on the training sums
N_BETAS, GAMMA = (10.0, 30.0), 100.0


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


def phase_of(model: Any, step: int, args: argparse.Namespace) -> tuple[ls.Phase, list[str]]:
    """A checkpoint as a phase by λ̂ at the largest nβ, and λ̂ at every nβ in words."""
    train, _ = sums(args.seed)
    size: dict[str, Any] = (
        {"draws": 8, "chains": 2, "steps_per_draw": 1} if args.quick else {"target_se": 0.05}
    )
    found = []
    for n_beta in N_BETAS:
        settings = ls.Settings(n_beta=n_beta, gamma=GAMMA, seed=args.seed, **size)
        draws = ls.sample(
            model, train, "full", settings=settings, weights=torch.tensor([0.0, 0, 0, 1]),
            progress=False,
        )  # fmt: skip
        found.append(ls.refined_llc(draws))
    words = [
        f"{WithError(float(one['llc'][0]), float(one['se'][0]))} {one['certificate'].values[0]}"
        for one in found
    ]
    return ls.phase(found[-1], f"step {step}"), words


def main() -> None:
    args = common.parser(__doc__).parse_args()
    common.one_thread()
    train, rest = sums(args.seed)
    rows, phases = [], []
    for step, model in trained(args).items():
        found, words = phase_of(model, step, args)
        rows.append([step, accuracy(model, train), accuracy(model, rest), found.loss, *words])
        phases.append(found)
    columns = ["step", "right", "others right", "loss", *(f"λ̂ at nβ {n:g}" for n in N_BETAS)]
    common.show_table("Checkpoints as phases, γ 100", columns, rows)
    figures: dict[str, Any] = {}
    if len(phases) == 2:
        crossing = ls.crossing(*phases, trust=args.quick)
        better = phases[int(float(crossing["difference"][-1]) < 0)]
        common.say(f"Lower free energy at large n: {better.name}; {crossing.attrs['notes']}.")
        figures = {
            "llc_change": phases[1].llc - phases[0].llc,
            "loss_change": phases[1].loss - phases[0].loss,
            "crossings": crossing.sizes["crossing"],
        }
    common.finish(args, figures)


if __name__ == "__main__":
    main()
