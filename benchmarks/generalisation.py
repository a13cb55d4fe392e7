"""The λ/n law, WAIC and WBIC on models whose learning coefficient λ is known.

Data sets of growing n are drawn from each truth, and each posterior is sampled exactly: a linear
regression (regular, λ = d/2), reduced-rank regression and a deep linear network by Gibbs' sampler,
layer by layer (every conditional is Gaussian), y = w²·x (a normal crossing) and the mixture
½N(b, 1) + ½N(−b, 1) at b = 0 by quadrature. The routines under test,
:func:`lens_slt.generalisation` and :func:`lens_slt.wbic`, get the log likelihoods of draws alone.

Over data sets E[G] − S → λ/n (G: Bayes generalisation loss, S: entropy of the truth), and so does
E[WAIC] − S; WBIC and the free energy F grow as n·S_n + λ·log n + constant, S_n being the loss of
the truth on the data, so that λ is read from their growth between the smallest and the largest n.
G − S is the mean over 200 held-out observations of e^r − 1 − r, r the log ratio of predictive and
true probability: E[e^r] = 1, which takes the sampling noise away. Figures:

- *slope*: of n·(E[G] − S) at the largest n against λ, by least squares over the models, with
  intercept; *slope_se* from the spread over data sets; *slope_waic* of n·(E[WAIC] − S_n),
  *slope_wbic* of WBIC's growth over log n;
- *waic_z*: the largest |mean difference of WAIC and G| in its standard errors over data sets;
- *wbic_gap*: the largest |mean WBIC − F| at the largest n, in nats (in theory O(√log n)), over the
  three models whose free energy is known by quadrature or in closed form.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np
from scipy.special import logsumexp

import lens_slt as ls
from benchmarks import common
from benchmarks.common import Target, WithError
from lens_slt.phases.toys.known import deep_linear_llc, reduced_rank_llc

TARGETS = {"slope": Target(0.9, 1.1), "slope_waic": Target(0.9, 1.1)}
HELD_OUT = 200
CHAINS = 2
THIN = 3  # sweeps of Gibbs' sampler per draw, of models with several layers
PRIOR_SD = 1.0
LOG_2PI = math.log(2 * math.pi)
Array = np.ndarray


@dataclass(frozen=True)
class Size:
    """Effort of a run."""

    n: tuple[int, ...] = (100, 300, 1000)
    data_sets: int = 100
    draws: int = 100  # per chain
    burn_in: int = 60  # in units of one draw


@dataclass(frozen=True)
class Model:
    """A model, its truth, and how data, losses and exact draws of its posterior are made."""

    name: str
    llc: float
    multiplicity: int
    data: Callable[[np.random.Generator, int], Array]  # [row, column]
    # of data sets [data set, row, column] and β: [data set, chain, draw, weight]
    draw: Callable[[np.random.Generator, Array, float, Size], Array]
    log_likelihood: Callable[[Array, Array], Array]  # of weights and data: [chain, draw, row]
    truth: Callable[[Array], Array]  # log likelihood of rows
    free_energy: Callable[[Array], float] | None = None


def linear(widths: Sequence[int], rank: int) -> Model:
    """y = W_M ⋯ W_1·x + noise of variance 1, prior N(0, 1) on every weight, x ~ N(0, I)."""
    inputs, outputs = widths[0], widths[-1]
    true = np.zeros((outputs, inputs))
    true[:rank, :rank] = np.eye(rank)
    regular = len(widths) == 2
    kind = {2: "linear regression", 3: "reduced-rank regression"}.get(len(widths), "deep linear")
    llc, m = (inputs * outputs / 2, 1) if regular else deep_linear_llc(widths, rank)
    if len(widths) == 3:
        m_in, hidden, m_out = widths
        assert math.isclose(llc, reduced_rank_llc(m_in, hidden, m_out, rank))  # two theorems

    def data(rng: np.random.Generator, n: int) -> Array:
        x = rng.normal(size=(n, inputs))
        return np.hstack([x, x @ true.T + rng.normal(size=(n, outputs))])

    def log_likelihood(maps: Array, rows: Array) -> Array:
        x, y = rows[:, :inputs], rows[:, inputs:]
        predicted = np.einsum("cdoi,ni->cdno", maps.reshape(*maps.shape[:2], outputs, inputs), x)
        return -((y - predicted) ** 2).sum(-1) / 2 - outputs * LOG_2PI / 2

    def draw(rng: np.random.Generator, rows: Array, beta: float, size: Size) -> Array:
        return gibbs(rng, rows[..., :inputs], rows[..., inputs:], widths, beta, size)

    def free_energy(rows: Array) -> float:
        x, y = rows[:, :inputs], rows[:, inputs:]
        covariance = np.eye(len(x)) + PRIOR_SD**2 * x @ x.T
        solved = np.linalg.solve(covariance, y)
        logdet = np.linalg.slogdet(covariance)[1]
        return float(outputs * (len(x) * LOG_2PI + logdet) + (y * solved).sum()) / 2

    return Model(
        f"{kind} {'-'.join(map(str, widths))}" + ("" if regular else f" rank {rank}"), llc, m,
        data, draw, log_likelihood,
        lambda rows: log_likelihood(true.ravel()[None, None], rows)[0, 0],
        free_energy if regular else None,
    )  # fmt: skip


def gibbs(
    rng: np.random.Generator, x: Array, y: Array, widths: Sequence[int], beta: float, size: Size
) -> Array:
    """Draws of the product of the layers ``[data set, chain, draw, output · input]``, all at once.

    ``x`` and ``y`` are ``[data set, row, column]``. Given the others, a layer's weights are
    Gaussian. The data enter by two matrices alone.
    """
    chains = CHAINS * len(x)
    turned = x.transpose(0, 2, 1), y.transpose(0, 2, 1)
    xx, yx = (beta * np.repeat(one @ x, CHAINS, 0) for one in turned)
    shapes = [(b, a) for a, b in pairwise(widths)]
    layers = [rng.normal(size=(chains, *shape)) for shape in shapes]
    kept = np.empty((chains, size.draws, widths[-1] * widths[0]))
    thin = 1 if len(shapes) == 1 else THIN
    for step in range((size.burn_in + size.draws) * thin):
        for i, (rows, columns) in enumerate(shapes):
            before = _product(layers[:i], chains, widths[0])
            after = _product(layers[i + 1 :], chains, rows)
            layers[i] = _conditional(rng, xx, yx, before, after).reshape(chains, rows, columns)
        place = step // thin - size.burn_in
        if place >= 0 and step % thin == thin - 1:
            kept[:, place] = _product(layers, chains, widths[0]).reshape(chains, -1)
    return kept.reshape(len(x), CHAINS, size.draws, -1)


def _conditional(
    rng: np.random.Generator, xx: Array, yx: Array, before: Array, after: Array
) -> Array:
    """One draw of a layer's weights given those before and after it ``[chain, weight, 1]``."""
    back, forth = before.transpose(0, 2, 1), after.transpose(0, 2, 1)
    inner, outer = before @ xx @ back, forth @ after
    n = outer.shape[1] * inner.shape[1]
    precision = (outer[:, :, None, :, None] * inner[:, None, :, None, :]).reshape(-1, n, n)
    root = np.linalg.cholesky(precision + np.eye(n) / PRIOR_SD**2)
    noise = rng.normal(size=(len(root), n, 1))
    whitened = np.linalg.solve(root, (forth @ yx @ back).reshape(-1, n, 1)) + noise
    return np.linalg.solve(root.transpose(0, 2, 1), whitened)


