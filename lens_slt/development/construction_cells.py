"""The jobs of following circuits back: what one checkpoint's parts do, and a trial there."""

from __future__ import annotations

import json
import os
import warnings
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import xarray as xr

from lens_slt.arrays import BoolArray, FloatArray, write_zarr
from lens_slt.circuits.behaviour import ATTENDS, behaviour_scores
from lens_slt.circuits.case import Case
from lens_slt.circuits.composition import composition_scores
from lens_slt.circuits.composition_on_tokens import composition_on_tokens
from lens_slt.circuits.hypothesis import CircuitHypothesis, Edge
from lens_slt.circuits.pattern_masks import pattern_masks
from lens_slt.circuits.replacements import Ablation
from lens_slt.circuits.roles import node_of
from lens_slt.circuits.runs import Runs
from lens_slt.circuits.slt_evidence import SltEvidence
from lens_slt.circuits.statistics import Contrast, Measured
from lens_slt.circuits.trial import cross_check
from lens_slt.circuits.trial_notes import composes
from lens_slt.data.columns import moved_back
from lens_slt.data.tokenizer import TokenizerWarning
from lens_slt.development.cells import FINISHED
from lens_slt.models.adapter import adapt
from lens_slt.models.source import ModelSource

COMPONENT, EDGE, CIRCUIT = "component", "edge", "circuit"
CONTEXTS = ("in the whole model", "without the rest of the circuit")
MEASURES = "measures"
ESTIMATE = ("", "_se", "_low", "_high")  # of a quantity
N_RANDOM = 16  # sequences of random tokens, for behaviours
SCORES = tuple(score for score, _ in ATTENDS.values())


@dataclass(frozen=True)
class Part:
    """A component or an edge of a circuit, or the circuit."""

    circuit: int  # its place among the hypotheses
    kind: str
    name: str  # as the hypothesis has it
    label: str  # with the name of the circuit, where there are several
    edge: Edge | None = None


def parts_of(hypotheses: Sequence[CircuitHypothesis]) -> list[Part]:
    """Of every circuit its components along the stream, its edges, itself."""
    found = []
    for i, (one, name) in enumerate(zip(hypotheses, circuit_names(hypotheses), strict=True)):
        before = f"{name}: " if len(hypotheses) > 1 else ""
        found += [Part(i, COMPONENT, part, f"{before}{part}") for part in one.components]
        found += [Part(i, EDGE, str(edge), f"{before}{edge}", edge) for edge in one.edges]
        found.append(Part(i, CIRCUIT, name, f"{before}circuit"))
    return found


def circuit_names(hypotheses: Sequence[CircuitHypothesis]) -> list[str]:
    """A name for each: its own, or its pattern; with a number where several are alike."""
    names = [one.name or one.pattern for one in hypotheses]
    numbers: Counter[str] = Counter()
    found = []
    for name in names:
        numbers[name] += 1
        found.append(f"{name} {numbers[name]}" if names.count(name) > 1 else name)
    return found


@dataclass(frozen=True)
class ConstructionTask:
    """What is asked at every checkpoint; ``options`` are those of :func:`lens_slt.cross_check`."""

    tokens: Any
    hypotheses: tuple[CircuitHypothesis, ...]
    options: Mapping[str, Any]
    slt: Mapping[int, SltEvidence]
    device: torch.device | str | None

    def runs(self, model: Any) -> Runs:
        """The model on these tokens."""
        names = ("weights", "mask", "pad_id", "metric", "roles")
        how = Ablation.of(self.options["how"], self.options["seed"])
        return Runs(adapt(model), self.tokens, how, **{name: self.options[name] for name in names})

    def masks(self, model: Any, runs: Runs) -> dict[str, BoolArray]:
        """Which tokens the patterns are about, as ``runs`` has them."""
        tokenizer = getattr(model, "tokenizer", None)
        return pattern_masks(self.hypotheses, self.options["patterns"], runs, tokenizer)

    def contrast(self, runs: Runs, mask: BoolArray) -> Contrast:
        """Pattern's tokens against matched others."""
        n, seed = self.options["n_bootstrap"], self.options["seed"]
        return Contrast(runs.base, mask, weights=runs.weight, n_bootstrap=n, seed=seed)


@dataclass(frozen=True)
class MeasureCell:
    """Ablations of all parts, behaviours and composition at one checkpoint."""

    step: int
    source: ModelSource
    task: ConstructionTask
    mark: Mapping[str, Any]
    folder: Path

    @property
    def name(self) -> str:
        return f"step {self.step}: ablations"

    def run(self) -> None:
        """Write the measures; a finished checkpoint has a file that says so."""
        model = self.source.load(self.task.device)
        with warnings.catch_warnings():  # early checkpoints guess: the curves say so
            warnings.simplefilter("ignore", TokenizerWarning)
            found = measures(model, self.task)
        self.folder.mkdir(parents=True, exist_ok=True)
        write_zarr(found, self.folder / f"{MEASURES}.zarr")
        (self.folder / FINISHED).write_text(json.dumps(self.mark), "utf-8")


@dataclass(frozen=True)
class TrialCell:
    """A trial of one circuit at one checkpoint."""

    step: int
    source: ModelSource
    task: ConstructionTask
    circuit: int
    file: Path

    @property
    def name(self) -> str:
        return f"step {self.step}: trial {self.circuit + 1}"

    def run(self) -> tuple[str, str]:
        """Verdict and reasons; the whole trial is in the file."""
        model = self.source.load(self.task.device)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", TokenizerWarning)
            trial = cross_check(
                model, self.task.tokens, self.task.hypotheses[self.circuit],
                slt=self.task.slt.get(self.step), progress=False, **self.task.options,
            )  # fmt: skip
        half = self.file.with_suffix(".part")
        half.write_text(json.dumps([trial.as_dict()], ensure_ascii=False), "utf-8")
        os.replace(half, self.file)
        return trial.verdict, "; ".join(trial.reasons)


