"""What forms late, and what never, when repeats are taken out of windows of training?

From the checkpoint of the shipped run at which prefix matching has just begun, with the data of
``benchmarks.patterning``; all repeats are left out over the first third, the second, the last, or
all of a run. From 500 steps earlier on, with these data, nothing forms within 1200 steps whatever
is left out: shuffled repeats teach that nothing comes again. One seed: what forms at all and about
when, not how surely. Watched are the best previous-token and
prefix-matching scores of any head, the loss on second halves of random tokens said twice, and the
losses on code and prose.
"""

from __future__ import annotations

import argparse
import tempfile
import time
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

import lens_slt as ls
from benchmarks import common
from benchmarks.patterning import GROUPS, LEVEL, PROBED, corpus, probes
from lens_slt.training.retrainings import MeanLosses
from lens_slt.training.train import Recipe

START, STEPS = 2200, 900
HELD_OUT = [GROUPS.index("repeated text"), GROUPS.index("repeated random tokens")]
LEVELS = {"previous token": 0.5, "prefix matching": 0.3, PROBED: LEVEL}


@dataclass(frozen=True)
class Watched:
    """Losses, and the best score of any head; pickles."""

    probes: dict[str, ls.Probe]

    def __call__(self, model: Any) -> dict[str, float]:
        scores = ls.behaviour_scores(model, n_random=4)
        return {
            "previous token": float(scores["previous_token"].max()),
            "prefix matching": float(scores["prefix_matching"].max()),
        } | MeanLosses(self.probes)(model)


def main() -> None:
    """Command line."""
    made = common.parser(__doc__)
    made.add_argument("--cache", type=Path, help="folder for retrainings")
    made.add_argument("--parallel", type=int, help="processes for the retrainings")
    args: argparse.Namespace = made.parse_args()
    warnings.filterwarnings("ignore")
    if not args.parallel:
        common.one_thread()
    began = time.perf_counter()
    steps, seeds, n = (3, (0,), 48) if args.quick else (STEPS, (0,), 12000)
    data, kinds = corpus(n, args.seed + 2000)
    third = steps // 3
    windows = [(0, third), (third, 2 * third), (2 * third, steps), (0, steps)]
    with tempfile.TemporaryDirectory() as scratch:
        found = ls.developmental_ablation(
            ls.load_model("attn-2l", checkpoint=START), data, np.isin(kinds, HELD_OUT),
            Watched(probes(8 if args.quick else 32)), LEVELS, windows, steps=steps, start=START,
            path=(args.cache or Path(scratch)) / f"seed-{args.seed}", seeds=seeds,
            parallel=args.parallel, progress=False,
            optimisation=ls.Optimisation(learning_rate=Recipe.learning_rate),
        )  # fmt: skip
    figures = summary(found)
    figures["seconds"] = time.perf_counter() - began
    common.finish(args, figures)


def summary(found: Any) -> dict[str, Any]:
    """Tables and figures."""
    runs = [str(run) for run in found["run"].values]
    rows = [
        [run, str(level), float(one["formed"]), ", ".join(f"{x:.0f}" for x in one["step"].values),
         _with_error(one["mean_delay"], one["mean_delay_se"])]
        for run in runs for level in found["level"].values
        for one in [found.sel(run=run, level=level)]
    ]  # fmt: skip
    common.show_table(
        "Repeats left out over updates …: when things form",
        ["window", "what", "formed, share of seeds", "at step, by seed", "delay, steps"], rows,
    )  # fmt: skip
    last = found["value"].isel(checkpoint=-1)
    rows = [
        [run, *(_with_error(v.mean(), v.std(ddof=1) / len(v) ** 0.5 if len(v) > 1 else np.nan)
                for v in last.sel(run=run).values.T)]
        for run in runs
    ]  # fmt: skip
    names = [str(name) for name in found["observable"].values]
    common.show_table("At the end", ["window", *names], rows)
    figures = {}
    for window, run in zip(("first", "second", "last", "whole"), runs[1:], strict=True):
        for level in LEVELS:
            one, key = found.sel(run=run, level=level), f"{window}_{level.replace(' ', '_')}"
            figures[f"formed_{key}"] = float(one["formed"])
            figures[f"delay_{key}"] = float(one["mean_delay"])
    return figures


def _with_error(value: Any, error: Any) -> Any:
    """A value with its error; of a single seed there is none."""
    return common.WithError(float(value), float(error)) if np.isfinite(error) else float(value)


if __name__ == "__main__":
    main()
