"""Maps of the tokens in two dimensions, and how far to trust them."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
import xarray as xr
from scipy.stats import hypergeom

from lens_slt.arguments import integer, number, typed
from lens_slt.arrays import FloatArray
from lens_slt.schema import require, stamped
from lens_slt.structure.clusters import check_enough, matched_tokens, token_coordinates
from lens_slt.structure.standardize import standardized
from lens_slt.torch_state import kept_random_state


@typed
def token_map(
    matrix: xr.Dataset,
    *,
    n_neighbors: int = 45,
    min_dist: float = 0.1,
    seed: int = 0,
    n_axes: int = 2,
    centre_rows: bool = False,
) -> xr.Dataset:
    """UMAP coordinates of the tokens: tokens that the components respond to alike lie together.

    Euclidean neighbours of the standardised columns; 45 of them as in Gordon et al. 2026 (arXiv
    2601.12703). McInnes, Healy & Melville 2018, UMAP (arXiv 1802.03426). Distances between groups
    and the sizes of groups on the map mean nothing: what is close together is all that it shows,
    and :func:`map_stability` tells how much of that survives another seed or half of the draws.

    Args:
        matrix: from ``susceptibility`` or ``per_token_llc``.
        n_neighbors: tokens that each token is kept close to.
        min_dist: how tightly points may be packed, 0 to 1.
        seed: the same seed gives the same map. The global random state is not touched.
        n_axes: number of axes of the map.
        centre_rows: first take away each token's mean over the components.

    Returns:
        Dataset with ``map`` (token, axis), without units.

    Raises ValueError for numbers out of range, fewer than ``n_neighbors`` + 1 tokens, and for
    what ``standardized`` refuses; ImportError without umap-learn.

    Example:
        >>> import lens_slt as ls
        >>> model, text = ls.load_model("attn-1l"), ls.load_tokens("mix", n_sequences=8, length=16)
        >>> how = dict(settings=ls.Settings(draws=20, chains=2, steps_per_draw=1), progress=False)
        >>> draws = ls.sample(model, text, "L0H0, L0H1, L0H2", probes={"mix": text}, **how)
        >>> ls.token_map(ls.per_token_llc(draws), n_neighbors=10)["map"].dims
        ('token', 'axis')
    """
    integer("n_neighbors", n_neighbors, at_least=2)
    integer("n_axes", n_axes, at_least=1)
    integer("seed", seed, at_least=0, at_most=2**32 - 1)
    number("min_dist", min_dist, at_least=0, at_most=1)
    points = standardized(matrix, centre_rows=centre_rows)
    check_enough(len(points), n_neighbors)
    with _global_state_kept(), warnings.catch_warnings():
        umap = _umap()
        warnings.filterwarnings("ignore", message=".*n_jobs value.*")
        made = umap.UMAP(
            n_neighbors=n_neighbors, min_dist=min_dist, n_components=n_axes,
            random_state=seed, n_jobs=1,  # more threads would not be reproducible
        ).fit_transform(points)  # fmt: skip
    coords = token_coordinates(matrix) | {"axis": [f"UMAP {i + 1}" for i in range(n_axes)]}
    settings: dict[str, Any] = dict(
        n_neighbors=n_neighbors, min_dist=min_dist, seed=seed,
        centre_rows=int(centre_rows), quantity=matrix.attrs["quantity"],
    )  # fmt: skip
    points = np.asarray(made, dtype=np.float64)
    found = xr.Dataset({"map": (("token", "axis"), points)}, coords=coords, attrs=settings)
    return stamped(found, "token_map")


def map_stability(first: xr.Dataset, second: xr.Dataset, n_neighbors: int = 15) -> xr.Dataset:
    """Share of nearest neighbours that two maps have in common, against chance.

    Tokens are matched by sequence and position, and neighbours sought among those of both maps.

    Returns:
        Dataset with ``jaccard`` (token), the shared neighbours over those in either map; its mean
        ``agreement``; and ``chance``, the mean for two maps that know nothing of each other.

    Raises ValueError where too few tokens are shared.

    Example:
        >>> import lens_slt as ls
        >>> model, text = ls.load_model("attn-1l"), ls.load_tokens("mix", n_sequences=8, length=16)
        >>> how = dict(settings=ls.Settings(draws=20, chains=2, steps_per_draw=1), progress=False)
        >>> draws = ls.sample(model, text, "L0H0, L0H1, L0H2", probes={"mix": text}, **how)
        >>> halves = ls.halves(ls.per_token_llc(draws))
        >>> one, two = (ls.token_map(half, n_neighbors=10) for half in halves)
        >>> found = ls.map_stability(one, two)
        >>> 0 <= found["agreement"].item() <= 1
        True
    """
    integer("n_neighbors", n_neighbors, at_least=1)
    first = require(first, "token_map", argument="first")
    second = require(second, "token_map", argument="second")
    here, there = matched_tokens(first, second)
    check_enough(len(here), n_neighbors)
    a = _neighbours(first["map"].values[here], n_neighbors)
    b = _neighbours(second["map"].values[there], n_neighbors)
    shared = np.array([len(np.intersect1d(x, y)) for x, y in zip(a, b, strict=True)])
    jaccard = shared / (2 * n_neighbors - shared)
    drawn = np.arange(n_neighbors + 1)
    weight = hypergeom.pmf(drawn, len(here) - 1, n_neighbors, n_neighbors)
    chance = float((weight * drawn / (2 * n_neighbors - drawn)).sum())
    found = xr.Dataset(
        {
            "jaccard": ("token", jaccard),
            "agreement": ((), float(jaccard.mean())),
            "chance": ((), chance),
        },
        coords=token_coordinates(first.isel(token=here)),
        attrs={"n_neighbors": n_neighbors},
    )
    return stamped(found, "map_stability")


def _neighbours(points: FloatArray, n_neighbors: int) -> np.ndarray:
    from sklearn.neighbors import NearestNeighbors

    search = NearestNeighbors(n_neighbors=n_neighbors, n_jobs=1).fit(points)
    return search.kneighbors(return_distance=False)


def _umap() -> Any:
    """The UMAP package, imported on use: it takes seconds to load."""
    try:
        import umap
    except ImportError as error:
        raise ImportError(f"token_map needs umap-learn, which failed to load: {error}") from error
    return umap


@contextmanager
def _global_state_kept() -> Iterator[None]:
    """Put random states and the number of threads back on any exit.

    Numba sets the number of threads of the whole process.
    """
    threads = torch.get_num_threads()
    try:
        with kept_random_state():
            yield
    finally:
        torch.set_num_threads(threads)
