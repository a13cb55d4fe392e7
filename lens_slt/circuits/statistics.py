"""The statistics of a trial: matched tokens, bootstrap over sequences, ranks among null sets.

Tokens of one sequence are not independent, so a sequence is the unit everywhere. A pattern's tokens
differ from the others before anything is ablated: they may be easier, and an easy token can only
get harder. :class:`Contrast` therefore compares them with other tokens of the same base loss and
part of the sequence, and says how many have found such others.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property

import numpy as np
from numpy.typing import NDArray
from scipy import stats

from lens_slt.arrays import BoolArray, FloatArray
from lens_slt.statistics import ENDS, HALF_WIDTH, rank_p

LOSS_BINS, POSITION_BINS = 6, 2  # strata of matched tokens
FEWEST_TOKENS, FEWEST_SEQUENCES = 20, 8  # of a pattern, for a statement about it
FEWEST_OTHERS = 5  # tokens to compare those of a stratum with
TINY = 1e-12  # no division by nothing
SMALL = 1e-4  # p-values that are not integrated: about the error of it
RIDGE = 1e-6  # effects that repeat each other cannot be integrated over
POINTS = 5000  # of that integral; scipy's own number grows with the effects, to many seconds


@dataclass(frozen=True)
class Measured:
    """A value with its 95 % interval and its one-sided p-value against zero or less.

    ``freedom`` are the degrees of freedom of its standard error ``se``; ``resampled`` are the
    values of the bootstrap, where it has any.
    """

    value: float
    low: float
    high: float
    p: float
    se: float
    freedom: float
    resampled: FloatArray | None = field(default=None, repr=False, compare=False)


class Contrast:
    """Mean effect on a pattern's tokens, alone or minus that on matched other tokens.

    Strata are quantiles of the base loss of the pattern's tokens, times halves of the sequence; a
    stratum counts with the number of pattern tokens in it. Where fewer than 5 others are like them,
    those of the stratum with the nearest base loss take their place; ``matched_share`` is the share
    of the pattern's tokens for which this was not needed.

    Args:
        base_loss: ``[sequence, position]``, NaN where there is no loss.
        pattern: bool, same shape.
        n_bootstrap: resamples of sequences.
        seed: of the bootstrap.

    Raises:
        ValueError: a pattern with fewer than 20 tokens, in fewer than 8 sequences, or that leaves
            some others, but fewer than 20.
    """

    def __init__(
        self,
        base_loss: FloatArray,
        pattern: BoolArray,
        *,
        weights: FloatArray | None = None,
        n_bootstrap: int = 1000,
        seed: int = 0,
    ) -> None:
        real = np.isfinite(base_loss)
        self._weights = np.ones(base_loss.shape) if weights is None else weights
        self.members, self.others = pattern & real, ~pattern & real
        if why := too_few(self.members, self.others):
            raise ValueError(why)
        self.n_sequences = len(base_loss)
        self.stratum = _strata(base_loss, self.members)
        self._n_members = self._sums(None, self.members)
        has = self._n_members.sum(1) > 0
        self.freedom = int(has.sum()) - 1  # sequences without the pattern tell nothing of it
        generator = np.random.default_rng(seed)
        share = np.full(self.n_sequences, 1 / self.n_sequences)
        counts = generator.multinomial(self.n_sequences, share, size=n_bootstrap)
        self._counts = counts[(counts[:, has] > 0).any(1)]  # else there is nothing to average
        n_others = self._sums(None, self.others).sum(0)
        self._like = _nearest_with(n_others >= FEWEST_OTHERS, n_others)
        self._n_others = self._sums(None, self.others)[:, self._like]
        own = self._like == np.arange(len(self._like))
        self.matched_share = float(self._n_members.sum(0)[own].sum() / self._n_members.sum())

    @property
    def words(self) -> str:
        """What :meth:`matched` compares with."""
        if not self.others.any():
            return "loss of all tokens that count; there are no others"
        share = 100 * self.matched_share
        return f"loss of the pattern's tokens − matched others; {share:.0f} % of them matched"

    def matched(self, effect: FloatArray) -> Measured:
        """Effect on the pattern's tokens minus that on matched others."""
        if not self.others.any():
            return self.on_pattern(effect)
        members, others = self._sums(effect, self.members), self._others(effect)
        return self._measured(
            lambda n: _stratified(
                n @ members, n @ others, n @ self._n_members, n @ self._n_others
            )
        )  # fmt: skip

    def value(self, effect: FloatArray) -> float:
        """The value of :meth:`matched` without its interval."""
        if not self.others.any():
            return float(self._sums(effect, self.members).sum() / self._n_members.sum())
        members, others = self._sums(effect, self.members), self._others(effect)
        parts = (part.sum(0) for part in (members, others, self._n_members, self._n_others))
        return float(_stratified(*parts))

    def on_pattern(self, effect: FloatArray) -> Measured:
        """Mean effect on the pattern's tokens."""
        total = self._sums(effect, self.members).sum(1)
        tokens = self._n_members.sum(1)
        return self._measured(lambda n: (n @ total) / np.maximum(n @ tokens, TINY))

    def share(self, part: FloatArray, whole: FloatArray) -> Measured:
        """Mean of ``part`` over the mean of ``whole``, both on the pattern's tokens."""
        above = self._sums(part, self.members).sum(1)
        below = self._sums(whole, self.members).sum(1)
        return self._measured(lambda n: (n @ above) / np.where(n @ below == 0, np.nan, n @ below))

    def share_value(self, part: FloatArray, whole: FloatArray) -> float:
        """The value of :meth:`share` without its interval."""
        weight = self._weights[self.members]
        return float((part[self.members] @ weight) / (whole[self.members] @ weight))

    def per_sequence(self, effect: FloatArray) -> FloatArray:
        """Mean over the pattern's tokens of each sequence that has some."""
        tokens = self._n_members.sum(1)
        return (self._sums(effect, self.members).sum(1) / np.maximum(tokens, TINY))[tokens > 0]

    @cached_property
    def _ones(self) -> NDArray[np.int_]:
        return np.ones(self.n_sequences, dtype=int)

    def _measured(self, statistic: object) -> Measured:
        assert callable(statistic)
        value = float(statistic(self._ones))
        draws = np.array(statistic(self._counts))
        if not (np.isfinite(value) and np.isfinite(draws).all()):
            nan = float("nan")
            return Measured(value, nan, nan, nan, nan, self.freedom)
        # Resamples spread by as little as a variance over n, not n - 1, and know no Student's t.
        unbiased = np.sqrt((self.freedom + 1) / self.freedom)
        wider = unbiased * stats.t.ppf(ENDS[1], self.freedom) / HALF_WIDTH
        low, high = value + wider * (np.quantile(draws, ENDS) - value)
        se = float(unbiased * draws.std(ddof=1))
        p = stats.t.sf(value / se, self.freedom) if se > 0 else float(value <= 0)
        return Measured(value, float(low), float(high), float(p), se, self.freedom, draws)

    def _others(self, effect: FloatArray) -> FloatArray:
        """Sums over the tokens that each stratum is compared with."""
        return self._sums(effect, self.others)[:, self._like]

    def _sums(self, effect: FloatArray | None, where: BoolArray) -> FloatArray:
        """Sums ``[sequence, stratum]`` of an effect, or numbers of tokens."""
        n_strata = LOSS_BINS * POSITION_BINS
        rows = np.broadcast_to(np.arange(self.n_sequences)[:, None], where.shape)[where]
        weights = self._weights[where].astype(np.float64)
        if effect is not None:
            weights = weights * effect[where]
        flat = np.bincount(
            rows * n_strata + self.stratum[where], weights, self.n_sequences * n_strata
        )
        return flat.reshape(self.n_sequences, n_strata).astype(np.float64)


