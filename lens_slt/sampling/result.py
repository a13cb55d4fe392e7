"""The labelled arrays a run returns.

``draws`` is an :class:`xarray.DataTree`:

- the root: per component its number of parameters, how it was evaluated, what it shares, its step
  size, its steps and number of draws, the curvature that was found and the loss of prior draws;
  attributes with the settings, versions and hashes of the run, and ``base_loss``, the mean loss at
  the given weights in nats per token, its standard error over sequences ``base_loss_se``, and
  ``uniform_loss``, that of a guess that gives every token the same chance;
- ``/posterior``: ``paired_loss``, ``squared_distance``, and the means over the steps of each draw
  ``step_loss``, ``virial`` and ``defect`` (component, chain, draw); ``full_loss`` on request;
- ``/burn_in``: ``paired_loss`` before the first draw (component, chain, interval);
- ``/probes/NAME``: ``paired_loss`` (component, chain, draw, sequence, position); ``base_loss``,
  ``tokens``, the predicted ones, and their ``weight`` relative to the largest (sequence, position);
  losses are NaN where the weight is 0; attribute ``loss``: ``next-token``, or ``divergence`` from a
  reference model; every observable by its name, the weighted mean over the predictions of each
  sequence (component, chain, draw, sequence), and ``base_OBSERVABLE`` (sequence); attribute
  ``observables``: their names;
- ``/health``: verdicts in words and the certificate, see :mod:`lens_slt.sampling.health`.

Components may have different numbers of draws; what lies beyond ``n_draws`` is NaN.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import xarray as xr
import zarr

from lens_slt.arguments import choice
from lens_slt.arrays import FloatArray
from lens_slt.sampling.folder import (
    DESCRIPTION,
    DRAWS_FOLDER,
    PARTS,
    folder_of,
    holds_run,
    in_words,
    read_description,
    write_description,
)
from lens_slt.sampling.health import diagnose
from lens_slt.sampling.members import probe_array
from lens_slt.sampling.seal import array_digest
from lens_slt.sampling.settings import Settings
from lens_slt.sampling.store import ArraySpec, check_finished, open_arrays, read_about
from lens_slt.schema import check_version, stamped
from lens_slt.schemas import SCHEMAS

TRACES = ("paired_loss", "squared_distance", "step_loss", "virial", "defect")
FULL_LOSS = "full_loss"
BURN_IN = "burn_in_loss"
PROBE_DIMS = ("component", "chain", "draw", "sequence", "position")


def trace_specs(n_components: int, settings: Settings) -> dict[str, ArraySpec]:
    """Arrays recorded at every draw, and the losses before the first."""
    names = (*TRACES, FULL_LOSS) if settings.full_loss else TRACES
    shape = (n_components, settings.chains, settings.least_draws)
    specs = {name: ArraySpec(shape, ("component", "chain", "draw")) for name in names}
    before = (n_components, settings.chains, max(1, settings.burn_in_steps))
    return specs | {BURN_IN: ArraySpec(before, ("component", "chain", "interval"))}


def probe_specs(
    n_components: int,
    settings: Settings,
    probe_shapes: dict[str, tuple[int, int]],
    observables: dict[str, list[str]] | None = None,
) -> dict[str, ArraySpec]:
    """Arrays recorded at every thin-th draw; shapes are (sequence, predicted position).

    ``observables`` has the names of those of some probes.
    """
    draws = -(-settings.least_draws // settings.thin)
    drawn = (n_components, settings.chains, draws)
    found = {}
    for name, shape in probe_shapes.items():
        found[probe_array(name)] = ArraySpec((*drawn, *shape), PROBE_DIMS)
        for observable in (observables or {}).get(name, ()):
            spec = ArraySpec((*drawn, shape[0]), PROBE_DIMS[:-1])
            found[probe_array(name, observable)] = spec
    return found


@dataclass(frozen=True)
class Labels:
    """What names the recorded arrays beside the run's identity."""

    components: dict[str, list[Any]]  # columns of the root, in the order of the arrays
    order: list[str]  # of the components in the result
    probe_loss: dict[str, str] = field(default_factory=dict)
    observables: dict[str, list[str]] = field(default_factory=dict)  # of every probe


