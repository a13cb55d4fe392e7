"""What a single model gets, at every checkpoint of a training run."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
import xarray as xr

from lens_slt.arguments import boolean, choice, typed
from lens_slt.development.cells import (
    FINISHED,
    LLC,
    MATRIX,
    ReadCell,
    SampleCell,
    Work,
    read_result,
)
from lens_slt.development.curves import join_checkpoints
from lens_slt.development.folder import REFERENCES, open_sweep, step_folder, sweep_folder
from lens_slt.json_files import read_json
from lens_slt.models.checkpoints import Checkpoints
from lens_slt.models.saved import save_source
from lens_slt.models.source import ModelSource
from lens_slt.sampling.course import MOST_STEPS_PER_DRAW
from lens_slt.sampling.folder import folder_of
from lens_slt.sampling.jobs import run_jobs
from lens_slt.sampling.presets import preset
from lens_slt.sampling.sample import Job, Probe, prepare, warn_about
from lens_slt.sampling.settings import LEAST_DRAWS, Settings
from lens_slt.schema import check_version, stamp, stamped
from lens_slt.torch_state import plain_torch

DESCRIPTION = "development.json"
STRIDES = "steps-per-draw.json"
PILOTS = (0.33, 0.67, 1.0)  # places in the run at which step sizes are chosen first
FINER = 2  # how often steps are made smaller for all checkpoints, because of one


@typed
@plain_torch
def develop(
    checkpoints: Checkpoints,
    tokens: Any,
    components: str | Sequence[str] = "heads",
    *,
    settings: Settings | str = "default",
    probes: Mapping[str, Any] | None = None,
    patterns: Mapping[str, Any] | None = None,
    behaviour: bool = True,
    weights: Any = None,
    mask: Any = None,
    pad_id: int | None = None,
    path: str | Path | None = None,
    keep_draws: bool = False,
    parallel: Any = None,
    engine: str = "auto",
    device: torch.device | str | None = None,
    progress: bool = True,
) -> xr.DataTree:
    """Refined LLCs, per-token matrices, behaviours and sublosses at every checkpoint of a run.

    Every component has one step size at all checkpoints, and noise and minibatches depend on seed,
    component, chain and step only: neighbouring checkpoints share their randomness, and differences
    are sharper than values (:func:`lens_slt.compare`). Step sizes are chosen at three checkpoints;
    where a certificate fails at another, the component is sampled anew, more finely, at all.

    Models are loaded one at a time, by the jobs (a checkpoint and a group of components each) that
    ``parallel`` says where to run. What is finished lies in ``path`` and is not done again.

    Args:
        checkpoints: from :func:`lens_slt.checkpoints`, at least two.
        tokens, components, weights, mask, pad_id, engine, device: as for :func:`lens_slt.sample`,
            for every checkpoint.
        settings: as there. ``draws``, 200 by default, are equal at all checkpoints.
        probes: as there; of each next-token probe the per-token rLLCs and the loss of every pattern
            are kept. A ``reference`` may be a model or a source of one.
        patterns: labels of a probe's tokens by its name, from :func:`lens_slt.label_patterns`;
            otherwise those that the model's tokenizer tells.
        behaviour: measure :func:`lens_slt.behaviour_scores`, on ``tokens``.
        path: folder for everything; a sweep that was interrupted goes on there, and more
            checkpoints may join. Without it results are in memory.
        keep_draws: keep the draws of every checkpoint in ``path``, not only what was read off them.
        parallel: None, a number of processes, ``"dask"`` or ``"ray"``; see
            :func:`lens_slt.sample`.
        progress: show bars with the time left.

    Returns:
        DataTree with a node per result, as :func:`lens_slt.join_checkpoints` joins them:
        ``refined_llc``, ``per_token_llc/PROBE``, ``sublosses``, ``behaviour_scores``. Values of
        checkpoints that are no minima of the loss may be negative: the loss falls as weights move.

    Raises:
        TypeError, ValueError: bad arguments, before any work starts; one checkpoint only; a
            ``path`` with another sweep.
        OSError: a checkpoint that cannot be read.

    Example:
        >>> import lens_slt as ls
        >>> run = ls.checkpoints("attn-2l").at([1000, 2900])
        >>> tokens = ls.load_tokens("mix", n_sequences=32, length=32)
        >>> few = ls.Settings(draws=20, chains=2, burn_in=5)
        >>> found = ls.develop(run, tokens, "L1H2", settings=few, progress=False)
        >>> found["refined_llc"]["llc"].dims
        ('checkpoint', 'component')
    """
    boolean("behaviour", behaviour)
    boolean("keep_draws", keep_draws)
    if len(checkpoints) < 2:
        raise ValueError(f"checkpoints must be at least two; got {checkpoints!r}")
    settings = _equal_draws(preset(settings) if isinstance(settings, str) else settings)
    given = {
        name: probe if isinstance(probe, Probe) else Probe(probe)
        for name, probe in (probes or {}).items()
    }
    patterns = dict(patterns or {})
    for name in patterns:
        choice("a name in patterns", name, given)
    options = {"weights": weights, "mask": mask, "pad_id": pad_id, "engine": engine}
    job = prepare(
        checkpoints.load(checkpoints.steps[-1], device), tokens, components, settings=settings,
        probes=_loaded(given, device), device=device, **options,
    )  # fmt: skip
    warn_about(job.adapted)
    with sweep_folder(path) as folder:
        sweep = Sweep(
            checkpoints,
            Work(
                tokens, _with_sources(given, folder), settings, options, patterns, behaviour, device
            ),
            tuple(tuple(members.names) for members in job.target.groups),
            tuple(component.name for component in job.components),
            folder,
        )
        open_sweep(folder, DESCRIPTION, "development", _identity(job, sweep))
        sweep.run(parallel, keep_draws, progress)
        found = _joined(folder, checkpoints.steps)
        return found if path is not None else found.load()


@typed
def open_development(path: str | Path) -> xr.DataTree:
    """Read what ``develop(..., path=...)`` wrote: all checkpoints that are finished there.

    Raises:
        ValueError: no sweep there, of another version, or with fewer than two finished checkpoints.
        OSError: the folder cannot be read.
    """
    folder = folder_of(path)
    if not (folder / DESCRIPTION).exists():
        raise ValueError(
            f"path: {str(folder)!r} holds no {DESCRIPTION}; give the path of develop(…)"
        )
    check_version("development", read_json(folder / DESCRIPTION)["schema"], "path")
    steps = sorted(_step_of(file.parent) for file in folder.glob(f"step-*/{FINISHED}"))
    if len(steps) < 2:
        raise ValueError(
            f"path: {len(steps)} checkpoints are finished in {str(folder)!r}, and curves need two: "
            "call develop(…) again with the same path to go on"
        )
    return _joined(folder, steps)


@dataclass
class Sweep:
    """Every checkpoint and component, at one step size for each component.

    Attributes:
        groups: components that are sampled by one job.
        strides: steps of one draw, by component; empty where settings fix the step size.
        drawn: folders of draws at these strides, by step and component.
    """

    checkpoints: Checkpoints
    work: Work
    groups: tuple[tuple[str, ...], ...]
    components: tuple[str, ...]
    folder: Path
    strides: dict[str, int] = field(default_factory=dict)
    drawn: dict[tuple[int, str], Path] = field(default_factory=dict)

    def run(self, parallel: Any, keep_draws: bool, progress: bool) -> None:
        """Sample all, as finely as the worst checkpoint of a component needs, and read it off."""
        self._start(parallel, progress)
        for finer in range(FINER + 1):
            failing = self._sample(parallel, progress)
            if not failing or finer == FINER:
                break
            for name in failing:
                self._set_strides({name: min(2 * self.strides[name], MOST_STEPS_PER_DRAW)})
        jobs = [self._reading(step, keep_draws) for step in self._left()]
        run_jobs(jobs, parallel, label="results", progress=progress)

    def _start(self, parallel: Any, progress: bool) -> None:
        """Strides of an earlier call, or those that a few checkpoints choose."""
        file = self.folder / STRIDES
        if file.exists():
            self.strides = read_json(file)
        elif self.work.settings.chooses_step and self.work.settings.steps_per_draw is None:
            self._choose(parallel, progress)

    def _choose(self, parallel: Any, progress: bool) -> None:
        steps = self.checkpoints.steps
        some = sorted({steps[round(share * (len(steps) - 1))] for share in PILOTS})
        jobs = [self._cell(step, names, None) for step in some for names in self.groups]
        found = run_jobs(jobs, parallel, label="step sizes", progress=progress)
        chosen: dict[str, int] = {}
        for outcome in found:
            for name, (stride, _) in outcome.value.items():
                chosen[name] = max(stride, chosen.get(name, 1))
        self._set_strides(chosen)
        for job, outcome in zip(jobs, found, strict=True):
            for name, (stride, _) in outcome.value.items():
                if stride == chosen[name] == 1:  # a finer course began later, at other noise
                    self.drawn[job.step, name] = job.folder

    def _set_strides(self, strides: Mapping[str, int]) -> None:
        self.strides |= strides
        (self.folder / STRIDES).write_text(json.dumps(self.strides), "utf-8")
        for place in [key for key in self.drawn if key[1] in strides]:
            del self.drawn[place]

    def _sample(self, parallel: Any, progress: bool) -> list[str]:
        """Draw what is missing; components whose certificate a smaller step may save."""
        jobs = []
        for step in self._left():
            for group in self.groups:
                names = tuple(name for name in group if (step, name) not in self.drawn)
                if names:
                    strides = {name: self.strides[name] for name in names if name in self.strides}
                    jobs.append(self._cell(step, names, strides or None))
        outcomes = run_jobs(jobs, parallel, label="checkpoints", progress=progress)
        failing = set()
        for job, outcome in zip(jobs, outcomes, strict=True):
            for name, (stride, fails) in outcome.value.items():
                self.drawn[job.step, name] = job.folder
                if fails and name in self.strides and stride < MOST_STEPS_PER_DRAW:
                    failing.add(name)
        return sorted(failing)

    def _left(self) -> list[int]:
        """Steps that are not finished at these strides."""
        return [step for step in self.checkpoints.steps if not self._is_finished(step)]

    def _is_finished(self, step: int) -> bool:
        file = step_folder(self.folder, step) / FINISHED
        return file.exists() and read_json(file) == self._mark(step)

    def _mark(self, step: int) -> dict[str, Any]:
        """What the results of a checkpoint depend on, beside the sweep's description."""
        return {"model": self.checkpoints.source(step).label, "strides": self.strides}

    def _cell(
        self, step: int, names: tuple[str, ...], strides: dict[str, int] | None
    ) -> SampleCell:
        key = hashlib.sha256(json.dumps([names, strides]).encode()).hexdigest()[:12]
        place = step_folder(self.folder, step) / f"draws-{key}"
        return SampleCell(step, self.checkpoints.source(step), self.work, names, strides, place)

    def _reading(self, step: int, keep_draws: bool) -> ReadCell:
        parts: dict[Path, list[str]] = {}
        for name in self.components:
            parts.setdefault(self.drawn[step, name], []).append(name)
        return ReadCell(
            step, self.checkpoints.source(step), self.work,
            tuple((path, tuple(names)) for path, names in parts.items()), self.components,
            self.strides, self._mark(step), step_folder(self.folder, step), keep_draws,
        )  # fmt: skip


