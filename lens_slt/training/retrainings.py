"""Several retrainings of one checkpoint that differ in their data, measured as they go."""

from __future__ import annotations

import re
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import xarray as xr
from torch import Tensor

from lens_slt.arguments import choice, did_you_mean, integer, location, typed
from lens_slt.arrays import FloatArray
from lens_slt.circuits.runs import Runs
from lens_slt.data.tokenizer import TokenizerWarning
from lens_slt.models.adapter import adapt, weights_hash
from lens_slt.models.saved import SavedModel, save_source
from lens_slt.models.source import ModelSource, refuse_unpicklable
from lens_slt.sampling.devices import one_device
from lens_slt.sampling.jobs import JobOutcome, run_jobs
from lens_slt.sampling.prepare import Probe
from lens_slt.schema import require, stamped
from lens_slt.torch_state import plain_torch
from lens_slt.training.retrain import prepare_retraining, retrain

PASSED_ON = ("start", "save_at", "optimisation", "trainer", "pad_id")  # to retrain
MODEL = "model"  # the folder of the checkpoint that all begin with

Measure = Callable[[Any], Mapping[str, float]]


@typed
@plain_torch
def retrainings(
    model: Any,
    tokens: Any,
    runs: Mapping[str, Any],
    measure: Measure | Mapping[str, Any],
    *,
    steps: int,
    path: str | Path,
    seeds: Sequence[int] = (0, 1, 2),
    parallel: Any = None,
    progress: bool = True,
    **options: Any,
) -> xr.Dataset:
    """Train a checkpoint further in several ways, and measure all of them at the same steps.

    Runs with one seed share their randomness (see :func:`lens_slt.retrain`), so that differences
    between them are due to their weights; several seeds say how sure these differences are.

    Args:
        model, tokens: as in :func:`lens_slt.retrain`.
        runs: by name, weights of the data as there; None for all alike.
        measure: values by name of a model, such as losses or scores, the same names for every
            model; or token arrays or :class:`Probe` by name, whose mean losses are measured.
        steps: updates of every run.
        path: folder; a run that is finished is not trained again.
        seeds: of the batches.
        parallel: None, a number of processes, ``"dask"`` or ``"ray"``; each run is a job. A
            ``measure`` or ``trainer`` of one's own then has to pickle.
        progress: show a bar with the time left.
        **options: of :func:`lens_slt.retrain`: ``start``, ``save_at``, ``optimisation``,
            ``trainer``, ``pad_id``.

    Returns:
        Dataset over (checkpoint, run, seed, observable): ``value``. The checkpoints lie in
        ``path/RUN/seed-N``, for :func:`lens_slt.checkpoints`.

    Raises:
        ValueError, TypeError: no run, names that are no folders, what :func:`lens_slt.retrain`
            refuses, other names at another model, probes with a reference or with observables.

    Example:
        >>> import lens_slt as ls, tempfile
        >>> model, text = ls.load_model("attn-1l"), ls.load_tokens("mix", n_sequences=8, length=16)
        >>> runs, probes = {"all": None, "first": [1] + 7 * [0]}, {"text": ls.Probe(text)}
        >>> where = dict(steps=2, path=tempfile.mkdtemp(), seeds=[0], progress=False)
        >>> found = ls.retrainings(model, text, runs, probes, **where)
        >>> found["value"].dims
        ('checkpoint', 'run', 'seed', 'observable')
    """
    if not seeds or len(set(seeds)) < len(seeds):
        raise ValueError(f"seeds must be at least one, each once; got {', '.join(map(str, seeds))}")
    given = {name: dict.fromkeys(seeds, weights) for name, weights in runs.items()}
    return run_schedules(
        model, tokens, given, measure, steps=steps, path=path, parallel=parallel,
        progress=progress, **options,
    )  # fmt: skip


