"""Free energies of a ladder's rungs and the volume of weights under a loss.

Multistate Bennett acceptance ratio: Shirts & Chodera 2008, J. Chem. Phys. 129, 124105, by pymbar.
"""

from __future__ import annotations

import importlib
import logging
import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Any

import numpy as np
import xarray as xr
from scipy.optimize import brentq
from scipy.special import expit, logsumexp

from lens_slt.arguments import integer, number, numbers, typed
from lens_slt.arrays import BoolArray, FloatArray
from lens_slt.phases.ladder import Losses, check_rungs, losses_on_all
from lens_slt.sampling.certificate import CERTIFIED
from lens_slt.sampling.result import dataset, one_component
from lens_slt.sampling.spread import jackknife_error
from lens_slt.schema import stamped

LEAST_OVERLAP = 0.05  # of neighbours; 1 is that of equal rungs
N_BLOCKS = 20  # of the jackknife
MOST_DRAWS = 2000  # of a rung, evenly spread, that enter
LEAST_WORTH = 200.0  # draws of the prior that the reweighted ones are worth
LEVELS = 25
BRACKET = 50.0  # of a free energy, beyond all energies


@dataclass(frozen=True)
class _Rung:
    """Draws of one rung ``[chain, draw]``: its nβ, losses."""

    n_beta: float
    losses: Losses

    @property
    def mean(self) -> float:
        """dF/dnβ."""
        return float(self.losses.loss.mean())

    @property
    def spread(self) -> float:
        return float(self.losses.loss.std())


@typed
def density_of_states(
    rungs: Sequence[xr.DataTree],
    component: str | None = None,
    *,
    gamma: float | None = None,
    levels: Sequence[float] | None = None,
    n_blocks: int = N_BLOCKS,
    trust: bool = False,
) -> xr.Dataset:
    """Free energies of rungs and the volume of weights under a loss, from all rungs together.

    All draws at one γ are pooled by MBAR (``pymbar``). The free energy of a rung is F = −log Z, Z
    the integral of exp(−nβ·K − (γ/2)‖v − v*‖²), K the paired loss on the whole set; beside it
    stands thermodynamic integration, F = ∫ E[K] dnβ over the ladder, each interval by its ends'
    means and variances. The two use the draws differently: where they disagree, draws are wrong or
    rungs too far apart. Reweighted to nβ = 0 the draws give V(ε), the share of the local prior's
    weight where K ≤ ε; V ~ ε^λ·(log 1/ε)^(m−1) for small ε.

    Args:
        rungs: as for :func:`lens_slt.spectrum`, at least two nβ; rungs that are not certified are
            left out.
        component: one of the rungs'; not needed where there is one only.
        gamma: of the rungs to pool; not needed where all have the same.
        levels: losses ε; by default 25 from the smallest to the largest that are known.
        n_blocks: of the jackknife over draws; that over chains has as many, or one for each pair.
        trust: use rungs that are not certified.

    Returns:
        Dataset over rung: ``n_beta``; ``free_energy`` minus the first rung's, by MBAR, and
        ``integrated``, by integration; their ``difference``, 0 up to its error; ``overlap`` with
        the rung before, 1 for equal rungs; errors ``…_se``, the larger of those by jackknives over
        blocks of draws and over chains. Over
        ``loss``, ε: ``log_volume``, log V(ε), and ``log_volume_se``; NaN where the lowest rung is
        too far from nβ = 0 for the draws to know.

    Raises:
        ImportError: pymbar is not installed.
        ValueError: neighbours that do not overlap (which rungs to add is said); several γ or
            components and none chosen; weighted draws; and as :func:`lens_slt.spectrum`.

    Example:
        >>> import torch, lens_slt as ls
        >>> rungs = [
        ...     ls.sample_function(lambda w: w.square().sum(-1) / 2, torch.zeros(2), settings=one)
        ...     for one in ls.ladder([1, 3, 10], [1], ls.Settings(draws=200))
        ... ]
        >>> found = ls.density_of_states(rungs)
        >>> exact = torch.log(torch.tensor(11 / 2)).item()  # d/2·log of (nβ + γ)
        >>> last = found.isel(rung=-1)
        >>> bool(abs(last["free_energy"] - exact) < 4 * last["free_energy_se"])
        True
    """
    integer("n_blocks", n_blocks, at_least=4)
    component, gamma, chosen = _chosen(rungs, component, gamma, trust)
    mbar = _pymbar()
    overlaps = _check_overlap(chosen)
    epsilon = numbers("levels", levels, above=0) if levels is not None else _levels(chosen)
    first = _pooled(mbar, chosen, epsilon, None)
    again = [
        [_pooled(mbar, rungs, epsilon, first["solution"]) for rungs in left]
        for left in _left_out(chosen, n_blocks)
    ]
    values: dict[str, Any] = {"n_beta": ("rung", [one.n_beta for one in chosen])}
    values["overlap"] = ("rung", [np.nan, *overlaps])
    for key, dim in (("free_energy", "rung"), ("integrated", "rung"), ("difference", "rung"),
                     ("log_volume", "loss")):  # fmt: skip
        values[key] = (dim, first[key])
        with np.errstate(invalid="ignore"):  # volumes that are not known
            errors = [jackknife_error(np.array([one[key] for one in each])) for each in again]
        values[f"{key}_se"] = (dim, np.max(errors, axis=0))
    same = {k: v for k, v in rungs[0].attrs.items() if k in ("model", "model_hash", "tokens_hash")}
    found = xr.Dataset(
        values, coords={"loss": np.asarray(epsilon, dtype=float)},
        attrs=same | {"component": component, "gamma": gamma},
    )  # fmt: skip
    return stamped(found, "density_of_states")


