"""Which component of one model is which of another."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import xarray as xr
from numpy.typing import NDArray
from scipy.optimize import linear_sum_assignment

from lens_slt.arguments import integer, number, typed
from lens_slt.arrays import BoolArray, FloatArray
from lens_slt.models.names import read_part
from lens_slt.schema import stamped
from lens_slt.statistics import ENDS, SIGNIFICANT
from lens_slt.structure.profiles import Profile, profile

LEAST = 0.3  # corrected similarity of a match
SURE = 0.5  # share of resamples in which the assignment gives the same partner
MATCHED, AMBIGUOUS, NOBODY, NOISE = "matched", "ambiguous", "no partner", "too noisy"
SHARED, UNTESTED = "shared", "untested"
SURELY = (MATCHED, SHARED, UNTESTED)  # verdicts that name a partner without a rival
PARTNERED = (*SURELY, AMBIGUOUS)  # or with one


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
    be without noise. Values with a reliability under 0.2 are noise. Several kinds of values are
    averaged, over those that are no noise in either component. The assignment with the largest
    total similarity is found (:func:`scipy.optimize.linear_sum_assignment`), of heads to heads and
    of MLPs to MLPs. It is one to one, and models have different numbers of heads of a kind: who is
    left over shares the partner that it is most like.

    Correlated values do not show that two components are made alike: put circuits of the one model,
    mapped by the match, on trial in the other (:func:`lens_slt.transfer`).

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
        ``similarity_low`` and ``_high`` (95 %, over sequences), ``p``, the share of permutations
        of the sequences in which any component finds a partner that is as similar, each
        standardised by what it finds there (corrected for all of them by that; NaN where nothing
        has sequences), ``stability``, the share of resamples with the same partner,
        ``runner_up``, the largest similarity to another one, ``verdict``: ``matched``; ``shared``,
        where its likest, as surely alike, is the partner of another;
        ``ambiguous``, where resamples give it another partner; ``untested``, where nothing has
        sequences to permute and resample (then intervals, p and stability are NaN);
        ``no partner``, where p > 0.05 or the similarity is under ``least``; ``too noisy``.
        ``similarities (component, other)``, NaN where they may not be matched;
        by kind ``similarities_KIND``. ``other_verdict``.

    Raises:
        TypeError, ValueError: other results; of other tokens, as those of another tokenizer are;
            equal seeds.

    Example:
        >>> import lens_slt as ls
        >>> text = ls.load_tokens("mix", n_sequences=16, length=32)
        >>> models = map(ls.load_model, ("attn-2l", "attn-2l-seed1"))
        >>> one, other = (ls.attention_patterns(model, text) for model in models)
        >>> found = ls.match(one, other, n_null=20, n_bootstrap=20)
        >>> found["partner"].sel(component="L0H2").item()  # its previous-token head
        'L0H3'
    """
    number("least", least, at_least=0, at_most=1)
    integer("n_null", n_null, at_least=20)
    integer("n_bootstrap", n_bootstrap, at_least=20)
    integer("seed", seed, at_least=0)
    pairs = _pairs(a, b)
    names, others = pairs[0].a.names, pairs[0].b.names
    alive = np.any([one.alive for one in pairs], axis=0) & _allowed(names, others, within_layers)
    each = {one.a.kind: one.similarity() for one in pairs}
    whole = _averaged(list(each.values()))
    partner = _assigned(whole, alive)
    generator = np.random.default_rng(seed)
    best, resampled = np.array([]), np.array([])
    if alive.any() and any(one.b.has_sequences for one in pairs):
        best = np.array([_best(_permuted(pairs, generator), alive) for _ in range(n_null)])
        resampled = np.array([_resampled(pairs, generator) for _ in range(n_bootstrap)])
    found, partner = _rows(whole, partner, alive, best, resampled, least)
    noise = [np.all([getattr(one, side).is_noise for one in pairs], axis=0) for side in "ab"]
    found["verdict"] = np.where(noise[0], NOISE, found["verdict"])
    other = np.where(noise[1], NOISE, NOBODY).astype(object)
    for word in reversed(PARTNERED):  # the surest last, which stays
        other[[j for j, said in zip(partner, found["verdict"], strict=True) if said == word]] = word
    partners = [others[j] if j >= 0 else "" for j in partner]
    kinds = {f"similarities_{kind}": (("component", "other"), v) for kind, v in each.items()}
    data = xr.Dataset(
        {key: ("component", values) for key, values in found.items()}
        | {"partner": ("component", partners), "other_verdict": ("other", other.astype(str))}
        | {"similarities": (("component", "other"), np.where(alive, whole, np.nan))}
        | kinds,
        coords={"component": names, "other": others},
        attrs={"kinds": " ".join(each), "least": least, "level": SIGNIFICANT, "n_null": n_null},
    )
    return stamped(data, "match")