def run_schedules(
    model: Any,
    tokens: Any,
    runs: Mapping[str, Mapping[int, Any]],
    measure: Measure | Mapping[str, Any],
    *,
    steps: int,
    path: str | Path,
    parallel: Any,
    progress: bool,
    **options: Any,
) -> xr.Dataset:
    """As :func:`retrainings`, of runs whose weights are given for every seed, the same seeds."""
    folder = location("path", path)
    for name in options:
        if name not in PASSED_ON:
            hint = did_you_mean(name, (*PASSED_ON, "seeds"))
            allowed = ", ".join(PASSED_ON)
            raise TypeError(
                f"there is no argument {name!r}; passed on to retrain are {allowed}{hint}"
            )
    _check(runs)
    seeds = list(next(iter(runs.values())))
    measured = as_measure(measure)
    if parallel is not None:
        refuse_unpicklable("measure", measured)
    names = list(measured(model))
    places = {(name, seed): folder / name / f"seed-{seed}" for name in runs for seed in seeds}
    for (name, seed), place in places.items():  # refused before anything is trained
        prepare_retraining(
            model, tokens, runs[name][seed], steps=steps, path=place, seed=seed, **options
        )
    source = _kept(model, folder / MODEL)
    on = adapt(model).device
    device = "cuda" if on.type == "cuda" else str(on)
    jobs = [
        RetrainJob(
            f"{name}, seed {seed}", source, tokens, runs[name][seed], steps, seed,
            str(place.resolve()), measured, device, dict(options),
        )
        for (name, seed), place in places.items()
    ]  # fmt: skip
    outcomes = run_jobs(jobs, parallel, label="retrainings", progress=progress)
    values = [_values(outcome, names) for outcome in outcomes]
    checkpoints = list(outcomes[0].value)
    over = ("checkpoint", "run", "seed", "observable")
    shape = (len(runs), len(seeds), len(checkpoints), len(names))
    data = xr.Dataset(
        {"value": (over, np.moveaxis(np.reshape(values, shape), 2, 0))},
        coords={
            "run": list(runs), "seed": seeds, "checkpoint": checkpoints, "observable": names
        },
        attrs={"path": str(folder)},
    )  # fmt: skip
    return stamped(data, "retrainings")


@typed
def reached(result: xr.Dataset, levels: Mapping[str, float]) -> xr.Dataset:
    """The step from which on each run stays beyond a level of an observable.

    Args:
        result: from :func:`retrainings` or :func:`developmental_ablation`.
        levels: by observable. Beyond is below for those that are above it at the first checkpoint
            of the first run, and above for the others.

    Returns:
        Dataset over (observable, run, seed): ``step``, interpolated between checkpoints; the first
        one where a run is beyond from the start; NaN where it is not at the end.

    Raises:
        TypeError, ValueError: another result, levels of what was not measured.

    Example:
        >>> import lens_slt as ls, tempfile
        >>> model, text = ls.load_model("attn-1l"), ls.load_tokens("mix", n_sequences=8, length=16)
        >>> probes = {"text": ls.Probe(text)}
        >>> where = dict(steps=4, path=tempfile.mkdtemp(), seeds=[0], progress=False)
        >>> found = ls.retrainings(model, text, {"all": None}, probes, **where)
        >>> ls.reached(found, {"text": 1.0})["step"].dims
        ('observable', 'run', 'seed')
    """
    result = require(result, "retrainings", "developmental_ablation", argument="result")
    for name in levels:
        choice("a name in levels", name, [str(one) for one in result["observable"].values])
    shape = (len(levels), result.sizes["run"], result.sizes["seed"])
    steps = np.reshape([_steps(result, name, level) for name, level in levels.items()], shape)
    return xr.Dataset(
        {"step": (("observable", "run", "seed"), steps)},
        coords={"observable": list(levels), "run": result["run"], "seed": result["seed"]},
        attrs={f"level of {name}": level for name, level in levels.items()},
    )


def as_measure(measure: Measure | Mapping[str, Any]) -> Measure:
    """A function of a model; ValueError for probes of which there is more than a mean loss."""
    if callable(measure):
        return measure
    probes = {n: one if isinstance(one, Probe) else Probe(one) for n, one in measure.items()}
    for name, probe in probes.items():
        for field in ("reference", "observables"):
            if getattr(probe, field) is not None:
                raise ValueError(
                    f"measure[{name!r}] has {field}, and of probes only mean next-token losses are "
                    "measured: leave it out, or pass a function of a model as measure"
                )
    return MeanLosses(probes)


def check_measured(
    model: Any, measure: Measure | Mapping[str, Any], **arguments: Mapping[str, Any]
) -> None:
    """ValueError for names in arguments that are not measured; before anything is trained."""
    known = list(as_measure(measure)(model))
    for argument, names in arguments.items():
        for name in names:
            if name not in known:
                raise ValueError(
                    f"{argument}: {name!r} is not measured; measured are {', '.join(known)}"
                )


