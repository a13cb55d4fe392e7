"""Does the development of a model, as refined LLCs see it, agree with what its behaviour shows?

Three two-layer runs (the shipped one and two trained here with other seeds and other shares of code
and prose, unless ``--cache`` has them) and the four-layer one. Of every run:

- *truth*, from behaviour alone: the transition of induction, with its interval, in the loss on the
  second half of random tokens said twice (minus that on the first) and in the prefix matching of
  the head that matches most at the end;
- *refined LLCs*: the transition of what one head holds on induction tokens beyond other tokens (the
  means of its per-token rLLCs), the head that holds most so at the end. It knows of no behaviour.

The two overlap if their intervals do, from the lower end of the begin to the upper end of the end.
Then heads are clustered by their trajectories and held against types by behaviour, beside the
published variants, and by what they hold on patterns beyond other tokens; and differences between
neighbouring checkpoints, with the noise that both share, are compared in variance with those of
independent draws.
"""

from __future__ import annotations

import argparse
import tempfile
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import xarray as xr

import lens_slt as ls
from benchmarks import common
from benchmarks.common import Target
from benchmarks.trained_runs import TRAINED, trained_run
from lens_slt.development.pattern_curves import pattern_curves
from lens_slt.training.train import repeated_tokens

TARGETS = {
    "transitions_overlapping": Target(least=1.0), "transition_width_ratio": Target(most=2.0),
    "head_type_ari": Target(least=0.6), "difference_variance_ratio": Target(least=1.0),
}  # fmt: skip
RUNS = ("attn-2l", *TRAINED, "gelu-4l")
SETTINGS = ls.Settings(draws=60, batch_size=8, thin=4)  # nβ 30, γ 200, 4 chains
TEXT, PROBE, LENGTH = 256, 24, 64  # sequences to sample on, of the probe, tokens
REPEATS = 32  # sequences of random tokens said twice
EARLIEST = 30  # of checkpoints before it the first is enough: little but norms moves
DENSE = 300  # steps between checkpoints of the runs trained here, after the first ones


@dataclass(frozen=True)
class Size:
    """How much is done."""

    settings: ls.Settings
    text: int
    probe: int
    length: int
    components: str = "heads"


FULL = Size(SETTINGS, TEXT, PROBE, LENGTH)
QUICK = Size(SETTINGS.but(draws=8, burn_in=2, thin=2, chains=2), 16, 8, 32, "L1H2, L1H5")


def run_of(name: str, cache: Path) -> ls.Checkpoints:
    """Checkpoints of a run; those with other data are trained where they are not yet there."""
    if name not in TRAINED:
        run = ls.checkpoints(name)
        return run.at([s for s in run.steps if not s or s >= EARLIEST])
    dense = trained_run(name, cache)
    steps = [s for s in dense.steps if not s or EARLIEST <= s < DENSE / 2 or not s % DENSE]
    return dense.at(sorted({*steps, dense.steps[-1]}))


def behaviour_curves(run: ls.Checkpoints) -> xr.Dataset:
    """Loss that repetition saves and prefix matching, with standard errors, at every checkpoint."""
    rows: dict[str, list[Any]] = {"saved": [], "saved_se": [], "matching": [], "matching_se": []}
    for step in run:
        model = run.load(step)
        tokens = repeated_tokens(model.cfg.d_vocab, 101, seed=4321, sequences=REPEATS)
        with torch.no_grad():
            logits = model(tokens[:, :-1])
        loss = torch.nn.functional.cross_entropy(
            logits.transpose(1, 2), tokens[:, 1:], reduction="none"
        ).numpy()
        half = tokens.shape[1] // 2
        saved = loss[:, :half].mean(1) - loss[:, half + 1 :].mean(1)
        rows["saved"].append(saved.mean())
        rows["saved_se"].append(saved.std(ddof=1) / len(saved) ** 0.5)
        scores = ls.behaviour_scores(model, n_random=8, length=50)
        rows["matching"].append(scores["prefix_matching"].values)
        rows["matching_se"].append(scores["prefix_matching_se"].values)
    best = int(np.argmax(rows["matching"][-1]))
    head = str(scores["component"].values[best])
    for key in ("matching", "matching_se"):
        rows[key] = [values[best] for values in rows[key]]
    return xr.Dataset(
        {key: ("checkpoint", np.array(values, dtype=float)) for key, values in rows.items()},
        coords={"checkpoint": list(run.steps)},
        attrs={"head": head},
    )


def held_on_induction(curves: xr.Dataset) -> xr.Dataset:
    """That of the head which holds most on induction tokens at the end."""
    one = curves.sel(pattern="induction")
    head = one["contrast"].isel(checkpoint=-1).idxmax("component").values
    one = one.sel(component=head)
    data = {"held": one["contrast"], "held_se": one["contrast_se"]}
    return xr.Dataset(data, attrs={"head": str(head)}).reset_coords(drop=True)


def largest(curves: xr.Dataset, name: str) -> dict[str, float]:
    """Begin, midpoint and end of a curve's largest transition, with the ends of their intervals."""
    found = ls.transitions(curves[name], se=curves[f"{name}_se"]).isel(observable=0)
    if not int(found["n_transitions"]):
        return {}
    one = found.isel(transition=int(np.nanargmax(np.abs(found["change"].values))))
    keys = ("begin", "midpoint", "end")
    return {
        f"{key}{end}": float(one[f"{key}{end}"]) for key in keys for end in ("", "_low", "_high")
    }


def overlaps(one: dict[str, float], other: dict[str, float]) -> bool:
    """Whether two transitions may be at the same time."""
    return one["begin_low"] <= other["end_high"] and other["begin_low"] <= one["end_high"]