def _product(layers: list[Array], chains: int, inputs: int) -> Array:
    total = np.broadcast_to(np.eye(inputs), (chains, inputs, inputs))
    for layer in layers:
        total = layer @ total
    return total


GRID = np.linspace(-4, 4, 1601)  # of the one weight, in prior standard deviations


def one_weight(
    name: str,
    llc: float,
    data: Callable[[np.random.Generator, int], Array],
    log_p: Callable[[Array, Array], Array],
) -> Model:
    """A model of one weight, prior N(0, 1), truth at 0: quadrature on a grid."""

    def log_posterior(rows: Array, beta: float) -> Array:
        parts = [log_p(part[:, None], rows).sum(-1) for part in np.array_split(GRID, 32)]
        return beta * np.concatenate(parts) - GRID**2 / 2 - LOG_2PI / 2

    def draw(rng: np.random.Generator, data_sets: Array, beta: float, size: Size) -> Array:
        drawn = []
        for rows in data_sets:
            log_density = log_posterior(rows, beta)
            share = np.exp(log_density - log_density.max()).cumsum()
            chance = rng.uniform(size=(CHAINS, size.draws))
            drawn.append(np.interp(chance, share / share[-1], GRID)[..., None])
        return np.array(drawn)

    def free_energy(rows: Array) -> float:
        return -float(logsumexp(log_posterior(rows, 1.0)) + math.log(GRID[1] - GRID[0]))

    return Model(
        name, llc, 1, data, draw, log_p, lambda rows: log_p(np.zeros((1, 1, 1)), rows)[0, 0],
        free_energy,
    )  # fmt: skip


