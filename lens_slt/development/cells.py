"""The jobs of a sweep over checkpoints: sample some components of one, read off what was drawn."""

from __future__ import annotations

import hashlib
import json
import math
import shutil
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
import xarray as xr

from lens_slt.arrays import read_zarr, write_zarr
from lens_slt.circuits.behaviour import behaviour_scores
from lens_slt.development.sublosses import sublosses
from lens_slt.models.adapter import adapt, copy_weights
from lens_slt.models.components import parse_components
from lens_slt.models.source import ModelSource
from lens_slt.models.source_hash import source_hash
from lens_slt.models.suffix import flatten_slots
from lens_slt.observables.per_token_llc import per_token_llc
from lens_slt.observables.refined_llc import refined_llc
from lens_slt.sampling.certificate import ERRORS, LARGEST_DEFECT, LARGEST_SHARE
from lens_slt.sampling.course import (
    LEAST_FACTOR,
    MOST_FACTOR,
    MOST_STEPS_PER_DRAW,
    ORDER,
    WANTED_SHARE,
)
from lens_slt.sampling.devices import one_device
from lens_slt.sampling.folder import DESCRIPTION, DamagedRun, SamplingWarning
from lens_slt.sampling.prepare import Probe
from lens_slt.sampling.result import dataset, open_draws
from lens_slt.sampling.sample import sample
from lens_slt.sampling.settings import Settings

LLC, BEHAVIOUR, SUBLOSSES, MATRIX = "refined_llc", "behaviour_scores", "sublosses", "per_token_llc"
KEPT = "draws.json"  # a file that says which of a checkpoint's folders has a component's draws
WEIGHTS = "weights.json"  # a file with the hash of the weights that a checkpoint's draws are of
FINISHED = "finished.json"  # a file that says that a checkpoint's results are whole


@dataclass(frozen=True)
class SweepTask:
    """What every checkpoint gets: arguments of :func:`lens_slt.sample`, and what is read off.

    References of probes are sources of models: nothing here holds one.
    """

    tokens: Any
    probes: Mapping[str, Probe]
    settings: Settings
    options: Mapping[str, Any]  # weights, mask, pad_id, engine
    patterns: Mapping[str, xr.DataArray]  # labels of next-token probes
    behaviour: bool
    device: str  # ``cuda`` is any that no other worker uses

    def sampled(
        self, source: ModelSource, components: Sequence[str], settings: Settings, path: Path
    ) -> xr.DataTree:
        """Draws of some components of a model; what was left by a lost worker is begun anew."""
        if path.exists() and not (path / DESCRIPTION).exists():
            shutil.rmtree(path)  # lost before anything was kept
        with one_device(self.device) as device:
            try:
                return self._sampled_on(device, source, components, settings, path)
            except DamagedRun:
                shutil.rmtree(path)
                return self._sampled_on(device, source, components, settings, path)

    def _sampled_on(
        self,
        device: torch.device,
        source: ModelSource,
        components: Sequence[str],
        settings: Settings,
        path: Path,
    ) -> xr.DataTree:
        probes = {
            name: probe if probe.reference is None
            else replace(probe, reference=probe.reference.load(device))
            for name, probe in self.probes.items()
        }  # fmt: skip
        model = source.load(device)
        path.parent.mkdir(parents=True, exist_ok=True)
        (path.parent / WEIGHTS).write_text(json.dumps(source_hash(source, model)), "utf-8")
        with warnings.catch_warnings():  # who called has been warned already
            warnings.simplefilter("ignore", SamplingWarning)
            return sample(
                model, self.tokens, list(components), settings=settings, probes=probes, path=path,
                progress=False, **self.options,
            )  # fmt: skip


@dataclass(frozen=True)
class Drawn:
    """One component at one checkpoint."""

    stride: int  # steps of one draw
    llc: float
    defect: float
    defect_se: float

    def is_coarse(self, scale: float) -> bool:
        """Whether its step is known to be too large for a curve whose largest value is ``scale``.

        Relative to the curve: where λ̂ passes through zero every bias is large relative to itself.
        """
        if np.isnan(self.llc):
            return True
        least = max(LARGEST_DEFECT, 2 * LARGEST_SHARE * scale)
        return abs(self.defect) - ERRORS * self.defect_se > least

    def finer(self, scale: float) -> int:
        """Steps of one draw that should do, where this step is coarse."""
        factor = MOST_FACTOR
        if np.isfinite(self.llc):
            share = abs(self.defect) / max(2 * scale, LARGEST_DEFECT)
            factor = float(
                np.clip((share / WANTED_SHARE) ** (1 / ORDER), LEAST_FACTOR, MOST_FACTOR)
            )
        return min(MOST_STEPS_PER_DRAW, math.ceil(self.stride * factor))


