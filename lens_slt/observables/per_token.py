"""Moments of per-token losses over draws, and the matrices made of them.

Both matrices, per-token rLLCs and susceptibilities, are functions of a few means over the draws of
a component: of φ (its paired loss on the minibatch of the draw), of the paired loss of each probe
token, and of their product. They are summed up in blocks of consecutive draws, read one block at a
time, so that nothing larger than a block of one component's draws is in memory. Standard errors
come from leaving out one block after the other (the jackknife), reliability from the first half
of the draws against the second: both see the noise of the chains and of their shared minibatches.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import xarray as xr
import zarr

from lens_slt.arguments import choice
from lens_slt.arrays import BoolArray, FloatArray, read_zarr, write_zarr
from lens_slt.sampling.folder import folder_of, in_words
from lens_slt.sampling.result import dataset, n_draws, settings_of
from lens_slt.sampling.spread import (
    MOST_BLOCKS,
    blocks_of,
    draw_weights,
    number_of_blocks,
    pseudo_of,
)
from lens_slt.schema import require, stamp, stamped
from lens_slt.statistics import error_of_mean


@dataclass(frozen=True)
class Moments:
    """Weighted sums over the draws of one component; one row per block of draws."""

    weight: FloatArray  # [block]
    phi: FloatArray  # [block]
    phi_phi: FloatArray  # [block]
    loss: FloatArray  # [block, token]
    phi_loss: FloatArray  # [block, token]

    def of(self, blocks: BoolArray) -> Means:
        """Means over some of the blocks."""
        n = self.weight[blocks].sum()
        return Means(
            self.phi[blocks].sum() / n, self.phi_phi[blocks].sum() / n,
            self.loss[blocks].sum(0) / n, self.phi_loss[blocks].sum(0) / n,
        )  # fmt: skip


@dataclass(frozen=True)
class Means:
    """Expectations under a local posterior."""

    phi: float
    phi_phi: float
    loss: FloatArray  # [token]
    phi_loss: FloatArray  # [token]

    @property
    def covariance(self) -> FloatArray:
        """Cov(φ, ℓ_xy − φ) of every token."""
        return self.phi_loss - self.phi * self.loss - (self.phi_phi - self.phi**2)

    @property
    def excess(self) -> FloatArray:
        """E[Δℓ_xy − φ]: how much more than the mean loss a token's loss rises."""
        return self.loss - self.phi


Estimator = Callable[[list[Means]], dict[str, FloatArray]]


@dataclass(frozen=True)
class ProbeReader:
    """The draws of one run at one probe."""

    draws: xr.DataTree
    name: str  # of the probe
    probe: xr.Dataset
    real: BoolArray  # [sequence, position]: not padding
    most_blocks: int = MOST_BLOCKS

    def n_draws(self, component: str) -> int:
        """Draws of a component at which the probe was evaluated."""
        return int((self.probe["draw"].values < n_draws(self.draws, component)).sum())

    @property
    def n_blocks(self) -> int:
        """Blocks of draws, as many for every component."""
        n = min(self.n_draws(str(name)) for name in self.probe["component"].values)
        return number_of_blocks(n, self.most_blocks)

    def blocks(self, component: str) -> list[slice]:
        """Consecutive draws that are summed together."""
        return blocks_of(self.n_draws(component), self.n_blocks)

    def left_out(self, component: str) -> Iterator[BoolArray]:
        """Which draws stay where each block is left out."""
        for block in self.blocks(component):
            kept = np.ones(self.n_draws(component), dtype=bool)
            kept[block] = False
            yield kept

    def weights(self, component: str) -> tuple[FloatArray, FloatArray]:
        """Weight of every draw ``[chain, draw]``, zero for excluded chains, and φ."""
        settings = settings_of(self.draws)
        posterior, health = dataset(self.draws, "posterior"), dataset(self.draws, "health")
        drawn = self.probe["draw"][: self.n_draws(component)]
        phi = posterior["paired_loss"].sel(component=component, draw=drawn).values
        phi = phi.astype(np.float64)
        used = health["used"].sel(component=component).values.astype(bool)
        weight = np.repeat(used[:, None], phi.shape[1], 1).astype(np.float64)
        if used.any():
            each = draw_weights(phi, phi, used, settings)
            weight[used] = each / each.mean()
        return weight, phi

    def losses(self, component: str) -> FloatArray:
        """Paired losses ``[chain, draw, sequence, position]``, 0 at padding."""
        values = self.probe["paired_loss"].sel(component=component)
        drawn = values[:, : self.n_draws(component)].values
        return np.nan_to_num(drawn).astype(np.float64)

    def sequence_losses(self, component: str) -> FloatArray:
        """Mean paired losses ``[chain, draw, sequence]``; NaN where no token counts."""
        weight = np.where(self.real, self.probe["weight"].values, 0.0)
        each = weight.sum(1)
        share = weight / np.where(each == 0, np.nan, each)[:, None]
        return np.asarray(np.einsum("cdsp,sp->cds", self.losses(component), share))

    def moments(self, component: str) -> Moments | None:
        """Sums of one component; None if none of its chains can be used."""
        weight, phi = self.weights(component)
        alive = weight.any(1)
        if not alive.any():
            return None
        sums = []
        values = self.probe["paired_loss"].sel(component=component)
        for block in self.blocks(component):
            w, f = weight[alive, block].ravel(), phi[alive, block].ravel()
            x = values[:, block].values[alive][:, :, self.real]
            x = x.reshape(len(w), -1).astype(np.float64)
            sums.append((w.sum(), w @ f, w @ (f * f), w @ x, (w * f) @ x))
        return Moments(*(np.array(column) for column in zip(*sums, strict=True)))


