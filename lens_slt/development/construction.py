"""Circuits followed back over training: from which checkpoint on their parts are there."""

from __future__ import annotations

import shutil
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

import joblib
import numpy as np
import pandas as pd
import torch
import xarray as xr

from lens_slt.arguments import choice, instance, integer, number, typed
from lens_slt.arrays import read_zarr
from lens_slt.circuits.behaviour import ATTENDS
from lens_slt.circuits.case import check_case
from lens_slt.circuits.hypothesis import CircuitHypothesis
from lens_slt.circuits.replacements import Ablation
from lens_slt.circuits.slt_evidence import SltEvidence
from lens_slt.circuits.trial import LEAST_EFFECT, N_NULL
from lens_slt.circuits.trial_file import read_trials
from lens_slt.development.cells import FINISHED
from lens_slt.development.construction_cells import (
    CIRCUIT,
    CONTEXTS,
    MEASURES,
    N_RANDOM,
    SCORES,
    ConstructionTask,
    MeasureCell,
    Part,
    TrialCell,
    circuit_names,
    parts_of,
)
from lens_slt.development.folder import open_sweep, step_folder, sweep_folder
from lens_slt.development.onsets import one_sided, onsets, trailing
from lens_slt.json_files import read_json
from lens_slt.models.adapter import weights_hash
from lens_slt.models.checkpoints import Checkpoints, refuse_single
from lens_slt.sampling.jobs import run_jobs
from lens_slt.schema import stamp, stamped
from lens_slt.statistics import CONFIDENCE
from lens_slt.torch_state import plain_torch

DESCRIPTION = "construction.json"
NEEDED, BEHAVES, ALONE, SUPPORTED = CRITERIA = ("needed", "behaves", "alone", "supported")