def p_in_any(found: Sequence[Measured], at: int) -> float:
    """p-value of one of several effects on the same sequences, that was chosen as the clearest.

    Against the null that none is above zero: how often the largest of their t-statistics, which
    move together as the bootstrap says, would reach this one (Hothorn, Bretz & Westfall 2008). It
    lies between the effect's own p-value and that times their number; NaN where that is.
    """
    best = found[at]
    moving = [one for one in found if one.se > 0 and one.resampled is not None]
    most = float(np.minimum(1.0, best.p * len(found)))
    if not (best.se > 0 and len(moving) > 1 and most > SMALL and best.p < 1):
        return most
    together = np.corrcoef([one.resampled for one in moving])
    together = (1 - RIDGE) * together + RIDGE * np.eye(len(moving))
    spread = stats.multivariate_t(shape=together, df=best.freedom, seed=0)
    none = spread.cdf(np.full(len(moving), best.value / best.se), maxpts=POINTS)
    return float(np.clip(1 - none, best.p, most))


def hsic_p(x: FloatArray, y: FloatArray, *, n_permutations: int = 1000, seed: int = 0) -> float:
    """Permutation p-value of the Hilbert–Schmidt independence criterion of paired samples.

    Gaussian kernels with the median distance as their width (Gretton et al. 2007).
    """
    k, m = _centred_kernel(x), _centred_kernel(y)
    generator = np.random.default_rng(seed)
    value = float((k * m).sum())
    null = []
    for _ in range(n_permutations):
        order = generator.permutation(len(x))
        null.append(float((k * m[np.ix_(order, order)]).sum()))
    return rank_p(value, np.array(null))


