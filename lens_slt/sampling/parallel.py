"""One run in parts: groups of components as jobs, in processes or on a cluster.

What is evaluated together is never split: heads of one layer share matrix products, whose rounding
depends on what they multiply. Minibatches and noise are functions of seed, component and step, so
that each part draws, to the last bit, what it would draw beside the others. The parts are joined
into one run, which looks as if it had been sampled here.
"""

from __future__ import annotations

import json
import shutil
import tempfile
import uuid
import warnings
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
import xarray as xr
from torch import Tensor

from lens_slt.models.adapter import adapt, copy_weights
from lens_slt.models.components import parse_components
from lens_slt.models.observable import Observable
from lens_slt.models.saved import save_source
from lens_slt.models.source import ModelSource, refuse_unpicklable
from lens_slt.models.suffix import make_groups
from lens_slt.sampling.course import Course
from lens_slt.sampling.devices import one_device
from lens_slt.sampling.driver import Outcome
from lens_slt.sampling.folder import (
    DESCRIPTION,
    FORMAT,
    PARTS,
    WHOLE,
    DamagedRun,
    SamplingWarning,
    in_words,
    occupy,
    read_description,
    write_description,
)
from lens_slt.sampling.half_step import COLUMNS
from lens_slt.sampling.identity import differences
from lens_slt.sampling.jobs import is_configured, run_jobs
from lens_slt.sampling.pilot import PILOT, Pilot
from lens_slt.sampling.prepare import PreparedRun, assembled
from lens_slt.sampling.result import Labels, open_draws, write_labels
from lens_slt.sampling.run import drawn, labelled
from lens_slt.sampling.seal import stored
from lens_slt.sampling.settings import Settings
from lens_slt.sampling.store import (
    STATE_FILE,
    DrawStore,
    check_finished,
    check_place,
    is_finished,
    new_store,
    open_arrays,
    open_store,
    read_state,
)
from lens_slt.sampling.token_files import read_token_sets, write_token_sets

INPUTS, MODEL = "inputs.safetensors", "model"
MOST_IN_NAME = 3  # components
OF_A_PART = ("components", "engine", "directions")  # what its identity has of its own


def goes_in_parallel(folder: Path | None, parallel: Any) -> bool:
    """Whether a run is sampled in parts: because it is asked for, or because it was begun so.

    A run that was begun in one piece goes on in one piece.
    """
    parts = folder is not None and (folder / PARTS).is_dir()
    if folder is not None and (folder / DESCRIPTION).exists():
        return parts and not is_finished(folder)
    return parts or parallel is not None or is_configured()


def run_parallel(
    prepared: PreparedRun,
    source: ModelSource | None,
    folder: Path | None,
    parallel: Any,
    *,
    device: str,
    progress: bool,
) -> xr.DataTree:
    """Sample a prepared run in parts, join them and label the draws.

    Args:
        prepared: the whole run, of which only what is the same for all parts is computed here.
        source: where workers get the model; None writes it to the folder of the parts.
        folder: of the run; None uses a temporary one.
        parallel: as for :func:`lens_slt.sampling.jobs.run_jobs`.
        device: of the workers; ``cuda`` is any that no other worker uses.
        progress: over the parts.
    """
    check_place(folder, prepared.specs, prepared.identity)
    if folder is None:
        with tempfile.TemporaryDirectory(prefix="lens-slt-") as scratch:
            root = Path(scratch) / PARTS
            stores = _sampled(prepared, source, root, parallel, device, progress)
            return _joined(prepared, stores, open_store(None, prepared.specs, {}))
    lock = occupy(folder)
    try:
        for stale in (DESCRIPTION, STATE_FILE):  # of joining that was interrupted
            (folder / stale).unlink(missing_ok=True)
        stores = _sampled(prepared, source, folder / PARTS, parallel, device, progress)
        identity = {**prepared.identity, "record": prepared.record}
        _joined(prepared, stores, new_store(folder, prepared.specs, identity))
        shutil.rmtree(folder / PARTS)
    finally:
        if lock is not None:
            lock.release()
    return open_draws(folder)