def drawn_of(draws: xr.DataTree) -> dict[str, Drawn]:
    """How every component was drawn."""
    columns = refined_llc(draws.drop_nodes("probes", errors="ignore"))
    keys = ("steps_per_draw", "llc", "defect", "defect_se")
    rows = zip(columns["component"].values, *(columns[key].values for key in keys), strict=True)
    return {str(name): Drawn(int(k), *map(float, rest)) for name, k, *rest in rows}


@dataclass(frozen=True)
class SampleCell:
    """Some components of one checkpoint."""

    step: int
    source: ModelSource
    task: SweepTask
    components: tuple[str, ...]
    strides: Mapping[str, int] | None  # steps of one draw; None: as the settings say
    folder: Path

    @property
    def name(self) -> str:
        given = "" if self.strides is None else f" at {self.strides}"
        return f"step {self.step}: {', '.join(self.components)}{given}"

    def run(self) -> dict[str, Drawn]:
        """How every component was drawn."""
        settings = self.task.settings
        if self.strides is not None:
            settings = settings.but(steps_per_draw=dict(self.strides))
        draws = self.task.sampled(self.source, self.components, settings, self.folder)
        return drawn_of(draws)


@dataclass(frozen=True)
class ReadCell:
    """Everything that is read off one checkpoint."""

    step: int
    source: ModelSource
    task: SweepTask
    parts: tuple[tuple[Path, tuple[str, ...]], ...]  # folders of draws, components to take of each
    components: tuple[str, ...]  # in the order of the result
    strides: Mapping[str, int]
    mark: Mapping[str, Any]  # what the results depend on
    folder: Path
    keep_draws: bool

    @property
    def name(self) -> str:
        return f"step {self.step}: results"

    def run(self) -> None:
        """Write the results; a finished checkpoint has a file that says so."""
        with one_device(self.task.device) as device:
            self._run(self.source.load(device))

    def _run(self, model: Any) -> None:
        drawn = [(open_draws(path), list(names)) for path, names in self.parts]
        llc = [_chosen(refined_llc(draws), names) for draws, names in drawn]
        norms = weight_norms(model, self.components)
        own = [norms.sel(component=one["component"]) for one in llc]
        self._write(LLC, [a.assign(weight_norm=b) for a, b in zip(llc, own, strict=True)])
        for probe in self._next_token_probes():
            rows = [_chosen(per_token_llc(draws, probe), names) for draws, names in drawn]
            self._write(f"{MATRIX}-{probe}", rows)
        if self._next_token_probes():
            self._store(SUBLOSSES, self._sublosses(drawn[0][0]))
        if self.task.behaviour:
            options = {k: v for k, v in self.task.options.items() if k != "engine"}
            self._store(BEHAVIOUR, behaviour_scores(model, self.task.tokens, **options))
        if self.keep_draws:
            kept = {name: path.name for path, names in self.parts for name in names}
            (self.folder / KEPT).write_text(json.dumps(kept), "utf-8")
        (self.folder / FINISHED).write_text(json.dumps(self.mark), "utf-8")
        if not self.keep_draws:
            for path, _ in self.parts:
                shutil.rmtree(path)

    def _next_token_probes(self) -> list[str]:
        return [name for name, probe in self.task.probes.items() if probe.reference is None]

    def _write(self, name: str, rows: list[xr.Dataset]) -> None:
        joined = xr.concat(
            rows,
            "component",
            data_vars="minimal",
            coords="minimal",
            compat="override",
            combine_attrs="drop_conflicts",
            join="override",
        )
        settings = self.task.settings.but(steps_per_draw=dict(self.strides) or None).as_dict()
        joined.attrs = rows[0].attrs | joined.attrs | {"settings": json.dumps(settings)}
        self._store(name, joined.sel(component=list(self.components)))

    def _store(self, name: str, result: xr.Dataset) -> None:
        write_zarr(result, self.folder / f"{name}.zarr")

    def _sublosses(self, draws: xr.DataTree) -> xr.Dataset:
        losses, weights, labels = {}, {}, {}
        digest = hashlib.sha256()
        for name in self._next_token_probes():
            probe = dataset(draws, f"probes/{name}")
            losses[name] = probe["base_loss"].values.astype(np.float64)
            weights[name] = probe["weight"].values.astype(np.float64)
            digest.update(probe["tokens"].values.tobytes() + probe["weight"].values.tobytes())
            labels[name] = self.task.patterns[name]
        return sublosses(losses, weights, labels, digest.hexdigest())


def read_result(folder: Path, name: str) -> xr.Dataset:
    """One result of one checkpoint, in memory but for what is large."""
    return read_zarr(folder / f"{name}.zarr")


def weight_norms(model: Any, components: Sequence[str]) -> xr.DataArray:
    """‖w*‖ of every component."""
    adapted = adapt(model)
    weights = copy_weights(adapted)
    parts = parse_components(list(components), adapted)
    norms = [float(flatten_slots(part, weights).double().norm()) for part in parts]
    return xr.DataArray(norms, dims="component", coords={"component": list(components)})


def _chosen(result: xr.Dataset, names: list[str]) -> xr.Dataset:
    return result.sel(component=names)
