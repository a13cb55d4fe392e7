"""Stages of synthetic training runs whose boundaries, noise and types are known.

λ̂ has a relative standard error of 3 %, and errors of neighbouring checkpoints correlate by 0.5, as
in a default run; both are read off 16 blocks of draws. Curves are not made as they are fitted
(`benchmarks.staged_runs`). `boundary_coverage`: of found boundaries that belong to a true one, the
share whose 95 % interval holds it. `missed`: of true boundaries that could be seen, those whose
corner is worth 10 of χ² or more to one who knows all the rest, the share without a found one within
half a unit of log(step + 1) or with it in its interval; `missed_all`, of all. `false_stage_rate`:
of curves without stages, the share that is cut. `extra_per_run`: found boundaries that belong to no
true one. `types_right`: of stages that are given a type, in runs with the right number of stages,
the share that has it. `transition_coverage` is of begin, midpoint and end of transitions,
`critical_coverage` of steps where three observables together are fastest. Beside it, on the same
runs, the published rule, a Gaussian process with intervals of its slope, and ruptures.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from importlib.util import find_spec

import numpy as np
import xarray as xr
from scipy.optimize import linear_sum_assignment

import lens_slt as ls
from benchmarks.common import Target, finish, one_thread, parser, say, show_table
from benchmarks.stage_rivals import by_ruptures, gp_intervals, published
from benchmarks.staged_runs import FEATURELESS, Run, featureless_run, logistic_curves, staged_run
from lens_slt.arrays import FloatArray
from lens_slt.development.stages import find_stages

NEAR = 0.5  # of log(step + 1)
FAR = 1e6
SEEABLE = 10.0  # of χ²
TARGETS = {
    "boundary_coverage": Target(least=0.88, most=1.0),
    "false_stage_rate": Target(most=0.05),
    "missed": Target(most=0.1),
}


@dataclass
class Tally:
    """Of one method: what came of true and found boundaries."""

    true: int = 0
    runs: int = 0
    missed: int = 0
    extra: int = 0
    seeable: int = 0
    seeable_missed: int = 0
    held: list[bool] = field(default_factory=list)
    widths: list[float] = field(default_factory=list)
    featureless: dict[str, list[bool]] = field(default_factory=dict)

    def add(self, run: Run, found: FloatArray) -> None:
        """Boundaries ``[3, k]``: median, low, high."""
        pairs = matched(run.boundaries, found)
        self.runs += 1
        self.true += len(run.boundaries)
        self.missed += len(run.boundaries) - len(pairs)
        self.extra += found.shape[1] - len(pairs)
        seeable = run.worth >= SEEABLE
        self.seeable += int(seeable.sum())
        self.seeable_missed += int(np.delete(seeable, [i for i, _ in pairs]).sum())
        for i, j in pairs:
            self.held.append(bool(found[1, j] <= run.boundaries[i] <= found[2, j]))
            self.widths.append(float(found[2, j] - found[1, j]))

    def false_rate(self) -> float:
        return float(np.mean([cut for cuts in self.featureless.values() for cut in cuts]))

    def row(self, name: str, *, intervals: bool = True) -> list[object]:
        return [
            name,
            float(np.mean(self.held)) if intervals and self.held else "",
            float(np.median(self.widths)) if intervals and self.widths else "",
            self.seeable_missed / max(1, self.seeable),
            self.missed / self.true,
            self.extra / self.runs,
            self.false_rate() if self.featureless else "",
        ]


def matched(true: FloatArray, found: FloatArray) -> list[tuple[int, int]]:
    """Pairs of a true and a found boundary, near one another or one in the other's interval."""
    apart = np.abs(true[:, None] - found[0])
    inside = (true[:, None] >= found[1]) & (true[:, None] <= found[2])
    cost = np.where((apart <= NEAR) | inside, apart, FAR)
    pairs = zip(*linear_sum_assignment(cost), strict=True)
    return [(int(i), int(j)) for i, j in pairs if cost[i, j] < FAR]


def as_curve(run: Run) -> tuple[xr.Dataset, xr.DataArray]:
    """λ̂ and loss as results over checkpoints."""
    coords = {"checkpoint": run.steps.round().astype(int)}
    llc = {
        "llc": ("checkpoint", run.llc),
        "se": ("checkpoint", run.se),
        "blocks": (("block", "checkpoint"), run.blocks),
    }
    return xr.Dataset(llc, coords), xr.DataArray(run.loss, coords, name="loss")


def staged(runs: Iterable[Run]) -> tuple[Tally, list[str]]:
    """lens_slt on staged runs: boundaries, and what came of types."""
    tally, types = Tally(), []
    for run in runs:
        curve, loss = as_curve(run)
        found = ls.stages(curve, loss=loss).sel(component="full")
        names = ("boundary_step", "boundary_step_low", "boundary_step_high")
        tally.add(run, np.stack([np.log1p(found[name].values) for name in names]))
        if found.sizes["stage"] == len(run.types):
            for said, true in zip(found["type"].values, run.types, strict=True):
                types.append("unclear" if said == "unclear" else str(said == true))
    return tally, types


