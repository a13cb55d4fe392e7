"""Can the induction circuit be hurried and held back by the choice of data?

From the last checkpoint of the shipped run before induction forms. Candidates are real text,
repeats (of random tokens and of text), and repeats in shuffled order, which have the same tokens.
The wish is a lower loss on the second halves of random tokens said twice, which are not among the
candidates, while first halves stay: else more random tokens of any kind would do. The response is
that of the local posterior of all heads, pooled over the four groups (of all weights, and some
hundred steps earlier, nothing answers to repetition beyond its noise); the training data are a
larger corpus of the same groups, because a small one is memorised. Weights over a signed ladder of
strengths, shuffled weights and surface controls (the same length and frequency of tokens) at its
ends, each with the same seeds as the usual data.
"""

from __future__ import annotations

import argparse
import tempfile
import time
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

import lens_slt as ls
from benchmarks import common
from benchmarks.common import Target
from lens_slt.data.corpora import CORPORA
from lens_slt.data.tokenizer import BOS_ID
from lens_slt.training.train import Recipe, real_text, repeated_tokens, repeats, token_stream

TARGETS = {
    "z_more": Target(least=3), "z_less": Target(least=3), "hurry_steps": Target(least=0),
    "delay_steps": Target(least=0),
}  # fmt: skip
START, LEVEL = 2100, 4.5  # the checkpoint; nats on second halves at which induction has formed
GROUPS = ("text", "repeated text", "repeated random tokens", "shuffled repeats")
SHARES = (0.6, 0.1, 0.1, 0.2)
LENGTH = 128
COMPONENT = "L0ATTN+L1ATTN"
SETTINGS = ls.Settings(draws=160, batch_size=16, chains=4)
WEIGHT = 0.6  # root mean square change of the weights at strength 1
PROBED, KEPT = "second_halves", "first_halves"  # of random tokens said twice


def corpus(n: int, seed: int) -> tuple[Tensor, np.ndarray]:
    """Sequences ``[sequence, position]`` of the groups, mixed, and the group of each."""
    generator = torch.Generator().manual_seed(seed)
    recipe = Recipe(length=LENGTH)
    streams = {name: token_stream(name) for name in CORPORA}

    def row(group: int) -> Tensor:
        if group == 0:
            return real_text(recipe, streams, LENGTH - 1, generator)
        shuffled = group == 3
        of_random = float(torch.rand(1, generator=generator)) < 0.5 if shuffled else group == 2
        whole = repeats(recipe, streams, of_random, generator)
        return whole[torch.randperm(len(whole), generator=generator)] if shuffled else whole

    group = np.random.default_rng(seed).choice(len(GROUPS), n, p=SHARES)
    rows = torch.stack([row(g).long() for g in group.tolist()])
    return torch.cat([torch.full((n, 1), BOS_ID), rows], dim=1), group


def probes(n: int) -> dict[str, ls.Probe]:
    """What is wished for, and what should stay."""
    twice = repeated_tokens(512, LENGTH, seed=4321, sequences=n)
    half = (twice.shape[1] - 1) // 2
    second = torch.zeros(len(twice), twice.shape[1] - 1)
    second[:, half:] = 1
    first = torch.zeros_like(second)
    first[:, : half - 1] = 1
    return {
        PROBED: ls.Probe(twice, weights=second),
        KEPT: ls.Probe(twice, weights=first),
        "code": ls.Probe(ls.load_tokens("code", n_sequences=n, length=LENGTH, seed=5)),
        "prose": ls.Probe(ls.load_tokens("prose", n_sequences=n, length=LENGTH, seed=5)),
    }  # fmt: skip


