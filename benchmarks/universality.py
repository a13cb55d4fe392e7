"""Do models that were trained apart have the same heads, and does a match carry circuits over?

Five two-layer models: the three shipped seeds, and two trained here with other seeds and other
shares of code and prose (unless ``--cache`` has them). All are sampled on the same text, each with
a seed of its own, and matched in ordered pairs by per-token rLLCs, by attention patterns, by both
(which is what is reported), and by behaviours.

- *match accuracy*: of heads with a role (previous token, induction: ``behaviour_scores`` on random
  tokens, on which nothing is matched) that the other model has, too, the share whose partner has
  it. One that the match calls unmatched counts as wrong.
- *false match*: the share of heads that are matched to heads of untrained models.
- *induction transfer*: of every model the circuit from its best previous-token head through the
  keys of its best induction head, if trials support it there; mapped by the match, is it supported
  in the other model? Chance: the same circuit under every map to heads of the same layers.
- *cosine*: plain assignment by the cosine of rLLC columns as they are, with nothing corrected and
  nobody left unmatched.
"""

from __future__ import annotations

import argparse
import tempfile
import time
import warnings
from itertools import permutations
from pathlib import Path
from typing import Any

import numpy as np
import xarray as xr
from scipy.optimize import linear_sum_assignment

import lens_slt as ls
from benchmarks import common
from benchmarks.common import Target
from benchmarks.trained_runs import TRAINED, trained_run
from lens_slt.structure.match import SURELY

TARGETS = {
    "induction_transfer": Target(least=0.9), "match_accuracy": Target(least=0.9),
    "false_match": Target(most=0.05),
}  # fmt: skip
SHIPPED = ("attn-2l", "attn-2l-seed1", "attn-2l-seed2")
SETTINGS = ls.Settings(draws=120, batch_size=8, thin=4)  # nβ 30, γ 200, 4 chains
KINDS = ("rllc", "attention", "behaviour")
TOGETHER = "rllc and attention"  # what is reported; roles are behaviours themselves
ROLES = ("previous token", "induction")
ATTENDED = 16  # sequences of attention patterns
UNTRAINED = 3  # models of a false match
UNTRAINED_DRAWS = 60  # such weights are steep, and a draw takes many steps


class Subject:
    """A model with what it is matched by."""

    def __init__(
        self, name: str, model: Any, place: int, size: Any, cache: Path | None, seed: int
    ) -> None:
        self.name, self.model = name, model
        text, probe, length = size["text"], size["probe"], size["length"]
        seen = ls.load_tokens("mix", n_sequences=probe, length=length, seed=1)
        draws = ls.sample(
            model, ls.load_tokens("mix", n_sequences=text, length=length), size["components"],
            settings=size["settings"].but(seed=100 * seed + place), probes={"text": seen},
            progress=False,
            path=None if cache is None else cache / f"draws-{seed}" / name.replace(" ", "-"),
        )  # fmt: skip
        matrix = ls.per_token_llc(draws)
        names = matrix["component"].values.tolist()
        scores = ls.behaviour_scores(model, seed=7, n_random=size["repeats"])
        scores = scores.sel(component=names)
        self.results: dict[str, xr.Dataset] = {
            "rllc": matrix, "behaviour": scores,
            "attention": ls.attention_patterns(model, seen[:ATTENDED], names),
        }  # fmt: skip
        self.role = dict(
            zip(map(str, scores["component"].values), map(str, scores["head_type"].values),
                strict=True)
        )  # fmt: skip
        self.scores = scores

    def best(self, score: str) -> str:
        values = self.scores[score].values
        return str(self.scores["component"].values[int(np.argmax(values))])

    def circuit(self) -> ls.CircuitHypothesis:
        """From the best previous-token head to the best induction head."""
        text = f"{self.best('previous_token')} -> {self.best('prefix_matching')}.K"
        return ls.circuit(text, "induction")


def subjects(args: argparse.Namespace, size: Any, cache: Path) -> list[Subject]:
    """All models that are matched."""
    models: dict[str, Any] = {name: ls.load_model(name) for name in SHIPPED}
    if args.quick:
        models.pop(SHIPPED[-1])
    else:
        for name in TRAINED:
            run = trained_run(name, cache)
            models[name] = run.load(run.steps[-1])
    return [
        Subject(name, model, i, size, args.cache, args.seed)
        for i, (name, model) in enumerate(models.items())
    ]


