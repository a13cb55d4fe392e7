"""A prepared run in this process: from where its store stands to labelled draws."""

from __future__ import annotations

import warnings
from pathlib import Path

import xarray as xr

from lens_slt.data.columns import moved_back
from lens_slt.progress import track
from lens_slt.sampling.course_table import course_table
from lens_slt.sampling.driver import Outcome, run_chains
from lens_slt.sampling.folder import SamplingWarning, read_description
from lens_slt.sampling.half_step import half_steps
from lens_slt.sampling.prepare import PreparedRun, component_table
from lens_slt.sampling.result import Labels, draw_tree, open_draws, read_draws, write_labels
from lens_slt.sampling.store import DrawStore, open_store


def run(job: PreparedRun, folder: Path | None, progress: bool = False) -> xr.DataTree:
    """Sample in this process what was prepared; continues or reads what is in the folder."""
    with open_store(folder, job.specs, {**job.identity, "record": job.record}) as store:
        if store.path is not None:
            _warn_of_versions(store.path, job.record["versions"])
        if store.path is None or not store.finished:
            return _sampled(job, store, progress)
        return open_draws(store.path)


def _sampled(job: PreparedRun, store: DrawStore, progress: bool) -> xr.DataTree:
    outcome, half = drawn(job, store, progress)
    return labelled(job, store, outcome, half)


def drawn(
    job: PreparedRun, store: DrawStore, progress: bool
) -> tuple[Outcome, dict[str, list[float]]]:
    """Run to the end, from where the store stands; with what :func:`half_steps` found."""
    label = f"{len(job.names)} components × {job.settings.chains} chains"
    with track(label, 1, progress) as done:
        outcome = run_chains(job.target, job.settings, store, lambda book: done(*book.share))
        return outcome, half_steps(job.target, job.settings, outcome, store)


def labelled(
    job: PreparedRun, store: DrawStore, outcome: Outcome, half: dict[str, list[float]]
) -> xr.DataTree:
    """Label what was drawn, in the folder if there is one, and give it back."""
    target, settings = job.target, job.settings
    base = target.probe_base_losses()
    fixed = {
        name: {
            "base_loss": base[name].float().cpu().numpy(),
            "tokens": moved_back(probe.tokens, probe.shift)[:, 1:].cpu().numpy(),
            "weight": moved_back(probe.weight, probe.shift).float().cpu().numpy(),
        }
        | {
            f"base_{key}": values.float().cpu().numpy()
            for key, values in target.base_observables[name].items()
        }
        for name, probe in target.probes.items()
    }
    by_name = {c.name: c for c in job.components}
    chosen = [by_name[name] for name in job.names]
    labels = Labels(
        components=component_table(target, chosen) | course_table(outcome, settings) | half,
        # Groups run layer by layer; the caller gets the order that was asked for.
        order=[c.name for c in job.components],
        probe_loss={
            name: "next-token" if probe.reference is None else "divergence"
            for name, probe in target.probes.items()
        },
        observables={name: list(probe.observables) for name, probe in target.probes.items()},
    )
    if store.path is None:
        return draw_tree(store.arrays, job.names, settings, job.record, labels, fixed)
    store.check()
    write_labels(store.path, labels, fixed)
    return read_draws(store.path)


def _warn_of_versions(folder: Path, here: str) -> None:
    """Draws of other versions are the same to rounding at best."""
    there = read_description(folder)["identity"]["record"]["versions"]
    if there != here:
        warnings.warn(
            f"path: draws in {str(folder)!r} are from other versions: {there} there, {here} here",
            SamplingWarning,
            stacklevel=5,
        )
