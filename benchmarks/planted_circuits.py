"""Are circuits inferred rightly, and verdicts to be trusted, where the truth is known?

The planted models of ``lens_slt.planted_suite``: 40 small transformers whose weights were written
by hand, with a circuit or none, among distractor heads and pairs that compose strongly without
doing anything. Of every instance a third of the sequences is sampled on, a third is the probe, and
a third is for the trial.

- *inferred*: the first hypothesis of ``propose_circuits`` for the planted pattern, from per-token
  rLLCs and composition on tokens; nothing is ablated;
- *composition only*: pairs significant against both nulls that exceed chance by at least half as
  much as the strongest pair;
- *ablation only*: heads whose mean ablation hurts the pattern more than matched tokens (q < 0.05,
  at least 0.05 nats and a quarter of the largest effect), pairs of them whose path does (likewise);
- *edge attribution*: integrated gradients (EAP-IG); edges, and heads by their edge into the logits,
  with at least 0.05 nats and a quarter of the largest effect;
- the inferred edges, and those of edge attribution, that hold in a trial of their own (with
  ``--hard``).

With ``--hard`` the models are those of ``lens_slt.hard_suite``: most heads of a layer in the
circuit, one or two heads a layer, a dead head that composes, large learned positions without a
norm, an MLP in the path, a loss at answers only.

Precision, recall and F1 are over the edges (heads and MLPs) of all instances together; what is
found where there is no circuit counts against a method. Trials: of the planted circuits, of all
decoys (a pair that only composes, reversed roles, random heads, the right heads with a wrong
pattern), and of what was inferred in models without a circuit.

Calibration: on models without a circuit, random hypotheses and random labels; p-values must be
uniform (smallest Kolmogorov–Smirnov p over kinds of p-values) and hypotheses hardly ever supported.
"""

from __future__ import annotations

import argparse
import json
import time
import warnings
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import xarray as xr
from scipy import stats

import lens_slt as ls
from benchmarks import common
from benchmarks.common import Target
from lens_slt.circuits.planted import PlantedCircuit
from lens_slt.circuits.runs import Runs
from lens_slt.circuits.statistics import Contrast
from lens_slt.models.adapter import adapt
from lens_slt.models.components import node_names
from lens_slt.schema import stamped

TARGETS = {
    "head_f1": Target(least=0.9), "edge_f1": Target(least=0.8),
    "false_support_rate": Target(most=0.05), "true_support_rate": Target(least=0.9),
    "ks_p": Target(least=0.01), "null_support_rate": Target(most=0.05),
}  # fmt: skip
THIRD = 64  # sequences
SETTINGS = ls.Settings(draws=80, batch_size=8, thin=2)  # nβ 30, γ 200, 4 chains
# The cheapest published, for some are stiff and take thirty steps a draw.
HARD_SETTINGS = SETTINGS.but(n_beta=10, gamma=300, draws=60, thin=1)
LEAST, SHARE = 0.05, 0.25  # of the baselines: nats, and share of the largest effect
METHODS = ("inferred", "composition only", "ablation only", "edge attribution")
FILTERED = ("inferred, after a trial", "edge attribution, after a trial")
HARD_TARGETS = {
    "hard_head_f1": Target(least=0.9), "hard_edge_f1": Target(least=0.8),
    "true_undecided_rate": Target(most=0.1), "false_support_rate": Target(most=0.05),
}  # fmt: skip
Found = tuple[set[str], set[str]]  # heads, edges


def part(p: PlantedCircuit, place: int) -> tuple[Any, xr.DataArray]:
    """A third of an instance's tokens and their labels."""
    rows = slice(place * THIRD, (place + 1) * THIRD)
    return p.tokens[rows], p.patterns.isel(sequence=rows)


def counts(p: PlantedCircuit, place: int) -> dict[str, Any]:
    """Which predictions of that third count, where not all do."""
    if p.weights is None:
        return {}
    return {"weights": p.weights[place * THIRD : (place + 1) * THIRD]}


def inferred(p: PlantedCircuit, settings: ls.Settings) -> list[ls.CircuitHypothesis]:
    """What singular learning theory proposes for the planted pattern."""
    probe, patterns = part(p, 1)
    draws = ls.sample(
        p.model, part(p, 0)[0], "heads" if p.model.cfg.attn_only else "heads, mlps",
        settings=settings, probes={"probe": ls.Probe(probe, **counts(p, 1))}, progress=False,
        **counts(p, 0),
    )  # fmt: skip
    evidence = ls.SltEvidence(ls.per_token_llc(draws), patterns)
    proposed = ls.propose_circuits(evidence, p.model, probe, most=20, **counts(p, 1))
    return [h for h in proposed if h.pattern == p.pattern]