def untrained(place: int, size: Any, args: argparse.Namespace) -> Subject:
    """A model with weights as they are drawn."""
    run = ls.checkpoints("attn-2l")
    model = run.load(run.steps[0])
    generator = np.random.default_rng([args.seed, place])
    shuffled = {}
    for name, values in model.state_dict().items():  # another draw of the same spread
        flat = values.flatten()
        order = generator.permutation(len(flat)) if values.is_floating_point() else slice(None)
        shuffled[name] = flat[order].reshape(values.shape)
    model.load_state_dict(shuffled)
    draws = min(size["settings"].draws, UNTRAINED_DRAWS)
    fewer = size | {"settings": size["settings"].but(draws=draws)}
    return Subject(f"untrained {place}", model, 50 + place, fewer, args.cache, args.seed)


def by_cosine(a: Subject, b: Subject) -> dict[str, str]:
    """Partners by the cosine of plain rLLC columns."""
    columns = [one.results["rllc"]["llc"].transpose("component", "token").values for one in (a, b)]
    x, y = (c / np.linalg.norm(c, axis=1, keepdims=True) for c in columns)
    rows, places = linear_sum_assignment(-x @ y.T)
    names = [one.results["rllc"]["component"].values for one in (a, b)]
    return {str(names[0][i]): str(names[1][j]) for i, j in zip(rows, places, strict=True)}


def partners(found: xr.Dataset) -> dict[str, str]:
    """Those that a match is sure of."""
    sure = np.isin(found["verdict"].values, SURELY)
    return dict(
        zip(found["component"].values[sure].tolist(), found["partner"].values[sure].tolist(),
            strict=True)
    )  # fmt: skip


def right(a: Subject, b: Subject, partner: dict[str, str]) -> list[bool]:
    """Of heads of ``a`` with a role that ``b`` has, whether their partner has it."""
    there = set(b.role.values())
    return [
        b.role.get(partner.get(name, ""), "") == role
        for name, role in a.role.items() if role in ROLES and role in there
    ]  # fmt: skip


def accuracies(pairs: list[tuple[Subject, Subject]], n: int) -> tuple[dict[str, Any], Any]:
    """Share of right partners by what was matched by, and the matches by all."""
    ways = {**{kind: [kind] for kind in KINDS}, TOGETHER: list(KINDS[:2])}
    hits: dict[str, list[bool]] = {name: [] for name in (*ways, "cosine")}
    matched: dict[str, list[float]] = {name: [] for name in ways}
    found = {}
    for a, b in pairs:
        for name, kinds in ways.items():
            one = ls.match(
                {k: a.results[k] for k in kinds}, {k: b.results[k] for k in kinds}, n_null=n,
                n_bootstrap=n,
            )  # fmt: skip
            hits[name] += right(a, b, partners(one))
            matched[name].append(len(partners(one)) / one.sizes["component"])
            if name == TOGETHER:
                found[a.name, b.name] = one
        hits["cosine"] += right(a, b, by_cosine(a, b))
    rows = [
        [name, float(np.mean(hits[name])), len(hits[name]),
         float(np.mean(matched[name])) if name in matched else 1.0]
        for name in hits
    ]  # fmt: skip
    common.show_table(
        f"{len(pairs)} ordered pairs of models",
        ["matched by", "partner has the role", "heads with a role", "share matched"], rows,
    )  # fmt: skip
    return {name: float(np.mean(values)) for name, values in hits.items()}, found