def later(step: FloatArray, usual: FloatArray) -> FloatArray:
    """Steps behind the usual run; ∞ where only that arrives, −∞ where only this one does."""
    apart = step - usual
    apart = np.where(np.isnan(step) & np.isfinite(usual), np.inf, apart)
    return np.where(np.isfinite(step) & np.isnan(usual), -np.inf, apart)


@dataclass(frozen=True)
class MeanLosses:
    """Mean losses of probes, in nats per token, of a model."""

    probes: dict[str, Probe]

    def __call__(self, model: Any) -> dict[str, float]:
        adapted = adapt(model)
        found = {}
        for name, probe in self.probes.items():
            given = {"weights": probe.weights, "mask": probe.mask, "pad_id": probe.pad_id}
            with warnings.catch_warnings():  # that it is untrained is what is measured
                warnings.simplefilter("ignore", TokenizerWarning)
                runs = Runs(adapted, probe.tokens, **given)
                losses = runs.base
            counted = np.where(runs.weight > 0, losses, 0.0)  # no number is no mean
            found[name] = float((counted * runs.weight).sum() / runs.weight.sum())
        return found


@dataclass(frozen=True)
class RetrainJob:
    """One retraining, measured at its checkpoints."""

    name: str
    source: ModelSource
    tokens: Tensor
    weights: Any
    steps: int
    seed: int
    path: str
    measure: Measure
    device: str
    options: dict[str, Any]

    def run(self) -> dict[int, dict[str, float]]:
        """Values by step."""
        with one_device(self.device) as device:
            model = self.source.load(device)
            run = retrain(
                model, self.tokens, self.weights, steps=self.steps, path=self.path,
                seed=self.seed, progress=False, **self.options,
            )  # fmt: skip
            return {step: dict(self.measure(run.load(step, device))) for step in run}


def _kept(model: Any, folder: Path) -> SavedModel:
    """The model in a folder, written once; ValueError where that holds another one."""
    if not folder.exists():
        return save_source(model, folder)
    found = SavedModel(str(folder.resolve()), adapt(model).name)
    if weights_hash(adapt(found.load(None))) != weights_hash(adapt(model)):
        raise ValueError(
            f"path: {str(folder.parent)!r} holds retrainings of another model; use another path"
        )
    return found


def _check(runs: Mapping[str, Mapping[int, Any]]) -> None:
    if not runs:
        raise ValueError("runs must hold at least one; got none")
    for name in runs:
        if not re.fullmatch(r"[\w.+ -]*\w", name) or name == MODEL:
            raise ValueError(
                f"runs: {name!r} is a folder, too: letters, digits, spaces and '.+-_', and not "
                f"{MODEL!r}"
            )
    for i, seed in enumerate(next(iter(runs.values()))):
        integer(f"seeds[{i}]", seed, at_least=0)


def _values(outcome: JobOutcome, names: list[str]) -> list[list[float]]:
    """``[checkpoint, observable]`` of one run; ValueError for other observables than ``names``."""
    for step, row in outcome.value.items():
        if list(row) != names:
            raise ValueError(
                f"measure gives {', '.join(row)} at step {step} of {outcome.name}, and "
                f"{', '.join(names)} of model: it must give the same of all"
            )
    return [list(row.values()) for row in outcome.value.values()]


def _steps(found: xr.Dataset, name: str, level: float) -> FloatArray:
    """``[run, seed]``."""
    values = found["value"].sel(observable=name).transpose("run", "seed", "checkpoint").values
    steps = found["checkpoint"].values.astype(float)
    falling = values[0, 0, 0] > level
    beyond = level - values if falling else values - level
    made = np.full(values.shape[:2], np.nan)
    for place in np.ndindex(made.shape):
        made[place] = last_crossing(steps, beyond[place])
    return made


def last_crossing(steps: FloatArray, beyond: FloatArray) -> float:
    """Where a curve becomes positive for good; NaN where it is not at the end."""
    below = np.flatnonzero(~(beyond > 0))  # a value that is no number is not beyond
    if not len(below):
        return float(steps[0])
    last = int(below[-1])
    if last == len(steps) - 1:
        return float("nan")
    if not np.isfinite(beyond[last]):
        return float(steps[last + 1])
    share = -beyond[last] / (beyond[last + 1] - beyond[last])
    return float(steps[last] + share * (steps[last + 1] - steps[last]))