def _step_of(folder: Path) -> int:
    return int(folder.name.removeprefix("step-"))


def _equal_draws(settings: Settings) -> Settings:
    """With a number of draws: as many at every checkpoint."""
    if settings.target_se is not None:
        raise ValueError(
            f"settings: target_se must be None, draws are equal at all checkpoints; got "
            f"{settings.target_se}: give draws"
        )
    return settings if settings.draws is not None else settings.but(draws=LEAST_DRAWS)


def _loaded(probes: Mapping[str, Probe], device: Any) -> dict[str, Probe]:
    """With models for references."""
    return {
        name: replace(probe, reference=probe.reference.load(device))
        if isinstance(probe.reference, ModelSource) else probe
        for name, probe in probes.items()
    }  # fmt: skip


def _with_sources(probes: Mapping[str, Probe], folder: Path) -> dict[str, Probe]:
    """With sources for references, which jobs can be sent."""
    found = {}
    for name, probe in probes.items():
        reference = probe.reference
        if reference is not None and not isinstance(reference, ModelSource):
            reference = save_source(reference, folder / REFERENCES / name)
        found[name] = replace(probe, reference=reference)
    return found


def _identity(job: Job, sweep: Sweep) -> dict[str, Any]:
    """What makes two sweeps the same; checkpoints may join."""
    known = {key: job.identity[key] for key in ("tokens", "probes", "observables", "settings")}
    return {
        "schema": stamp("development")["schema"],
        "run": sweep.checkpoints.name,
        "unit": sweep.checkpoints.unit,
        "components": list(sweep.components),
        "behaviour": sweep.work.behaviour,
        **known,
    }


def _joined(folder: Path, steps: Sequence[int]) -> xr.DataTree:
    """All results over checkpoints."""
    about = read_json(folder / DESCRIPTION)
    first = step_folder(folder, steps[0])
    nodes = {}
    for path in sorted(first.glob("*.zarr")):
        name = path.stem
        rows = {step: read_result(step_folder(folder, step), name) for step in steps}
        rows = {
            step: row.drop_vars("blocks") if MATRIX in name else row for step, row in rows.items()
        }
        nodes[name.replace("-", "/", 1)] = join_checkpoints(rows)
    tree = xr.DataTree.from_dict(nodes)
    tree.attrs = {
        "run": about["run"], "unit": about["unit"], "settings": nodes[LLC].attrs["settings"],
    }  # fmt: skip
    return stamped(tree, "development")