def _chosen(
    rungs: Sequence[xr.DataTree], component: str | None, gamma: float | None, trust: bool
) -> tuple[str, float, list[_Rung]]:
    """Rungs of one component at one γ, in the order of nβ."""
    settings = check_rungs(rungs, 2)
    component = one_component(rungs[0], component)
    gammas = sorted({one.gamma for one in settings})
    if gamma is None and len(gammas) > 1:
        raise ValueError(f"gamma is missing: choose one of {', '.join(f'{g:g}' for g in gammas)}")
    if gamma is not None:
        number("gamma", gamma, above=0)
    gamma = gammas[0] if gamma is None else float(gamma)
    weighted = [one.sampler for one in settings if one.method.INDEPENDENT and one.n_beta > 0]
    if weighted:
        raise ValueError(
            f"rungs: draws of {weighted[0]!r} are weighted; MBAR needs those of chains, "
            "such as lm or pcn"
        )
    found = []
    for draws, one in zip(rungs, settings, strict=True):
        word = str(dataset(draws, "health")["certificate"].sel(component=component).values)
        losses = losses_on_all(draws, component)
        if one.gamma == gamma and losses.loss.size and (trust or word == CERTIFIED):
            found.append(_Rung(one.n_beta, _thinned(losses)))
    if len(found) < 2:
        raise ValueError(
            f"rungs: {len(found)} of {component} at γ {gamma:g} are certified, two are needed; "
            "trust=True uses all"
        )
    return component, gamma, sorted(found, key=lambda rung: rung.n_beta)


