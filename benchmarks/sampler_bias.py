"""How far each sampler is from the exact refined LLC, on heads of the shipped model.

One fixed set of token sequences is the likelihood of all of them. The exact value is importance
sampling where k̂ ≤ 0.7, else preconditioned Crank–Nicolson. ``lm`` runs with its defaults (nβ 30,
γ 200, minibatches of 32, the step size chosen for every head), SGLD at the published step size
1e-3 with eight relaxation times of the prior as burn-in, and ``lm`` once more with its drift in
bfloat16.
"""

from __future__ import annotations

import argparse
import warnings
from typing import Any

import numpy as np
import torch
import xarray as xr

import lens_slt as ls
from benchmarks import common
from benchmarks.common import Target, WithError
from lens_slt.sampling.settings import Settings

HEADS = [f"L{layer}H{head}" for layer in range(2) for head in (0, 2, 4, 6)]
TARGETS = {"max_abs_bias_lm": Target(most=0.03)}
Table = dict[str, WithError]


def exact_references(
    model: Any, tokens: torch.Tensor, heads: list[str], draws: int, seed: int
) -> dict[str, Table]:
    """``importance`` of every head, and ``pcn`` of those where its k̂ exceeds 0.7."""
    settings = Settings(sampler="importance", chains=4, antithetic=False, seed=seed)
    by_importance = run(model, tokens, heads, settings.but(draws=draws))
    left = [head for head, found in by_importance.items() if np.isnan(found.value)]
    pcn = settings.but(sampler="pcn", draws=2 * draws, burn_in=max(20, draws // 2))
    return {
        "importance": by_importance,
        "pcn": run(model, tokens, left, pcn) if left else {},
    }


def run(model: Any, tokens: torch.Tensor, heads: list[str], settings: Settings) -> Table:
    """λ̂ of every head; NaN where no chain can be used."""
    draws = ls.sample(model, tokens, heads, settings=settings, progress=False)
    found: xr.Dataset = ls.refined_llc(draws)
    return {
        head: WithError(float(found["llc"][i]), float(found["se"][i]))
        for i, head in enumerate(heads)
    }


def relative_bias(got: WithError, exact: WithError) -> float:
    return (got.value - exact.value) / exact.value


def bias_beyond_noise(got: WithError, exact: WithError) -> float:
    """Relative bias that two standard errors of the difference do not explain."""
    beyond = abs(got.value - exact.value) - 2 * float(np.hypot(got.se, exact.se))
    return float(np.maximum(0.0, beyond)) / exact.value


def main() -> None:
    """Command line."""
    made = common.parser(__doc__)
    made.add_argument("--draws", type=int, default=400, help="draws per chain of lm")
    args = made.parse_args()
    common.one_thread()
    warnings.filterwarnings("ignore")
    common.say("Refined LLC of heads of attn-2l, nβ 30, γ 200: each sampler minus the exact value.")
    model = ls.load_model("attn-2l", device="cpu")
    if args.quick:
        figures = compare(
            model, ls.load_tokens("mix", n_sequences=32, length=8), HEADS[3:5], 8, args
        )
    else:
        tokens = ls.load_tokens("mix", n_sequences=64, length=64)
        figures = compare(model, tokens, HEADS, args.draws, args)
    common.finish(args, figures, None if args.quick else TARGETS)


def compare(
    model: Any, tokens: torch.Tensor, heads: list[str], draws: int, args: argparse.Namespace
) -> dict[str, float]:
    """Run everything, print the table, return the figures."""
    exact = exact_references(model, tokens, heads, draws, args.seed)
    lm = Settings(draws=draws, seed=args.seed)
    # SGLD's draws at ε = 1e-3 are four times as correlated; minibatches of 8 cost a quarter.
    sgld = Settings(
        sampler="sgld", step_size=1e-3, burn_in=80, draws=4 * draws, batch_size=8, seed=args.seed
    )  # fmt: skip
    methods = {
        "lm": run(model, tokens, heads, lm),
        "lm, bf16 drift": run(model, tokens, heads, lm.but(drift_dtype="bfloat16")),
        "sgld 1e-3": run(model, tokens, heads, sgld),
    }
    rows, reference = [], {}
    for head in heads:
        by = "pcn" if head in exact["pcn"] else "importance"
        reference[head] = exact[by][head]
        row = [head, by, reference[head]]
        for found in methods.values():
            row += [found[head], f"{100 * relative_bias(found[head], reference[head]):+.1f} %"]
        rows.append(row)
    columns = ["head", "exact by", "exact"]
    for name in methods:
        columns += [name, "bias"]
    common.show_table(f"λ̂ ± SE, {len(tokens)} sequences, {draws} draws × 4 chains", columns, rows)

    def worst(name: str) -> float:
        found = [bias_beyond_noise(methods[name][head], reference[head]) for head in heads]
        return float(np.max(found))  # NaN where one is

    def median(name: str) -> float:
        return float(np.median([relative_bias(methods[name][h], reference[h]) for h in heads]))

    return {
        "max_abs_bias_lm": worst("lm"),
        "median_bias_lm": median("lm"),
        "median_bias_sgld": median("sgld 1e-3"),
        "max_abs_bias_bf16": worst("lm, bf16 drift"),
        "median_bias_bf16": median("lm, bf16 drift"),
    }


if __name__ == "__main__":
    main()
