"""Which component of one model is which of another."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import xarray as xr
from scipy.optimize import linear_sum_assignment

from lens_slt.arguments import boolean, integer, number, typed
from lens_slt.arrays import BoolArray, FloatArray
from lens_slt.models.names import read_part
from lens_slt.schema import stamped
from lens_slt.structure.profiles import Profile, profile

FLOOR = 0.2  # of reliability, below which a column is noise
LEAST = 0.3  # corrected similarity of a match
SURE = 0.5  # share of resamples in which the assignment gives the same partner
LEVEL = 0.05
MATCHED, AMBIGUOUS, NOBODY, NOISE = "matched", "ambiguous", "no partner", "too noisy"
UNTESTED = "untested"


@typed
def match(
    a: Any,
    b: Any,
    *,
    within_layers: bool = False,
    least: float = LEAST,
    n_null: int = 200,
    n_bootstrap: int = 200,
    seed: int = 0,
) -> xr.Dataset:
    r"""Assign the components of one model to those of another that do the same on the same tokens.

    The similarity of two components is the correlation r of their values, without what all
    components of their model share, over √(ρ_a·ρ_b), their split-half reliabilities: what r would
    be without noise. Values with a reliability under 0.2 are noise and have no partner. Several
    kinds of values are averaged. The assignment with the largest total similarity is found
    (:func:`scipy.optimize.linear_sum_assignment`).

    Correlated values do not show that two components are made alike: put circuits of the one model,
    mapped by the match, on trial in the other (:func:`lens_slt.cross_check`).

    Args:
        a, b: of each model a result, or several by name: ``per_token_llc``, ``susceptibility``
            (sampled with different seeds: same-named components share their noise otherwise),
            ``attention_patterns``, ``behaviour_scores``, or ``refined_llc`` over checkpoints. The
            same kinds, tokens and checkpoints for both.
        within_layers: match within layers of the same number only.
        least: similarity that a match needs.
        n_null: permutations of the sequences of ``b``, which give p.
        n_bootstrap: resamples of sequences.
        seed: of both.

    Returns:
        Dataset over the components of ``a``: ``partner`` of ``b``, its ``similarity`` with
        ``similarity_low`` and ``_high`` (95 %, over sequences), ``p``, the share of permutations in
        which the best of all pairs is as similar (corrected for all pairs by that; NaN where
        nothing has sequences), ``stability``, the share of resamples with the same partner,
        ``runner_up``, the largest similarity to another one, ``verdict``: ``matched``;
        ``ambiguous``, where resamples give it another partner; ``untested``, where nothing has
        sequences to permute and resample (then intervals, p and stability are NaN);
        ``no partner``, where p > 0.05 or the similarity is under ``least``; ``too noisy``.
        ``similarities (component, other)``, NaN where they may not be matched;
        by kind ``similarities_KIND``. ``other_verdict``.

    Raises:
        TypeError, ValueError: other results; of other tokens, as those of another tokenizer are;
            equal seeds.
    """
    boolean("within_layers", within_layers)
    number("least", least, at_least=0, at_most=1)
    integer("n_null", n_null, at_least=20)
    integer("n_bootstrap", n_bootstrap, at_least=20)
    integer("seed", seed, at_least=0)
    pairs = _pairs(a, b)
    names, others = (pairs[0].a.names, pairs[0].b.names)
    allowed = _allowed(names, others, within_layers)
    dead = [np.max([_of(one, side).reliability for one in pairs], 0) < FLOOR for side in "ab"]
    allowed &= ~dead[0][:, None] & ~dead[1][None]
    each = {one.a.kind: one.similarity() for one in pairs}
    whole = np.mean(list(each.values()), axis=0)
    partner = _assigned(whole, allowed)
    generator = np.random.default_rng(seed)
    best = [_largest(pairs, allowed, generator) for _ in range(n_null)]
    resampled = [_resampled(pairs, generator) for _ in range(n_bootstrap)]
    if not any(one.b.has_sequences for one in pairs):
        resampled = []
    found = _rows(whole, partner, allowed, np.array(best), np.array(resampled), least)
    found["verdict"] = np.where(dead[0], NOISE, found["verdict"])
    taken = {int(j) for j, verdict in zip(partner, found["verdict"], strict=True)
             if verdict in (MATCHED, AMBIGUOUS, UNTESTED)}  # fmt: skip
    other = [NOISE if dead[1][j] else MATCHED if j in taken else NOBODY for j in range(len(others))]
    partners = [others[j] if j >= 0 else "" for j in partner]
    kinds = {f"similarities_{kind}": (("component", "other"), v) for kind, v in each.items()}
    data = xr.Dataset(
        {key: ("component", values) for key, values in found.items()}
        | {"partner": ("component", partners), "other_verdict": ("other", other)}
        | {"similarities": (("component", "other"), np.where(allowed, whole, np.nan))}
        | kinds,
        coords={"component": names, "other": others},
        attrs={"kinds": " ".join(each), "least": least, "level": LEVEL, "n_null": n_null},
    )
    return stamped(data, "match")


@dataclass(frozen=True)
class _Pair:
    """One kind of values of both models."""

    a: Profile
    b: Profile

    def similarity(self, order: FloatArray | None = None) -> FloatArray:
        """Corrected correlations ``[component, other]``; ``order`` permutes the sequences of b."""
        there = self.b.values if order is None else self.b.values[order]
        return self._corrected(*_products(self.a.values, there), slice(None))

    def resampled(self, counts: FloatArray) -> FloatArray:
        """With every sequence as often as ``counts`` says."""
        return self._corrected(*_products(self.a.values, self.b.values), counts)

    def _corrected(
        self, across: FloatArray, here: FloatArray, there: FloatArray, chosen: Any
    ) -> FloatArray:
        if isinstance(chosen, slice):
            across, here, there = (part.sum(0) for part in (across, here, there))
        else:
            across, here, there = (np.tensordot(chosen, part, 1) for part in (across, here, there))
        noise = np.sqrt(np.outer(self.a.reliability, self.b.reliability))
        scale = np.sqrt(np.outer(here, there)) * np.maximum(noise, FLOOR)
        return np.clip(across / np.where(scale > 0, scale, np.inf), -1, 1)


def _products(a: FloatArray, b: FloatArray) -> tuple[FloatArray, FloatArray, FloatArray]:
    """By sequence: products of all pairs, and squares of each."""
    across = np.einsum("sfi,sfj->sij", a, b, optimize=True)
    return across, (a**2).sum(1), (b**2).sum(1)


def _pairs(a: Any, b: Any) -> list[_Pair]:
    """Values of both models, of the same kinds and about the same."""
    sides = [
        {f"{name}[{key!r}]": one for key, one in side.items()} if _is_mapping(side)
        else {name: side}
        for name, side in (("a", a), ("b", b))
    ]  # fmt: skip
    made = [[profile(one, name) for name, one in side.items()] for side in sides]
    by_kind = [{one.kind: one for one in side} for side in made]
    for which, profiles in zip("ab", made, strict=True):
        if len({one.kind for one in profiles}) < len(profiles):
            raise ValueError(f"{which} has two results of one kind; match them one after the other")
    if not made[0] or set(by_kind[0]) != set(by_kind[1]):
        kinds = [", ".join(sorted(side)) or "nothing" for side in by_kind]
        raise ValueError(f"a and b must have results of the same kinds; got {kinds[0]} of a, "
                         f"{kinds[1]} of b")  # fmt: skip
    _refuse_shared_noise(*({one.attrs["result"]: one for one in side.values()} for side in sides))
    pairs = [_Pair(one, by_kind[1][kind]) for kind, one in by_kind[0].items()]
    for pair in pairs:
        _refuse_others(pair)
        for one, first, side in ((pair.a, pairs[0].a, "a"), (pair.b, pairs[0].b, "b")):
            if one.names != first.names:
                raise ValueError(
                    f"{side}: {one.kind} and {first.kind} have other components or another order; "
                    "choose the same of all, with .sel(component=[…])"
                )
    return pairs


def _is_mapping(side: Any) -> bool:
    return isinstance(side, Mapping) and not isinstance(side, xr.Dataset)


def _refuse_others(pair: _Pair) -> None:
    for what, here in pair.a.labels.items():
        there = pair.b.labels[what]
        if here.shape == there.shape and bool((here == there).all()):
            continue
        needed = (
            "the same token ids for both, which two models with one tokenizer can read; models "
            "with different tokenizers cannot be matched token by token"
            if what == "tokens"
            else f"the same {what}"
        )
        raise ValueError(f"a and b: {pair.a.kind} are of other {what}; needed are {needed}")


def _refuse_shared_noise(here: dict[str, Any], there: dict[str, Any]) -> None:
    """Draws with one seed have the noise of same-named components in common."""
    for one, other in ((here[kind], there[kind]) for kind in here):
        settings = [json.loads(side.attrs.get("settings", "{}")) for side in (one, other)]
        same_model = one.attrs.get("model_hash") == other.attrs.get("model_hash")
        if settings[0] and settings[0].get("seed") == settings[1].get("seed") and not same_model:
            raise ValueError(
                f"a and b were sampled with the same seed ({settings[0].get('seed')}), so that "
                "components of one name share their noise and look alike: sample one of the "
                "models again with another, settings.but(seed=…)"
            )


def _of(pair: _Pair, side: str) -> Profile:
    return pair.a if side == "a" else pair.b


def _allowed(names: list[str], others: list[str], within_layers: bool) -> BoolArray:
    if not within_layers:
        return np.ones((len(names), len(others)), dtype=bool)
    layers = [[read_part(name) for name in side] for side in (names, others)]
    place = [[-1 if part is None else part.layer for part in side] for side in layers]
    return np.array(place[0])[:, None] == np.array(place[1])[None]


def _assigned(similarity: FloatArray, allowed: BoolArray) -> FloatArray:
    """The partner's place for every component, −1 for none."""
    cost = np.where(allowed, -similarity, 10.0)
    rows, columns = linear_sum_assignment(cost)
    partner = np.full(len(similarity), -1)
    kept = allowed[rows, columns]
    partner[rows[kept]] = columns[kept]
    return partner