@dataclass(frozen=True)
class SampleJob:
    """A part of a run: components that are evaluated together, into a store of their own."""

    name: str
    source: ModelSource
    components: tuple[str, ...]
    root: str  # of all parts: what they share is in ``WHOLE``
    store: str
    device: str
    engine: str
    fast: bool  # through the functional forward pass
    restarts: bool
    why_generic: str
    observables: dict[str, dict[str, Observable]]  # of every probe
    directions: dict[str, Tensor] | None

    def run(self) -> str:
        """Sample; why the part was begun anew, or nothing."""
        folder = Path(self.root) / self.store
        with one_device(self.device) as device:
            prepared = self._prepared(device)
            if folder.exists() and not (folder / DESCRIPTION).exists():
                shutil.rmtree(folder)  # killed before anything was kept
            try:
                _sample_into(folder, prepared)
            except DamagedRun as error:
                shutil.rmtree(folder)
                _sample_into(folder, prepared)
                return str(error)
        return ""

    def _prepared(self, device: torch.device) -> PreparedRun:
        whole = Path(self.root) / WHOLE
        if not whole.exists():
            raise FileNotFoundError(
                f"{self.root!r} is not on this machine: give path=, on a disk that all machines see"
            )
        identity = read_description(whole)["identity"]
        data, probes = read_token_sets(whole / INPUTS, device, self.observables)
        adapted = adapt(self.source.load(device))
        adapted = replace(adapted, restarts=self.restarts, why_generic=self.why_generic)
        if not self.fast:
            adapted = replace(adapted, architecture=None)
        weights = {name: w.to(device) for name, w in copy_weights(adapted).items()}
        components = parse_components(self.components, adapted)
        groups = make_groups(adapted, weights, components, self.engine)
        settings = Settings(**identity["settings"])
        prepared = assembled(
            adapted, weights, components, groups, data, probes, settings, self.engine,
            self.directions and {name: rows.to(device) for name, rows in self.directions.items()},
        )  # fmt: skip
        here = json.loads(json.dumps(prepared.identity))
        found = differences({**identity, **{key: here[key] for key in OF_A_PART}}, here)
        if found:
            raise ValueError(
                f"model: {self.source.label}, as this worker loads it, is not the model that "
                f"sample was given ({'; '.join(found)})"
            )
        return prepared


def _sample_into(folder: Path, prepared: PreparedRun) -> None:
    """Sample into a store, from where it stands; its labels are what joining needs."""
    identity = {**prepared.identity, "record": prepared.record}
    with open_store(folder, prepared.specs, identity) as store:
        if store.finished:
            return
        outcome, half = drawn(prepared, store, progress=False)
        store.check()
        counts = {"n_draws": [course.draws for course in outcome.courses]}
        assert store.path is not None
        write_labels(store.path, Labels({**counts, **half}, order=prepared.names), {})


def _sampled(
    prepared: PreparedRun,
    source: ModelSource | None,
    root: Path,
    parallel: Any,
    device: str,
    progress: bool,
) -> list[Path]:
    """Stores of all parts, in the order of the groups, after their jobs have ended."""
    whole = root / WHOLE
    with in_words(root, "write to"):
        whole.mkdir(parents=True, exist_ok=True)
        if not (whole / DESCRIPTION).exists():
            about = {"format": FORMAT, "run_id": uuid.uuid4().hex, "identity": prepared.identity}
            write_description(whole, about)
        write_token_sets(whole / INPUTS, prepared.target.data, prepared.target.probes)
    if source is None:
        source = save_source(prepared.adapted.module, whole / MODEL)
    jobs = _jobs(prepared, source, root, device)
    anew = {job.name: _damage(root / job.store, job.components) for job in jobs}
    left = [job for job in jobs if not _is_done(root / job.store)]
    first = sorted(left, key=lambda job: _first_layer(prepared, job))  # the longest of most runs
    label = f"{len(prepared.names)} components in {len(jobs)} parts"
    outcomes = run_jobs(first, parallel, label=label, progress=progress)
    anew |= {outcome.name: outcome.value for outcome in outcomes if outcome.value}
    said = [f"{name} ({why})" for name, why in anew.items() if why]
    if said:
        warnings.warn(f"begun anew: {'; '.join(said)}", SamplingWarning, stacklevel=6)
    return [root / job.store for job in jobs]


