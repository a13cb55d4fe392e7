"""Circuits of small trained models: what is proposed, and what trials say, against a fixed truth.

Twelve models that differ in depth, heads, norm, positions, MLPs and task, all drawn from the seed
(``benchmarks.zoo`` has the tasks), each trained on its answer-only loss within seconds; those that
did not learn are drawn again. The truth is fixed before anything else is looked at, by an
intervention that trials do not make and on other tokens: every path between heads and every head is
ablated by resampling on 128 sequences; what costs the answer at least 0.1 nats and a quarter of the
largest effect, with p < 0.01 after Holm's correction over all, is the circuit.

- *inferred*: the first hypothesis of ``propose_circuits`` from draws at default settings, on other
  tokens; nothing is ablated;
- *edge attribution*: ``edge_attribution`` (integrated gradients, EAP-IG): edges with at least 0.05
  nats and a quarter of the largest effect;
- *either, after a trial*: the inferred edges that hold in a trial of their own.

Trials of the true circuits and of as many false ones (random heads and paths of the same layers
that are no part of the truth) use a third set of tokens and the default ablation.
"""

from __future__ import annotations

import argparse
import json
import time
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Generator, Tensor

import lens_slt as ls
from benchmarks import common
from benchmarks.common import Target
from benchmarks.planted_circuits import f1
from benchmarks.zoo.models import Shape, new_model
from benchmarks.zoo.tasks import Task, make_task
from benchmarks.zoo.train import Training, full_steps, train, weighted_loss
from lens_slt.circuits.null_sets import all_paths
from lens_slt.circuits.pattern_masks import every_prediction
from lens_slt.circuits.runs import Runs
from lens_slt.circuits.statistics import Contrast, Measured, holm
from lens_slt.models.adapter import adapt

TARGETS = {
    "trained_head_f1": Target(least=0.9), "trained_edge_f1": Target(least=0.8),
    "true_undecided_rate": Target(most=0.1), "false_support_rate": Target(most=0.05),
}  # fmt: skip
TASKS = (
    "induction", "copying", "skip_trigram", "induction", "modular", "sorting",
    "induction", "copying", "skip_trigram", "brackets", "modular", "sorting",
)  # fmt: skip
TRUTH, PROBE, TRIAL = 128, 64, 64  # sequences
LEAST, SHARE, CERTAIN = 0.1, 0.25, 0.01  # of the truth
ATTRIBUTED = 0.05  # nats
LEARNT = 0.5  # of the loss of a uniform guess
KINDS = [("head", "head", through) for through in "QKV"]
METHODS = ("inferred", "edge attribution", "inferred, after a trial")


@dataclass(frozen=True)
class Subject:
    """A trained model with fresh tokens of its task."""

    name: str
    model: Any
    task: Task
    seed: int

    def tokens(self, n: int, which: int) -> Tensor:
        """Sequences that were neither trained on nor drawn for another purpose."""
        return self.task.draw(n, Generator().manual_seed(self.seed + 100 + which))

    def weights(self, n: int) -> Tensor:
        """The answer."""
        return torch.tensor(self.task.answer).expand(n, -1)


def draw_subject(seed: int, place: int, share: float = 1.0) -> Subject:
    """The first model, of those that the seed gives for this place, that learnt its task."""
    for attempt in range(8):
        rng = np.random.default_rng([seed, place, attempt])
        task = make_task(TASKS[place % len(TASKS)], rng)
        n_heads, d_model = int(rng.choice([1, 2, 3, 4, 6])), int(rng.choice([48, 64, 96]))
        shape = Shape(
            int(rng.choice([2, 2, 3])), n_heads, d_model, int(rng.choice([8, 16])),
            d_mlp=int(rng.choice([0, 0, 2])) * d_model,
            norm=rng.choice(np.array([None, "LN", "LNPre", "RMS"], dtype=object)),
            positions=str(rng.choice(["standard", "rotary"])), d_vocab=task.d_vocab,
            n_ctx=task.length,
        )  # fmt: skip
        model_seed = int(rng.integers(2**30))
        model = new_model(shape, Generator().manual_seed(model_seed))
        answer = torch.tensor(task.answer)
        steps = max(2, round(share * 2 * full_steps(shape, task.length)))
        train(model, task, Training(steps, 2e-3, 0.01), answer, model_seed + 1)
        subject = Subject(f"{place:02d} {task.name}", model, task, model_seed)
        with torch.no_grad():
            loss = float(weighted_loss(model, subject.tokens(64, 9), subject.weights(64)))
        words = f"{shape.n_layers}×{n_heads} heads, {shape.norm or 'no'} norm, {shape.positions}"
        learnt = loss < LEARNT * np.log(task.d_vocab)
        common.say(f"{subject.name}: {words}, loss {loss:.2f}{'' if learnt else ', not learnt'}")
        if learnt or share < 1:
            return subject
    return subject


