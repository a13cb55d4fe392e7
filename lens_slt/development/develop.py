"""What a single model gets, at every checkpoint of a training run."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
import xarray as xr

from lens_slt.arguments import choice, numbers, typed
from lens_slt.data.patterns import label_patterns
from lens_slt.data.tokenizer import TokenizerWarning
from lens_slt.development.cells import FINISHED, KEPT, LLC, MATRIX, SweepTask, read_result
from lens_slt.development.curves import join_checkpoints
from lens_slt.development.folder import (
    REFERENCES,
    SOURCE,
    open_sweep,
    step_folder,
    sweep_folder,
    write_patterns,
)
from lens_slt.development.sweep import Sweep
from lens_slt.json_files import read_json
from lens_slt.models.checkpoints import Checkpoints, refuse_single
from lens_slt.models.saved import save_source
from lens_slt.models.source import ModelSource
from lens_slt.sampling.folder import folder_of
from lens_slt.sampling.prepare import PreparedRun, Probe, prepare, warn_about
from lens_slt.sampling.presets import preset
from lens_slt.sampling.result import open_draws
from lens_slt.sampling.settings import DEFAULT_DRAWS, Settings
from lens_slt.schema import check_version, require, stamp, stamped
from lens_slt.torch_state import plain_torch

DESCRIPTION = "development.json"
GAMMA, AT_OTHER_GAMMA = "gamma", 6  # folders of other localizations, and checkpoints there


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
    gammas: Sequence[float] = (),
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
    where one is known to be too large for the curve at another (the defect allows a bias of more
    than a tenth of the component's largest λ̂), the component is sampled anew, more finely, at all.

    Models are loaded one at a time, by the jobs (a checkpoint and a group of components each) that
    ``parallel`` says where to run. What is finished lies in ``path`` and is not done again; a
    checkpoint whose weights are others now, by their hash, is sampled again, and a warning says so.

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
        gammas: other localizations γ at which refined LLCs are measured too, at six checkpoints at
            most: weights grow in training, and with them what one γ holds in place.
        path: folder for everything; a sweep that was interrupted goes on there, and more
            checkpoints may join. Without it results are in memory.
        keep_draws: keep the draws of every checkpoint in ``path``, not only what was read off them.
        parallel: None, a number of processes, ``"dask"`` or ``"ray"``; see
            :func:`lens_slt.sample`.
        progress: show bars with the time left.

    Returns:
        DataTree with a node per result, as :func:`lens_slt.join_checkpoints` joins them:
        ``refined_llc`` (with ``weight_norm``, ‖w*‖), ``per_token_llc/PROBE``, ``sublosses``,
        ``behaviour_scores``, and ``gamma/VALUE``. Values of checkpoints that are no minima of the
        loss may be negative: the loss falls as weights move.

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
        >>> found["refined_llc/llc"].dims
        ('checkpoint', 'component')
    """
    refuse_single(checkpoints)
    settings = _equal_draws(preset(settings) if isinstance(settings, str) else settings)
    given = {
        name: probe if isinstance(probe, Probe) else Probe(probe)
        for name, probe in (probes or {}).items()
    }
    patterns = dict(patterns or {})
    for name in patterns:
        choice("a name in patterns", name, given)
    gammas = numbers("gammas", gammas, above=0) if gammas else ()
    options = {"weights": weights, "mask": mask, "pad_id": pad_id, "engine": engine}
    model = checkpoints.load(checkpoints.steps[-1], device)
    job = prepare(
        model, tokens, components, settings=settings,
        probes=_loaded(given, device), device=device, **options,
    )  # fmt: skip
    warn_about(job.adapted)
    labels = _labels(given, patterns, model)
    used = job.target.data.tokens.device
    free = device is None or str(device) == "cuda"  # any of the GPUs of a worker
    where = "cuda" if free and used.type == "cuda" else str(used)
    with sweep_folder(path) as folder:
        sweep = Sweep(
            checkpoints,
            SweepTask(
                tokens, _with_sources(given, folder), settings, options, labels, behaviour, where
            ),
            tuple(tuple(members.names) for members in job.target.groups),
            tuple(component.name for component in job.components),
            folder,
        )
        open_sweep(folder, DESCRIPTION, "development", _identity(job, sweep))
        write_patterns(folder, labels)
        sweep.run(parallel, keep_draws, progress)
        for gamma in gammas:
            other = _at_gamma(sweep, gamma)
            open_sweep(
                other.folder, DESCRIPTION, "development", _identity(job, other) | {"gamma": gamma}
            )
            other.run(parallel, keep_draws, progress)
        found = _joined(folder, checkpoints.steps)
        if path is None:
            found.load().encoding.pop(SOURCE)
        return found