@typed
@plain_torch
def construction(
    checkpoints: Checkpoints,
    tokens: Any,
    hypotheses: CircuitHypothesis | Sequence[CircuitHypothesis],
    *,
    patterns: Any = None,
    slt: Mapping[int, SltEvidence] | None = None,
    roles: Mapping[str, Any] | None = None,
    how: str | Ablation = "auto",
    metric: Any = None,
    least_effect: float = LEAST_EFFECT,
    n_null: int = N_NULL,
    n_bootstrap: int = 1000,
    weights: Any = None,
    mask: Any = None,
    pad_id: int | None = None,
    seed: int = 0,
    trials: Literal["bisect", "all", "none"] = "bisect",
    path: str | Path | None = None,
    parallel: Any = None,
    device: torch.device | str | None = None,
    progress: bool = True,
) -> xr.Dataset:
    """Follow circuits of a trained model back over its training: when was each part there?

    At every checkpoint: what ablating each component and each edge costs the pattern's tokens more
    than matched others, in the whole model and without the rest of the circuit; what the circuit
    recovers alone; what its heads attend to; composition of its edges. All of it takes a handful
    of runs of the model. A trial takes hundreds: ``trials`` says where there is one.

    A part is there where its effect is at least ``least_effect``. ``onset`` is the first checkpoint
    from which on it is there by four criteria:

    - *needed*: a component, edge or circuit whose ablation costs that, in one of the contexts;
    - *behaves*: a head that attends as it does at the end, as far as its type says where (the
      rules of :func:`lens_slt.behaviour_scores`);
    - *alone*: a circuit that recovers that much, all other paths of its kinds ablated;
    - *supported*: a circuit with that verdict in its trial; its interval begins at the last trial
      without.

    Other intervals reach from the last checkpoint at which it clearly is not there to the first
    from which on it clearly is, corrected for all parts and checkpoints
    (:mod:`lens_slt.development.onsets`). Whether other parts of the model have such effects too is
    the trial's question, not these criteria's.

    Args:
        checkpoints: from :func:`lens_slt.checkpoints`, at least two; the last is where the circuits
            were found.
        tokens, patterns, roles, how, metric: as for :func:`lens_slt.cross_check`, the same at all
            checkpoints.
        least_effect, n_null, n_bootstrap, weights, mask, pad_id, seed: likewise.
        hypotheses: one or several. One that was made for a model must be for the last checkpoint's.
        slt: by step, what that checkpoint's trial is to hold against the interventions.
        trials: ``bisect``: at the last checkpoint, and where a circuit is supported there, halving
            the checkpoints in which support may begin; at all; or none.
        path: folder for everything; an interrupted call goes on there, more checkpoints may join.
            Trials lie in ``step-…/trial-….json``, for :func:`lens_slt.read_trials`.
        parallel, device, progress: as for :func:`lens_slt.develop`.

    Returns:
        Dataset over (checkpoint, part): ``effect`` with ``_se``, ``_low``, ``_high`` (95 %, also
        over ``context``; nats, or the metric's units); of heads ``behaviour``, ``behaviour_se``,
        ``head_type``; of edges ``composition`` with ``composition_q`` (weights), ``share`` with
        ``share_se`` (:func:`lens_slt.composition_on_tokens`); of circuits ``alone`` with ``_se``,
        ``_low``, ``_high``, ``alone_share``, ``verdict`` and ``reasons``, "" without a trial.
        Over (part, criterion): ``onset``, ``onset_low``, ``onset_high`` in steps, NaN where there
        is none. By part ``kind``, ``circuit``, ``piece``, ``behaves_as``, ``behaves_least``.
        :func:`lens_slt.construction_table` and :func:`lens_slt.plot` read it.

    Raises:
        TypeError, ValueError: bad arguments, before any work starts, as
            :func:`lens_slt.cross_check`; one checkpoint only; a ``path`` with something else.
        OSError: a checkpoint that cannot be read.

    Example:
        >>> import lens_slt as ls
        >>> run = ls.checkpoints("attn-2l").at([1000, 5300])
        >>> tokens = ls.load_tokens("mix", n_sequences=16, length=64)
        >>> mine = ls.circuit("L0H2 -> L1H2.K", pattern="induction")
        >>> found = ls.construction(run, tokens, mine, trials="none", progress=False)
        >>> float(found["onset"].sel(part="L0H2→L1H2.K", criterion="needed"))
        5300.0
    """
    number("least_effect", least_effect, above=0)
    integer("n_null", n_null, at_least=1)
    integer("n_bootstrap", n_bootstrap, at_least=100)
    integer("seed", seed, at_least=0)
    choice("trials", trials, ("bisect", "all", "none"))
    refuse_single(checkpoints)
    given = [hypotheses] if isinstance(hypotheses, CircuitHypothesis) else list(hypotheses)
    if not given:
        raise ValueError("hypotheses: there are none, give at least one circuit")
    slt = dict(slt or {})
    for step, one in slt.items():
        if step not in checkpoints.steps:
            raise ValueError(f"slt: {checkpoints!r} has no step {step!r}")
        instance(f"slt[{step}]", one, SltEvidence)
    options = {
        "patterns": patterns, "roles": roles, "how": how, "metric": metric,
        "least_effect": least_effect, "n_null": n_null, "n_bootstrap": n_bootstrap,
        "weights": weights, "mask": mask, "pad_id": pad_id, "seed": seed,
    }  # fmt: skip
    task = ConstructionTask(
        tokens, tuple(replace(one, model="") for one in given), options, slt, device
    )
    asked = _prepare(checkpoints.load(checkpoints.steps[-1], device), task, given)
    with sweep_folder(path) as folder:
        open_sweep(folder, DESCRIPTION, "construction", _identity(checkpoints, task, asked))
        sweep = _Sweep(checkpoints, task, folder, parallel, progress)
        sweep.measure()
        if trials != "none":
            (sweep.try_all if trials == "all" else sweep.bisect)()
        return _joined(sweep, asked)


@dataclass(frozen=True)
class _Asked:
    """What the arguments come to on the last model."""

    digest: str  # of tokens, patterns and options
    n_sequences: int
    n_having: dict[str, int]  # sequences that have some of a pattern: it is in no others
    units: str


def _prepare(model: Any, task: ConstructionTask, given: Sequence[CircuitHypothesis]) -> _Asked:
    """Everything that can be wrong, found on the last model before work starts."""
    runs = task.runs(model)
    digest = weights_hash(runs.adapted)
    for one in given:
        check_case(one, runs, digest)
    masks = task.masks(model, runs)
    n_having = {name: task.contrast(runs, mask).freedom + 1 for name, mask in masks.items()}
    arrays = [runs.tokens.numpy(), runs.weight, *masks.values()]
    roles = {name: np.asarray(value) for name, value in (task.options["roles"] or {}).items()}
    rest = {
        name: task.options[name]
        for name in ("how", "metric", "least_effect", "n_null", "n_bootstrap", "seed")
    }
    evidence = [(step, _contents(one)) for step, one in sorted(task.slt.items())]
    key = joblib.hash((arrays, roles, rest, evidence))
    return _Asked(str(key), len(runs.tokens), n_having, runs.metric.units)


