"""The labelled arrays a run returns.

``draws`` is an :class:`xarray.DataTree`:

- the root: per component its number of parameters, how it was evaluated, and what it shares;
  attributes with the settings, versions and hashes of the run;
- ``/posterior``: ``paired_loss`` and ``squared_distance`` (component, chain, draw);
- ``/burn_in``: the same before the first draw (component, chain, step);
- ``/probes/NAME``: ``paired_loss`` (component, chain, draw, sequence, position), ``base_loss`` and
  ``tokens`` (sequence, position), the predicted ones; attribute ``loss``: ``next-token``, or
  ``divergence`` from a reference model;
- ``/health``: verdicts in words, see :mod:`lens_slt.sampling.health`.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import xarray as xr

from lens_slt.sampling.health import diagnose
from lens_slt.sampling.settings import Settings
from lens_slt.sampling.store import ArraySpec

TRACES = ("paired_loss", "squared_distance")


def trace_specs(n_components: int, settings: Settings) -> dict[str, ArraySpec]:
    """Arrays recorded at every step."""
    shape = (n_components, settings.chains, settings.steps)
    return {name: ArraySpec(shape, ("component", "chain", "step")) for name in TRACES}


def probe_specs(
    n_components: int, settings: Settings, probe_shapes: dict[str, tuple[int, int]]
) -> dict[str, ArraySpec]:
    """Arrays recorded at every thin-th draw; shapes are (sequence, predicted position)."""
    draws = -(-settings.draws // settings.thin)
    dims = ("component", "chain", "draw", "sequence", "position")
    return {
        probe_array(name): ArraySpec((n_components, settings.chains, draws, *shape), dims)
        for name, shape in probe_shapes.items()
    }


def probe_array(name: str) -> str:
    """Where a probe's per-token losses are stored."""
    return f"probes/{name}/paired_loss"


def draw_tree(
    arrays: dict[str, Any],
    names: list[str],
    settings: Settings,
    record: dict[str, Any],
    *,
    components: dict[str, list[Any]],
    probes: dict[str, dict[str, np.ndarray]] | None = None,
    probe_loss: dict[str, str] | None = None,
    path: Path | None = None,
) -> xr.DataTree:
    """Label the recorded arrays; Zarr arrays of probes stay on disk until they are read."""
    coords = {"component": names, "chain": np.arange(settings.chains)}
    dims = ("component", "chain", "step")
    traces = {name: np.asarray(arrays[name][:]) for name in TRACES}
    first = settings.burn_in_steps
    posterior = xr.Dataset(
        {k: (("component", "chain", "draw"), v[:, :, first:]) for k, v in traces.items()},
        coords={**coords, "draw": np.arange(settings.draws)},
    )
    burn_in = xr.Dataset(
        {k: (dims, v[:, :, :first]) for k, v in traces.items()},
        coords={**coords, "step": np.arange(first)},
    )
    posterior["paired_loss"].attrs["units"] = "nats per token"
    root = xr.Dataset(
        {key: ("component", np.asarray(values)) for key, values in components.items()},
        coords=coords,
        attrs={"settings": json.dumps(settings.as_dict()), **record},
    )
    tree = {"/": root, "/posterior": posterior, "/burn_in": burn_in}
    for name, fixed in (probes or {}).items():
        per_token = _per_token(arrays[probe_array(name)], path, name)
        n_draws = per_token.sizes["draw"]
        tree[f"/probes/{name}"] = xr.Dataset(
            {"paired_loss": per_token}
            | {key: (("sequence", "position"), value) for key, value in fixed.items()},
            coords={**coords, "draw": np.arange(n_draws) * settings.thin},
            attrs={"loss": (probe_loss or {}).get(name, "next-token")},
        )
    n_parameters = np.asarray(components["n_parameters"])
    tree["/health"] = diagnose(posterior, n_parameters, settings)
    return xr.DataTree.from_dict(tree)


def dataset(draws: xr.DataTree, group: str) -> xr.Dataset:
    """One group of a run: ``posterior``, ``burn_in``, ``health`` or ``probes/NAME``."""
    node = draws
    for part in group.split("/"):
        node = node.children[part]
    return node.to_dataset()


def component_names(draws: xr.DataTree) -> list[str]:
    """The components of a run, in order."""
    return [str(name) for name in draws.to_dataset()["component"].values]


def settings_of(draws: xr.DataTree) -> Settings:
    """The settings of a run."""
    return Settings(**json.loads(draws.attrs["settings"]))


def _per_token(values: Any, path: Path | None, name: str) -> xr.Variable:
    if path is None:
        return xr.Variable(("component", "chain", "draw", "sequence", "position"), values)
    group = f"probes/{name}"
    stored = xr.open_zarr(path, group=group, chunks=None, consolidated=False)
    return stored["paired_loss"].variable