def crossing() -> Model:
    """y = w²·x + noise: K(w) = w⁴/2."""

    def log_p(w: Array, rows: Array) -> Array:
        return -((rows[:, 1] - w**2 * rows[:, 0]) ** 2) / 2 - LOG_2PI / 2

    return one_weight(
        "normal crossing, y = w²·x", 0.25, lambda rng, n: rng.normal(size=(n, 2)), log_p
    )


def mixture() -> Model:
    """½N(b, 1) + ½N(−b, 1) at b = 0: K(b) = b⁴/4 + …."""

    def log_p(b: Array, rows: Array) -> Array:
        bx = np.abs(b * rows[:, 0])
        log_cosh = bx + np.log1p(np.exp(-2 * bx)) - math.log(2)
        return -(rows[:, 0] ** 2 + b**2) / 2 + log_cosh - LOG_2PI / 2

    return one_weight("mixture of two", 0.25, lambda rng, n: rng.normal(size=(n, 1)), log_p)


def models() -> tuple[Model, ...]:
    """A regular and five singular models, of multiplicity one: others carry −(m − 1)/log n."""
    return (
        crossing(), mixture(), linear((3, 1), 0), linear((4, 1, 3), 0), linear((3, 2, 2, 3), 1),
        linear((4, 2, 4), 0),
    )  # fmt: skip


@dataclass(frozen=True)
class Found:
    """Of one model at one n: arrays over data sets."""

    model: Model
    n: int
    generalisation: Array  # n·(G − S)
    waic: Array  # n·(WAIC − S_n)
    fluctuation: Array  # ν̂
    wbic: Array  # WBIC − n·S_n
    free_energy: Array  # F − n·S_n; NaN where it is not known


def over_data(model: Model, n: int, size: Size, seed: int) -> Found:
    """Fresh data sets of n observations, each with its posteriors at β = 1 and 1/log n."""
    rng = np.random.default_rng([seed, n, *model.name.encode()])
    data = np.array([model.data(rng, n) for _ in range(size.data_sets)])
    cold, warm = (model.draw(rng, data, beta, size) for beta in (1.0, 1 / math.log(n)))
    columns: list[tuple[float, ...]] = []
    for rows, at_one, at_log in zip(data, cold, warm, strict=True):
        others = model.data(rng, HELD_OUT)
        held_out = model.log_likelihood(at_one, others)
        found = ls.generalisation(model.log_likelihood(at_one, rows), held_out, n_beta=n)
        log_p = logsumexp(held_out, (0, 1)) - math.log(CHAINS * size.draws)
        log_ratio = log_p - model.truth(others)
        criterion = ls.wbic(model.log_likelihood(at_log, rows), n_beta=n / math.log(n))
        least = -float(model.truth(rows).sum())
        free = math.nan if model.free_energy is None else model.free_energy(rows)
        columns.append(
            (
                n * float((np.expm1(log_ratio) - log_ratio).mean()),
                n * found["waic"].item() - least, found["singular_fluctuation"].item(),
                criterion["wbic"].item() - least, free - least,
            )
        )  # fmt: skip
    return Found(model, n, *np.array(columns).T)