def open_probe(draws: xr.DataTree, probe: str | None) -> ProbeReader:
    """The probe of that name, or the only one.

    Raises ValueError where there is none, or more than one and no name, or a divergence.
    """
    draws = require(draws, "draws", argument="draws")
    there = list(draws.children["probes"].children) if "probes" in draws.children else []
    if not there:
        raise ValueError(
            "draws have no probe: sample(…, probes={'name': tokens}) records per-token losses"
        )
    if probe is None and len(there) > 1:
        raise ValueError(f"probe must be one of {', '.join(there)}: the run has more than one")
    name = there[0] if probe is None else probe
    choice("probe", name, there)
    found = dataset(draws, f"probes/{name}")
    if found.attrs.get("loss", "next-token") != "next-token":
        raise ValueError(
            f"probe {name!r} recorded a divergence from a reference model; per-token matrices are "
            "made of next-token losses: record a probe without reference"
        )
    return ProbeReader(draws, name, found, np.isfinite(found["base_loss"].values))


def per_token_matrix(
    result: str,
    reader: ProbeReader,
    components: Sequence[str],
    estimate: Estimator,
    names: Sequence[str],
    *,
    others: Sequence[Moments] = (),
    attrs: Mapping[str, Any],
    keep_blocks: bool = True,
    path: str | Path | None = None,
) -> xr.Dataset:
    """The matrix ``names[0]`` and its terms ``names[1:]``, one component after the other.

    ``result`` is its name in the schema.

    ``estimate`` maps the means of the component and of ``others`` to values per token. With
    ``path`` the matrix goes to a Zarr group there and is read from it.
    """
    blocks = reader.n_blocks
    keep_blocks = keep_blocks and blocks > 1
    n_tokens = int(reader.real.sum())
    arrays = _arrays(path, [*names, "se"], blocks * keep_blocks, len(components), n_tokens)
    rows: dict[str, list[float]] = {key: [] for key in SUMMARIES}
    for i, component in enumerate(components):
        moments = reader.moments(component)
        if moments is None:
            summary = dict.fromkeys(SUMMARIES, float("nan"))
        else:
            found, pseudo, summary = _one(moments, list(others), estimate, names[0])
            for key, values in found.items():
                arrays[key][i] = values
            if keep_blocks:
                arrays["blocks"][:, i] = pseudo
        for key, value in summary.items():
            rows[key].append(value)
    attrs = {"quantity": names[0], "probe": reader.name, **attrs, **stamp(result)}
    return stamped(_labelled(reader, components, attrs, arrays, rows, path), result)


SUMMARIES = ("split_half", "reliability", "mean", "mean_se", "rms_se")


