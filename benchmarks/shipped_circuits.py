"""The induction circuits of the shipped models: proposed without being told, and put on trial.

Three seeds of the two-layer model, the demonstration's settings with 160 draws, a probe of 32
sequences. Circuits are proposed from per-token rLLCs, patterns and composition scores; the first
one for induction is tried on 32 other sequences with every line of evidence shown, and beside it
hypotheses known to be false: random heads, the right heads with a wrong pattern (word_start), a
wrong input (Q for K), and reversed roles (the heads at the ends of an edge with their places in
their layers exchanged, where that makes a difference: edges cannot run backwards).

The inferred edges are compared with edge attribution (integrated gradients) on the same tokens:
rank of each inferred edge among all paths between heads.
"""

from __future__ import annotations

import argparse
import time
import warnings
from pathlib import Path
from typing import Any

import numpy as np

import lens_slt as ls
from benchmarks import common
from benchmarks.common import Target
from lens_slt.demo import demo_settings
from lens_slt.models.names import head_place
from lens_slt.report.tables_circuits import behaviour_table, evidence_table, verdicts_table

MODELS = ("attn-2l", "attn-2l-seed1", "attn-2l-seed2")
TARGETS = {
    "proposed": Target(least=1), "supported": Target(least=1), "false_supported": Target(most=0),
}  # fmt: skip


def false_hypotheses(
    right: ls.CircuitHypothesis, model: Any, seed: int
) -> list[ls.CircuitHypothesis]:
    """Hypotheses that are known to be wrong."""
    rng = np.random.default_rng(seed)
    others = [
        [h for h in (f"L{layer}H{i}" for i in range(model.cfg.n_heads)) if h not in right.heads]
        for layer in (0, 1)
    ]
    first, second = (str(rng.choice(names)) for names in others)
    edge = right.edges[0]
    (a, i), (b, j) = head_place(edge.source), head_place(edge.target)
    exchanged = f"L{a}H{j} -> L{b}H{i}.{edge.through}"
    reversed_ = [ls.circuit(exchanged, "induction", name="reversed roles")] if i != j else []
    other = "Q" if edge.through == "K" else "K"
    return [
        *reversed_,
        ls.circuit(f"{edge.source} -> {edge.target}.{other}", "induction", name="wrong input"),
        ls.circuit(f"{first} -> {second}.K", "induction", name="random heads"),
        ls.CircuitHypothesis(right.components, right.edges, "word_start", "wrong pattern"),
    ]


def one_model(name: str, args: argparse.Namespace) -> dict[str, float]:
    """Proposals, trials and their tables for one seed."""
    model = ls.load_model(name)
    few, length = (12, 32) if args.quick else (32, 128)
    text = ls.load_tokens("mix", n_sequences=16 if args.quick else 512, length=length)
    probe = ls.load_tokens("mix", n_sequences=few, length=length, seed=1, without=text)
    settings = demo_settings(draws=160, seed=args.seed)
    draws = ls.sample(
        model, text, ["heads", "full"], settings=common.toy(settings) if args.quick else settings,
        probes={"mix": probe}, path=None if args.cache is None else args.cache / name,
        progress=False,
    )  # fmt: skip
    slt = ls.read_slt_evidence(draws, "mix", probe)
    proposed = ls.propose_circuits(slt, model, probe)
    common.say(f"\n{name}: proposed, in this order")
    for hypothesis in proposed:
        common.say(f"  {hypothesis}")
    ours = next((h for h in proposed if h.pattern == "induction" and h.edges), None)
    if ours is None:
        return {"proposed": 0.0, "supported": 0.0, "false_supported": 0.0, "seconds": 0.0}
    tokens = ls.load_tokens("mix", n_sequences=few, length=length, seed=2, without=[text, probe])
    false = false_hypotheses(ours, model, args.seed)
    began = time.perf_counter()
    trials = ls.cross_check(model, tokens, [ours, *false], slt=slt, progress=False)
    seconds = time.perf_counter() - began
    common.console().print(behaviour_table(ls.behaviour_scores(model, tokens)))
    common.console().print(verdicts_table(trials))
    for trial in trials:
        common.console().print(evidence_table(trial))
        common.say(str(trial))
    _compare_with_attribution(model, tokens[:16], ours)
    supported = [trial.verdict == "supported" for trial in trials]
    return {
        "proposed": 1.0, "supported": float(supported[0]),
        "false_supported": float(sum(supported[1:])), "seconds": seconds,
    }  # fmt: skip


def _compare_with_attribution(model: Any, tokens: Any, ours: ls.CircuitHypothesis) -> None:
    mask = ls.label_patterns(tokens).sel(pattern=ours.pattern).values
    effect = ls.edge_attribution(model, tokens, mask, steps=3)["effect"]
    table = effect.to_dataframe().reset_index().dropna(subset=["effect"])
    table = table[table["target"] != "logits"].sort_values("effect", ascending=False)
    names = [f"{r.source}→{r.target}.{r.through}" for r in table.itertuples()]
    mine = {str(edge) for edge in ours.edges}
    rows = [
        [i + 1, name, value, "inferred" if name in mine else ""]
        for i, (name, value) in enumerate(zip(names, table["effect"], strict=True))
        if i < 8 or name in mine
    ]
    title = f"Edge attribution (integrated gradients) of {len(names)} paths, {ours.pattern} tokens"
    common.show_table(title, ["rank", "edge", "effect, nats", ""], rows)


def main() -> None:
    """Command line."""
    made = common.parser(__doc__)
    made.add_argument("--models", nargs="+", default=MODELS, choices=MODELS)
    made.add_argument("--cache", type=Path, help="folder for draws")
    args = made.parse_args()
    warnings.filterwarnings("ignore")
    found = [one_model(name, args) for name in args.models]
    figures = {
        "proposed": float(np.mean([one["proposed"] for one in found])),
        "supported": float(np.mean([one["supported"] for one in found])),
        "false_supported": float(sum(one["false_supported"] for one in found)),
        "seconds_for_all_trials": float(np.median([one["seconds"] for one in found])),
    }
    common.finish(args, figures, None if args.quick else TARGETS)


if __name__ == "__main__":
    main()
