"""CPU time of all heads of the shipped model to a relative standard error, certified.

Against the recipe of version 0.1.0: the same step for every head, 20 steps of burn-in, and as many
draws for all heads as the one that needs most. Here every head stops when its standard error is
there and it is certified. Both in this process, on the demonstration's tokens and batch.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import xarray as xr

import lens_slt as ls
from benchmarks.common import Target, cpu_seconds, finish, one_thread, parser, say, show_table, toy

MODEL, SEQUENCES, LENGTH, BATCH = "attn-2l", 512, 128, 8
WANTED = 0.02  # relative standard error
RECIPE = ls.Settings(batch_size=BATCH, step_size=0.8 / 200, burn_in=20, draws=200)
TARGETS = {"demo_cost_ratio": Target(most=1.0)}


@dataclass(frozen=True)
class Timed:
    """Refined LLCs and the CPU time that they took."""

    llc: xr.Dataset
    seconds: float

    @property
    def relative_se(self) -> np.ndarray:
        return (self.llc["se"] / abs(self.llc["llc"])).values


def run(settings: ls.Settings, sequences: int, length: int) -> Timed:
    """Sample all heads."""
    model = ls.load_model(MODEL)
    tokens = ls.load_tokens("mix", n_sequences=sequences, length=length)
    began = cpu_seconds()
    draws = ls.sample(model, tokens, "heads", settings=settings, progress=False)
    return Timed(ls.refined_llc(draws), cpu_seconds() - began)


def main() -> None:
    args = parser(__doc__).parse_args()
    one_thread()
    size = (16, 24) if args.quick else (SEQUENCES, LENGTH)
    recipe = RECIPE.but(seed=args.seed)
    now = ls.Settings(batch_size=BATCH, target_se=WANTED, seed=args.seed)
    if args.quick:
        recipe, now = recipe.but(draws=4, burn_in=2), toy(now)
    run(recipe.but(draws=2, burn_in=0), *size)  # loads and warms up
    before, here = run(recipe, *size), run(now, *size)
    assert recipe.draws is not None and recipe.burn_in is not None
    step = before.seconds / (recipe.draws + recipe.burn_in)
    draws = recipe.draws * float((before.relative_se / WANTED).max()) ** 2
    needed = step * (recipe.burn_in + draws)
    rows = [
        [
            str(name), float(here.llc["llc"][i]), 100 * float(here.relative_se[i]),
            int(here.llc["n_draws"][i]), recipe.draws * float(before.relative_se[i] / WANTED) ** 2,
            str(here.llc["certificate"].values[i]),
        ]
        for i, name in enumerate(here.llc["component"].values)
    ]  # fmt: skip
    columns = ["head", "λ̂", "SE %", "draws", "draws that 0.1.0 needs", "certificate"]
    show_table(f"All heads to a relative standard error of {100 * WANTED:g} %", columns, rows)
    say(f"0.1.0: {draws:.0f} draws of all heads, {step * 1000:.0f} ms a step, {needed:.0f} s")
    figures = {
        "demo_cost_ratio": here.seconds / needed,
        "seconds": here.seconds,
        "seconds_0_1_0": needed,
        "certified": int((here.llc["certificate"] == "certified").sum()),
        "largest_relative_se": float(here.relative_se.max()),
    }
    finish(args, figures, None if args.quick else TARGETS)


if __name__ == "__main__":
    main()