@dataclass(frozen=True)
class _Pair:
    """One kind of values of both models."""

    a: Profile
    b: Profile

    @property
    def alive(self) -> BoolArray:
        """Pairs ``[component, other]`` of which neither is noise."""
        return np.asarray(~self.a.is_noise[:, None] & ~self.b.is_noise[None])

    @cached_property
    def products(self) -> tuple[FloatArray, FloatArray, FloatArray]:
        """By sequence: products of all pairs, and squares of each."""
        a, b = self.a.values, self.b.values
        across = np.einsum("sfi,sfj->sij", a, b, optimize=True)
        return across, (a**2).sum(1), (b**2).sum(1)

    def similarity(self, counts: FloatArray | None = None) -> FloatArray:
        """Corrected correlations ``[component, other]``, with sequences as often as ``counts``."""
        each = np.ones(self.a.values.shape[0]) if counts is None else counts
        return self._corrected(*(np.tensordot(each, part, 1) for part in self.products))

    def permuted(self, order: NDArray[np.int_]) -> FloatArray:
        """With the sequences of b in another order."""
        across = np.einsum("sfi,sfj->ij", self.a.values, self.b.values[order], optimize=True)
        return self._corrected(across, *(part.sum(0) for part in self.products[1:]))

    def _corrected(self, across: FloatArray, here: FloatArray, there: FloatArray) -> FloatArray:
        """NaN where one of the two is noise, or constant in this sample."""
        scale = np.sqrt(np.outer(here * self.a.reliability, there * self.b.reliability))
        known = self.alive & (scale > 0)
        return np.where(known, np.clip(across / np.where(known, scale, 1), -1, 1), np.nan)


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


def _allowed(names: list[str], others: list[str], within_layers: bool) -> BoolArray:
    """Heads match heads, MLPs match MLPs; embeddings, unions and the like those of their name."""
    here, there = ([read_part(name) for name in side] for side in (names, others))

    def fit(i: int, j: int) -> bool:
        one, other = here[i], there[j]
        if one is None or other is None:
            return names[i] == others[j]
        return one.kind == other.kind and (one.layer == other.layer or not within_layers)

    return np.array([[fit(i, j) for j in range(len(others))] for i in range(len(names))])


def _averaged(each: list[FloatArray]) -> FloatArray:
    """Mean of the kinds that are known of a pair, 0 where none is."""
    known = np.isfinite(each)
    return np.asarray(np.where(known, each, 0).sum(0) / np.maximum(known.sum(0), 1))


def _assigned(similarity: FloatArray, allowed: BoolArray) -> NDArray[np.int_]:
    """The partner's place for every component, −1 for none."""
    # Nobody has to have a partner: a pair that is forbidden or unlike counts as none.
    worth = np.where(allowed, np.maximum(similarity, 0), 0.0)
    rows, columns = linear_sum_assignment(-worth)
    partner = np.full(len(similarity), -1)
    kept = worth[rows, columns] > 0
    partner[rows[kept]] = columns[kept]
    return partner


def _permuted(pairs: list[_Pair], generator: np.random.Generator) -> FloatArray:
    """Similarities after the sequences of b were permuted, alike for kinds of the same tokens."""
    orders = {n: generator.permutation(n) for n in sorted({one.b.values.shape[0] for one in pairs})}
    return _averaged([one.permuted(orders[one.b.values.shape[0]]) for one in pairs])