def by_composition(composition: xr.Dataset) -> Found:
    """Pairs that compose far above chance."""
    table = composition.to_dataframe().reset_index().dropna(subset=["score"])
    excess = table["score"] - composition.attrs["chance_score"]
    clear = (table[["q_random", "q_rotation"]].max(axis=1) < LEAST) & (excess >= excess.max() / 2)
    chosen = table[clear]
    return set(chosen["source"]) | set(chosen["target"]), _edges(chosen)


def by_ablation(p: PlantedCircuit) -> Found:
    """Heads whose ablation, and paths between them whose ablation, hurts the pattern."""
    tokens, patterns = part(p, 2)
    runs = Runs(adapt(p.model), tokens, **counts(p, 2))
    contrast = Contrast(runs.base, patterns.sel(pattern=p.pattern).values & runs.real)
    effects = {node: contrast.matched(runs.loss([node]) - runs.base) for node in runs.nodes}
    heads = _clear(effects)
    paths = [
        ls.Edge(a, b, q) for a in sorted(heads) for b in sorted(heads) if runs.can_read(b, a)
        for q in ("QKV" if "H" in b else ("",))
    ]  # fmt: skip
    by_path = {str(edge): contrast.matched(runs.loss(paths=[edge]) - runs.base) for edge in paths}
    return heads, _clear(by_path)


def by_attribution(p: PlantedCircuit) -> Found:
    """Edges with a large effect by integrated gradients."""
    tokens, patterns = part(p, 2)
    mask = patterns.sel(pattern=p.pattern).values
    return attributed(ls.edge_attribution(p.model, tokens, mask, steps=3, **counts(p, 2)))


def attributed(attribution: xr.Dataset) -> Found:
    """Edges with a large effect, and nodes that write or read along one."""
    table = attribution["effect"].to_dataframe().reset_index().dropna(subset=["effect"])
    table = table[table["effect"] >= max(LEAST, SHARE * table["effect"].max())]
    between = table[table["target"] != "logits"]
    return set(table["source"]) | set(between["target"]), _edges(between)


def after_trial(p: PlantedCircuit, found: Found, n_null: int) -> Found:
    """Of a method's edges and nodes those that hold in a trial."""
    nodes, edges = found
    if not nodes:
        return found
    tokens, patterns = part(p, 2)
    text = "; ".join([*sorted(edges), *sorted(nodes)])
    trial = ls.cross_check(
        p.model, tokens, ls.circuit(text, p.pattern), patterns=patterns,
        composition=no_scores(p.model), n_null=n_null, progress=False, **counts(p, 2),
    )  # fmt: skip
    return that_hold(trial, found)


def that_hold(trial: ls.Trial, found: Found) -> Found:
    """Of nodes and edges those that a trial of them found needed."""
    held = {
        one.part for one in trial.evidence
        if one.test in ("edge", "minimality") and one.outcome == "held"
    }  # fmt: skip
    return held & found[0], held & found[1]


def _edges(table: pd.DataFrame) -> set[str]:
    return {str(ls.Edge(r.source, r.target, r.through)) for r in table.itertuples()}


def one_instance(
    p: PlantedCircuit, settings: ls.Settings, n_null: int, filtered: bool
) -> dict[str, Any]:
    """What each method finds, and the verdicts of all hypotheses, as plain values."""
    composition = ls.composition_scores(p.model)
    proposed = inferred(p, settings)
    first = proposed[0] if proposed else None
    found = {
        "inferred": parts_of(first),
        "composition only": by_composition(composition),
        "ablation only": by_ablation(p),
        "edge attribution": by_attribution(p),
    }
    if filtered:
        found |= {name: after_trial(p, found[name.split(",")[0]], n_null) for name in FILTERED}
    tokens, patterns = part(p, 2)
    tried = [*([p.truth] if p.truth else []), *p.decoys, *([first] if first else [])]
    trials = ls.cross_check(
        p.model, tokens, tried, patterns=patterns, composition=composition, n_null=n_null,
        progress=False, **counts(p, 2),
    )  # fmt: skip
    verdicts = [(t.hypothesis.name, t.verdict, list(t.reasons)) for t in trials]
    n_true = int(p.truth is not None)
    return {
        "family": p.family,
        "truth": [sorted(one) for one in parts_of(p.truth)],
        "found": {name: [sorted(a), sorted(b)] for name, (a, b) in found.items()},
        "true": verdicts[:n_true],
        "decoys": verdicts[n_true : n_true + len(p.decoys)],
        "inferred": verdicts[n_true + len(p.decoys) :],
    }


