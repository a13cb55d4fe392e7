"""Where in the weights a transition sits: how few of them carry what a pattern gained.

The bet on locality is that each transition moves few degrees of freedom. Panigrahi et al. 2023
(arXiv 2302.06600) graft 0.01 % of a fine-tuned model's weights into the model before and keep 95 %
of a skill. Here the weights of one checkpoint are grafted into an earlier one.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
import xarray as xr
from numpy.typing import NDArray

from lens_slt.arguments import integer, number, typed
from lens_slt.arrays import FloatArray
from lens_slt.development.graft_rankings import RANDOM, SIZE, Ranking, all_rankings
from lens_slt.development.grafts import Grafts, Weights
from lens_slt.development.onsets import first_lasting
from lens_slt.progress import track
from lens_slt.schema import stamped
from lens_slt.statistics import ENDS, ratio_of_sums
from lens_slt.torch_state import kept_random_state, plain_torch

REFINEMENTS = 5  # bisections of the smallest share
N_BOOTSTRAP = 1000
CLEAR = 3.0  # standard errors that a gain has to exceed


@typed
@plain_torch
def locality(
    before: Any,
    after: Any,
    tokens: Any,
    pattern: Any = None,
    *,
    scores: Mapping[str, float] | None = None,
    n_directions: int = 0,
    target: float = 0.95,
    n_null: int = 4,
    weights: Any = None,
    mask: Any = None,
    pad_id: int | None = None,
    seed: int = 0,
    progress: bool = True,
) -> xr.Dataset:
    r"""The smallest share of weights whose change carries a pattern's gain.

    Between two checkpoints the pattern's loss falls by a gain G. Part of the weights is set to what
    it is after, the rest stays as before, and what that keeps of the gain is measured:
    ``kept`` = (L(before) − L(grafted)) / G. Which part is decided by a *ranking*:

    - ``size``: the weights that changed most, |Δw|;
    - ``components``: whole heads, MLPs and embeddings in the order of ``scores``, if given (say Δλ̂
      from :func:`lens_slt.compare`, or what ablation costs);
    - ``curvature``: the change within the leading eigenvectors of the pattern's Hessian at
      ``after``, if ``n_directions`` > 0; each direction counts as one number among the weights;
    - ``random``: the null of ``size``: as many weights of every matrix, drawn at random.

    Directions come from every second sequence, ``kept`` is measured on the others.

    Args:
        before, after: two models of one architecture, such as two of a run's checkpoints.
        tokens: ``[sequence, position]``, at least 8 sequences.
        pattern: which predictions count, bool ``[sequence, position - 1]``; None is all.
        scores: by component; the largest comes first.
        n_directions: of the Hessian, at most; each costs a few gradients.
        target: the share of the gain that has to be kept.
        n_null: random masks.
        weights, mask, pad_id: as in :func:`lens_slt.sample`.
        seed: of the null and the bootstrap.
        progress: show a bar.

    Returns:
        Dataset over (ranking, share): ``kept`` with ``kept_low`` and ``kept_high``, 95 % over
        sequences (of ``random`` also over its masks), NaN where a ranking was not tried. Over
        ranking: ``smallest_share``, from which on at least ``target`` is kept, with
        ``smallest_share_low`` and ``_high``; NaN where that was not reached. ``null_kept``: the
        most that a random mask keeps at the smallest share of ``size``. Attributes: ``gain`` in
        nats per token, with ``gain_se``, ``n_weights``, ``target``.

    Raises:
        ValueError: other architectures, no change, a gain that is not clear (three standard
            errors), components that the model does not have, too few sequences.

    Example:
        >>> import lens_slt as ls
        >>> run = ls.checkpoints("attn-2l")
        >>> tokens = ls.load_tokens("mix", n_sequences=8, length=32)
        >>> found = ls.locality(run.load(100), run.load(2900), tokens, n_null=1, progress=False)
        >>> bool(found["smallest_share"].sel(ranking="size") <= 1)
        True
    """
    integer("n_directions", n_directions, at_least=0)
    integer("n_null", n_null, at_least=1)
    integer("seed", seed, at_least=0)
    number("target", target, above=0, below=1)
    for name, score in (scores or {}).items():
        number(f"scores[{name!r}]", score)
    which = {"weights": weights, "mask": mask, "pad_id": pad_id}
    with kept_random_state():
        grafts = Grafts(before, after, tokens, pattern, **which)
        kept = Kept.of(grafts)
        rankings = all_rankings(grafts, scores, n_directions, n_null, seed)
        curves = {}
        with track("grafts", len(rankings), progress) as done:
            for ranking in rankings:
                curves[ranking.name] = _measured(ranking, kept, target)
                done(len(curves))
        return _result(curves, kept, target, seed)


@dataclass(frozen=True)
class Kept:
    """The gain of every sequence that is measured, and what a graft keeps of it."""

    grafts: Grafts
    rows: NDArray[np.int_]  # of the sequences
    before: FloatArray  # [sequence] summed loss
    gain: FloatArray  # [sequence]

    @classmethod
    def of(cls, grafts: Grafts) -> Kept:
        rows = np.arange(1, len(grafts.tokens), 2)
        if len(rows) < 4:
            raise ValueError(
                f"tokens: {len(grafts.tokens)} sequences are too few; every second one is measured "
                "on, and errors need 4 of them: at least 8"
            )
        none = {name: torch.zeros_like(value) for name, value in grafts.change.items()}
        before, after = (grafts.losses(change, rows) for change in (none, grafts.change))
        found = cls(grafts, rows, before, before - after)
        mean, se = found.mean_gain
        if not mean > CLEAR * se:
            raise ValueError(
                f"pattern: its loss falls by {mean:.3f} ± {se:.3f} nats per token between before "
                "and after, which is no clear gain: take a longer interval, more tokens, or "
                "another pattern"
            )
        return found

    @property
    def mean_gain(self) -> tuple[float, float]:
        """Nats per token, with its standard error over sequences."""
        mean, error = ratio_of_sums(self.gain, self.grafts.weight[self.rows].sum(1))
        return float(mean), float(error)

    def by(self, change: Weights) -> FloatArray:
        """What a graft brings to every sequence, ``[sequence]``."""
        return self.before - self.grafts.losses(change, self.rows)


@dataclass
class _Curve:
    """What a ranking brings to every sequence, by share: ``[mask, sequence]``."""

    ranking: Ranking
    kept: Kept
    brought: dict[float, FloatArray] = field(default_factory=dict)

    def measure(self, share: float) -> None:
        """With so large a share of the weights."""
        self.brought[share] = np.array([self.kept.by(one) for one in self.ranking.changes(share)])

    @property
    def shares(self) -> list[float]:
        """Those measured, in order."""
        return sorted(self.brought)

    def of_gain(self, counts: FloatArray, masks: FloatArray) -> FloatArray:
        """Share of the gain that is kept ``[resample, share]``.

        ``counts [resample, sequence]`` and ``masks [resample, mask]`` say how often each counts.
        """
        brought = np.array([self.brought[share] for share in self.shares])
        masks = masks / masks.sum(1, keepdims=True)
        summed = np.einsum("kms,rm,rs->rk", brought, masks, counts)
        return np.asarray(summed / (counts @ self.kept.gain)[:, None], dtype=np.float64)

    def resampled(self, rng: np.random.Generator | None) -> FloatArray:
        """As measured, or over resampled sequences and masks."""
        n_masks, n = next(iter(self.brought.values())).shape
        if rng is None:
            return self.of_gain(np.ones((1, n)), np.ones((1, n_masks)))
        counts = rng.multinomial(n, np.full(n, 1 / n), N_BOOTSTRAP).astype(float)
        masks = rng.multinomial(n_masks, np.full(n_masks, 1 / n_masks), N_BOOTSTRAP)
        return self.of_gain(counts, masks.astype(float))


def _measured(ranking: Ranking, kept: Kept, target: float) -> _Curve:
    """At the ranking's shares, then more closely where the target is reached."""
    curve = _Curve(ranking, kept)
    for share in ranking.shares:
        curve.measure(share)
    for _ in range(REFINEMENTS if ranking.refines else 0):
        first = int(first_lasting(curve.resampled(None)[0] >= target))
        if first < 1:
            break
        curve.measure(float(np.sqrt(curve.shares[first - 1] * curve.shares[first])))
    return curve