def _jobs(prepared: PreparedRun, source: ModelSource, root: Path, device: str) -> list[SampleJob]:
    adapted = prepared.adapted
    observables = {name: probe.observables for name, probe in prepared.target.probes.items()}
    for probe, functions in observables.items():
        for name, function in functions.items():
            refuse_unpicklable(f"probes[{probe!r}].observables[{name!r}]", function)
    return [
        SampleJob(
            _name(members.names), source, tuple(members.names), str(root.resolve()), f"{g:04d}",
            device, prepared.engine, adapted.architecture is not None, adapted.restarts,
            adapted.why_generic, observables, _of(prepared.directions, members.names),
        )
        for g, members in enumerate(prepared.target.groups)
    ]  # fmt: skip


def _of(directions: dict[str, Tensor] | None, names: list[str]) -> dict[str, Tensor] | None:
    return directions and {name: directions[name].cpu() for name in names}


def _name(components: list[str]) -> str:
    more = len(components) - MOST_IN_NAME
    return ", ".join(components[:MOST_IN_NAME]) + (f" and {more} more" if more > 0 else "")


def _first_layer(prepared: PreparedRun, job: SampleJob) -> int:
    by_name = {component.name: component for component in prepared.components}
    return by_name[job.components[0]].layer


def _is_done(store: Path) -> bool:
    return (store / DESCRIPTION).exists() and is_finished(store)


def _damage(store: Path, components: tuple[str, ...]) -> str:
    """Why a part that was complete is not as it was written, and is removed; else nothing."""
    try:
        if _is_done(store):
            check_finished(store, list(components), {})
    except DamagedRun as error:
        shutil.rmtree(store)
        return str(error)
    return ""


def _joined(prepared: PreparedRun, parts: list[Path], store: DrawStore) -> xr.DataTree:
    """Copy the draws of all parts to one store, as if they had been recorded there."""
    courses: list[Course] = []
    kept: dict[str, Tensor] = {}
    counts: dict[str, list[int]] = {name: [] for name in prepared.specs}
    half: dict[str, list[float]] = {name: [] for name in COLUMNS}
    steps = 0
    for g, part in enumerate(parts):
        about, state = read_state(part)
        for key, tensor in state.items():
            kept[key.replace(f"{PILOT}0|", f"{PILOT}{g}|")] = tensor
        labels = read_description(part)["labels"]["components"]
        for name in half:
            half[name] += labels[name]
        arrays = open_arrays(part, list(prepared.specs), "r")
        for name, own in counts.items():
            own += about["recorded"][name][0]
        for i in range(len(about["courses"])):
            place = len(courses) + i
            _copy(arrays, {name: own[place] for name, own in counts.items()}, i, place, store)
        courses += [Course(**course) for course in about["courses"]]
        steps = max(steps, about["step"])
    about = {
        "step": steps,
        "courses": [vars(course) for course in courses],
        "members": [[] for _ in parts],
    }
    store.save(kept, about, counts)
    outcome = Outcome(tuple(courses), Pilot.of(kept, prepared.target.groups), steps)
    return labelled(prepared, store, outcome, half)


def _copy(
    arrays: dict[str, Any], counts: dict[str, int], component: int, place: int, store: DrawStore
) -> None:
    """Record in ``store`` what one component of a part recorded, in the same order."""
    for name, n in counts.items():
        index = 0
        for rows in stored(arrays[name], component, n):
            for row in np.moveaxis(rows, 1, 0):
                store.put(name, place, index, row)
                index += 1
            if store.is_full():
                store.save({}, {})