def calibration(n_trials: int, n_null: int) -> tuple[dict[str, np.ndarray], int]:
    """Of random hypotheses about random labels: p and share of the null that reaches the effect,
    ``[trial, 2]``, by test; and how many hypotheses were supported."""
    values: dict[str, list[tuple[float, float]]] = {}
    supported = 0
    for i in range(n_trials):
        p = ls.plant("empty", seed=1000 + i // 10, n_sequences=THIRD)
        rng = np.random.default_rng(i)
        first, second = (rng.choice(8, 2, replace=False) for _ in range(2))
        edge = f"L0H{first[0]} -> L1H{second[0]}.{rng.choice(list('QKV'))}"
        hypothesis = ls.circuit(f"{edge}; L0H{first[1]}; L1H{second[1]}", "random")
        labels = rng.random(tuple(p.patterns.shape[1:])) < 0.3
        trial = ls.cross_check(
            p.model, p.tokens, hypothesis, patterns=labels, n_null=n_null, n_bootstrap=400, seed=i,
            composition=no_scores(p.model), progress=False,
        )  # fmt: skip
        supported += trial.verdict == "supported"
        for one in trial.evidence:
            if one.test in ("necessity", "edge"):
                values.setdefault(one.test, []).append((one.p, one.null_share))
    return {name: np.array(p) for name, p in values.items()}, supported


def f1(counts: np.ndarray) -> tuple[float, float, float]:
    """Precision, recall and F1 from true positives, false positives, false negatives."""
    right, wrong, missed = counts
    precision = right / max(right + wrong, 1)
    recall = right / max(right + missed, 1)
    return precision, recall, 2 * right / max(2 * right + wrong + missed, 1)


def summary(records: list[dict[str, Any]]) -> dict[str, Any]:
    """Tables of F1 and verdicts; the figures."""
    methods = [*METHODS, *(name for name in FILTERED if name in records[0]["found"])]
    counts = {(m, what): np.zeros(3) for m in methods for what in (0, 1)}
    families = list(dict.fromkeys(r["family"] for r in records))
    by_family = {(f, what): np.zeros(3) for f in families for what in (0, 1)}
    for record in records:
        for method in methods:
            for what in (0, 1):
                one = counted(set(record["found"][method][what]), set(record["truth"][what]))
                counts[method, what] += one
                if method == "inferred":
                    by_family[record["family"], what] += one
    rows = [
        [method, *(value for what in (0, 1) for value in f1(counts[method, what]))]
        for method in methods
    ]
    columns = ["method", *(f"{what} {x}" for what in ("node", "edge")
                           for x in ("precision", "recall", "F1"))]  # fmt: skip
    common.show_table(f"{len(records)} instances", columns, rows)
    rows = []
    for family in families:
        mine = [r for r in records if r["family"] == family]
        rows.append(
            [
                family, len(mine), *(f1(by_family[family, what])[2] for what in (0, 1)),
                *(_rate(v for r in mine for v in r[key]) for key in ("true", "inferred", "decoys")),
            ]
        )  # fmt: skip
    common.show_table(
        "By family: F1 of the inferred circuits, and supported / tried",
        ["family", "instances", "node F1", "edge F1", "true", "inferred", "decoys"], rows,
    )  # fmt: skip
    true = [v for r in records for v in r["true"]]
    false = [v for r in records for v in r["decoys"]]
    false += [v for r in records if not r["true"] for v in r["inferred"]]
    figures = {
        f"{name.split(',')[0].replace(' ', '_')}_after_trial_edge_f1": f1(counts[name, 1])[2]
        for name in methods[len(METHODS) :]
    }
    return figures | {
        "head_f1": f1(counts["inferred", 0])[2],
        "edge_f1": f1(counts["inferred", 1])[2],
        "best_baseline_head_f1": max(f1(counts[m, 0])[2] for m in METHODS[1:]),
        "best_baseline_edge_f1": max(f1(counts[m, 1])[2] for m in METHODS[1:]),
        "true_support_rate": float(np.mean([v[1] == "supported" for v in true])) if true else 0.0,
        "true_undecided_rate": float(np.mean([v[1] == "undecided" for v in true])) if true else 0.0,
        "false_support_rate": float(np.mean([v[1] == "supported" for v in false])),
    }


def _clear(effects: dict[str, Any]) -> set[str]:
    if not effects:
        return set()
    q = stats.false_discovery_control([one.p for one in effects.values()])
    least = max(LEAST, SHARE * max(one.value for one in effects.values()))
    return {
        name for (name, one), value in zip(effects.items(), q, strict=True)
        if value < 0.05 and one.value >= least
    }  # fmt: skip


def counted(found: set[str], truth: set[str]) -> np.ndarray:
    return np.array([len(found & truth), len(found - truth), len(truth - found)], dtype=float)


def _rate(verdicts: Iterable[Any]) -> str:
    words = [v[1] for v in verdicts]
    return f"{words.count('supported')} / {len(words)}"


def parts_of(hypothesis: ls.CircuitHypothesis | None) -> Found:
    if hypothesis is None:
        return set(), set()
    return set(hypothesis.components), set(map(str, hypothesis.edges))


def no_scores(model: Any) -> xr.Dataset:
    """Composition scores do not vote: spare a trial their computation."""
    names = node_names(adapt(model))
    keys = ("score", "z_random", "z_rotation", "p_random", "p_rotation", "q_random", "q_rotation")
    nothing = np.full((len(names), len(names), 4), np.nan)
    dims = ("source", "target", "through")
    found = xr.Dataset(
        dict.fromkeys(keys, (dims, nothing)),
        coords={"source": names, "target": names, "through": ["Q", "K", "V", ""]},
        attrs={"chance_score": 0.0},
    )
    return stamped(found, "composition_scores")


def main() -> None:
    """Command line."""
    made = common.parser(__doc__)
    made.add_argument("--seeds", type=int, default=5, help="of every family; 5 make 40 instances")
    made.add_argument("--hard", action="store_true", help="the hard families; no calibration")
    made.add_argument("--families", nargs="+", help="all by default")
    made.add_argument("--trials", type=int, default=200, help="of the calibration")
    made.add_argument("--cache", type=Path, help="folder for finished instances")
    args: argparse.Namespace = made.parse_args()
    warnings.filterwarnings("ignore")
    common.one_thread()
    settings = HARD_SETTINGS if args.hard else SETTINGS
    n_null, n_trials, seeds = 50, args.trials, args.seeds
    if args.quick:
        settings, n_null, n_trials, seeds = common.toy(settings), 4, 1, 1
    cache = None if args.quick else args.cache  # toy records are not kept
    records = []
    suite = ls.hard_suite if args.hard else ls.planted_suite
    for p in suite(seeds, n_sequences=3 * THIRD, seed=args.seed):
        if args.quick and p.family not in ("induction", "few_heads"):
            continue
        if args.families and p.family not in args.families:
            continue
        file = None if cache is None else cache / f"{p.name}.json"
        if file is not None and file.exists():
            records.append(json.loads(file.read_text()))
            continue
        began = time.perf_counter()
        records.append(one_instance(p, settings, n_null, args.hard))
        common.say(f"{p.name}: {time.perf_counter() - began:.0f} s, {_line(records[-1])}")
        if file is not None:
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_text(json.dumps(records[-1]))
    figures = summary(records)
    if args.hard:
        same = ("false_support_rate", "true_support_rate", "true_undecided_rate")
        figures = {k if k in same else f"hard_{k}": v for k, v in figures.items()}
        common.finish(args, figures, None if args.quick else HARD_TARGETS)
        return
    values, supported = calibration(n_trials, n_null)
    rows = [
        [
            name, len(found), stats.kstest(found[:, 0], "uniform").pvalue,
            float((found[:, 0] < 0.05).mean()), float((found[:, 1] <= 0.05).mean()),
        ]
        for name, found in values.items()
    ]  # fmt: skip
    columns = ["test", "trials", "KS p", "p under 0.05", "beats 95 % of its null"]
    common.show_table("Calibration: models without a circuit, random labels", columns, rows)
    figures["ks_p"] = min(float(row[2]) for row in rows)
    figures["null_support_rate"] = supported / n_trials
    common.finish(args, figures, None if args.quick else TARGETS)


def _line(record: dict[str, Any]) -> str:
    truth = ", ".join(record["truth"][1] or record["truth"][0]) or "no circuit"
    heads, edges = record["found"]["inferred"]
    words = {kind: [v[1] for v in record[kind]] for kind in ("true", "inferred", "decoys")}
    return f"truth {truth}; inferred {', '.join(edges or heads) or 'nothing'}; {words}"


if __name__ == "__main__":
    main()