def _crossing(shares: list[float], kept: FloatArray, target: float, between: bool) -> float:
    """The share from which on the target is kept, also between those measured; NaN for none."""
    first = int(first_lasting(kept >= target))
    if first < 0:
        return float("nan")
    if first == 0 or not between:
        return shares[first]
    low, high = kept[first - 1], kept[first]
    ends = np.log(shares[first - 1 : first + 1])
    return float(np.exp(np.interp(target, [low, high], ends)))


def _result(curves: dict[str, _Curve], kept: Kept, target: float, seed: int) -> xr.Dataset:
    """All curves on the shares of any."""
    names = list(curves)
    shares = sorted({share for curve in curves.values() for share in curve.shares})
    place = {share: i for i, share in enumerate(shares)}
    values = np.full((3, len(names), len(shares)), np.nan)
    smallest = np.full((3, len(names)), np.nan)
    for i, curve in enumerate(curves.values()):
        one, drawn = curve.resampled(None), curve.resampled(np.random.default_rng(seed))
        columns = [place[share] for share in curve.shares]
        values[:, i, columns] = one[0], *np.quantile(drawn, ENDS, axis=0)
        between = curve.ranking.refines
        smallest[0, i] = _crossing(curve.shares, one[0], target, between)
        ends = [_crossing(curve.shares, row, target, between) for row in drawn]
        if np.isfinite(ends).mean() > ENDS[1]:
            smallest[1:, i] = np.nanquantile(ends, ENDS)
    null_kept = _null_at(curves[RANDOM], smallest[0, names.index(SIZE)])
    gain, se = kept.mean_gain
    variables = dict(zip(("kept", "kept_low", "kept_high"), values, strict=True))
    names_of_ends = ("smallest_share", "smallest_share_low", "smallest_share_high")
    by_ranking = dict(zip(names_of_ends, smallest, strict=True))
    found = xr.Dataset(
        {key: (("ranking", "share"), value) for key, value in variables.items()}
        | {key: ("ranking", value) for key, value in by_ranking.items()} | {"null_kept": null_kept},
        coords={"ranking": names, "share": shares},
        attrs={"gain": gain, "gain_se": se, "n_weights": kept.grafts.n_weights, "target": target},
    )  # fmt: skip
    return stamped(found, "locality")


def _null_at(null: _Curve, share: float) -> float:
    """What the largest of the random masks keeps where the largest changes keep enough."""
    if not np.isfinite(share):
        return float("nan")
    brought = [null.kept.by(change).sum() for change in null.ranking.changes(share)]
    return float(max(brought) / null.kept.gain.sum())
