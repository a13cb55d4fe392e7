"""Does an observable move as its response says, when the data are really shifted?

Three models: two of the zoo (:mod:`benchmarks.zoo`: one counts bits, one looks for a source; half
trained, for a model that has learned its task has no loss left that data could move) and the
shipped one; the two heads of each that matter most under mean ablation. Three shifts of the data's
weight: to a *pattern* (even ids in the zoo, word starts in text), to *other data* (sequences
of low ids; code in prose), to four *single sequences*. Two observables at the last prediction of
held-out sequences: the loss, and the logit of the right answer less that of a wrong one.

:func:`lens_slt.response` predicts from draws at the original data. Then the posterior is sampled at
the shifted data: the same tokens, each prediction weighted (1 − ε)/n + ε·share. Both use exact
importance sampling; the sampled runs have another seed than the prediction, but share it among
themselves, so that their differences are sharper than their values. Shifts go to +ε and −ε: half
the difference of the realised changes is free of second order, their mean is free of first order.

- *slope_first*: half the difference on the predicted first order;
- *slope_second*: the mean on the predicted second order. (Least squares of realised change less
  first order over both signs is the same.) Both where ``reliable`` is true at +ε and −ε;
- *overclaimed*: predictions, first and second order, declared reliable and more than four combined
  standard errors from what happened: all shifts, observables, heads, ±ε and a large ε.

Slopes are through the origin with errors in both coordinates (:mod:`benchmarks.slopes`);
``signal_second`` is the root mean square of the predicted second order over its error, ``rms_miss``
that of what reliable predictions are off by over the combined standard error: 1 where errors are
right.
"""

from __future__ import annotations

import time
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import xarray as xr
from torch import Generator, Tensor

import lens_slt as ls
from benchmarks import common
from benchmarks.common import Target
from benchmarks.slopes import Points, slope
from benchmarks.zoo import ModelCase, ZooEntry, zoo
from lens_slt.models.adapter import adapt
from lens_slt.sampling.result import component_names, dataset
from lens_slt.sampling.settings import Settings

TARGETS = {
    "slope_first": Target(0.9, 1.1),
    "slope_second": Target(0.8, 1.2),
    "overclaimed": Target(most=0),
}
PLACES = (24, 27)  # in the zoo: majority and skip_trigram, half trained
SHIFT, LARGE = 0.1, 0.4  # ε
STRENGTHS = (-SHIFT, SHIFT, LARGE)
N_SEQUENCES, N_OTHER, N_SINGLE, N_ASKED, N_HEADS = 24, 6, 4, 24, 2
LENGTH = 10  # of the shipped model's text
GAMMA = 1000.0  # importance sampling needs a prior that the data do not narrow too much
CHAINS = 16
MISS = 4.0  # combined standard errors
OBSERVABLES = ("loss", "logit_difference")


@dataclass(frozen=True)
class Case:
    """A model, its data, what gets more weight, and where observables are read."""

    name: str
    model: Any
    tokens: Tensor  # [sequence, position]
    weights: np.ndarray  # [sequence, position - 1], adds up to 1
    shifts: dict[str, np.ndarray]  # likewise
    asked: ls.Probe
    components: list[str]


def zoo_case(place: int, seed: int, cache: Path | None, quick: bool) -> Case:
    """A member of the zoo; its other data are those of many sequences whose ids are lowest."""
    entry: ZooEntry = next(
        one for one in zoo(seed, place + 1) if one.name.startswith(f"{place:02d}")
    )
    entry = entry.shortened() if quick else entry
    built, task, generator = entry.build(cache), entry.task, Generator().manual_seed(entry.seed + 3)
    many = task.draw(4 * N_OTHER, generator)
    other = many[many.sum(1).argsort()[:N_OTHER]]
    tokens = torch.cat([task.draw(N_SEQUENCES - N_OTHER, generator), other])
    asked = asked_at(task.draw(2 * N_ASKED, generator))
    counts = np.array(task.answer if entry.weighted else (1.0,) * (task.length - 1))
    counts = np.broadcast_to(counts, (N_SEQUENCES, len(counts)))
    even = (tokens[:, 1:] % 2 == 0).numpy()
    assert isinstance(built, ModelCase)
    heads = _heads(built.model, tokens, counts)
    return Case(entry.name, built.model, tokens, _unit(counts), shifts(counts, even), asked, heads)