def truth_of(subject: Subject) -> tuple[set[str], set[str]]:
    """Heads and edges whose ablation by resampling costs the answer."""
    tokens = subject.tokens(TRUTH, 0)
    resample = ls.Ablation("resample", seed=1)
    runs = Runs(adapt(subject.model), tokens, resample, weights=subject.weights(TRUTH))
    contrast = Contrast(runs.base, runs.real, seed=0)
    paths = sorted(all_paths(runs, KINDS))
    edges = {str(e): contrast.on_pattern(runs.loss(paths=[e]) - runs.base) for e in paths}
    heads = {h: contrast.on_pattern(runs.loss([h]) - runs.base) for h in runs.heads}
    return _certain(heads), _certain(edges)


def _certain(effects: dict[str, Measured]) -> set[str]:
    if not effects:
        return set()
    p = holm(np.array([one.p for one in effects.values()]))
    least = max(LEAST, SHARE * max(one.value for one in effects.values()))
    return {
        name for (name, one), corrected in zip(effects.items(), p, strict=True)
        if corrected < CERTAIN and one.value >= least
    }  # fmt: skip


def inferred(subject: Subject, settings: ls.Settings) -> ls.CircuitHypothesis | None:
    """What singular learning theory proposes for the answer."""
    tokens, probe = subject.tokens(PROBE, 1), subject.tokens(PROBE, 2)
    counts = subject.weights(PROBE)
    draws = ls.sample(
        subject.model, tokens, "heads", settings=settings, weights=counts, pad_id=-1,
        probes={"probe": ls.Probe(probe, weights=counts, pad_id=-1)}, progress=False,
    )  # fmt: skip
    evidence = ls.SltEvidence(ls.per_token_llc(draws), every_prediction(probe))
    found = ls.propose_circuits(evidence, subject.model, probe, weights=counts, pad_id=-1)
    return found[0] if found else None


def by_attribution(subject: Subject) -> tuple[set[str], set[str]]:
    """Edges with a large effect by integrated gradients."""
    tokens = subject.tokens(TRIAL, 3)
    mask = subject.weights(TRIAL) > 0
    found = ls.edge_attribution(subject.model, tokens, mask, pad_id=-1)["effect"]
    table = found.to_dataframe().reset_index().dropna(subset=["effect"])
    table = table[table["source"].str.contains("H") & table["target"].str.contains("H")]
    table = table[table["effect"] >= max(ATTRIBUTED, SHARE * table["effect"].max())]
    edges = {f"{r.source}→{r.target}.{r.through}" for r in table.itertuples()}
    return set(table["source"]) | set(table["target"]), edges


def decoy(heads: set[str], edges: set[str], runs: Runs, rng: np.random.Generator) -> str:
    """A hypothesis of the truth's size that shares nothing with it; "" where none is left."""
    others = [h for h in runs.heads if h not in heads]
    paths = [
        e for e in sorted(all_paths(runs, KINDS))
        if str(e) not in edges and {e.source, e.target} & {*others}
    ]  # fmt: skip
    if edges and paths:
        return str(paths[int(rng.integers(len(paths)))])
    chosen = rng.permutation(others)[: max(1, len(heads))] if others else []
    return "; ".join(str(h) for h in chosen)