def _centred_kernel(x: FloatArray) -> FloatArray:
    distance = np.abs(x[:, None] - x[None, :])
    width = float(np.median(distance[distance > 0])) if (distance > 0).any() else 1.0
    kernel = np.exp(-(distance**2) / (2 * width**2))
    kernel = kernel - kernel.mean(0)
    return kernel - kernel.mean(1, keepdims=True)


def _stratified(
    members: FloatArray, others: FloatArray, n_members: FloatArray, n_others: FloatArray
) -> FloatArray:
    """Difference of means within strata (last axis), weighted by the numbers of members."""
    both = (n_members > 0) & (n_others > 0)
    difference = members / np.maximum(n_members, TINY) - others / np.maximum(n_others, TINY)
    weight = np.where(both, n_members, 0)
    return (weight * difference).sum(-1) / np.maximum(weight.sum(-1), TINY)


def _nearest_with(enough: BoolArray, n: FloatArray) -> NDArray[np.int_]:
    """Of every stratum, itself if it has enough others, else that with the nearest base loss."""
    strata = np.arange(len(enough))
    if not enough.any():
        return np.full(len(enough), int(n.argmax()))
    loss, position = np.divmod(strata, POSITION_BINS)
    distance = 2 * np.abs(loss[:, None] - loss) + (position[:, None] != position)
    return np.where(enough, distance, 10**6).argmin(1)


def _strata(base_loss: FloatArray, members: BoolArray) -> NDArray[np.int_]:
    edges = np.quantile(base_loss[members], np.linspace(0, 1, LOSS_BINS + 1)[1:-1])
    by_loss = np.searchsorted(edges, np.nan_to_num(base_loss), side="right")
    length = base_loss.shape[1]
    by_position = np.arange(length) * POSITION_BINS // length
    return by_loss * POSITION_BINS + by_position[None, :]


def too_few(members: BoolArray, others: BoolArray) -> str:
    """Why a trial cannot be made on a pattern's tokens and the others; "" where it can."""
    tokens, sequences = int(members.sum()), int(members.any(1).sum())
    if tokens < FEWEST_TOKENS or sequences < FEWEST_SEQUENCES:
        return (
            f"pattern has {tokens} tokens in {sequences} sequences; a trial needs at least "
            f"{FEWEST_TOKENS} tokens in {FEWEST_SEQUENCES} sequences: use more tokens"
        )
    if 0 < int(others.sum()) < FEWEST_TOKENS:
        return (
            f"pattern covers all but {int(others.sum())} tokens; at least {FEWEST_TOKENS} others "
            "are needed to compare it with"
        )
    return ""
