"""Circuits of small trained models: what is proposed, and what trials say, against a fixed truth.

Twelve models that differ in depth, heads, norm, positions, MLPs and task, all drawn from the seed
(``benchmarks.zoo`` has the tasks), each trained on its answer-only loss within a minute; those that
did not learn are drawn again. The truth is fixed before anything else is looked at, by Shapley
values of ablation by resampling and by zero, in the probability of the answer
(``benchmarks.shapley`` says why, and what counts): interventions that trials do not make, on tokens
of their own. Parts on which the two disagree count neither for nor against a method. What either
sample of the truth says alone shows how well it is known (F1 between them).

- *inferred*: the widest hypothesis of ``propose_circuits``, as the truth is all that works for the
  answer, from draws of all heads and MLPs on other tokens; nothing is ablated;
- *edge attribution*: ``edge_attribution`` (integrated gradients, EAP-IG): edges with at least 0.05
  nats and a quarter of the largest effect;
- *after a trial*: the parts of either that hold in a trial of all of them.

Trials of the true circuits and of false ones use a third set of tokens and the default ablation.
False are: a path between true nodes, one from or to an idle node, idle nodes; idle is what is worth
less than half of what would make it true.
"""

from __future__ import annotations

import argparse
import json
import time
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Generator, Tensor

import lens_slt as ls
from benchmarks import common
from benchmarks.common import Target
from benchmarks.planted_circuits import (
    Found,
    attributed,
    counted,
    f1,
    no_scores,
    parts_of,
    that_hold,
)
from benchmarks.shapley import KINDS, ORDERS, TrueCircuit, true_circuit
from benchmarks.zoo.models import Shape, load_weights, new_model, weights_of
from benchmarks.zoo.tasks import Task, make_task
from benchmarks.zoo.train import Training, full_steps, train, weighted_loss
from lens_slt.circuits.null_sets import all_paths
from lens_slt.circuits.pattern_masks import every_prediction
from lens_slt.circuits.runs import Runs
from lens_slt.models.adapter import adapt

TARGETS = {
    "trained_head_f1": Target(least=0.9), "trained_edge_f1": Target(least=0.8),
    "true_undecided_rate": Target(most=0.1), "false_support_rate": Target(most=0.05),
}  # fmt: skip
TASKS = (
    "induction", "copying", "skip_trigram", "induction", "modular", "sorting",
    "induction", "copying", "skip_trigram", "brackets", "modular", "sorting",
)  # fmt: skip
SETTINGS = ls.Settings(n_beta=10, gamma=300, draws=60)  # published, cheaper: some are stiff
SEQUENCES = 256  # for each purpose: an answer each, and a trial of 20 edges needs many
AGAIN = "one sample of the truth, by the other"
LEARNT = 0.5  # of the loss of a uniform guess
ATTEMPTS = 8  # at a model that learns
METHODS = ("inferred", "edge attribution")
FILTERED = tuple(f"{name}, after a trial" for name in METHODS)


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


def blueprint(seed: int, place: int, attempt: int) -> tuple[Task, Shape, int]:
    """Task, shape and the seed of the weights."""
    rng = np.random.default_rng([seed, place, attempt])
    task = make_task(TASKS[place % len(TASKS)], rng)
    d_model = int(rng.choice([48, 64]))
    shape = Shape(
        int(rng.choice([2, 2, 3])), int(rng.choice([1, 2, 3, 4])), d_model,
        int(rng.choice([8, 16])), d_mlp=int(rng.choice([0, 0, 2])) * d_model,
        norm=rng.choice(np.array([None, "LN", "LNPre", "RMS"], dtype=object)),
        positions=str(rng.choice(["standard", "rotary"])), d_vocab=task.d_vocab, n_ctx=task.length,
    )  # fmt: skip
    return task, shape, int(rng.integers(2**30))


def draw_subject(seed: int, place: int, share: float, file: Path | None) -> Subject:
    """The first model, of those that the seed gives for this place, that learnt its task.

    Its weights are read from a file, or kept in it.
    """
    if file is not None and file.exists():
        kept = torch.load(file, weights_only=True)
        subject, _ = _untrained(seed, place, kept["attempt"])
        load_weights(subject.model, kept["weights"])
        return subject
    for attempt in range(ATTEMPTS):
        subject, shape = _untrained(seed, place, attempt)
        task = subject.task
        training = Training(max(2, round(share * full_steps(shape, task.length))), 2e-3, 0.01)
        train(subject.model, task, training, torch.tensor(task.answer), subject.seed + 1)
        with torch.no_grad():
            loss = float(weighted_loss(subject.model, subject.tokens(64, 9), subject.weights(64)))
        learnt = loss < LEARNT * np.log(task.d_vocab)
        common.say(
            f"{subject.name}: {shape.n_layers}×{shape.n_heads} heads"
            f"{' and MLPs' if shape.d_mlp else ''}, {shape.norm or 'no'} norm, {shape.positions}, "
            f"loss {loss:.2f}{'' if learnt else ', not learnt'}"
        )
        if learnt or share < 1:
            break
    if file is not None:
        file.parent.mkdir(parents=True, exist_ok=True)
        torch.save({"attempt": attempt, "weights": weights_of(subject.model)}, file)
    return subject