def width(one: dict[str, float]) -> float:
    """In log steps."""
    return float(np.log1p(one["end"]) - np.log1p(one["begin"]))


def one_run(name: str, size: Size, cache: Path) -> dict[str, Any]:
    """Everything of one run, as plain values."""
    run = run_of(name, cache)
    tokens = ls.load_tokens("mix", n_sequences=size.text, length=size.length)
    probe = ls.load_tokens("mix", n_sequences=size.probe, length=size.length, seed=1)
    folder = cache / f"sweep-{name.replace(' ', '-')}"
    found = ls.develop(
        run, tokens, size.components, settings=size.settings, probes={"text": probe}, path=folder,
        progress=False,
    )  # fmt: skip
    behaviour = behaviour_curves(run)
    record: dict[str, Any] = {"name": name, "checkpoints": len(run)}
    record["behaviour"] = {key: largest(behaviour, key) for key in ("saved", "matching")}
    by_pattern = pattern_curves(folder, "text", list(run.steps))
    held = held_on_induction(by_pattern)
    record["held"] = largest(held, "held")
    record["heads"] = [behaviour.attrs["head"], held.attrs["head"]]
    curves = found["refined_llc"].to_dataset()
    ratios = []
    for before, after in zip(run.steps, run.steps[1:], strict=False):
        one, other = (curves.sel(checkpoint=[step]).isel(checkpoint=0) for step in (before, after))
        change = ls.compare(one, other)
        apart = one["se"] ** 2 + other["se"] ** 2
        ratios += (apart / change["llc_se"] ** 2).values[change["paired"].values].tolist()
    record["variance_ratio"] = float(np.median(ratios))
    if size.components == "heads":
        clusters = ls.head_trajectories(found)
        record["ari"] = float(clusters["type_ari"])
        record["verdict"] = clusters.attrs["verdict"]
        types = ls.open_checkpoint(folder, run.steps[-1])["behaviour_scores"]
        contrasts = ls.head_trajectories(by_pattern, types=types)
        record["contrast_ari"] = float(contrasts["type_ari"])
        record["contrast_verdict"] = contrasts.attrs["verdict"]
        record["variants"] = {
            str(variant): float(value)
            for variant, value in zip(
                clusters["variant"].values, clusters["variant_type_ari"].values, strict=True
            )
        }
    return record


def summary(records: list[dict[str, Any]]) -> dict[str, Any]:
    """Tables and figures."""
    rows, overlapping, ratios = [], [], []
    for record in records:
        for key, truth in record["behaviour"].items():
            held = record["held"]
            both = bool(truth and held)
            overlapping.append(both and overlaps(truth, held))
            ratios.append(width(held) / width(truth) if both else float("nan"))
            rows.append([
                record["name"], record["checkpoints"], key, record["heads"][0], _words(truth),
                record["heads"][1], _words(held), "yes" if overlapping[-1] else "NO", ratios[-1],
            ])  # fmt: skip
    columns = ["run", "checkpoints", "behaviour", "of", "its transition", "head", "of its rLLC",
               "overlap", "width ratio"]  # fmt: skip
    common.show_table("The induction transition: begin – midpoint – end", columns, rows)
    agree = [one == other for one, other in (record["heads"] for record in records)]
    figures = {
        "same_head": float(np.mean(agree)),
        "transitions_overlapping": float(np.mean(overlapping)),
        "transition_width_ratio": float(np.nanmedian(ratios)),
        "difference_variance_ratio": float(np.median([r["variance_ratio"] for r in records])),
    }
    clustered = [r for r in records if "ari" in r]
    if clustered:
        names = list(clustered[0]["variants"])
        rows = [["consensus", *(r["ari"] for r in clustered)]]
        rows += [
            [name, *(r["variants"].get(name, float("nan")) for r in clustered)] for name in names
        ]
        for key, name in (("contrast_ari", ""), ("contrast_verdict", ", verdict")):
            rows.append([f"of contrasts on patterns{name}", *(r[key] for r in clustered)])
        rows.append(["verdict", *(r["verdict"] for r in clustered)])
        common.show_table(
            "Adjusted Rand index of clusters of head trajectories with types by behaviour",
            ["variant", *(r["name"] for r in clustered)], rows,
        )  # fmt: skip
        figures["head_type_ari"] = float(np.mean([r["ari"] for r in clustered]))
        figures["contrast_ari"] = float(np.mean([r["contrast_ari"] for r in clustered]))
        figures["best_published_ari"] = float(
            max(np.nanmean([r["variants"].get(n, np.nan) for r in clustered]) for n in names)
        )
    return figures


def _words(one: dict[str, float]) -> str:
    if not one:
        return "none"
    return " – ".join(f"{one[key]:.0f}" for key in ("begin", "midpoint", "end"))


def main() -> None:
    """Command line."""
    made = common.parser(__doc__)
    made.add_argument("--cache", type=Path, help="folder for training runs and sweeps")
    made.add_argument("--only", choices=RUNS, help="one run")
    args: argparse.Namespace = made.parse_args()
    common.one_thread()
    warnings.filterwarnings("ignore")
    size = QUICK if args.quick else FULL
    names = RUNS[:1] if args.quick else (args.only,) if args.only else RUNS
    with tempfile.TemporaryDirectory() as scratch:
        cache = args.cache or Path(scratch)
        records = []
        for name in names:
            records.append(one_run(name, size, cache))
            common.say(str(records[-1]))
        figures = summary(records)
    common.finish(args, figures, None if args.quick else TARGETS)


if __name__ == "__main__":
    main()
