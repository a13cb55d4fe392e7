"""The posterior of a curve made of straight stages that meet in corners, over log(step + 1).

A curve is a line, plus at most one power of the step, plus corners: each corner changes the slope,
at once or over a short stretch. Line and power are what a curve without stages does (loss and λ̂
follow power laws over long stretches of training), so a corner has to beat them. Where corners are,
how many and how round, is sampled from the posterior by a sequential Monte Carlo sampler (Del Moral
et al. 2006) that goes from the prior to the posterior in steps of the likelihood; coefficients and
the scale of the noise are integrated out (unit-information prior, as in Bayesian adaptive
regression splines: DiMatteo, Genovese & Kass 2001). Corners elsewhere often explain a curve as
well, which one optimum with a bootstrap around it would hide.

Every column that a design can have is computed once, whitened by the covariance of the errors: a
model is a choice of columns, and its fit needs their products only.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy.special import expit

from lens_slt.arrays import BoolArray, FloatArray
from lens_slt.development.noise import Curve

POWERS = (-1.0, -0.7, -0.5, -0.35, -0.2, -0.1, 0.1, 0.2, 0.35, 0.5)  # of step + 1
NO_POWER = (0.1, 0.1, 0.5)  # prior: that there is none, with 0, 1, and 2 or more corners
ROUNDINGS = (0.002, 0.01, 0.02, 0.04)  # widths of corners as shares of the range of log(step + 1)
APART = 3.0  # widths of the rounder of two neighbouring corners, at least
MOST_CORNERS = 7
PLACES, MOST_PLACES = 8, 480  # possible corners between two checkpoints, and in all
BETWEEN = 1.5  # checkpoints between two corners, or a corner and the end, at least
ODDS = 0.4  # prior: of one corner more
PRIOR_NOISE = 8.0  # degrees of freedom with which the given errors are believed
PARTICLES, MOVES, LAST_MOVES, SNAPSHOTS = 384, 9, 100, 10
KEEP = 0.5  # effective share of particles from one temperature to the next
JUMPS = (1, 3, 10, 40)  # scales of moves of a corner, in places
RIDGE = 1e-9


@dataclass(frozen=True)
class CornerPosterior:
    """Samples ``s`` of curves; unused corners are NaN, in rising order.

    The power's column is (step + 1)^power, scaled as :func:`power_column` does.
    """

    x: FloatArray  # [n] log(step + 1)
    corners: FloatArray  # [s, MOST_CORNERS] places on x
    widths: FloatArray  # [s, MOST_CORNERS]
    changes: FloatArray  # [s, MOST_CORNERS] of the slope
    line: FloatArray  # [s, 2] value at x[0], slope
    power: FloatArray  # [s] 0 where there is none
    power_weight: FloatArray  # [s]
    noise: FloatArray  # [s] standard deviation of the errors over what was given

    @property
    def count(self) -> FloatArray:
        """Number of corners of every sample."""
        return np.isfinite(self.corners).sum(1)

    def values(self, at: FloatArray) -> FloatArray:
        """``[s, m]`` of the curves at places ``[m]``, or ``[s, m]``, of log(step + 1)."""
        at = np.broadcast_to(at, (len(self.line), np.shape(at)[-1]))
        made = self.line[:, :1] + self.line[:, 1:] * (at - self.x[0])
        made = made + self.power_weight[:, None] * power_column(self.x, at, self.power[:, None])
        for corner, width, change in self._each():
            made = made + change * rounded(at, corner, width)
        return made

    def slopes(self, at: FloatArray) -> FloatArray:
        """Derivatives of :meth:`values` with respect to log(step + 1), in closed form."""
        at = np.broadcast_to(at, (len(self.line), np.shape(at)[-1]))
        made = self.line[:, 1:] + self.power_weight[:, None] * power_slope(
            self.x, at, self.power[:, None]
        )
        for corner, width, change in self._each():
            made = made + change * expit((at - corner) / width)
        return made

    def grid_step(self, at: FloatArray) -> FloatArray:
        """Distance of neighbouring places that a corner can have, near places on x."""
        n = len(self.x)
        index = np.interp(at, self.x, np.arange(n))
        below = np.clip(np.floor(index).astype(int), 0, n - 2)
        return np.diff(self.x)[below] / _per_checkpoint(n)

    def _each(self) -> list[tuple[FloatArray, FloatArray, FloatArray]]:
        """Corners one after another; those that are not there change nothing."""
        used = np.isfinite(self.corners)
        corners = np.where(used, self.corners, self.x[-1])
        widths, changes = np.where(used, self.widths, 1.0), np.where(used, self.changes, 0.0)
        most = int(used.sum(1).max(initial=0))
        return [(corners[:, [k]], widths[:, [k]], changes[:, [k]]) for k in range(most)]


def rounded(at: FloatArray, corner: FloatArray, width: FloatArray) -> FloatArray:
    """A hinge: 0 before a corner, slope 1 after it, rounded over a width."""
    return width * np.logaddexp(0, (at - corner) / width)


def power_column(x: FloatArray, at: FloatArray, power: FloatArray) -> FloatArray:
    """(step + 1)^power, divided by its largest value on the curve's own steps."""
    return np.exp(power * at - np.maximum(power * x[0], power * x[-1]))