def _untrained(seed: int, place: int, attempt: int) -> tuple[Subject, Shape]:
    task, shape, model_seed = blueprint(seed, place, attempt)
    model = new_model(shape, Generator().manual_seed(model_seed))
    return Subject(f"{place:02d} {task.name}", model, task, model_seed), shape


def inferred(subject: Subject, settings: ls.Settings) -> tuple[Found, str]:
    """What singular learning theory proposes for the answer, and how many parts were certified."""
    tokens, probe = subject.tokens(SEQUENCES, 1), subject.tokens(SEQUENCES, 2)
    counts: dict[str, Any] = {"weights": subject.weights(SEQUENCES), "pad_id": -1}
    parts = "heads" if subject.model.cfg.attn_only else "heads, mlps"
    draws = ls.sample(
        subject.model, tokens, parts, settings=settings, progress=False,
        probes={"probe": ls.Probe(probe, **counts)}, **counts,
    )  # fmt: skip
    certificate = draws["health"].to_dataset()["certificate"].values
    evidence = ls.SltEvidence(ls.per_token_llc(draws), every_prediction(probe))
    found = ls.propose_circuits(evidence, subject.model, probe, **counts)
    words = f"{int((certificate == 'certified').sum())} of {len(certificate)}"
    return parts_of(found[-1] if found else None), words


def by_attribution(subject: Subject) -> Found:
    """Edges with a large effect by integrated gradients."""
    tokens, counts = subject.tokens(SEQUENCES, 3), subject.weights(SEQUENCES)
    mask = counts > 0
    return attributed(ls.edge_attribution(subject.model, tokens, mask, weights=counts, pad_id=-1))


def decoys(truth: TrueCircuit, runs: Runs, rng: np.random.Generator) -> Iterator[str]:
    """Hypotheses of idle paths and nodes, as far as there are any."""
    nodes, idle = truth.nodes.chosen, sorted(truth.nodes.idle)
    wires = [
        sorted(map(str, truth.edges.idle)),
        sorted(
            str(e) for e in all_paths(runs, KINDS)
            if len({e.source, e.target} & nodes) == len({e.source, e.target} & {*idle}) == 1
        ),
    ]  # fmt: skip
    for paths in wires:
        if paths:
            yield paths[int(rng.integers(len(paths)))]
    if idle:
        yield "; ".join(rng.permutation(idle)[: max(1, len(nodes))])


def one_subject(
    subject: Subject, settings: ls.Settings, n_null: int, n_orders: int, seed: int
) -> dict[str, Any]:
    """Truth, what methods find, and verdicts, as plain values."""
    truth = true_circuit(
        subject.model, subject.tokens(SEQUENCES, 0), subject.weights(SEQUENCES), seed, n_orders
    )
    tokens, counts = subject.tokens(SEQUENCES, 4), subject.weights(SEQUENCES)
    composition = no_scores(subject.model)

    def trial(text: str) -> ls.Trial:
        return ls.cross_check(
            subject.model, tokens, ls.circuit(text, "all"), weights=counts, pad_id=-1,
            composition=composition, n_null=n_null, progress=False,
        )  # fmt: skip

    began = time.process_time()
    first, certified = inferred(subject, settings)
    sampled = time.process_time() - began
    found = {"inferred": first, "edge attribution": by_attribution(subject)}
    verdicts: dict[str, list[Any]] = {"true": [], "false": []}
    for name, filtered in zip(METHODS, FILTERED, strict=True):
        verdicts[name] = []
        found[filtered] = found[name]
        if found[name][0]:
            one = trial(_words(found[name]))
            found[filtered] = that_hold(one, found[name])
            verdicts[name] = [_verdict(one)]
    runs = Runs(adapt(subject.model), tokens, weights=counts, pad_id=-1)
    if truth.nodes.chosen:
        verdicts["true"] = [_verdict(trial(_words(truth.parts)))]
    rng = np.random.default_rng(seed)
    verdicts["false"] = [_verdict(trial(text)) for text in decoys(truth, runs, rng)]
    return {
        "name": subject.name, "truth": _sorted(truth.parts), "unclear": _sorted(truth.unclear),
        "halves": [_sorted(one) for one in truth.halves],
        "shares": truth.shares,
        "found": {name: _sorted(parts) for name, parts in found.items()},
        "verdicts": verdicts, "certified": certified, "sampled": round(sampled, 1),
    }  # fmt: skip