def _contents(evidence: SltEvidence) -> list[dict[Hashable, np.ndarray]]:
    """All numbers and names of it."""
    held = (evidence.matrix, evidence.patterns.to_dataset(name="patterns"), evidence.modes)
    return [{k: v.values for k, v in one.variables.items()} for one in held if one is not None]


def _identity(checkpoints: Checkpoints, task: ConstructionTask, asked: _Asked) -> dict[str, Any]:
    """What makes two of these the same; checkpoints may join."""
    return {
        "schema": stamp("construction")["schema"],
        "run": checkpoints.name,
        "unit": checkpoints.unit,
        "hypotheses": [one.as_dict() | {"provenance": {}} for one in task.hypotheses],
        "tokens and options": asked.digest,
    }


@dataclass
class _Sweep:
    """Checkpoints and circuits, and the verdicts so far, by step and circuit."""

    checkpoints: Checkpoints
    task: ConstructionTask
    folder: Path
    parallel: Any
    progress: bool
    verdicts: dict[tuple[int, int], tuple[str, str]] = field(default_factory=dict)

    def measure(self) -> None:
        """Ablations at all checkpoints that are not finished."""
        jobs = []
        for step in self.checkpoints:
            folder, mark = step_folder(self.folder, step), self._mark(step)
            file = folder / FINISHED
            if file.exists() and read_json(file) == mark:
                continue
            shutil.rmtree(folder, ignore_errors=True)  # of another model, or half-written
            source = self.checkpoints.source(step)
            jobs.append(MeasureCell(step, source, self.task, mark, folder))
        run_jobs(jobs, self.parallel, label="ablations", progress=self.progress)

    def try_all(self) -> None:
        """A trial of every circuit at every checkpoint."""
        circuits = range(len(self.task.hypotheses))
        self._try([(step, one) for step in self.checkpoints for one in circuits])

    def bisect(self) -> None:
        """Trials at the last checkpoint, then where support may begin, half by half."""
        steps = self.checkpoints.steps
        places = {one: (-1, len(steps) - 1) for one in range(len(self.task.hypotheses))}
        self._try([(steps[-1], one) for one in places])
        while True:
            middle = {
                one: (low + high) // 2
                for one, (low, high) in places.items()
                if high - low > 1 and self._is_supported(steps[-1], one)
            }
            if not middle:
                return
            self._try([(steps[place], one) for one, place in middle.items()])
            for one, place in middle.items():
                low, high = places[one]
                supported = self._is_supported(steps[place], one)
                places[one] = (low, place) if supported else (place, high)

    def _try(self, wanted: Sequence[tuple[int, int]]) -> None:
        jobs = []
        for step, one in wanted:
            file = step_folder(self.folder, step) / f"trial-{one + 1}.json"
            if file.exists():
                trial = read_trials(file)[0]
                self.verdicts[step, one] = trial.verdict, "; ".join(trial.reasons)
            else:
                source = self.checkpoints.source(step)
                jobs.append(TrialCell(step, source, self.task, one, file))
        done = run_jobs(jobs, self.parallel, label="trials", progress=self.progress)
        for job, outcome in zip(jobs, done, strict=True):
            self.verdicts[job.step, job.circuit] = outcome.value

    def _is_supported(self, step: int, circuit: int) -> bool:
        return self.verdicts[step, circuit][0] == SUPPORTED

    def _mark(self, step: int) -> dict[str, Any]:
        return {"model": self.checkpoints.source(step).label}


def _joined(sweep: _Sweep, asked: _Asked) -> xr.Dataset:
    """All measures over checkpoints, with onsets."""
    steps, task = sweep.checkpoints.steps, sweep.task
    parts = parts_of(task.hypotheses)
    rows = [read_zarr(step_folder(sweep.folder, s) / f"{MEASURES}.zarr").load() for s in steps]
    found = xr.concat(rows, pd.Index(steps, name="checkpoint"))
    names, patterns = circuit_names(task.hypotheses), [one.pattern for one in task.hypotheses]
    found = found.assign_coords(
        part=[part.label for part in parts], context=list(CONTEXTS), criterion=list(CRITERIA),
        kind=("part", [part.kind for part in parts]),
        piece=("part", [part.name for part in parts]),
        circuit=("part", [names[part.circuit] for part in parts]),
        pattern=("part", [patterns[part.circuit] for part in parts]),
    )  # fmt: skip
    found = found.assign(_final_behaviour(found))
    found = found.drop_vars(["scores", "scores_se"])
    found = found.assign(_verdicts(sweep, parts))
    n_having = np.array([asked.n_having[one] for one in found["pattern"].values])
    found = found.assign(_onsets(found, task.options["least_effect"], asked.n_sequences, n_having))
    found.attrs = {
        "run": sweep.checkpoints.name, "unit": sweep.checkpoints.unit, "units": asked.units,
        "least_effect": task.options["least_effect"], "sequences": asked.n_sequences,
        "level": CONFIDENCE,
    }  # fmt: skip
    return stamped(found, "construction")


