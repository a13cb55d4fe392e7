"""Bayesian influence between sequences or tokens: which data the loss of which other data follows.

Over the draws of a local posterior, −Cov(ℓ_i, ℓ_j) is to first order how the loss of i answers to
more weight on j, in units of 1/nβ: negative where j helps i (learning j better lowers the loss of
i), positive where it hurts. Kreer et al. 2025, Bayesian Influence Functions (arXiv 2509.26544).
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
import xarray as xr
from scipy import stats

from lens_slt.arguments import choice, integer, typed
from lens_slt.arrays import FloatArray
from lens_slt.observables.log_likelihood import UNITS
from lens_slt.observables.per_token import ProbeReader, open_probe
from lens_slt.sampling.result import one_component
from lens_slt.sampling.spread import LEAST_DRAWS
from lens_slt.schema import require, stamped
from lens_slt.statistics import SIGNIFICANT, false_discovery

KINDS = ("covariance", "correlation")
LARGEST = 2**31  # bytes of the matrix


@typed
def influence(
    draws: xr.DataTree,
    component: str | None = None,
    *,
    query: str | None = None,
    source: str | None = None,
    unit: str = "sequence",
    kind: str = "covariance",
) -> xr.Dataset:
    """Influence of every source on every query: −Cov(ℓ_query, ℓ_source) over the draws.

    Args:
        draws: from :func:`lens_slt.sample` with probes.
        component: whose draws; may be left out where there is one.
        query: the probe whose losses answer; the only one by default.
        source: the probe whose weight is changed; ``query`` by default.
        unit: ``sequence``, mean losses of whole sequences, or ``token``.
        kind: ``covariance``, in nats², or ``correlation``: −Corr, between −1 and 1.

    Returns:
        Dataset over (query, source): ``influence``, and ``se``, its standard error from leaving
        out one block of consecutive draws after the other. Where a query and a source are the same
        tokens the value is minus the variance of their loss (or −1). Coordinates say which sequence
        (and position) each is.

    Raises:
        ValueError: an unknown component, probe, unit or kind; no usable chain; fewer than four
            draws; a matrix that does not fit in memory.

    Example:
        >>> import lens_slt as ls
        >>> model, text = ls.load_model("attn-1l"), ls.load_tokens("mix", n_sequences=8, length=16)
        >>> how = dict(settings=ls.Settings(draws=20, chains=2, steps_per_draw=1), progress=False)
        >>> draws = ls.sample(model, text, "L0H0, L0H1, L0H2", probes={"mix": text}, **how)
        >>> found = ls.influence(draws, "L0H0")
        >>> found["influence"].dims, bool(found["influence"][0, 0] < 0)  # of a sequence on itself
        (('query', 'source'), True)
    """
    choice("unit", unit, UNITS)
    choice("kind", kind, KINDS)
    reader = open_probe(draws, query)
    other = reader if source in (None, query) else open_probe(draws, source)
    component, weight = chosen_draws(reader, component)
    sizes = [_n_units(r, unit) for r in (reader, other)]
    if 4 * sizes[0] * sizes[1] > LARGEST:
        raise ValueError(
            f"a matrix of {sizes[0]} × {sizes[1]} {unit}s takes "
            f"{4 * sizes[0] * sizes[1] / 2**30:.1f} GiB; use fewer probe tokens or unit='sequence'"
        )
    a, where_a = _series(reader, component, unit)
    b, where_b = (a, where_a) if other is reader else _series(other, component, unit)
    value, se = negative_covariance(a, b, weight, reader.blocks(component), kind == "correlation")
    coords: dict[str, Any] = {}
    for dim, where in (("query", where_a), ("source", where_b)):
        for key, index in where.items():
            coords[f"{dim}_{key}"] = (dim, index)
    dims = ("query", "source")
    attrs = {
        **draws.attrs, "component": component, "unit": unit, "kind": kind,
        "same_probe": int(other is reader), "blocks": reader.n_blocks,
    }  # fmt: skip
    found = xr.Dataset({"influence": (dims, value), "se": (dims, se)}, coords, attrs)
    return stamped(found, "influence")


def attribute(result: xr.Dataset, query: int, *, n: int = 5) -> pd.DataFrame:
    """The sources that most help and most hurt one query.

    A source helps where more weight on it lowers the query's loss (negative influence). ``z`` is
    the influence in standard errors, ``clear`` whether it passes Benjamini–Hochberg at 0.05 over
    all sources of the query. The query itself, where it is among the sources, is left out.

    Args:
        result: from :func:`influence`.
        query: index along ``query``.
        n: sources of each kind.

    Returns:
        Columns ``effect`` (helps or hurts), the source's coordinates, ``influence``, ``se``, ``z``
        and ``clear``.

    Example:
        >>> import lens_slt as ls
        >>> model, text = ls.load_model("attn-1l"), ls.load_tokens("mix", n_sequences=8, length=16)
        >>> how = dict(settings=ls.Settings(draws=20, chains=2, steps_per_draw=1), progress=False)
        >>> draws = ls.sample(model, text, "L0H0, L0H1, L0H2", probes={"mix": text}, **how)
        >>> table = ls.attribute(ls.influence(draws, "L0H0"), query=0, n=1)
        >>> table["effect"].tolist()
        ['helps', 'hurts']
    """
    result = require(result, "influence", argument="result")
    integer("query", query, at_least=0, at_most=result.sizes["query"] - 1)
    integer("n", n, at_least=1)
    row = result.isel(query=query)
    value, se = row["influence"].values, row["se"].values
    keys = [str(key) for key in result.coords if str(key).startswith("source_")]
    table = pd.DataFrame({key: result[key].values for key in keys})
    table["influence"], table["se"] = value, se
    z = np.divide(value, se, out=np.zeros_like(value), where=se > 0)
    table["z"] = z
    p = 2 * stats.t.sf(np.abs(z), result.attrs["blocks"] - 1)
    if result.attrs["same_probe"]:
        p[query] = np.nan  # no part of the family
    table["clear"] = false_discovery(p) < SIGNIFICANT
    if result.attrs["same_probe"]:
        table = table.drop(index=query)
    table["effect"] = np.where(table["influence"] < 0, "helps", "hurts")
    ordered = table.sort_values("influence")
    helps = ordered[ordered["effect"] == "helps"].head(n)
    hurts = ordered[ordered["effect"] == "hurts"].tail(n)[::-1]
    columns = ["effect", *keys, "influence", "se", "z", "clear"]
    return pd.concat([helps, hurts])[columns].reset_index(drop=True)


def _n_units(reader: ProbeReader, unit: str) -> int:
    return int(reader.real.sum()) if unit == "token" else int(reader.real.any(1).sum())


def _series(reader: ProbeReader, component: str, unit: str) -> tuple[FloatArray, dict[str, Any]]:
    """Paired losses ``[chain, draw, unit]``, and which sequence and position each unit is."""
    if unit == "token":
        sequence, position = np.nonzero(reader.real)
        where = {"sequence": sequence, "position": position}
        return reader.losses(component)[:, :, reader.real], where
    rows = np.flatnonzero(reader.real.any(1))
    return reader.sequence_losses(component)[:, :, rows], {"sequence": rows}


def chosen_draws(reader: ProbeReader, component: str | None) -> tuple[str, FloatArray]:
    """The component that is meant, and the weights of its draws.

    Raises ValueError where no chain can be used, or there are fewer than four draws.
    """
    component = one_component(reader.draws, component)
    weight, _ = reader.weights(component)
    if not weight.any():
        raise ValueError(f"component {component!r}: no chain can be used (see draws['health'])")
    n_draws = reader.n_draws(component)
    if n_draws < LEAST_DRAWS:
        raise ValueError(f"influence needs at least {LEAST_DRAWS} draws with probes; got {n_draws}")
    return component, weight


def negative_covariance(
    a: FloatArray, b: FloatArray, weight: FloatArray, blocks: list[slice], correlation: bool
) -> tuple[FloatArray, FloatArray]:
    """−Cov or −Corr ``[query, source]`` over all draws, and its jackknife error over blocks."""
    alive = weight.any(1)
    a, b, weight = a[alive], b[alive], weight[alive]
    total = weight.sum()
    # Around the means of all draws, sums of products lose no precision.
    a = a - np.einsum("cd,cdq->q", weight, a) / total
    b = b - np.einsum("cd,cds->s", weight, b) / total
    sums = [_sums(a[:, block], b[:, block], weight[:, block]) for block in blocks]
    whole = [np.sum(parts, axis=0) for parts in zip(*sums, strict=True)]
    n = len(blocks)
    value = _from_sums(whole, correlation)
    mean, square = np.zeros_like(value), np.zeros_like(value)
    for part in sums:
        left_out = _from_sums([w - p for w, p in zip(whole, part, strict=True)], correlation)
        mean += (left_out - value) / n
        square += (left_out - value) ** 2 / n
    return value, np.sqrt(np.maximum(square - mean**2, 0) * (n - 1))


def _sums(a: FloatArray, b: FloatArray, weight: FloatArray) -> tuple[FloatArray, ...]:
    w = weight.reshape(-1, 1)
    x, y = a.reshape(len(w), -1), b.reshape(len(w), -1)
    return (
        w.sum(), (w * x).sum(0), (w * y).sum(0), (w * x).T @ y,
        (w * x * x).sum(0), (w * y * y).sum(0),
    )  # fmt: skip


def _from_sums(sums: list[Any], correlation: bool) -> FloatArray:
    total, x, y, xy, xx, yy = sums
    covariance = xy / total - np.outer(x / total, y / total)
    if not correlation:
        return -covariance
    scale = np.sqrt(np.outer(xx / total - (x / total) ** 2, yy / total - (y / total) ** 2))
    return -np.divide(covariance, scale, out=np.zeros_like(covariance), where=scale > 0)
