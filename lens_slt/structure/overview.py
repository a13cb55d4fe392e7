"""Everything that is read from one probe: matrices, modes, patterns, a map, tokens at the ends."""

from __future__ import annotations

import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import xarray as xr
import zarr
from numpy.typing import NDArray

from lens_slt.arrays import read_zarr, write_zarr
from lens_slt.data.patterns import label_patterns
from lens_slt.models.shipped import tokenizer_of
from lens_slt.observables.per_token_llc import per_token_llc
from lens_slt.observables.susceptibility import FULL, susceptibility
from lens_slt.sampling.result import component_names, dataset
from lens_slt.schema import require
from lens_slt.schemas import MATRICES
from lens_slt.structure.clusters import clusters
from lens_slt.structure.contexts import token_texts, tokenizer_for, top_tokens
from lens_slt.structure.maps import token_map
from lens_slt.structure.modes import modes
from lens_slt.structure.pattern_enrichment import enrichment, labels_of

# Families of patterns by which a map is coloured: a token belongs to the first that it has.
FAMILIES = {
    "induction": ("induction", "repeat_3", "repeat_5"),
    "spacing": ("spacing", "newline", "indentation"),
    "delimiter": ("left_delimiter", "right_delimiter", "quote"),
    "numeric": ("numeric",),
    "punctuation, formatting": ("formatting", "punctuation"),
    "word start": ("word_start",),
    "word part, end": ("word_part", "word_end"),
}
MAP_NEIGHBOURS = 45
MOST_MAPPED = 10_000  # tokens of a map; more take minutes and hide each other


@dataclass(frozen=True)
class View:
    """One matrix and what its modes say."""

    matrix: xr.Dataset
    modes: xr.Dataset  # with the ``text`` of every token
    by_mode: xr.Dataset  # enrichment of patterns
    by_component: xr.Dataset
    map: xr.Dataset | None  # UMAP of the tokens, with the family of patterns of each
    clusters: xr.Dataset | None

    @property
    def top(self) -> pd.DataFrame:
        """The tokens at the ends of the modes."""
        return top_tokens(self.modes)


def read_structure(
    draws: xr.DataTree,
    probe: str,
    tokens: Any,
    *,
    tokenizer: Any = None,
    estimator: str = "two_posterior",
    folder: Path | None = None,
    maps: bool = True,
) -> dict[str, View]:
    """Views of the per-token rLLC (``llc``) and of the susceptibility (``chi``) of a probe.

    Modes of the per-token rLLC are noise-whitened: these are the modes that circuits are proposed
    from and that their evidence cites (:func:`lens_slt.circuits.slt_evidence.evidence_of`).
    The two-posterior susceptibility needs draws of ``full``; without them only ``llc`` is made. A
    matrix without any component that has a usable chain gives no view.

    Args:
        draws: from :func:`lens_slt.sample`.
        probe: which one.
        tokens: the probe's tokens ``[sequence, position]``, for the patterns.
        tokenizer: of the model; may be left out for the shipped models' tokens. Of others only
            repeats are labelled then, with a warning, and tokens are shown as ids.
        estimator: of the susceptibility.
        folder: where the matrices are written, as ``llc.zarr`` and ``chi.zarr``.
        maps: make a map and clusters of the tokens too, which takes seconds.
    """
    tokenizer = tokenizer_of(draws.attrs) if tokenizer is None else tokenizer
    patterns = label_patterns(tokens, tokenizer)
    names = component_names(draws)
    found = {}
    rest = [name for name in names if name != FULL]
    llc = per_token_llc(draws.sel(component=rest), probe, path=_place(folder, "llc"))
    if _some_usable(llc):
        found["llc"] = _view(llc, patterns, tokenizer, whiten=True, with_map=maps)
    if estimator != "two_posterior" or (FULL in names and _any_used(draws, FULL)):
        chi = susceptibility(draws, probe, estimator=estimator, path=_place(folder, "chi"))
        if _some_usable(chi):
            found["chi"] = _view(chi, patterns, tokenizer)
    if folder is not None:
        for name in ("llc", "chi"):
            if name in found:
                _store(found[name], folder / f"{name}.zarr")
            elif (folder / f"{name}.zarr").exists():
                shutil.rmtree(folder / f"{name}.zarr")  # half a view: a report could not read it
    return found