def _final_behaviour(found: xr.Dataset) -> dict[str, Any]:
    """The score that makes each head's type at the last checkpoint, over all checkpoints."""
    types = [str(name) for name in found["head_type"].isel(checkpoint=-1).values]
    shape = found.sizes["checkpoint"], len(types)
    score, error = np.full(shape, np.nan), np.full(shape, np.nan)
    least = np.full(len(types), np.nan)
    for i, name in enumerate(types):
        if name in ATTENDS:
            which, least[i] = ATTENDS[name]
            score[:, i] = found["scores"].values[:, i, SCORES.index(which)]
            error[:, i] = found["scores_se"].values[:, i, SCORES.index(which)]
    dims = ("checkpoint", "part")
    return {
        "behaviour": (dims, score),
        "behaviour_se": (dims, error),
        "behaves_as": ("part", [name if name in ATTENDS else "" for name in types]),
        "behaves_least": ("part", least),
    }


def _verdicts(sweep: _Sweep, parts: Sequence[Part]) -> dict[str, Any]:
    words = np.full((2, len(sweep.checkpoints), len(parts)), "", dtype=object)
    for row, step in enumerate(sweep.checkpoints):
        for column, part in enumerate(parts):
            if part.kind == CIRCUIT:
                words[:, row, column] = sweep.verdicts.get((step, part.circuit), ("", ""))
    dims = ("checkpoint", "part")
    return {"verdict": (dims, words[0].astype(str)), "reasons": (dims, words[1].astype(str))}


def _onsets(found: xr.Dataset, least: float, n: int, n_having: np.ndarray) -> dict[str, Any]:
    """Onsets of all parts by all criteria, corrected together; of verdicts by their words."""
    effect, error = found["effect"].values, found["effect_se"].values
    n_contexts = np.maximum(np.isfinite(effect).sum(-1), 1)
    at_most, at_least = one_sided(effect, error, least, n_having[:, None])
    needed = (
        _over_contexts(np.fmax, effect),
        np.minimum(1.0, n_contexts * _over_contexts(np.fmin, at_most)),
        _over_contexts(np.fmax, at_least),
    )
    behaviour, limit = found["behaviour"].values, found["behaves_least"].values
    error = found["behaviour_se"].values
    behaves = behaviour, *one_sided(behaviour, error, limit, behaviour_units(n))
    alone = found["alone"].values
    recovers = alone, *one_sided(alone, found["alone_se"].values, least, n_having)
    value, at_most, at_least = (
        np.concatenate(columns, axis=1) for columns in zip(needed, behaves, recovers, strict=True)
    )
    k = found.sizes["part"]
    limits = np.concatenate([np.full(k, least), limit, np.full(k, least)])
    steps = found["checkpoint"].values.tolist()
    there = np.nan_to_num(value, nan=-np.inf) >= limits
    three = onsets(steps, there, at_most, at_least, CONFIDENCE)
    supported = np.array([_supported(steps, words) for words in found["verdict"].values.T])
    every = np.concatenate([three.reshape(3, 3, k), supported.T[:, None]], axis=1)
    dims = ("part", "criterion")
    names = ("onset", "onset_low", "onset_high")
    return {name: (dims, values.T) for name, values in zip(names, every, strict=True)}


def behaviour_units(n: int) -> int:
    """Sequences that the errors of behaviours rest on, where ``n`` were given: some are scored on
    these, some on random ones, and the fewer count."""
    return min(n, N_RANDOM)


def _over_contexts(function: np.ufunc, values: np.ndarray) -> np.ndarray:
    return np.asarray(function.reduce(values, axis=-1))


def _supported(steps: Sequence[int], verdicts: Sequence[str]) -> tuple[float, float, float]:
    """From which trial on a circuit is supported, and the last before that where it is not."""
    tried = [(step, word) for step, word in zip(steps, verdicts, strict=True) if word]
    first = trailing(np.array([word == SUPPORTED for _, word in tried], dtype=bool))
    onset = float(tried[first][0]) if first < len(tried) else np.nan
    return onset, float(tried[first - 1][0]) if first else np.nan, onset