def shipped_case(seed: int) -> Case:
    """Prose with some code; word starts are the pattern, prose and code are asked."""
    model = ls.load_model("attn-2l")
    prose = ls.load_tokens("prose", n_sequences=N_SEQUENCES + N_ASKED, length=LENGTH, seed=seed)
    code = ls.load_tokens("code", n_sequences=N_OTHER + N_ASKED, length=LENGTH, seed=seed)
    tokens = torch.cat([prose[: N_SEQUENCES - N_OTHER], code[:N_OTHER]])
    asked = asked_at(torch.cat([prose[-N_ASKED:], code[-N_ASKED:]])[::2])
    pattern = ls.label_patterns(tokens).sel(pattern="word_start").values
    counts = np.ones(pattern.shape)
    heads = _heads(model, tokens, counts)
    return Case("attn-2l", model, tokens, _unit(counts), shifts(counts, pattern), asked, heads)


def asked_at(tokens: Tensor) -> ls.Probe:
    """The last prediction of sequences, against what follows the sequence before."""
    wrong = tokens[:, -1].roll(1)
    told = (tokens[:, -1] != wrong).nonzero()[:N_ASKED, 0]
    last = torch.zeros(tokens.shape[1] - 1)
    last[-1] = 1
    return ls.Probe(tokens[told], weights=last, observables=ls.LogitDifference(wrong=wrong[told]))


def shifts(counts: np.ndarray, pattern: np.ndarray) -> dict[str, np.ndarray]:
    """The three; data have the other kind of sequences at their end."""
    other, single = np.zeros_like(counts), np.zeros_like(counts)
    other[-N_OTHER:], single[:N_SINGLE] = 1, 1
    found = {"pattern": pattern, "other data": other, "single sequences": single}
    return {name: _unit(counts * part) for name, part in found.items()}


def _unit(weights: np.ndarray) -> np.ndarray:
    return weights / weights.sum()


def _heads(model: Any, tokens: Tensor, weights: np.ndarray) -> list[str]:
    """The heads whose mean ablation changes the loss most: dead ones have nothing to respond."""
    adapted = adapt(model)
    names = [f"L{a}H{b}" for a in range(adapted.n_layers) for b in range(adapted.n_heads)]
    effects = []
    for name in names:
        effect = ls.ablate(model, tokens, name, weights=weights)["effect"].values
        effects.append(abs(float(np.nansum(weights * effect))))
    return [names[i] for i in np.argsort(effects)[::-1][:N_HEADS]]