@typed
def open_development(path: str | Path) -> xr.DataTree:
    """Read what ``develop(..., path=...)`` wrote: all checkpoints that are finished there.

    Raises:
        ValueError: no sweep there, of another version, or with fewer than two finished checkpoints.
        OSError: the folder cannot be read.

    Example:
        >>> import lens_slt as ls, tempfile
        >>> run = ls.checkpoints("attn-2l").at([1000, 2900])
        >>> text = ls.load_tokens("mix", n_sequences=8, length=16)
        >>> how = dict(settings=ls.Settings(draws=12, chains=2), behaviour=False, progress=False)
        >>> folder = tempfile.mkdtemp()
        >>> _ = ls.develop(run, text, "L1H2", path=folder, **how)
        >>> ls.open_development(folder)["refined_llc"].coords["checkpoint"].values
        array([1000, 2900])
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


@typed
def open_checkpoint(path: str | Path, step: int) -> dict[str, xr.Dataset]:
    """The results of one checkpoint of a sweep, blocks of draws and all, by the name of their node.

    What :func:`lens_slt.modes` and :func:`lens_slt.propose_circuits` need for their bootstrap.

    Raises ValueError where ``develop(..., path=...)`` has not finished this checkpoint there.

    Example:
        >>> import lens_slt as ls, tempfile
        >>> run = ls.checkpoints("attn-2l").at([1000, 2900])
        >>> text = ls.load_tokens("mix", n_sequences=8, length=16)
        >>> how = dict(settings=ls.Settings(draws=12, chains=2), behaviour=False, progress=False)
        >>> folder = tempfile.mkdtemp()
        >>> _ = ls.develop(run, text, "L1H2", path=folder, **how)
        >>> sorted(ls.open_checkpoint(folder, 2900))
        ['refined_llc']
    """
    place = step_folder(folder_of(path), step)
    if not (place / FINISHED).exists():
        raise ValueError(f"path: {str(path)!r} holds no finished checkpoint {step}")
    files = sorted(place.glob("*.zarr"))
    return {_node(file): read_result(place, file.stem) for file in files}


def _node(file: Path) -> str:
    """The node of a result, from the name of its folder."""
    return file.stem.replace("-", "/", 1)


def _at_gamma(sweep: Sweep, gamma: float) -> Sweep:
    """Refined LLCs alone, at another localization and a few checkpoints."""
    steps = sweep.checkpoints.steps
    few = {steps[round(share * (len(steps) - 1))] for share in np.linspace(0, 1, AT_OTHER_GAMMA)}
    settings = sweep.task.settings.but(gamma=gamma)
    return replace(
        sweep, checkpoints=sweep.checkpoints.at(sorted(few)), strides={}, drawn={}, scale={},
        task=replace(sweep.task, settings=settings, probes={}, patterns={}, behaviour=False),
        folder=sweep.folder / f"{GAMMA}-{gamma:g}",
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
    return settings if settings.draws is not None else settings.but(draws=DEFAULT_DRAWS)


def _loaded(probes: Mapping[str, Probe], device: Any) -> dict[str, Probe]:
    """With models for references."""
    return {
        name: replace(probe, reference=probe.reference.load(device))
        if isinstance(probe.reference, ModelSource) else probe
        for name, probe in probes.items()
    }  # fmt: skip


def _labels(
    probes: Mapping[str, Probe], given: Mapping[str, Any], model: Any
) -> dict[str, xr.DataArray]:
    """Patterns of every next-token probe: those that were given, or those of its text."""
    found = {}
    for name in (name for name, probe in probes.items() if probe.reference is None):
        if name in given:
            found[name] = require(given[name], "patterns", argument=f"patterns[{name!r}]")
            continue
        with warnings.catch_warnings():  # without a tokenizer repeats are labelled
            warnings.simplefilter("ignore", TokenizerWarning)
            found[name] = label_patterns(probes[name].tokens, getattr(model, "tokenizer", None))
    return found


def _with_sources(probes: Mapping[str, Probe], folder: Path) -> dict[str, Probe]:
    """With sources for references, which jobs can be sent."""
    found = {}
    for name, probe in probes.items():
        reference = probe.reference
        if reference is not None and not isinstance(reference, ModelSource):
            reference = save_source(reference, folder / REFERENCES / name)
        found[name] = replace(probe, reference=reference)
    return found


def _identity(job: PreparedRun, sweep: Sweep) -> dict[str, Any]:
    """What makes two sweeps the same; checkpoints may join."""
    known = {key: job.identity[key] for key in ("tokens", "probes", "observables", "settings")}
    return {
        "schema": stamp("development")["schema"],
        "run": sweep.checkpoints.name,
        "unit": sweep.checkpoints.unit,
        "components": list(sweep.components),
        "behaviour": sweep.task.behaviour,
        **known,
    }


def _joined(folder: Path, steps: Sequence[int]) -> xr.DataTree:
    """All results over checkpoints."""
    about = read_json(folder / DESCRIPTION)
    nodes = _curves(folder, steps)
    for place in sorted(folder.glob(f"{GAMMA}-*")):
        some = [step for step in steps if (step_folder(place, step) / FINISHED).exists()]
        if len(some) > 1:
            nodes[place.name.replace("-", "/", 1)] = _curves(place, some)[LLC]
    tree = xr.DataTree.from_dict(nodes)
    tree.attrs = {
        "run": about["run"], "unit": about["unit"], "settings": nodes[LLC].attrs["settings"],
    }  # fmt: skip
    tree.encoding[SOURCE] = str(folder)
    return stamped(tree, "development")


def _curves(folder: Path, steps: Sequence[int]) -> dict[str, xr.Dataset]:
    """Every result that lies there, by its node; without blocks of matrices, which are large."""
    found = {}
    for path in sorted(step_folder(folder, steps[0]).glob("*.zarr")):
        rows = {step: read_result(step_folder(folder, step), path.stem) for step in steps}
        if path.stem.startswith(MATRIX):
            rows = {step: row.drop_vars("blocks", errors="ignore") for step, row in rows.items()}
        found[_node(path)] = join_checkpoints(rows)
    return found


def kept_draws(path: Path, component: str | None) -> dict[int, xr.DataTree]:
    """The draws of one component at every checkpoint of a sweep that kept them, by step.

    Raises ValueError where none were kept, or for no such component.
    """
    kept = {
        _step_of(file.parent): (file.parent, read_json(file))
        for file in sorted(path.glob(f"step-*/{KEPT}"))
    }
    if not kept:
        raise ValueError(
            f"no draws are kept in {str(path)!r}: call develop(…, path=…, keep_draws=True)"
        )
    names = list(read_json(path / DESCRIPTION)["components"])
    if component is None and len(names) == 1:
        component = names[0]
    choice("component", component, names)
    return {step: open_draws(place / where[component]) for step, (place, where) in kept.items()}