def main() -> None:
    """Command line."""
    made = common.parser(__doc__)
    made.add_argument("--cache", type=Path, help="folder for draws and retrainings")
    made.add_argument("--parallel", type=int, help="processes for the retrainings")
    made.add_argument("--steps", type=int, default=500)
    args: argparse.Namespace = made.parse_args()
    warnings.filterwarnings("ignore")
    if not args.parallel:
        common.one_thread()
    began = time.perf_counter()
    steps, seeds = (1, (0, 1)) if args.quick else (args.steps, (0, 1, 2))
    strengths = (-1.0, 1.0) if args.quick else (-1.0, -0.5, 0.5, 1.0)
    controls = ("shuffled",) if args.quick else ("shuffled", "surface")
    n_candidates, n_data, n_probe = (24, 40, 4) if args.quick else (384, 12000, 32)
    model = ls.load_model("attn-2l", checkpoint=START)
    candidates, groups = corpus(n_candidates, args.seed)
    data, kinds = corpus(n_data, args.seed + 1000)
    measured = probes(n_probe)
    with tempfile.TemporaryDirectory() as scratch:
        cache = (args.cache or Path(scratch)) / f"seed-{args.seed}"
        settings = SETTINGS.but(seed=args.seed)
        draws = ls.sample(
            model, candidates, COMPONENT, path=cache / "draws", progress=False,
            settings=common.toy(settings) if args.quick else settings,
            probes={"candidates": candidates, **measured},
        )  # fmt: skip
        response = ls.data_response(
            draws, "candidates", {name: name for name in measured}, groups=groups
        )
        wish = scaled(response)
        found = ls.verify_patterning(
            model, data, response, wish, measured, steps=steps, path=cache / "retrainings",
            like=representatives(groups, kinds), strengths=strengths, seeds=seeds, start=START,
            controls=controls, levels={PROBED: LEVEL}, parallel=args.parallel, progress=False,
            optimisation=ls.Optimisation(learning_rate=Recipe.learning_rate),
        )  # fmt: skip
    show_response(response, groups, wish)
    figures = summary(found)
    figures["seconds"] = time.perf_counter() - began
    common.finish(args, figures, None if args.quick else TARGETS)


def scaled(response: Any) -> dict[str, float]:
    """A wish for a lower loss on second halves alone, as large as weights may change."""
    change = ls.patterning(response, {PROBED: -1.0, KEPT: 0.0})["change"].values
    return {PROBED: -WEIGHT / float(np.sqrt((change**2).mean())), KEPT: 0.0}


def representatives(groups: np.ndarray, kinds: np.ndarray) -> np.ndarray:
    """For every sequence of the corpus a candidate of its group."""
    first = {int(g): int(np.flatnonzero(groups == g)[0]) for g in np.unique(groups)}
    return np.array([first[int(kind)] for kind in kinds])


def show_response(response: Any, groups: np.ndarray, wish: dict[str, float]) -> None:
    """Response and weights of every group."""
    rows = []
    for g, name in enumerate(GROUPS):
        place = int(np.flatnonzero(groups == g)[0])
        one = response.sel(observable=PROBED).isel(sequence=place)
        n = int((groups == g).sum())
        weights = [
            float(ls.patterning(response, wish, strength=s)["weight"][place]) for s in (-1, 1)
        ]
        value = common.WithError(n * float(one["response"]), n * float(one["se"]))
        rows.append([name, n, value, *weights])
    common.show_table(
        "Change of the wished loss if all of a group weigh twice as much, to first order",
        ["group", "sequences", "response, nats", "weight at −1", "weight at 1"], rows,
    )  # fmt: skip


def summary(found: Any) -> dict[str, Any]:
    """Tables and figures."""
    rows = [
        [f"{float(s):+g}", name, float(one["predicted"]),
         common.WithError(float(one["realised"]), float(one["realised_se"]))]
        for s in found["strength"].values for name in found["observable"].values
        for one in [found.sel(strength=s, observable=name)]
    ]  # fmt: skip
    common.show_table(
        f"Change after {found.attrs['steps']} steps against the usual data, nats",
        ["strength", "loss on", "predicted", "realised"], rows,
    )  # fmt: skip
    rows = []
    for kind in found["kind"].values:
        for s in found["strength"].values:
            one = found.sel(kind=kind, strength=s)
            if np.isfinite(float(one["share"])):
                sooner = one["sooner"].isel(level=0).values
                rows.append([
                    str(kind), f"{float(s):+g}",
                    common.WithError(float(one["share"]), float(one["share_se"])),
                    float(one["z"]), float(one["p"]), ", ".join(f"{x:.0f}" for x in sooner),
                ])  # fmt: skip
    common.show_table(
        "Share of the wish that came true; steps by which induction formed sooner, by seed",
        ["weights", "strength", "share", "wish − these, z", "p", "sooner"], rows,
    )  # fmt: skip
    ends = [found["strength"].values[0], found["strength"].values[-1]]
    z = found["z"].sel(strength=ends).values[1:]
    sooner = found["sooner"].isel(level=0).sel(kind="wish", strength=ends).values
    one = found.sel(observable=PROBED)
    return {
        "predicted_realised_slope": float(one["slope"]), "slope_low": float(one["slope_low"]),
        "slope_high": float(one["slope_high"]),
        "z_less": float(z[:, 0].min()), "z_more": float(z[:, 1].min()),
        "hurry_steps": float(sooner[1].min()), "delay_steps": float(-sooner[0].max()),
    }  # fmt: skip


if __name__ == "__main__":
    main()