def cut_by_lens_slt(run: Run, *, correlated: bool = True) -> FloatArray:
    """Boundaries on log(step + 1), ``[3, k]``."""
    blocks = run.blocks if correlated else None
    return np.log1p(find_stages(run.steps, run.llc, se=run.se, blocks=blocks).boundaries)


def featureless(tally: Tally, method: Callable[[Run], FloatArray], runs: Iterable[Run]) -> None:
    """Count the runs without stages that a method cuts."""
    for run in runs:
        tally.featureless.setdefault(run.kind, []).append(method(run).shape[1] > 0)


def transition_coverage(n: int, rng: np.random.Generator) -> tuple[float, float, float]:
    """Shares of begins, midpoints and ends held, of transitions found, median width of midpoint."""
    held, widths, found_one = [], [], []
    for _ in range(n):
        curves, (begin, middle, end), _ = logistic_curves(1, rng)
        found = ls.transitions(curves).isel(observable=0)
        found_one.append(found.sizes["transition"] == 1)
        if found_one[-1]:
            for name, true in (("begin", begin), ("midpoint", middle), ("end", end)):
                low, high = (np.log1p(found[f"{name}_{side}"].item()) for side in ("low", "high"))
                held.append(low <= true[0] <= high)
                if name == "midpoint":
                    widths.append(high - low)
    return float(np.mean(held)), float(np.mean(found_one)), float(np.median(widths))


def critical_coverage(n: int, rng: np.random.Generator) -> tuple[float, float]:
    """Share of true peaks of the speed of three observables that an interval holds; of extra."""
    held, extra = [], 0
    for _ in range(n):
        curves, _, peaks = logistic_curves(3, rng)
        found = ls.critical_checkpoints(curves)
        names = ("at_step", "at_step_low", "at_step_high")
        at = np.stack([np.log1p(found[name].values) for name in names])
        pairs = matched(peaks, at)
        extra += at.shape[1] - len(pairs)
        held += [bool(at[1, j] <= peaks[i] <= at[2, j]) for i, j in pairs]
        held += [False] * (len(peaks) - len(pairs))
    return float(np.mean(held)), extra / n


def main() -> None:
    made = parser(__doc__)
    made.add_argument("--runs", type=int, default=300)
    args = made.parse_args()
    one_thread()
    n = 4 if args.quick else args.runs
    rng = np.random.default_rng([args.seed, 15])
    runs = [staged_run(rng) for _ in range(n)]
    plain = [featureless_run(FEATURELESS[i % len(FEATURELESS)], rng) for i in range(n)]
    say(f"{n} runs with {sum(len(run.boundaries) for run in runs)} boundaries, {n} without stages")
    ours, types = staged(runs)
    featureless(ours, cut_by_lens_slt, plain)
    rows = [ours.row("lens_slt")]
    alone = Tally()
    for run in runs[: n // 3 + 1]:
        alone.add(run, cut_by_lens_slt(run, correlated=False))
    featureless(alone, lambda run: cut_by_lens_slt(run, correlated=False), plain[: n // 3 + 1])
    rows.append(alone.row("lens_slt from standard errors alone (a third of the runs)"))
    rivals: dict[str, Callable[[Run], FloatArray]] = {
        "Gaussian process with intervals": gp_intervals, "published rule": published,
    }  # fmt: skip
    if find_spec("ruptures") is None:
        say("ruptures is not installed (extra: bench); left out")
    else:
        rivals["ruptures"] = by_ruptures
    for name, method in rivals.items():
        tally = Tally()
        for run in runs:
            tally.add(run, method(run))
        featureless(tally, method, plain)
        rows.append(tally.row(name, intervals=name.endswith("intervals")))
    columns = ["method", "coverage", "median width", "missed", "of all", "extra a run", "false"]
    show_table("Boundaries, in units of log(step + 1)", columns, rows)
    kinds = [[kind, float(np.mean(cuts)), len(cuts)] for kind, cuts in ours.featureless.items()]
    show_table("Curves without stages: share that is cut", ["kind", "share", "of"], kinds)
    few = 2 if args.quick else n // 5
    held, found, width = transition_coverage(few, rng)
    critical, critical_extra = critical_coverage(few, rng)
    named = [kind for kind in types if kind != "unclear"]
    figures = {
        "boundary_coverage": float(np.mean(ours.held)),
        "median_width": float(np.median(ours.widths)),
        "false_stage_rate": ours.false_rate(),
        "missed": ours.seeable_missed / max(1, ours.seeable),
        "missed_all": ours.missed / ours.true,
        "seeable": ours.seeable / ours.true,
        "extra_per_run": ours.extra / ours.runs,
        "types_right": float(np.mean([kind == "True" for kind in named])),
        "types_unclear": 1 - len(named) / max(1, len(types)),
        "transition_coverage": held,
        "transitions_found": found,
        "transition_width": width,
        "critical_coverage": critical,
        "critical_extra_per_run": critical_extra,
    }  # fmt: skip
    finish(args, figures, TARGETS)


if __name__ == "__main__":
    main()