def one_subject(subject: Subject, settings: ls.Settings, n_null: int, seed: int) -> dict[str, Any]:
    """Truth, what methods find, and verdicts, as plain values."""
    heads, edges = truth_of(subject)
    tokens, counts = subject.tokens(TRIAL, 4), subject.weights(TRIAL)
    composition = ls.composition_scores(subject.model)
    first = inferred(subject, settings)
    runs = Runs(adapt(subject.model), tokens, weights=counts, pad_id=-1)
    tried = {
        "true": "; ".join([*sorted(edges), *sorted(heads)]),
        "false": decoy(heads, edges, runs, np.random.default_rng(seed)),
        "inferred": "" if first is None else "; ".join([*map(str, first.edges), *first.heads]),
    }
    found: dict[str, Any] = {"edge attribution": by_attribution(subject)}
    found["inferred"] = _parts(first)
    verdicts: dict[str, Any] = {}
    held: set[str] = set()
    for kind, text in tried.items():
        if not text:
            continue
        trial = ls.cross_check(
            subject.model, tokens, ls.circuit(text, "all"), weights=counts, pad_id=-1,
            composition=composition, n_null=n_null, progress=False,
        )  # fmt: skip
        verdicts[kind] = [text, trial.verdict, list(trial.reasons)]
        if kind == "inferred":
            held = {
                one.part for one in trial.evidence
                if one.test in ("edge", "minimality") and one.outcome == "held"
            }  # fmt: skip
    ends = {part for part in held if "→" not in part}
    found[METHODS[2]] = (ends, {part for part in held if "→" in part})
    return {
        "name": subject.name, "truth": [sorted(heads), sorted(edges)],
        "found": {name: [sorted(a), sorted(b)] for name, (a, b) in found.items()},
        "verdicts": verdicts,
    }  # fmt: skip


def _parts(hypothesis: ls.CircuitHypothesis | None) -> tuple[set[str], set[str]]:
    if hypothesis is None:
        return set(), set()
    return set(hypothesis.heads), set(map(str, hypothesis.edges))


def summary(records: list[dict[str, Any]]) -> dict[str, Any]:
    """Tables and figures."""
    rows, figures = [], {}
    for method in METHODS:
        row: list[Any] = [method]
        for what in (0, 1):
            pairs = [({*r["found"][method][what]}, {*r["truth"][what]}) for r in records]
            counts = [
                sum(len(a & b) for a, b in pairs), sum(len(a - b) for a, b in pairs),
                sum(len(b - a) for a, b in pairs),
            ]  # fmt: skip
            row += f1(np.array(counts, dtype=float))
        rows.append(row)
    columns = ["method", *(f"{what} {x}" for what in ("head", "edge")
                           for x in ("precision", "recall", "F1"))]  # fmt: skip
    common.show_table(f"{len(records)} trained models", columns, rows)
    figures["trained_head_f1"], figures["trained_edge_f1"] = rows[0][3], rows[0][6]
    figures["trained_baseline_edge_f1"] = rows[1][6]
    figures["trained_filtered_edge_f1"] = rows[2][6]
    table = []
    for r in records:
        words = {kind: v[1] for kind, v in r["verdicts"].items()}
        table.append(
            [r["name"], ", ".join(r["truth"][1] or r["truth"][0]) or "nothing",
             ", ".join(r["found"]["inferred"][1] or r["found"]["inferred"][0]) or "nothing",
             *(words.get(kind, "–") for kind in ("true", "false", "inferred"))]
        )  # fmt: skip
    common.show_table(
        "Truth, proposal and verdicts",
        ["model", "truth", "inferred", "trial of truth", "of a false one", "of the inferred"],
        table,
    )
    of = {
        k: [r["verdicts"][k][1] for r in records if k in r["verdicts"]] for k in ("true", "false")
    }
    figures["true_undecided_rate"] = of["true"].count("undecided") / max(len(of["true"]), 1)
    figures["true_support_rate"] = of["true"].count("supported") / max(len(of["true"]), 1)
    figures["false_support_rate"] = of["false"].count("supported") / max(len(of["false"]), 1)
    return figures


def main() -> None:
    """Command line."""
    made = common.parser(__doc__)
    made.add_argument("--n", type=int, default=12, help="models")
    made.add_argument("--cache", type=Path, help="folder for finished models")
    args: argparse.Namespace = made.parse_args()
    common.one_thread()
    warnings.filterwarnings("ignore")
    settings, n_null, n, share = ls.Settings(seed=args.seed), 50, args.n, 1.0
    if args.quick:
        settings, n_null, n, share = ls.Settings(draws=8, burn_in=2), 8, 1, 0.05
    records = []
    for place in range(n):
        file = None if args.cache is None else args.cache / f"{args.seed}-{place:02d}.json"
        if file is not None and file.exists():
            records.append(json.loads(file.read_text()))
            continue
        began = time.process_time()
        subject = draw_subject(args.seed, place, share)
        records.append(one_subject(subject, settings, n_null, args.seed))
        common.say(f"{subject.name}: {time.process_time() - began:.0f} s, {records[-1]}")
        if file is not None:
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_text(json.dumps(records[-1]))
    figures = summary(records)
    common.finish(args, figures, None if args.quick else TARGETS)


if __name__ == "__main__":
    main()