def _any_used(draws: xr.DataTree, component: str) -> bool:
    return bool(dataset(draws, "health")["used"].sel(component=component).any())


def _some_usable(matrix: xr.Dataset) -> bool:
    """Whether some component has a chain that can be used."""
    return bool(matrix["mean"].notnull().any())


def open_views(folder: Path) -> dict[str, View]:
    """The views that :func:`read_structure` stored in ``folder``; empty where there are none."""
    return {
        name: _open(folder / f"{name}.zarr")
        for name in ("llc", "chi")
        if (folder / f"{name}.zarr").exists()
    }


def _view(
    matrix: xr.Dataset,
    patterns: xr.DataArray,
    tokenizer: Any,
    *,
    whiten: bool = False,
    with_map: bool = False,
) -> View:
    usable = matrix.sel(component=matrix["mean"].notnull())
    found = modes(usable, whiten=whiten and "blocks" in usable)
    found = found.assign_coords(text=("token", _texts(found, tokenizer)))
    few = few_tokens(usable)
    mapped = with_map and few.sizes["token"] > MAP_NEIGHBOURS
    return View(
        matrix, found, enrichment(found, patterns), enrichment(usable, patterns),
        labelled_map(few, patterns) if mapped else None,
        clusters(few, method="hdbscan") if mapped else None,
    )  # fmt: skip


def _texts(found: xr.Dataset, tokenizer: Any) -> NDArray[np.object_]:
    """What every token says, its id where nothing can tell."""
    if tokenizer is None and tokenizer_for(found) is None:
        return np.array([f"[{token}]" for token in found["token_id"].values], dtype=object)
    return token_texts(found, tokenizer)


_PARTS = {  # of a view, with their results
    "modes": "modes", "by_mode": "enrichment", "by_component": "enrichment", "map": "token_map",
    "clusters": "clusters",
}  # fmt: skip


def _store(view: View, path: Path) -> None:
    for name in _PARTS:
        part = getattr(view, name)
        if part is not None:
            write_zarr(part, path, name)


def _open(path: Path) -> View:
    there = zarr.open_group(path, mode="r")
    parts: dict[str, Any] = {
        name: require(read_zarr(path, name), result, argument=f"{path.name}/{name}")
        if name in there
        else None
        for name, result in _PARTS.items()
    }
    matrix = read_zarr(path).set_coords(("sequence", "position", "token_id", "base_loss"))
    return View(require(matrix, *MATRICES, argument=path.name), **parts)


def few_tokens(matrix: xr.Dataset) -> xr.Dataset:
    """The first sequences with at most 10 000 tokens together: more take minutes to map."""
    if matrix.sizes["token"] <= MOST_MAPPED:
        return matrix
    last = int(matrix["sequence"].values[MOST_MAPPED - 1])
    return matrix.isel(token=matrix["sequence"].values < max(last, 1))


def labelled_map(matrix: xr.Dataset, patterns: xr.DataArray) -> xr.Dataset:
    """UMAP of the tokens with the family of patterns of each."""
    labels = dict(zip(patterns["pattern"].values, labels_of(matrix, patterns), strict=True))
    names = np.full(matrix.sizes["token"], "none", dtype=object)
    for family, members in reversed(FAMILIES.items()):
        there = [labels[name] for name in members if name in labels]
        if there:
            names[np.any(there, axis=0)] = family
    found = token_map(matrix, n_neighbors=MAP_NEIGHBOURS)
    return found.assign(pattern=("token", names))


def _place(folder: Path | None, name: str) -> Path | None:
    """Where a matrix goes; an earlier one of this kind is replaced, anything else is not."""
    if folder is None:
        return None
    path = folder / f"{name}.zarr"
    if path.exists() and name in zarr.open_group(path, mode="r"):
        shutil.rmtree(path)
    return path