def measures(model: Any, task: ConstructionTask) -> xr.Dataset:
    """What is measured at one checkpoint, over parts; NaN where it is no question to a part."""
    runs = task.runs(model)
    masks = task.masks(model, runs)
    parts = parts_of(task.hypotheses)
    contrasts = {name: task.contrast(runs, mask) for name, mask in masks.items()}
    cases = [
        Case(one, runs, contrasts[one.pattern], task.options["least_effect"], 0, 0)
        for one in task.hypotheses
    ]
    found = _effects([cases[part.circuit] for part in parts], parts)
    found |= _behaviour(model, task, parts)
    return xr.Dataset(found | _composition(model, task, parts, masks, runs))


def _effects(cases: Sequence[Case], parts: Sequence[Part]) -> dict[str, Any]:
    """What ablation costs, and what the circuits recover alone; a case for every part."""
    effect = np.full((len(ESTIMATE), len(parts), len(CONTEXTS)), np.nan)
    alone, share = np.full((len(ESTIMATE), len(parts)), np.nan), np.full(len(parts), np.nan)
    for row, (case, part) in enumerate(zip(cases, parts, strict=True)):
        for column, rise in enumerate(_rises(case, part)):
            effect[:, row, column] = _numbers(case.contrast.matched(rise))
        if part.kind == CIRCUIT:
            recovered, whole = _recovered(case)
            alone[:, row] = _numbers(case.contrast.matched(recovered))
            if case.contrast.on_pattern(whole).low > 0:
                share[row] = case.contrast.share_value(recovered, whole)
    found: dict[str, Any] = {"alone_share": ("part", share)}
    for ending, one, other in zip(ESTIMATE, effect, alone, strict=True):
        found |= {
            f"effect{ending}": (("part", "context"), one),
            f"alone{ending}": ("part", other),
        }
    return found


def _numbers(found: Measured) -> tuple[float, ...]:
    return found.value, found.se, found.low, found.high


def _rises(case: Case, part: Part) -> list[FloatArray]:
    """Rise of every token's loss as a part is ablated: in each of the contexts that it has."""
    if part.kind == CIRCUIT:
        return [case.rise(case.nodes)]
    if part.edge is None:
        mine = case.of(part.name)
        rest = case.nodes - mine
        return [case.rise(mine)] + [case.rise(rest | mine) - case.rise(rest)] * bool(rest)
    others = frozenset(case.hypothesis.edges) - {part.edge}
    found = [case.rise(paths={part.edge})]
    if others:
        found.append(case.rise(paths=others | {part.edge}) - case.rise(paths=others))
    return found


def _recovered(case: Case) -> tuple[FloatArray, FloatArray]:
    """What a circuit brings where all that is like it is ablated, of what that costs.

    As in the trial's test of sufficiency: paths of its kinds, or components where it has no edges.
    """
    empty = case.along(frozenset()) if case.kinds else case.kept(())
    mine = case.along(case.own_paths) if case.kinds else case.kept(case.nodes)
    return empty - mine, empty - case.runs.base


def _behaviour(model: Any, task: ConstructionTask, parts: Sequence[Part]) -> dict[str, Any]:
    """Scores of heads by attention, and the type of each."""
    shape = len(parts), len(SCORES)
    score, error = np.full(shape, np.nan), np.full(shape, np.nan)
    kinds = np.full(len(parts), "", dtype=object)
    options = {name: task.options[name] for name in ("weights", "mask", "pad_id")}
    seen = behaviour_scores(model, task.tokens, n_random=N_RANDOM, **options)
    heads = seen["component"].values.tolist()
    for row, part in enumerate(parts):
        if part.kind == COMPONENT and node_of(part.name) in heads:
            one = seen.sel(component=node_of(part.name))
            score[row] = [float(one[name]) for name in SCORES]
            error[row] = [float(one[f"{name}_se"]) for name in SCORES]
            kinds[row] = str(one["head_type"].values)
    dims = ("part", "score")
    return {"scores": (dims, score), "scores_se": (dims, error), "head_type": ("part", kinds)}


def _composition(
    model: Any,
    task: ConstructionTask,
    parts: Sequence[Part],
    masks: Mapping[str, BoolArray],
    runs: Runs,
) -> dict[str, Any]:
    """Composition of edges between heads and MLPs: of the weights, and on the pattern's tokens."""
    names = ("share", "share_se", "composition", "composition_q")
    found = {name: np.full(len(parts), np.nan) for name in names}
    wired = [(row, part) for row, part in enumerate(parts) if part.edge and composes(part.edge)]
    if wired:
        scores = composition_scores(model, seed=task.options["seed"])
    options = {name: task.options[name] for name in ("weights", "mask", "pad_id")}
    shares: dict[str, xr.Dataset] = {}
    for row, part in wired:
        assert part.edge is not None
        ends = dict(zip(("source", "target", "through"), part.edge.path, strict=True))
        one = scores.sel(ends)
        found["composition"][row] = float(one["score"])
        found["composition_q"][row] = max(float(one["q_random"]), float(one["q_rotation"]))
        pattern = task.hypotheses[part.circuit].pattern
        if pattern not in shares:
            where = moved_back(masks[pattern] & runs.real, runs.shift)
            shares[pattern] = composition_on_tokens(model, task.tokens, where, **options)
        one = shares[pattern].sel(ends)
        found["share"][row], found["share_se"][row] = float(one["share"]), float(one["se"])
    return {name: ("part", values) for name, values in found.items()}