def _words(parts: Found) -> str:
    return "; ".join([*sorted(parts[1]), *sorted(parts[0])])


def _sorted(parts: Found) -> list[list[str]]:
    return [sorted(one) for one in parts]


def _verdict(trial: ls.Trial) -> list[Any]:
    return [str(trial.hypothesis), trial.verdict, list(trial.reasons)]


def scores(truths: list[Any], found: list[Any], unclear: list[Any]) -> list[float]:
    """Precision, recall and F1 of nodes, then of edges, over all models together."""
    values: list[float] = []
    for what in (0, 1):
        triples = zip(found, truths, unclear, strict=True)
        numbers = [counted({*a[what]} - {*c[what]}, {*b[what]} - {*c[what]}) for a, b, c in triples]
        values += f1(np.sum(numbers, axis=0))
    return values


def summary(records: list[dict[str, Any]]) -> dict[str, Any]:
    """Tables and figures."""
    truths, unclear = ([r[key] for r in records] for key in ("truth", "unclear"))
    rows = {
        name: scores(truths, [r["found"][name] for r in records], unclear)
        for name in (*METHODS, *FILTERED)
    }
    once, again = ([r["halves"][i] for r in records] for i in (0, 1))
    rows[AGAIN] = scores(once, again, unclear)
    columns = ["method", *(f"{what} {x}" for what in ("node", "edge")
                           for x in ("precision", "recall", "F1"))]  # fmt: skip
    table = [[name, *values] for name, values in rows.items()]
    common.show_table(f"{len(records)} trained models", columns, table)
    table = []
    for r in records:
        mine = scores([r["truth"]], [r["found"]["inferred"]], [r["unclear"]])[2::3]
        words = [
            ", ".join(v[1] for v in r["verdicts"][kind]) or "–"
            for kind in ("true", "false", "inferred")
        ]
        sizes = (" + ".join(str(len(one)) for one in r[key]) for key in ("truth", "unclear"))
        table.append([r["name"], *sizes, *mine, r["certified"], r["sampled"], *words])
    columns = ["model", "truth: nodes + edges", "unclear", "node F1", "edge F1", "certified",
               "CPU s of draws", "trial of truth", "of false ones", "of the inferred"]  # fmt: skip
    common.show_table("By model: F1 of the inferred, and verdicts", columns, table)
    verdicts = {
        kind: [v[1] for r in records for v in r["verdicts"][kind]] for kind in ("true", "false")
    }
    n_true, n_false = (max(len(verdicts[kind]), 1) for kind in ("true", "false"))
    return {
        "trained_head_f1": rows["inferred"][2], "trained_edge_f1": rows["inferred"][5],
        "trained_baseline_head_f1": rows["edge attribution"][2],
        "trained_baseline_edge_f1": rows["edge attribution"][5],
        "trained_after_trial_edge_f1": rows[FILTERED[0]][5],
        "trained_baseline_after_trial_edge_f1": rows[FILTERED[1]][5],
        "truth_again_head_f1": rows[AGAIN][2],
        "truth_again_edge_f1": rows[AGAIN][5],
        "unclear_nodes": sum(len(parts[0]) for parts in unclear),
        "true_undecided_rate": verdicts["true"].count("undecided") / n_true,
        "true_support_rate": verdicts["true"].count("supported") / n_true,
        "false_support_rate": verdicts["false"].count("supported") / n_false,
        "false_trials": len(verdicts["false"]),
    }  # fmt: skip


def main() -> None:
    """Command line."""
    made = common.parser(__doc__)
    made.add_argument("--n", type=int, default=12, help="models")
    made.add_argument("--cache", type=Path, help="folder for finished models")
    args: argparse.Namespace = made.parse_args()
    common.one_thread()
    warnings.filterwarnings("ignore")
    settings, n_null, n_orders, n = SETTINGS.but(seed=args.seed), 50, ORDERS, args.n
    share = 1.0  # of the training
    if args.quick:
        settings, n_null, n_orders, n, share = settings.but(draws=8, burn_in=2), 8, 2, 1, 0.05
    cache = None if args.quick else args.cache  # toy records are not kept
    records = []
    for place in range(n):
        file = None if cache is None else cache / f"{args.seed}-{place:02d}.json"
        if file is not None and file.exists():
            records.append(json.loads(file.read_text()))
            continue
        began = time.process_time()
        weights = None if file is None else file.with_suffix(".pt")
        subject = draw_subject(args.seed, place, share, weights)
        records.append(one_subject(subject, settings, n_null, n_orders, args.seed))
        common.say(f"{subject.name}: {time.process_time() - began:.0f} s, {records[-1]}")
        if file is not None:
            file.write_text(json.dumps(records[-1]))
    figures = summary(records)
    common.finish(args, figures, None if args.quick else TARGETS)


if __name__ == "__main__":
    main()