def _resampled(pairs: list[_Pair], generator: np.random.Generator) -> FloatArray:
    """Similarities of a bootstrap sample of sequences, alike for kinds of the same tokens."""
    counts = {
        n: generator.multinomial(n, np.full(n, 1 / n)).astype(float)
        for n in sorted({one.a.values.shape[0] for one in pairs})
    }
    return _averaged([one.similarity(counts[one.a.values.shape[0]]) for one in pairs])


def _best(similarity: FloatArray, allowed: BoolArray) -> FloatArray:
    """The largest similarity of every component; −1 for those without any."""
    return np.asarray(np.where(allowed, similarity, -1.0).max(1))


def _corrected_p(whole: FloatArray, partner: NDArray[np.int_], best: FloatArray) -> FloatArray:
    """How often the largest standardised similarity of all is as large under permutation.

    Every component is standardised by its own best similarities ``[permutation, component]``:
    some attend by position alone, and are alike on whatever sequences.
    """
    centre, spread = best.mean(0), np.maximum(best.std(0, ddof=1), 1e-9)
    largest = ((best - centre) / spread).max(1)
    own = whole[np.arange(len(whole)), np.maximum(partner, 0)]
    standard = (own - centre) / spread
    return np.asarray((1 + (largest[:, None] >= standard).sum(0)) / (1 + len(best)))


_COLUMNS = ("similarity", "similarity_low", "similarity_high", "p", "stability", "runner_up")


def _rows(
    whole: FloatArray,
    partner: NDArray[np.int_],
    allowed: BoolArray,
    best: FloatArray,
    resampled: FloatArray,
    least: float,
) -> tuple[dict[str, Any], NDArray[np.int_]]:
    """What is said of every component of a, and the partners with those that are shared."""
    tested = len(best) > 0
    # Of one to one partners, and of the likest: permutations tell how alike any is by chance.
    ways = [(MATCHED, partner, np.array([_assigned(one, allowed) for one in resampled]))]
    if tested:
        likest = np.where(allowed, whole, -1.0).argmax(1)
        again = np.where(allowed, resampled, -1.0).argmax(2)
        ways.append((SHARED, np.where(allowed.any(1), likest, -1), again))
    rows = [dict.fromkeys(_COLUMNS, np.nan) | {"verdict": NOBODY} for _ in whole]
    chosen = partner.copy()
    taken: set[int] = set()
    for word, places, again in ways:
        before = [dict(row) for row in rows]
        p = _corrected_p(whole, places, best) if tested else np.full(len(whole), np.nan)
        for i, j in enumerate(places):
            # Of rivals for one partner, which the assignment gives it to may depend on sequences.
            if j < 0 or (word == SHARED and (rows[i]["verdict"] == MATCHED or j not in taken)):
                continue
            row: dict[str, Any] = {"similarity": whole[i, j], "verdict": NOBODY}
            rest = np.delete(whole[i], j)[np.delete(allowed[i], j)]
            row["runner_up"] = rest.max() if len(rest) else np.nan
            if tested:
                row["similarity_low"], row["similarity_high"] = np.quantile(
                    resampled[:, i, j], ENDS
                )
                row |= {"p": p[i], "stability": (again[:, i] == j).mean()}
            if whole[i, j] >= least:
                row["verdict"] = _verdict(row, word) if tested else UNTESTED
            if word == MATCHED or row["verdict"] == SHARED:
                rows[i] |= row
                chosen[i] = j
        taken = {int(j) for i, j in enumerate(places) if rows[i]["verdict"] in (MATCHED, AMBIGUOUS)}
    held = [j for j, row in zip(chosen, rows, strict=True) if row["verdict"] in PARTNERED]
    for i, row in enumerate(rows):
        if row["verdict"] == SHARED and held.count(chosen[i]) == 1:  # with itself, or who moved on
            rows[i], chosen[i] = before[i], partner[i]
    return {key: np.array([row[key] for row in rows]) for key in rows[0]}, chosen


def _verdict(row: dict[str, Any], word: str) -> str:
    """Of a pair that is similar enough."""
    if row["p"] > SIGNIFICANT:
        return NOBODY
    return word if row["stability"] >= SURE else AMBIGUOUS