def transfers(
    models: list[Subject], matches: Any, size: Any
) -> tuple[dict[str, float], list[list[Any]]]:
    """Circuits that hold where they come from, carried over to every other model."""
    tokens = ls.load_tokens("mix", n_sequences=size["trial"], length=64, seed=2)
    rows, carried, chance, plain = [], [], [], []
    for a in models:
        circuit = a.circuit()
        own = ls.cross_check(
            a.model, tokens, circuit, n_null=size["n_null"], verdict_only=True, progress=False
        )
        common.say(f"{a.name}: {own.verdict}: {circuit}")
        if own.verdict != "supported":
            continue
        for b in models:
            if a is b:
                continue
            given: dict[str, Any] = dict(n_null=size["n_null"], verdict_only=True, progress=False)
            done = ls.transfer(
                [circuit], matches[a.name, b.name], b.model, tokens, most_maps=size["maps"], **given
            ).summary.isel(circuit=0)
            cosine = by_cosine(a, b)
            edge = circuit.edges[0]
            text = f"{cosine[edge.source]} -> {cosine[edge.target]}.K"
            verdicts = dict(
                zip(done["map_circuit"].values, done["map_verdict"].values, strict=True)
            )
            plain.append(_verdict_of(text, verdicts, b, tokens, given) == "supported")
            carried.append(str(done["verdict"].values) == "supported")
            chance.append(float(done["chance"]))
            mapped = str(done["mapped"].values).rpartition(": ")[2] or str(done["reason"].values)
            rows.append([
                f"{a.name} ⇒ {b.name}", str(circuit.edges[0]), mapped, str(done["verdict"].values),
                f"{chance[-1]:.3f} of {int(done['n_maps'])}", "yes" if plain[-1] else "no",
            ])  # fmt: skip
    figures = {
        "induction_transfer": float(np.mean(carried)) if carried else float("nan"),
        "chance_transfer": float(np.mean(chance)) if chance else float("nan"),
        "cosine_transfer": float(np.mean(plain)) if plain else float("nan"),
        "circuits_supported_at_home": len({row[0].split(" ⇒ ")[0] for row in rows}) / len(models),
    }
    return figures, rows


def _verdict_of(text: str, verdicts: dict[str, str], b: Subject, tokens: Any, given: Any) -> str:
    """Of one circuit in ``b``, from the trials of all maps if it is among them."""
    try:
        circuit = ls.circuit(text, "induction")
    except ValueError:
        return "no map"
    if str(circuit) in verdicts:
        return verdicts[str(circuit)]
    return ls.cross_check(b.model, tokens, circuit, **given).verdict


def main() -> None:
    """Command line."""
    made = common.parser(__doc__)
    made.add_argument("--cache", type=Path, help="folder for training runs and draws")
    args: argparse.Namespace = made.parse_args()
    warnings.filterwarnings("ignore")
    common.one_thread()
    began = time.perf_counter()
    size: dict[str, Any] = dict(
        text=256, probe=48, length=64, trial=64, n_null=20, maps=16, nulls=200, settings=SETTINGS,
        components="heads", repeats=32,
    )  # fmt: skip
    if args.quick:
        size |= dict(
            text=16, probe=8, length=32, trial=16, n_null=2, maps=2, nulls=20, repeats=2,
            settings=common.toy(SETTINGS), components="L0H2,L0H3,L1H2,L1H3",
        )  # fmt: skip
    with tempfile.TemporaryDirectory() as scratch:
        models = subjects(args, size, args.cache or Path(scratch))
    for one in models:
        roles = {role: [n for n, r in one.role.items() if r == role] for role in ROLES}
        common.say(f"{one.name}: " + "; ".join(f"{k} {', '.join(v)}" for k, v in roles.items()))
    pairs = list(permutations(models, 2))
    accuracy, matches = accuracies(pairs, size["nulls"])
    raw = [untrained(i, size, args) for i in range(1 if args.quick else UNTRAINED)]
    _, false = accuracies([(a, b) for a in models for b in raw], size["nulls"])
    wrong = [len(partners(one)) / one.sizes["component"] for one in false.values()]
    figures, rows = transfers(models, matches, size)
    common.show_table(
        "The induction circuit of one model in another",
        ["models", "circuit", "mapped", "trial", "random maps supported", "by cosine"], rows,
    )  # fmt: skip
    family = ls.match_family(
        {one.name: {kind: one.results[kind] for kind in KINDS[:2]} for one in models},
        n_null=size["nulls"], n_bootstrap=size["nulls"],
    )  # fmt: skip
    common.show_table(
        "Heads that more than one model has",
        ["models", "agreement", *(one.name for one in models)],
        [
            [int(g["n_models"]), float(g["agreement"]), *g["member"].values.tolist()]
            for g in (family.isel(group=i) for i in range(family.sizes["group"]))
            if int(g["n_models"]) > 1
        ],
    )  # fmt: skip
    figures |= {
        "match_accuracy": accuracy[TOGETHER], "cosine_accuracy": accuracy["cosine"],
        "false_match": float(np.mean(wrong)), "seconds": time.perf_counter() - began,
    }  # fmt: skip
    common.finish(args, figures, None if args.quick else TARGETS)


if __name__ == "__main__":
    main()