def write_labels(path: Path, labels: Labels, probes: dict[str, dict[str, np.ndarray]]) -> None:
    """Store beside the draws what :func:`open_draws` needs to label them without the model."""
    fixed = {}
    with in_words(path, "save draws to"):
        group = zarr.open_group(path, mode="r+")
        for name, columns in probes.items():
            for key, values in columns.items():
                place = f"probes/{name}/{key}"
                dims = PROBE_DIMS[-2:][: values.ndim]
                group.create_array(place, data=values, dimension_names=dims, overwrite=True)
                fixed[place] = array_digest(values)
    about = read_description(path) | {"schema": SCHEMAS["draws"].version, "fixed": fixed}
    write_description(
        path, about | {"labels": json.loads(json.dumps(asdict(labels), default=_plain))}
    )


def open_draws(path: str | Path) -> xr.DataTree:
    """Read the draws that ``sample(..., path=...)`` wrote, without the model.

    Everything is read once, to see that it is as it was written.

    Args:
        path: the folder that was given to ``sample``, or one that a command wrote its results to.

    Returns:
        The draws, labelled as ``sample`` returned them; probes stay on disk until they are read.

    Raises:
        ValueError: no draws there, a run that has not finished, one of another version, or one that
            was altered.
        OSError: the folder cannot be read.

    Example:
        >>> import lens_slt as ls, tempfile
        >>> model, text = ls.load_model("attn-1l"), ls.load_tokens("mix", n_sequences=8, length=16)
        >>> how = dict(settings=ls.Settings(draws=20, chains=2, steps_per_draw=1), progress=False)
        >>> path = tempfile.mkdtemp() + "/mine"
        >>> draws = ls.sample(model, text, "L0H0", path=path, **how)
        >>> ls.open_draws(path)["posterior"].identical(draws["posterior"])
        True
    """
    folder = folder_of(path)
    if not (folder / DESCRIPTION).exists() and holds_run(folder / DRAWS_FOLDER):
        folder = folder / DRAWS_FOLDER
    if not (folder / DESCRIPTION).exists() and (folder / PARTS).is_dir():
        raise ValueError(
            f"path: the run in {str(folder)!r} has not finished, its parts are not joined; "
            "call sample with the same arguments to continue it"
        )
    about = read_description(folder)
    if "labels" not in about:
        step = read_about(folder).get("step", 0)
        raise ValueError(
            f"path: the run in {str(folder)!r} has not finished (step {step}); "
            "call sample with the same arguments to continue it"
        )
    check_version("draws", about.get("schema", 0), f"path: {str(folder)!r}")
    check_finished(folder, about["identity"]["components"], about["fixed"])
    return read_draws(folder)


def read_draws(folder: Path) -> xr.DataTree:
    """The draws of a finished run, as they are there."""
    about = read_description(folder)
    identity = about["identity"]
    settings = Settings(**identity["settings"])
    fixed: dict[str, dict[str, np.ndarray]] = {name: {} for name in identity["probes"]}
    labels = Labels(**about["labels"])
    names = [*trace_specs(1, settings), *map(probe_array, fixed)]
    names += [probe_array(*pair) for pair in _pairs(labels.observables)]
    arrays = open_arrays(folder, [*names, *about["fixed"]], "r")
    with in_words(folder, "read"):
        for place in about["fixed"]:
            _, name, key = place.split("/")
            fixed[name][key] = np.asarray(arrays[place])
        return draw_tree(
            {name: arrays[name] for name in names}, identity["components"], settings,
            identity["record"], labels, fixed, folder,
        )  # fmt: skip


def _pairs(observables: dict[str, list[str]]) -> list[tuple[str, str]]:
    return [(probe, name) for probe, names in observables.items() for name in names]