def _largest(pairs: list[_Pair], allowed: BoolArray, generator: np.random.Generator) -> float:
    """Similarity of the best pair after the sequences of b were permuted."""
    sizes = {one.b.values.shape[0] for one in pairs if one.b.has_sequences}
    if not sizes or not allowed.any():
        return float("nan")
    orders = {n: generator.permutation(n) for n in sorted(sizes)}
    found = np.mean(
        [one.similarity(orders[one.b.values.shape[0]]) if one.b.has_sequences
         else one.similarity() for one in pairs], axis=0,
    )  # fmt: skip
    return float(found[allowed].max())


def _resampled(pairs: list[_Pair], generator: np.random.Generator) -> FloatArray:
    """Similarities of one bootstrap sample of sequences, the same for kinds of the same tokens."""
    counts: dict[int, FloatArray] = {}
    found = []
    for one in pairs:
        n = one.a.values.shape[0]
        if n not in counts:
            counts[n] = generator.multinomial(n, np.full(n, 1 / n)).astype(float)
        found.append(one.resampled(counts[n]))
    return np.asarray(np.mean(found, axis=0))


def _rows(
    whole: FloatArray,
    partner: FloatArray,
    allowed: BoolArray,
    best: FloatArray,
    resampled: FloatArray,
    least: float,
) -> dict[str, Any]:
    """What is said of every component of a."""
    n = len(whole)
    again = np.array([_assigned(one, allowed) for one in resampled])
    tested = len(again) > 0
    found: dict[str, Any] = {
        key: np.full(n, np.nan)
        for key in ("similarity", "similarity_low", "similarity_high", "p", "stability",
                    "runner_up")
    }  # fmt: skip
    verdicts = []
    for i, j in enumerate(partner):
        verdicts.append(NOBODY)
        if j < 0:
            continue
        value = whole[i, j]
        low, high = np.quantile(resampled[:, i, j], (0.025, 0.975)) if tested else (np.nan, np.nan)
        p = (1 + (best >= value).sum()) / (1 + len(best)) if np.isfinite(best).all() else np.nan
        rest = np.delete(np.where(allowed[i], whole[i], -np.inf), j)
        stability = float((again[:, i] == j).mean()) if tested else np.nan
        for key, number_ in (
            ("similarity", value), ("similarity_low", low), ("similarity_high", high), ("p", p),
            ("stability", stability), ("runner_up", rest.max(initial=-np.inf)),
        ):  # fmt: skip
            found[key][i] = number_
        if value >= least and not tested:
            verdicts[-1] = UNTESTED
        elif value >= least and p <= LEVEL:
            verdicts[-1] = MATCHED if stability >= SURE else AMBIGUOUS
    found["runner_up"] = np.where(np.isfinite(found["runner_up"]), found["runner_up"], np.nan)
    return found | {"verdict": np.array(verdicts, dtype=object)}