def _thinned(losses: Losses) -> Losses:
    stride = max(1, math.ceil(losses.loss.size / MOST_DRAWS))
    stride = min(stride, max(1, losses.loss.shape[1] // (2 * N_BLOCKS)))
    return replace(losses, loss=losses.loss[:, ::stride], weight=losses.weight[:, ::stride])


def _pymbar() -> Any:
    """pymbar, without what it prints on import."""
    try:
        logging.getLogger("pymbar").setLevel(logging.ERROR)
        return importlib.import_module("pymbar").MBAR
    except ImportError:
        raise ImportError("density_of_states needs pymbar: pip install 'lens-slt[mbar]'") from None


def _check_overlap(rungs: Sequence[_Rung]) -> list[float]:
    """Overlaps of neighbours; ValueError with the rungs to add where some have none."""
    found = [_overlap(a, b) for a, b in pairwise(rungs)]
    gaps = [
        f"nβ {a.n_beta:g} and {b.n_beta:g} overlap by {value:.3f}: add nβ "
        + ", ".join(f"{n:.3g}" for n in _between(a, b))
        for (a, b), value in zip(pairwise(rungs), found, strict=True)
        if value < LEAST_OVERLAP
    ]
    if gaps:
        raise ValueError(
            f"rungs: the ladder skips, overlaps of {LEAST_OVERLAP:g} are needed; {'; '.join(gaps)}"
        )
    return found


def _overlap(a: _Rung, b: _Rung) -> float:
    """Of two rungs' losses: 1 where they are equal, 0 where no draw could be of the other."""
    step = b.n_beta - a.n_beta
    x, y = a.losses.loss.ravel(), b.losses.loss.ravel()
    energies = step * np.concatenate([x, y])  # the free energy between them is within

    def balance(f: float) -> float:
        """Of Bennett's equation: draws of each that look like the other's."""
        return float(expit(f - step * x).mean() - expit(step * y - f).mean())

    f = float(brentq(balance, energies.min() - BRACKET, energies.max() + BRACKET))
    both = [expit(f - step * z) * expit(step * z - f) for z in (x, y)]
    return float(2 * (both[0].mean() + both[1].mean()))


def _between(a: _Rung, b: _Rung) -> FloatArray:
    """Rungs, evenly spaced in log nβ, at which the mean of nβ·K changes by about its spread."""
    lowest = max(a.n_beta, b.n_beta * 1e-6)
    shares = [rung.n_beta * rung.spread for rung in (a, b) if rung.n_beta > 0]
    steps = math.log(b.n_beta / lowest) * max(*shares, 0.5) / 1.5 if len(shares) > 1 else 2
    count = max(2, math.ceil(steps))
    return np.geomspace(lowest, b.n_beta, count + 1)[1:-1] if count > 1 else np.array([])


def _area(a: _Rung, b: _Rung) -> float:
    """∫ E[K] dnβ between two rungs: a cubic of log nβ through nβ·E[K] and its slopes."""
    if a.n_beta == 0:
        h = b.n_beta
        return h * (a.mean + b.mean) / 2 + h**2 / 12 * (b.spread**2 - a.spread**2)
    h = math.log(b.n_beta / a.n_beta)
    (fa, da), (fb, db) = (
        (n * r.mean, n * r.mean - (n * r.spread) ** 2) for r, n in ((a, a.n_beta), (b, b.n_beta))
    )
    return h * (fa + fb) / 2 + h**2 / 12 * (da - db)


def _levels(rungs: Sequence[_Rung]) -> tuple[float, ...]:
    """From a loss that the coldest rung's draws seldom reach to one of the hottest's."""
    cold, hot = rungs[-1].losses.loss, rungs[0].losses.loss
    positive = cold[cold > 0]
    if not positive.size:
        raise ValueError("rungs: no loss is above that of the given weights: no minimum")
    ends = float(np.quantile(positive, 0.02)), float(np.quantile(hot, 0.9))
    return tuple(np.geomspace(ends[0], max(ends[1], 2 * ends[0]), LEVELS).tolist())


def _pooled(
    mbar: Any, rungs: Sequence[_Rung], levels: Sequence[float], start: FloatArray | None
) -> dict[str, FloatArray]:
    """Free energies and volumes from all draws of these rungs."""
    loss = np.concatenate([rung.losses.loss.ravel() for rung in rungs])
    sizes = np.array([rung.losses.loss.size for rung in rungs])
    n_betas = np.array([rung.n_beta for rung in rungs])
    # γ‖u‖²/2 is the same in all states, and cancels.
    found = mbar(n_betas[:, None] * loss[None], sizes, initial_f_k=start)
    energy = np.asarray(found.f_k, dtype=float)
    areas = [_area(a, b) for a, b in pairwise(rungs)]
    integrated = np.concatenate([[0.0], np.cumsum(areas)])
    mixture = logsumexp(
        energy[:, None] - n_betas[:, None] * loss + np.log(sizes)[:, None], axis=0
    )  # fmt: skip
    log_weight = -mixture - logsumexp(-mixture)  # of every draw, at nβ = 0
    worth = math.exp(-logsumexp(2 * log_weight))
    weight = np.exp(log_weight)
    share = np.array([weight[loss <= epsilon].sum() for epsilon in levels])
    known = worth >= LEAST_WORTH
    with np.errstate(divide="ignore"):
        volume = np.where((share > 0) & known, np.log(share), np.nan)
    free = energy - energy[0]
    return {
        "solution": energy, "free_energy": free, "integrated": integrated,
        "difference": free - integrated, "log_volume": volume,
    }  # fmt: skip


def _left_out(rungs: Sequence[_Rung], n_blocks: int) -> list[list[list[_Rung]]]:
    """Rungs without one part of their draws, for every part; by blocks of draws and by chains."""
    for rung in rungs:
        if rung.losses.loss.shape[1] < n_blocks:
            raise ValueError(
                f"rungs: nβ {rung.n_beta:g} has {rung.losses.loss.shape[1]} draws a chain, "
                f"{n_blocks} blocks are asked for"
            )
    n_units = min(n_blocks, *(rung.losses.n_units for rung in rungs))
    ways = zip(*(rung.losses.parts(n_blocks, n_units) for rung in rungs), strict=True)
    return [
        [
            [_without(rung, part == i) for rung, part in zip(rungs, parts, strict=True)]
            for i in range(int(parts[0].max()) + 1)
        ]
        for parts in ways
    ]


def _without(rung: _Rung, gone: BoolArray) -> _Rung:
    """A rung without some of its draws, as one chain."""
    losses = rung.losses
    kept = losses.loss[~gone][None], losses.weight[~gone][None]
    return _Rung(rung.n_beta, Losses(*kept, losses.unit[:1]))