def power_slope(x: FloatArray, at: FloatArray, power: FloatArray) -> FloatArray:
    """The derivative of :func:`power_column`."""
    return power * power_column(x, at, power)


def sample_corners(curve: Curve, *, seed: int = 0) -> CornerPosterior:
    """Draw curves with corners from their posterior.

    Args:
        curve: from ``checked_curve``.
        seed: of the sampler; the global random state is not touched.
    """
    rng = np.random.default_rng(seed)
    books = _Columns.of(curve)
    state = _State.empty()
    score = books.score(state)
    for _ in range(4 * MOVES):  # to the prior
        state, score = _move(books, state, score, 0.0, rng)
    temperature = 0.0
    while temperature < 1.0:
        temperature, weights = _next_temperature(score, temperature)
        chosen = _resample(weights, rng)
        state, score = state.at(chosen), score[chosen]
        for _ in range(MOVES):
            state, score = _move(books, state, score, temperature, rng)
    kept = []
    for i in range(LAST_MOVES):
        state, score = _move(books, state, score, 1.0, rng)
        if (i + 1) % (LAST_MOVES // SNAPSHOTS) == 0:
            kept.append(state)
    return books.posterior(_State.joined(kept), rng)


@dataclass(frozen=True)
class _State:
    """Particles: numbers of corner places, −1 for none; of roundings; of powers, −1 for none."""

    places: FloatArray  # [p, MOST_CORNERS] int
    roundings: FloatArray  # [p, MOST_CORNERS] int
    powers: FloatArray  # [p] int

    @classmethod
    def empty(cls) -> _State:
        return cls(
            np.full((PARTICLES, MOST_CORNERS), -1), np.zeros((PARTICLES, MOST_CORNERS), int),
            np.full(PARTICLES, -1),
        )  # fmt: skip

    @classmethod
    def joined(cls, states: list[_State]) -> _State:
        return cls(
            np.concatenate([s.places for s in states]),
            np.concatenate([s.roundings for s in states]),
            np.concatenate([s.powers for s in states]),
        )

    def at(self, chosen: FloatArray) -> _State:
        return _State(self.places[chosen], self.roundings[chosen], self.powers[chosen])

    def where(self, accepted: BoolArray, other: _State) -> _State:
        """This state, ``other`` where accepted."""
        wide = accepted[:, None]
        return _State(
            np.where(wide, other.places, self.places),
            np.where(wide, other.roundings, self.roundings),
            np.where(accepted, other.powers, self.powers),
        )


@dataclass(frozen=True)
class _Columns:
    """All columns of designs, whitened, without their parts along the line; their products."""

    x: FloatArray
    places: FloatArray  # [g] on x
    index: FloatArray  # [g] the same, counted in checkpoints
    widths: FloatArray  # [r]
    scale: FloatArray  # [m] norms of columns: hinges by place and rounding, powers, one of zeros
    gram: FloatArray  # [m, m]
    product: FloatArray  # [m] with the values
    along: FloatArray  # [2, m] the parts along an orthonormal basis of the line
    line: FloatArray  # [2, 2] from value and slope of the line to that basis
    line_product: FloatArray  # [2] of the basis with the values
    rest: float  # squared norm of the values without their part along the line
    known: bool  # whether the size of the errors is

    @classmethod
    def of(cls, curve: Curve) -> _Columns:
        x = curve.x
        n = len(x)
        per = _per_checkpoint(n)
        index = np.arange(int(np.ceil(BETWEEN * per)), int((n - 1 - BETWEEN) * per) + 1) / per
        places = np.interp(index, np.arange(n), x)
        widths = np.array(ROUNDINGS) * (x[-1] - x[0])
        at = x[:, None, None]
        hinges = rounded(at, places[:, None], widths[None, :]).reshape(n, -1)
        powers = power_column(x, x[:, None], np.array(POWERS))
        line = curve.whiten(np.column_stack([np.ones(n), x - x[0]]))
        basis, to_basis = np.linalg.qr(line)
        values = curve.whiten(curve.values)
        columns = np.column_stack([hinges, powers, np.zeros(n)])
        columns = curve.whiten(columns)
        along = basis.T @ columns
        columns = columns - basis @ along
        scale = np.append(np.linalg.norm(columns[:, :-1], axis=0), 1.0)
        columns = columns / scale
        gram = columns.T @ columns
        left = values - basis @ (basis.T @ values)
        return cls(
            x, places, index, widths, scale, gram, columns.T @ left, along / scale,
            to_basis, basis.T @ values, float(left @ left), curve.covariance is not None,
        )  # fmt: skip

    def chosen(self, state: _State) -> FloatArray:
        """``[p, MOST_CORNERS + 1]`` numbers of columns."""
        none = len(self.scale) - 1
        corners = np.where(
            state.places >= 0, state.places * len(self.widths) + state.roundings, none
        )
        first_power = len(self.places) * len(self.widths)
        powers = np.where(state.powers >= 0, first_power + state.powers, none)
        return np.column_stack([corners, powers])

    def fit(self, columns: FloatArray) -> tuple[FloatArray, FloatArray, FloatArray]:
        """Products, coefficients and remaining squares of designs."""
        gram = self.gram[columns[:, :, None], columns[:, None, :]]
        unused = columns == len(self.scale) - 1  # all of them the column of zeros
        gram += np.eye(columns.shape[1]) * np.where(unused, 1.0, RIDGE)[:, :, None]
        product = self.product[columns]
        weights = np.linalg.solve(gram, product[:, :, None])[:, :, 0]
        return gram, weights, np.maximum(self.rest - (weights * product).sum(1), 0.0)

    @property
    def freedom(self) -> float:
        """Degrees of freedom of the noise: of the values, and of the errors that were given."""
        return len(self.x) - 2 + self.prior_noise

    @property
    def prior_noise(self) -> float:
        return PRIOR_NOISE if self.known else 0.0

    def score(self, state: _State) -> FloatArray:
        """Log of likelihood, integrated over coefficients and noise, times the power's prior."""
        columns = self.chosen(state)
        used = (columns != len(self.scale) - 1).sum(1)
        _, _, rest = self.fit(columns)
        noise = self.prior_noise + rest + RIDGE * self.rest
        likelihood = -0.5 * used * np.log(len(self.x)) - 0.5 * self.freedom * np.log(noise)
        n_corners = np.minimum((state.places >= 0).sum(1), len(NO_POWER) - 1)
        none = np.array(NO_POWER)[n_corners]
        prior = np.where(state.powers < 0, none, (1 - none) / len(POWERS))
        return likelihood + np.log(np.maximum(prior, np.finfo(float).tiny))

    def allowed(self, state: _State) -> BoolArray:
        """Corners far enough from one another, by checkpoints and by their widths."""
        order = np.argsort(np.where(state.places >= 0, state.places, len(self.places)), 1)
        places = np.take_along_axis(state.places, order, 1)
        widths = self.widths[np.take_along_axis(state.roundings, order, 1)]
        pair = places[:, 1:] >= 0
        apart = np.diff(self.places[places], axis=1)
        wide = APART * np.maximum(widths[:, 1:], widths[:, :-1])
        near = (np.diff(self.index[places], axis=1) < BETWEEN) | (apart < wide)
        return ~(near & pair).any(1)

    def posterior(self, state: _State, rng: np.random.Generator) -> CornerPosterior:
        """Coefficients and noise drawn for every particle."""
        columns = self.chosen(state)
        gram, weights, rest = self.fit(columns)
        noise = np.sqrt((self.prior_noise + rest) / rng.chisquare(self.freedom, len(rest)))
        lower = np.linalg.cholesky(gram)
        random = rng.standard_normal(weights.shape)[:, :, None]
        off = np.linalg.solve(np.swapaxes(lower, 1, 2), random)[:, :, 0]
        unused = columns == len(self.scale) - 1
        weights = np.where(unused, 0.0, weights + noise[:, None] * off)
        left = self.line_product - np.einsum(
            "psk,pk->ps", self.along.T[columns].swapaxes(1, 2), weights
        )
        left = left + noise[:, None] * rng.standard_normal(left.shape)
        line = np.linalg.solve(self.line, left.T).T
        return self._curves(state, weights / self.scale[columns], line, noise)

    def _curves(
        self, state: _State, weights: FloatArray, line: FloatArray, noise: FloatArray
    ) -> CornerPosterior:
        """The samples, corners in rising order."""
        used = state.places >= 0
        corners = np.where(used, self.places[state.places], np.nan)
        order = np.argsort(corners, 1)
        widths = np.where(used, self.widths[state.roundings], np.nan)
        changes = np.where(used, weights[:, :-1], np.nan)
        power = np.where(state.powers >= 0, np.array(POWERS)[state.powers], 0.0)
        corners, widths, changes = (
            np.take_along_axis(one, order, 1) for one in (corners, widths, changes)
        )
        return CornerPosterior(self.x, corners, widths, changes, line, power, weights[:, -1], noise)


def _per_checkpoint(n: int) -> int:
    """Places of corners between two of n checkpoints."""
    return max(2, min(PLACES, MOST_PLACES // n))


def _next_temperature(score: FloatArray, now: float) -> tuple[float, FloatArray]:
    """The next power of the likelihood, and the weights of the particles at it."""

    def weights(power: float) -> FloatArray:
        raw = (power - now) * score
        raw = np.exp(raw - raw.max())
        return raw / raw.sum()

    def enough(power: float) -> bool:
        return bool(1 / (weights(power) ** 2).sum() >= KEEP * len(score))

    if enough(1.0):
        return 1.0, weights(1.0)
    low, high = now, 1.0
    for _ in range(30):
        middle = (low + high) / 2
        low, high = (middle, high) if enough(middle) else (low, middle)
    return high, weights(high)


def _move(
    books: _Columns, state: _State, score: FloatArray, temperature: float, rng: np.random.Generator
) -> tuple[_State, FloatArray]:
    """One Metropolis step of every particle, all of one kind."""
    propose = (_born_or_dead, _shifted, _turned)[rng.choice(3, p=(0.4, 0.4, 0.2))]
    other, odds = propose(books, state, rng)
    new = books.score(other)
    chance = temperature * (new - score) + odds
    accepted = (np.log(rng.random(len(chance))) < chance) & books.allowed(other)
    return state.where(accepted, other), np.where(accepted, new, score)


def _born_or_dead(
    books: _Columns, state: _State, rng: np.random.Generator
) -> tuple[_State, FloatArray]:
    """A corner more at any place, or one of them less; as likely, so the prior decides."""
    n = len(state.powers)
    born, used = rng.random(n) < 0.5, state.places >= 0
    # random ranks: the first of the unused slots is filled, or the first of the used emptied
    rank = np.where(used == born[:, None], -1.0, rng.random(used.shape))
    slot = rank.argmax(1)
    possible = rank[np.arange(n), slot] >= 0
    row = np.flatnonzero(possible)
    places, roundings = state.places.copy(), state.roundings.copy()
    new = np.where(born, rng.integers(len(books.places), size=n), -1)
    places[row, slot[row]] = new[row]
    roundings[row, slot[row]] = rng.integers(len(books.widths), size=n)[row]
    odds = np.where(born, np.log(ODDS), -np.log(ODDS))
    return _State(places, roundings, state.powers), np.where(possible, odds, -np.inf)


def _shifted(books: _Columns, state: _State, rng: np.random.Generator) -> tuple[_State, FloatArray]:
    """One corner elsewhere."""
    n = len(state.powers)
    slot = np.where(state.places >= 0, rng.random(state.places.shape), -1.0).argmax(1)
    size = rng.choice(JUMPS, size=n) * rng.standard_normal(n)
    by = (np.sign(size) * np.ceil(np.abs(size))).astype(int)
    places, row = state.places.copy(), np.arange(n)
    old = places[row, slot]
    inside = (old >= 0) & (old + by >= 0) & (old + by < len(books.places))
    places[row, slot] = np.where(inside, old + by, old)
    return _State(places, state.roundings, state.powers), np.where(inside, 0.0, -np.inf)


def _turned(books: _Columns, state: _State, rng: np.random.Generator) -> tuple[_State, FloatArray]:
    """Another rounding of one corner, or another power of the step."""
    n = len(state.powers)
    slot, coin = rng.integers(state.places.shape[1], size=n), rng.random(n) < 0.5
    roundings, row = state.roundings.copy(), np.arange(n)
    roundings[row, slot] = np.where(
        coin, rng.integers(len(books.widths), size=n), roundings[row, slot]
    )
    drawn = rng.integers(-1, len(POWERS), size=n)
    return _State(state.places, roundings, np.where(coin, state.powers, drawn)), np.zeros(n)


def _resample(weights: FloatArray, rng: np.random.Generator) -> FloatArray:
    """Systematic resampling."""
    n = len(weights)
    at = (rng.random() + np.arange(n)) / n
    return np.minimum(np.searchsorted(np.cumsum(weights), at), n - 1)
