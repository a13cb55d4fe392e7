"""Generalisation in Bayes' sense: training and generalisation losses, WAIC, WBIC.

Watanabe 2010, Asymptotic equivalence of Bayes cross validation and WAIC (JMLR 11); Watanabe 2013, A
widely applicable Bayesian information criterion (JMLR 14).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import xarray as xr

from lens_slt.arguments import choice, number, typed
from lens_slt.arrays import BoolArray, FloatArray
from lens_slt.sampling.importance import LARGEST_K_HAT, pareto_smoothed
from lens_slt.sampling.spread import independent_units, standard_error
from lens_slt.schema import require, stamped
from lens_slt.statistics import error_of_mean

PRIORS = ("local", "flat")
LARGE_VARIANCE = 0.4  # of an observation's log likelihood: above it WAIC is not to be trusted
SAME = 1e-6  # relative difference of temperatures that are the same
SAME_LOSS = 1e-4  # relative difference of mean losses, in single precision, of the same tokens
LEAST_OBSERVATIONS = 3  # with one or two log n is not above 1


@typed
def generalisation(
    log_likelihood: Any,
    held_out: Any = None,
    *,
    n_beta: float | None = None,
    prior: str | None = None,
) -> xr.Dataset:
    """Bayes and Gibbs losses, functional variance and WAIC, at the temperature β = 1.

    Every loss is a mean over observations, in nats. With E the mean over the posterior, n training
    observations x and held-out ones y:

    - ``bayes_training_loss`` T = −(1/n) Σ log E[p(x|w)], ``bayes_generalisation_loss`` the same
      over y; ``gibbs_training_loss`` −(1/n) Σ E[log p(x|w)], ``gibbs_generalisation_loss``;
    - ``functional_variance`` V = Σ Var[log p(x|w)], ``singular_fluctuation`` ν̂ = V/2, both without
      unit; ``waic`` = T + V/n, which estimates the Bayes generalisation loss without held-out data.

    If the truth is realisable with entropy S, n·(E[generalisation loss] − S) → λ, the learning
    coefficient, n·(E[T] − S) → λ − 2ν, and n·(E[WAIC] − S) → λ.

    Args:
        log_likelihood: of the training observations at draws of the posterior: from
            :func:`lens_slt.log_likelihood`, or an array ``[chain, draw, observation]``.
        held_out: the same draws at other observations, from the same distribution.
        n_beta: inverse temperature nβ of the posterior that was sampled, ∝ prior · exp(−nβ·mean
            loss): as many as there are observations if β = 1. Of arrays, and only of them.
        prior: what to make of the localization γ of draws of :func:`lens_slt.sample`: ``local``,
            the prior is N(w*, 1/γ), or ``flat``, weights remove it. An array's is its own.

    Draws at another temperature are corrected by importance weights, and so is the localization
    under ``flat``; ``correction`` says so. Where those weights are too heavy (k̂ > 0.7) nothing is
    reported.

    Returns:
        Dataset over ``component``: the quantities above, each with ``…_se``, the Monte Carlo
        standard error of the draws, autocorrelation included; ``waic_observation_se`` and
        ``bayes_generalisation_loss_observation_se``, those of the choice of observations;
        ``large_variance``, the share of observations with a variance above 0.4, where WAIC is
        doubtful; ``k_hat``, NaN without weights; ``correction`` in words. Held-out ones are NaN
        without ``held_out``.

    Raises:
        ValueError: n_beta missing; a localization and no ``prior``; weights too heavy for every
            component; losses of other tokens than were sampled; draws that do not belong together.

    Example:
        >>> import lens_slt as ls, numpy as np
        >>> x = np.random.default_rng(0).normal(size=50)
        >>> w = np.random.default_rng(1).normal(x.mean(), 50**-0.5, size=(4, 500, 1))
        >>> found = ls.generalisation(-((x - w) ** 2) / 2 - np.log(2 * np.pi) / 2, n_beta=50)
        >>> abs(float(found["singular_fluctuation"].sel(component="model")) - 0.5) < 0.3
        True
    """
    training = _labelled("log_likelihood", log_likelihood, n_beta)
    _check_training(training)
    other = None if held_out is None else _labelled("held_out", held_out, n_beta)
    if other is not None:
        _check_same_draws(training, other)
    rows = []
    for name, one in _posteriors(training, float(training.attrs["n_tokens"]), prior).items():
        row: dict[str, Any] = dict.fromkeys((*_TRAINING, *_HELD_OUT), math.nan)
        if one.weights.size:
            row |= _training_losses(training.sel(component=name).values, one)
            if other is not None:
                row |= _held_out_losses(other.sel(component=name).values, one)
        rows.append(row | {"k_hat": one.k_hat, "correction": one.correction})
    return _table(rows, training, "generalisation")


@typed
def wbic(
    log_likelihood: Any, *, n_beta: float | None = None, prior: str | None = None
) -> xr.Dataset:
    """The widely applicable Bayesian information criterion, at its temperature β = 1/log n.

    WBIC = E[−Σ log p(x|w)] under the posterior at nβ = n/log n; it estimates the free energy
    −log ∫ Π p(x|w) prior(w) dw, up to O(√log n).

    Arguments, corrections and errors are those of :func:`lens_slt.generalisation`. For draws of
    :func:`lens_slt.sample` n in log n counts the observations, and nβ multiplies the mean loss per
    token: sample at n_beta = predicted tokens / log(observations).

    Returns:
        Dataset over ``component``: ``wbic`` in nats, with ``wbic_se`` of the draws; ``llc`` =
        (WBIC + Σ log p(x|w*))/log n, with ``llc_se``, NaN for arrays, whose w* is not known;
        ``k_hat`` and ``correction``.

    Example:
        >>> import lens_slt as ls, numpy as np
        >>> x = np.random.default_rng(0).normal(size=50)
        >>> w = np.random.default_rng(1).normal(x.mean(), (50 / np.log(50)) ** -0.5, (4, 500, 1))
        >>> found = ls.wbic(-((x - w) ** 2) / 2, n_beta=50 / np.log(50))
        >>> str(found["correction"].sel(component="model").item())
        'none'
    """
    training = _labelled("log_likelihood", log_likelihood, n_beta)
    _check_training(training)
    log_n = math.log(training.sizes["observation"])
    posteriors = _posteriors(training, float(training.attrs["n_tokens"]) / log_n, prior)
    base = float(training["base"].values.sum())
    rows = []
    for name, one in posteriors.items():
        mean, error = math.nan, math.nan
        if one.weights.size:
            total = -training.sel(component=name).values[one.used].sum(-1)
            mean, error = one.expectation(total)
        rows.append(
            {
                "wbic": mean, "wbic_se": error, "llc": (mean + base) / log_n,
                "llc_se": error / log_n if math.isfinite(base) else math.nan,
                "k_hat": one.k_hat, "correction": one.correction,
            }
        )  # fmt: skip
    return _table(rows, training, "wbic")


@dataclass(frozen=True)
class _Posterior:
    """Used chains of one component and the weights of their draws."""

    chains: BoolArray  # [chain], which are used
    used: tuple[Any, ...]  # index of their draws in [chain, draw]
    weights: FloatArray  # [used chain, draw], which add up to 1
    antithetic: bool
    k_hat: float
    correction: str

    def mean(self, values: FloatArray) -> FloatArray:
        """Over the draws of ``[chain, draw, ...]``."""
        return np.asarray(np.tensordot(self.weights, values, 2))

    def error(self, influence: FloatArray) -> float:
        """Standard error of a quantity from the influence ``[chain, draw]`` of each draw on it."""
        series = np.zeros((len(self.chains), influence.shape[1]))
        series[self.chains] = self.weights.size * self.weights * influence
        return standard_error(independent_units(series, self.chains, self.antithetic))

    def expectation(self, values: FloatArray) -> tuple[float, float]:
        """Mean of ``[chain, draw]`` and its standard error."""
        mean = float(self.mean(values))
        return mean, self.error(values - mean)

    def log_predictive(self, values: FloatArray) -> tuple[FloatArray, FloatArray]:
        """log E[p] of every observation, and the mean over them of p/E[p] − 1 at each draw."""
        with np.errstate(divide="ignore"):
            weighted = values + np.log(self.weights)[..., None]
        top = weighted.max((0, 1))
        found = top + np.log(np.exp(weighted - top).sum((0, 1)))
        return found, np.exp(values - found).mean(-1) - 1


def _training_losses(values: FloatArray, one: _Posterior) -> dict[str, Any]:
    x = values[one.used]
    log_p, ratio = one.log_predictive(x)
    mean = one.mean(x)
    apart = (x - mean) ** 2
    variance = one.mean(apart)
    n = len(mean)
    total, of_total = variance.sum(), apart.sum(-1) - variance.sum()
    each = -log_p + variance
    spread = one.error(of_total)
    found = (
        -log_p.mean(), one.error(-ratio), -mean.mean(), one.error((mean - x).mean(-1)),
        total, spread, total / 2, spread / 2, each.mean(), one.error(of_total / n - ratio),
        _of_choice(each), float((variance > LARGE_VARIANCE).mean()),
    )  # fmt: skip
    return dict(zip(_TRAINING, found, strict=True))


def _held_out_losses(values: FloatArray, one: _Posterior) -> dict[str, Any]:
    x = values[one.used]
    log_p, ratio = one.log_predictive(x)
    mean, error = one.expectation(-x.mean(-1))
    found = (-log_p.mean(), one.error(-ratio), _of_choice(log_p), mean, error)
    return dict(zip(_HELD_OUT, found, strict=True))


_TRAINING = (
    "bayes_training_loss", "bayes_training_loss_se", "gibbs_training_loss",
    "gibbs_training_loss_se", "functional_variance", "functional_variance_se",
    "singular_fluctuation", "singular_fluctuation_se", "waic", "waic_se", "waic_observation_se",
    "large_variance",
)  # fmt: skip
_HELD_OUT = (
    "bayes_generalisation_loss", "bayes_generalisation_loss_se",
    "bayes_generalisation_loss_observation_se", "gibbs_generalisation_loss",
    "gibbs_generalisation_loss_se",
)  # fmt: skip


def _of_choice(each: FloatArray) -> float:
    """Standard error of a mean over observations that might have been others."""
    return float(error_of_mean(each)) if len(each) > 1 else math.nan


def _posteriors(training: xr.DataArray, n_beta: float, prior: str | None) -> dict[str, _Posterior]:
    """Of every component, weighted to the inverse temperature ``n_beta`` and the prior."""
    gamma = float(training.attrs["gamma"])
    if prior is not None:
        choice("prior", prior, PRIORS)
    if gamma and prior is None:
        raise ValueError(
            f"draws have the localization γ = {gamma:g}, which the formulae do not know: "
            "prior='local' takes N(w*, 1/γ) for the prior, prior='flat' removes it by weights"
        )
    found = {
        str(name): _posterior(training.sel(component=name), n_beta, prior == "flat")
        for name in training["component"].values
    }
    if not any(one.weights.size for one in found.values()):
        reasons = "; ".join(f"{name}: {one.correction}" for name, one in found.items())
        raise ValueError(f"{reasons}: sample with n_beta={n_beta:g}")
    return found


def _posterior(training: xr.DataArray, n_beta: float, flat: bool) -> _Posterior:
    """One component; no draws and the reason in words where nothing can be said."""
    values, attrs = training.values, training.attrs
    used: BoolArray = training["used"].values
    index = np.ix_(used, np.isfinite(values[used]).all((0, 2)))
    antithetic = bool(attrs["antithetic"])
    shape = index[0].size, index[1].size
    if not math.prod(shape):
        return _Posterior(
            used, index, np.zeros((0, 0)), antithetic, math.nan, "no chain can be used"
        )
    log_weights, changes = np.zeros(shape), []
    if abs(n_beta - attrs["n_beta"]) > SAME * n_beta:
        change = (n_beta - attrs["n_beta"]) / attrs["n_tokens"]
        log_weights += change * values[index].sum(-1)
        changes.append(f"from nβ = {attrs['n_beta']:g} to {n_beta:g}")
    if flat and attrs["gamma"]:
        log_weights += attrs["gamma"] / 2 * training["squared_distance"].values[index]
        changes.append(f"from γ = {attrs['gamma']:g} to 0")
    if not changes:
        even = np.full(shape, 1 / math.prod(shape))
        return _Posterior(used, index, even, antithetic, math.nan, "none")
    weights, k_hat = pareto_smoothed(log_weights.ravel())
    words = f"importance weights {' and '.join(changes)}"
    if not k_hat <= LARGEST_K_HAT:
        words = f"refused: {words} are too heavy (k̂ = {k_hat:.2f})"
        return _Posterior(used, index, np.zeros((0, 0)), antithetic, k_hat, words)
    return _Posterior(used, index, weights.reshape(shape), antithetic, k_hat, words)


def _labelled(argument: str, values: Any, n_beta: float | None) -> xr.DataArray:
    """Log likelihoods of draws as they are, or an array as those of one component."""
    if isinstance(values, xr.DataArray):
        values = require(values, "log_likelihood", argument=argument)
        if n_beta is not None:
            raise ValueError(
                f"n_beta is known of {argument}, nβ = {values.attrs['n_beta']:g}; leave it out"
            )
        return values
    array = np.asarray(values, dtype=np.float64)
    if array.ndim != 3 or not array.size or not np.isfinite(array).all():
        raise ValueError(
            f"{argument} must be finite numbers [chain, draw, observation]; got {array.shape}"
            f"{'' if np.isfinite(array).all() else ', not all finite'}"
        )
    if n_beta is None:
        raise ValueError(
            f"n_beta must be given: nβ of the posterior of the draws, {array.shape[2]} where every "
            "training observation counts once"
        )
    number("n_beta", n_beta, at_least=0)
    chains, draws, n = array.shape
    return xr.DataArray(
        array[None], dims=("component", "chain", "draw", "observation"), name="log_likelihood",
        coords={
            "component": ["model"], "draw": np.arange(draws),
            "base": ("observation", np.full(n, np.nan)),
            "used": (("component", "chain"), np.ones((1, chains), dtype=bool)),
            "squared_distance": (
                ("component", "chain", "draw"), np.full((1, chains, draws), np.nan),
            ),
        },
        attrs={"n_beta": float(n_beta), "gamma": 0.0, "n_tokens": n, "antithetic": 0},
    )  # fmt: skip


def _check_training(training: xr.DataArray) -> None:
    """Refuse losses of a probe that does not hold the tokens of the posterior."""
    if training.sizes["observation"] < LEAST_OBSERVATIONS:
        raise ValueError(
            f"log_likelihood has {training.sizes['observation']} observations; at least "
            f"{LEAST_OBSERVATIONS} are needed"
        )
    if "base_loss" not in training.attrs:  # an array
        return
    here, there = (float(training.attrs[key]) for key in ("base_loss", "sampled_base_loss"))
    if not abs(here - there) <= SAME_LOSS * max(abs(there), 1.0):
        raise ValueError(
            f"log_likelihood is of probe {training.attrs['probe']!r}, whose loss at w* is "
            f"{here:.6g}, and the posterior that of tokens with {there:.6g}: sample with "
            "probes={'train': tokens} of the very tokens, and the same weights"
        )


def _check_same_draws(training: xr.DataArray, other: xr.DataArray) -> None:
    if training.attrs.get("unit") != other.attrs.get("unit"):
        raise ValueError(
            f"held_out is of one {other.attrs.get('unit')} an observation and log_likelihood of "
            f"one {training.attrs.get('unit')}: take both with the same unit="
        )
    own = {dim: training.sizes[dim] for dim in ("component", "chain", "draw")}
    theirs = {dim: other.sizes[dim] for dim in own}
    same = ("n_beta", "gamma", "settings", "model_hash", "tokens_hash", "directions")
    if own != theirs or any(
        (training.attrs.get(key) or "") != (other.attrs.get(key) or "") for key in same
    ):
        raise ValueError(
            f"held_out must be of the same draws as log_likelihood, {own}; got {theirs}"
            f"{' of another run' if own == theirs else ''}"
        )


def _table(rows: list[dict[str, Any]], training: xr.DataArray, result: str) -> xr.Dataset:
    columns = {key: ("component", np.array([row[key] for row in rows])) for key in rows[0]}
    found = xr.Dataset(
        columns, coords={"component": training["component"].values}, attrs=dict(training.attrs)
    )
    return stamped(found, result)