def _one(
    moments: Moments, others: list[Moments], estimate: Estimator, name: str
) -> tuple[dict[str, FloatArray], FloatArray, dict[str, float]]:
    """Values with standard errors, pseudo-values per block, and summaries of one component."""
    n = len(moments.weight)

    def at(blocks: BoolArray) -> dict[str, FloatArray]:
        return estimate([moments.of(blocks), *(other.of(blocks) for other in others)])

    every = np.ones(n, dtype=bool)
    found = at(every)
    value = found[name]
    summary = dict.fromkeys(SUMMARIES, float("nan")) | {"mean": float(value.mean())}
    if n < 2:
        return found | {"se": np.full_like(value, np.nan)}, value[None], summary
    left_out = np.array([at(every & (np.arange(n) != b))[name] for b in range(n)])
    pseudo = pseudo_of(value, left_out)  # their mean is the estimate
    early = np.arange(n) < n // 2
    se, errors = errors_of(pseudo, at(early)[name], at(~early)[name])
    return found | {"se": se}, pseudo, summary | errors


def errors_of(
    blocks: FloatArray, first: FloatArray, second: FloatArray
) -> tuple[FloatArray, dict[str, float]]:
    """Standard errors per token, and summaries of one component.

    ``blocks [block, token]`` are two or more; ``first`` and ``second`` are the values from the
    first half of them and from the second.
    """
    se = error_of_mean(blocks)
    r = correlation(first, second)
    return se, {
        "split_half": r,
        "reliability": of_both_halves(r),
        "mean_se": float(error_of_mean(blocks.mean(1))),
        "rms_se": float(np.sqrt(np.mean(se**2))),
    }


def of_both_halves(r: float) -> float:
    """Reliability of the whole from the correlation of its halves (Spearman–Brown)."""
    return 2 * r / (1 + r) if r > -1 else float("nan")


def correlation(a: FloatArray, b: FloatArray) -> float:
    """Pearson's; NaN where one of them is constant."""
    a, b = a - a.mean(), b - b.mean()
    scale = float(np.sqrt((a @ a) * (b @ b)))
    return float(a @ b) / scale if scale > 0 else float("nan")


def _arrays(
    path: str | Path | None, names: list[str], blocks: int, n_components: int, n_tokens: int
) -> dict[str, Any]:
    shapes: dict[str, tuple[int, ...]] = dict.fromkeys(names, (n_components, n_tokens))
    dims: dict[str, tuple[str, ...]] = dict.fromkeys(names, ("component", "token"))
    if blocks:
        shapes["blocks"] = (blocks, n_components, n_tokens)
        dims["blocks"] = ("block", "component", "token")
    if path is None:
        return {name: np.full(shape, np.nan, np.float32) for name, shape in shapes.items()}
    folder = folder_of(path)
    with in_words(folder, "write to"):
        if folder.exists() and any(folder.iterdir()):
            raise ValueError(f"path: {str(folder)!r} is not empty; use another path, or delete it")
        group = zarr.create_group(folder)
    return {
        name: group.create_array(
            name, shape=shape, chunks=(*(1,) * (len(shape) - 1), min(n_tokens, 2**20)),
            dtype="float32", fill_value=float("nan"), dimension_names=dims[name],
        )
        for name, shape in shapes.items()
    }  # fmt: skip


def _labelled(
    reader: ProbeReader,
    components: Sequence[str],
    attrs: Mapping[str, Any],
    arrays: dict[str, Any],
    rows: dict[str, list[float]],
    path: str | Path | None,
) -> xr.Dataset:
    sequence, position = np.nonzero(reader.real)
    coords = {
        "component": list(components),
        "sequence": ("token", sequence),
        "position": ("token", position),
        "token_id": ("token", reader.probe["tokens"].values[reader.real]),
        "base_loss": ("token", reader.probe["base_loss"].values[reader.real]),
    }
    health = dataset(reader.draws, "health").sel(component=list(components))
    columns = {key: ("component", np.array(values)) for key, values in rows.items()}
    columns["verdict"] = ("component", health["summary"].values)
    root = reader.draws.to_dataset().sel(component=list(components))
    columns |= {key: ("component", root[key].values) for key in ("step_size", "n_draws")}
    small = xr.Dataset(columns, coords=coords, attrs={**reader.draws.attrs, **attrs})
    if path is not None:
        folder = folder_of(path)
        with in_words(folder, "write to"):
            write_zarr(small, folder, mode="a")
            return read_zarr(folder).set_coords(list(coords))
    for name, values in arrays.items():
        small[name] = (("block", "component", "token")[-values.ndim :], values)
    return small