def averaged(values: Array) -> WithError:
    """Mean over data sets with its standard error."""
    return WithError(float(values.mean()), float(values.std(ddof=1) / len(values) ** 0.5))


def growth(first: Array, last: Array, times: float) -> WithError:
    """Of a criterion per unit of log n, from independent data sets of two sizes."""
    a, b = averaged(first), averaged(last)
    return WithError(
        (b.value - a.value) / math.log(times), math.hypot(a.se, b.se) / math.log(times)
    )


def slope(llc: Sequence[float], means: Sequence[WithError]) -> WithError:
    """Of a quantity against λ over models, by least squares, with intercept."""
    x = np.array(llc)
    weight = (x - x.mean()) / ((x - x.mean()) ** 2).sum()
    value = float(weight @ [one.value for one in means])
    return WithError(value, float(np.sqrt((weight**2) @ [one.se**2 for one in means])))


def row(one: Found) -> list[Any]:
    """One line of the table."""
    quantities = (
        one.generalisation, one.waic, (one.generalisation + one.waic) / 2, one.fluctuation,
        one.wbic, one.free_energy,
    )  # fmt: skip
    shown = [str(averaged(x)) if np.isfinite(x).all() else "" for x in quantities]
    return [one.model.name, one.model.llc, one.model.multiplicity, one.n, *shown]


def main() -> None:
    """Command line."""
    args = common.parser(__doc__).parse_args()
    common.one_thread()
    size = Size((50, 100), 3, 30, 20) if args.quick else Size()
    everything = []
    for model in models():
        for n in size.n:
            everything.append(over_data(model, n, size, args.seed))
        common.say(f"{model.name}: done")
    columns = [
        "model", "λ", "m", "n", "n(G − S)", "n(WAIC − Sₙ)", "half their sum", "ν̂",
        "WBIC − nSₙ", "F − nSₙ",
    ]  # fmt: skip
    title = f"Means over {size.data_sets} data sets ± SE; n(G − S) and n(WAIC − Sₙ) tend to λ"
    common.show_table(title, columns, [row(one) for one in everything])
    largest = [one for one in everything if one.n == size.n[-1]]
    smallest = [one for one in everything if one.n == size.n[0]]
    times = size.n[-1] / size.n[0]
    grown = [growth(a.wbic, b.wbic, times) for a, b in zip(smallest, largest, strict=True)]
    free = [
        growth(a.free_energy, b.free_energy, times) for a, b in zip(smallest, largest, strict=True)
    ]
    common.show_table(
        f"Growth per unit of log n, from {size.n[0]} to {size.n[-1]}", ["model", "λ", "WBIC", "F"],
        [
            [one.model.name, one.model.llc, str(w), str(f) if math.isfinite(f.value) else ""]
            for one, w, f in zip(largest, grown, free, strict=True)
        ],
    )  # fmt: skip
    llc = [one.model.llc for one in largest]
    slopes = {
        "generalisation": slope(llc, [averaged(one.generalisation) for one in largest]),
        "waic": slope(llc, [averaged(one.waic) for one in largest]),
        "wbic": slope(llc, grown),
    }
    gaps = [averaged(one.waic - one.generalisation) for one in largest]
    known = [one for one in largest if one.model.free_energy is not None]
    apart = [float((one.wbic - one.free_energy).mean()) for one in known]
    figures = {
        "slope": slopes["generalisation"].value, "slope_se": slopes["generalisation"].se,
        "slope_waic": slopes["waic"].value, "slope_waic_se": slopes["waic"].se,
        "slope_wbic": slopes["wbic"].value, "slope_wbic_se": slopes["wbic"].se,
        "waic_z": float(np.max([abs(gap.value) / gap.se for gap in gaps])),
        "wbic_gap": float(np.max(np.abs(apart))),
    }  # fmt: skip
    common.finish(args, figures, None if args.quick else TARGETS)


if __name__ == "__main__":
    main()