def settings_of_runs(args: Any) -> tuple[Settings, Settings]:
    """Of the prediction and of the runs that check it; half as many draws in each of those."""
    draws = 10 if args.quick else args.draws // CHAINS
    base = Settings(
        sampler="importance", antithetic=False, chains=CHAINS, gamma=GAMMA,
        batch_size=N_SEQUENCES, draws=draws, seed=args.seed,
    )  # fmt: skip
    return base.but(full_loss=True), base.but(draws=draws // 2, seed=args.seed + 1000)


def predicted(case: Case, settings: Settings) -> dict[tuple[str, str], xr.Dataset]:
    """Responses over (component, strength) by shift and observable, from draws at the data."""
    probes = {"data": ls.Probe(case.tokens, weights=case.weights), "asked": case.asked}
    draws = ls.sample(
        case.model, case.tokens, case.components, settings=settings, probes=probes,
        weights=case.weights, progress=False,
    )  # fmt: skip
    # A shift's weights multiply those of its probe, which count already.
    counted = np.where(case.weights > 0, case.weights, 1)
    return {
        (name, key): ls.response(
            draws, ls.Shift("data", weights / counted, name), observable=key, probe="asked",
            strengths=STRENGTHS,
        )
        for name, weights in case.shifts.items()
        for key in OBSERVABLES
    }  # fmt: skip


@dataclass(frozen=True)
class Sampled:
    """Draws of a run: traces and normalised weights, both ``[component, draw]``."""

    observed: dict[str, np.ndarray]
    weight: np.ndarray  # NaN where importance weights are too heavy

    def change(self, other: Sampled, observable: str, row: int) -> tuple[float, np.ndarray]:
        """E_self[φ] − E_other[φ] of the same draws and each draw's part in its error."""
        values = self.observed[observable][row]
        mean, before = self.weight[row] @ values, other.weight[row] @ values
        part = self.weight[row] * (values - mean) - other.weight[row] * (values - before)
        return float(mean - before), part


def sampled(case: Case, settings: Settings, weights: np.ndarray) -> Sampled:
    """Draws of the posterior at data of these weights."""
    draws = ls.sample(
        case.model, case.tokens, case.components, settings=settings,
        probes={"asked": case.asked}, weights=weights, progress=False,
    )  # fmt: skip
    probe, n = dataset(draws, "probes/asked"), len(case.components)
    rows = [component_names(draws).index(name) for name in case.components]
    loss = np.nanmean(probe["paired_loss"].values.astype(float), axis=(-1, -2))
    difference = probe["logit_difference"].values.astype(float).mean(-1)
    weight = np.full((n, loss[0].size), np.nan)
    for i, row in enumerate(rows):
        paired = dataset(draws, "posterior")["paired_loss"].values[row].ravel()
        smoothed = settings.method.draw_weights(paired, settings.n_beta)
        assert smoothed is not None
        if not smoothed[1]:
            # Unsmoothed: tails are fitted anew in every run, and weights would not change evenly.
            weight[i] = _unit(np.exp(-settings.n_beta * (paired - paired.min()).astype(float)))
    traces = {"loss": loss, "logit_difference": difference}
    return Sampled({key: x[rows].reshape(n, -1) for key, x in traces.items()}, weight)


@dataclass(frozen=True)
class Outcome:
    """One head, shift and observable; arrays over :data:`STRENGTHS`, errors beside them."""

    case: str
    component: str
    shift: str
    observable: str
    first: np.ndarray
    first_se: np.ndarray
    second: np.ndarray
    second_se: np.ndarray
    predicted: np.ndarray
    predicted_se: np.ndarray
    reliable: np.ndarray
    change: np.ndarray
    change_se: np.ndarray
    odd: common.WithError  # half the difference of the changes at ±ε
    even: common.WithError  # their mean

    @property
    def misses(self) -> np.ndarray:
        """By how many combined standard errors the predictions are off."""
        return (self.predicted - self.change) / np.hypot(self.predicted_se, self.change_se)

    @property
    def both_reliable(self) -> bool:
        return bool(self.reliable[:2].all())


def outcomes(case: Case, predicting: Settings, checking: Settings) -> list[Outcome]:
    """Predictions beside what happened, of heads whose draws can be used in every run."""
    answers = predicted(case, predicting)
    at_data = sampled(case, checking, case.weights)
    found = []
    for shift, weights in case.shifts.items():
        moved = [sampled(case, checking, (1 - e) * case.weights + e * weights) for e in STRENGTHS]
        for key in OBSERVABLES:
            answer = answers[shift, key]
            for row, component in enumerate(case.components):
                changes = [one.change(at_data, key, row) for one in moved]
                one = answer.sel(component=component)
                if np.isfinite([c for c, _ in changes]).all() and np.isfinite(one["first"]).all():
                    found.append(_outcome(case, component, shift, key, one, changes))
    return found


def _outcome(
    case: Case,
    component: str,
    shift: str,
    key: str,
    answer: xr.Dataset,
    changes: list[tuple[float, np.ndarray]],
) -> Outcome:
    value = np.array([change for change, _ in changes])
    part = np.stack([part for _, part in changes])
    odd, even = (part[1] - part[0]) / 2, (part[1] + part[0]) / 2
    return Outcome(
        case.name, component, shift, key, answer["first"].values, answer["first_se"].values,
        answer["second"].values, answer["second_se"].values, answer["predicted"].values,
        answer["predicted_se"].values, answer["reliable"].values,
        value, np.sqrt((part**2).sum(1)),
        common.WithError(float(value[1] - value[0]) / 2, float(np.sqrt((odd**2).sum()))),
        common.WithError(float(value[1] + value[0]) / 2, float(np.sqrt((even**2).sum()))),
    )  # fmt: skip


def points(found: list[Outcome], order: str) -> Points:
    """Predicted and realised parts of an order at ε; heads are groups."""
    kept = [one for one in found if one.both_reliable]
    real = [one.odd if order == "first" else one.even for one in kept]
    return Points(
        np.array([getattr(one, order)[1] for one in kept]),
        np.array([getattr(one, f"{order}_se")[1] for one in kept]),
        np.array([one.value for one in real]),
        np.array([one.se for one in real]),
        np.array([f"{one.case} {one.component}" for one in kept]),
    )


def figures_of(found: list[Outcome]) -> dict[str, Any]:
    """The summary; see the top of the file."""
    first, second = points(found, "first"), points(found, "second")
    slopes = slope(first), slope(second)
    declared = [one.reliable for one in found]
    misses = [one.misses[one.reliable] for one in found]
    off = np.concatenate(misses) if misses else np.array([])
    return {
        "slope_first": slopes[0].value,
        "slope_second": slopes[1].value,
        "overclaimed": int((np.abs(off) > MISS).sum()),
        "slope_first_se": slopes[0].se,
        "slope_second_se": slopes[1].se,
        "signal_first": first.signal,
        "signal_second": second.signal,
        "largest_miss": float(np.abs(off).max(initial=0)),
        "rms_miss": float(np.sqrt(np.mean(off**2))) if len(off) else float("nan"),
        "reliable_share": float(np.mean(declared)) if found else float("nan"),
        "reliable_share_large": float(np.mean([x[-1] for x in declared])) if found else 0.0,
        "predictions": int(np.size(declared)),
        "heads": len({(one.case, one.component) for one in found}),
    }


def show(case: Case, found: list[Outcome], seconds: float) -> None:
    """The table of one model."""
    rows = [
        [
            one.component, one.shift, one.observable,
            str(common.WithError(one.first[1], one.first_se[1])), str(one.odd),
            str(common.WithError(one.second[1], one.second_se[1])), str(one.even),
            " ".join(f"{m:.1f}{'' if r else '?'}" for m, r in zip(one.misses, one.reliable,
                                                                 strict=True)),
        ]
        for one in found
    ]  # fmt: skip
    common.show_table(
        f"{case.name}: changes at ε = {SHIFT}; misses in SE at ε = {STRENGTHS}, ? where not "
        f"reliable; {seconds:.0f} s of CPU time",
        ["head", "shift", "observable", "first", "odd part", "second", "even part", "misses"],
        rows,
    )


def main() -> None:
    """Command line."""
    made = common.parser(__doc__)
    made.add_argument("--cache", type=Path, help="folder for trained models of the zoo")
    made.add_argument("--draws", type=int, default=3200, help="of the prediction, per head")
    args = made.parse_args()
    common.one_thread()
    warnings.filterwarnings("ignore")
    cases = [zoo_case(place, args.seed, args.cache, args.quick) for place in PLACES]
    found = []
    for case in [*cases, shipped_case(args.seed)]:
        began = time.process_time()
        here = outcomes(case, *settings_of_runs(args))
        show(case, here, time.process_time() - began)
        found += here
    common.finish(args, figures_of(found), None if args.quick else TARGETS)


if __name__ == "__main__":
    main()