def draw_tree(
    arrays: dict[str, Any],
    names: list[str],
    settings: Settings,
    record: dict[str, Any],
    labels: Labels,
    probes: dict[str, dict[str, np.ndarray]] | None = None,
    path: Path | None = None,
) -> xr.DataTree:
    """Label the recorded arrays; Zarr arrays of probes stay on disk until they are read."""
    coords = {"component": names, "chain": np.arange(settings.chains)}
    counts = np.asarray(labels.components["n_draws"])
    traces = {
        name: _up_to(np.asarray(values[:]), counts)
        for name, values in arrays.items()
        if name in (*TRACES, FULL_LOSS)
    }
    posterior = xr.Dataset(
        {name: (("component", "chain", "draw"), values) for name, values in traces.items()},
        coords={**coords, "draw": np.arange(counts.max())},
    )
    posterior["paired_loss"].attrs["units"] = "nats per token"
    before = np.asarray(arrays[BURN_IN][:, :, : settings.burn_in_steps])
    burn_in = xr.Dataset(
        {"paired_loss": (("component", "chain", "interval"), before)},
        coords={**coords, "interval": np.arange(before.shape[2])},
    )
    root = xr.Dataset(
        {key: ("component", np.asarray(values)) for key, values in labels.components.items()},
        coords=coords,
        attrs={"settings": json.dumps(settings.as_dict()), **record},
    )
    tree = {"/": root, "/posterior": posterior, "/burn_in": burn_in}
    for name, fixed in (probes or {}).items():
        n_draws = -(-int(counts.max()) // settings.thin)
        observables = labels.observables.get(name, [])
        recorded = {
            key: _recorded(arrays[probe_array(name, key)], path, name, key)[:, :, :n_draws]
            for key in ("paired_loss", *observables)
        }
        tree[f"/probes/{name}"] = xr.Dataset(
            recorded
            | {key: (PROBE_DIMS[-2:][: value.ndim], value) for key, value in fixed.items()},
            coords={**coords, "draw": np.arange(n_draws) * settings.thin},
            attrs={"loss": labels.probe_loss[name], "observables": " ".join(observables)},
        )
    tree["/health"] = diagnose(posterior, root, settings)
    return stamped(xr.DataTree.from_dict(tree).sel(component=labels.order), "draws")


def dataset(draws: xr.DataTree, group: str) -> xr.Dataset:
    """One group of a run: ``posterior``, ``burn_in``, ``health`` or ``probes/NAME``."""
    node = draws
    for part in group.split("/"):
        node = node.children[part]
    return node.to_dataset()


def component_names(draws: xr.DataTree) -> list[str]:
    """The components of a run, in order."""
    return [str(name) for name in draws.to_dataset()["component"].values]


def one_component(draws: xr.DataTree, component: str | None) -> str:
    """The component of that name, or the only one.

    Raises ValueError where there is no such, or more than one and no name.
    """
    names = component_names(draws)
    if component is None and len(names) > 1:
        raise ValueError(f"component must be one of {', '.join(names)}: the run has more than one")
    component = names[0] if component is None else component
    choice("component", component, names)
    return component


def n_draws(draws: xr.DataTree, component: str) -> int:
    """The number of draws of every chain of a component."""
    return int(draws.to_dataset()["n_draws"].sel(component=component))


def settings_of(draws: xr.DataTree | xr.Dataset) -> Settings:
    """The settings of a run, from its draws or from what was read off them."""
    return Settings(**json.loads(draws.attrs["settings"]))


def _recorded(values: Any, path: Path | None, name: str, key: str) -> xr.Variable:
    if path is None:
        return xr.Variable(PROBE_DIMS[: values.ndim], values)
    group = f"probes/{name}"
    stored = xr.open_zarr(path, group=group, chunks=None, consolidated=False)
    return stored[key].variable


def _up_to(values: FloatArray, counts: np.ndarray) -> FloatArray:
    """``values [component, chain, draw]`` without what lies beyond each component's draws."""
    values = values[:, :, : counts.max()].copy()
    for row, n in zip(values, counts, strict=True):
        row[:, n:] = np.nan
    return values


def _plain(value: Any) -> float | int:
    return value.item()
