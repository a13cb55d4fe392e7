"""Statistics of trials against closed forms, and against simulation where the truth is known."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from scipy import stats

from lens_slt.circuits.evidence import _in_contexts
from lens_slt.circuits.slt_evidence import _with_noise
from lens_slt.circuits.statistics import Contrast, Measured, hsic_p, p_in_any
from lens_slt.statistics import HALF_WIDTH, holm, rank_p, ratio_of_sums


def made(seed: int, n: int = 40, length: int = 30, share: float = 0.3):
    """Base losses, labels and effects that share a part within each sequence."""
    rng = np.random.default_rng(seed)
    base = rng.gamma(2.0, 1.0, (n, length))
    pattern = rng.random((n, length)) < share
    effect = 0.5 * rng.normal(size=(n, 1)) + rng.normal(size=(n, length))
    return base, pattern, effect


def test_a_constant_gap_is_found_exactly():
    base, pattern, _ = made(0)
    contrast = Contrast(base, pattern)
    found = contrast.matched(np.where(pattern, 1.5, 0.25))
    assert found.value == pytest.approx(1.25)
    assert found.low == pytest.approx(1.25)
    assert contrast.value(np.where(pattern, 1.5, 0.25)) == pytest.approx(1.25)
    assert contrast.on_pattern(np.where(pattern, 1.5, 0.25)).value == pytest.approx(1.5)
    half = contrast.share(np.where(pattern, 1.0, 9.0), np.where(pattern, 4.0, 1.0))
    assert half.value == pytest.approx(0.25)
    assert contrast.share_value(np.where(pattern, 1.0, 9.0), np.full(base.shape, 4.0)) == 0.25


def test_matching_takes_out_what_the_base_loss_explains():
    """Tokens of low base loss are hurt more, and the pattern has mostly such tokens."""
    rng = np.random.default_rng(1)
    base = rng.gamma(2.0, 1.0, (200, 30))
    pattern = rng.random(base.shape) < np.where(base < 1, 0.6, 0.1)
    effect = 1 / (1 + base)
    unmatched = effect[pattern].mean() - effect[~pattern].mean()
    found = Contrast(base, pattern).matched(effect)
    assert unmatched > 0.15
    assert abs(found.value) < 0.25 * unmatched  # strata have a width


def test_p_values_are_uniform_and_intervals_cover_without_an_effect():
    p, covered = [], 0
    for seed in range(200):
        base, pattern, effect = made(seed)
        found = Contrast(base, pattern, n_bootstrap=300, seed=seed).matched(effect)
        p.append(found.p)
        covered += found.low < 0 < found.high
    assert stats.kstest(p, "uniform").pvalue > 0.01
    assert abs(covered / 200 - 0.95) < 4 * np.sqrt(0.95 * 0.05 / 200)


def seen_in(together: np.ndarray, t: list[float], freedom: float = 1e6) -> list[Measured]:
    """Effects of unit standard errors whose bootstrap values have exactly these correlations."""
    free = np.linalg.qr(np.random.default_rng(0).normal(size=(500, len(t))))[0]
    values, vectors = np.linalg.eigh(together)
    resampled = (free - free.mean(0)) @ (vectors * np.sqrt(values.clip(0))).T
    return [
        Measured(x, x - 2, x + 2, float(stats.t.sf(x, freedom)), 1.0, freedom, resampled[:, i])
        for i, x in enumerate(t)
    ]


def test_the_clearest_of_several_independent_looks_has_the_p_value_of_their_maximum():
    p = stats.norm.sf(2.5)
    found = p_in_any(seen_in(np.eye(4), [1.0, 2.5, 0.3, 0.2]), 1)
    assert found == pytest.approx(1 - (1 - p) ** 4, rel=0.02)


def test_very_many_looks_are_integrated_over_as_surely():
    p = stats.norm.sf(3.5)
    found = p_in_any(seen_in(np.eye(150), [3.5] + [0.0] * 149), 0)
    assert found == pytest.approx(1 - (1 - p) ** 150, rel=0.03)


UNKNOWN = Measured(0.9, np.nan, np.nan, np.nan, np.nan, 9)


def test_what_is_unknown_stays_unknown():
    """Neither is a p-value of 1, nor of 0; and what is known is the clearest."""
    (seen,) = seen_in(np.eye(1), [3.0])
    assert np.isnan(p_in_any([UNKNOWN, seen], 0))
    assert np.isnan(_with_noise(seen, np.array([0.1, np.nan, 0.3])).p)
    for both in ([UNKNOWN, seen], [seen, UNKNOWN]):
        best, _, outcome, _ = _in_contexts([(one, "") for one in both], 0.05, 0.0)
        assert best.value == seen.value and outcome == "held"
    assert _in_contexts([(UNKNOWN, "")], 0.05, 0.0)[2] == "undecided"
    low = replace(seen, value=-3.0, low=-5.0, high=-1.0)
    assert _in_contexts([(low, ""), (UNKNOWN, "")], 0.05, 0.0)[2] == "undecided"


def test_looks_that_show_the_same_cost_nothing():
    found = seen_in(np.ones((3, 3)), [2.0, 2.0, 2.0])
    assert p_in_any(found, 0) == pytest.approx(found[0].p, rel=0.02)


@pytest.mark.parametrize("t", [[0.5], [9.0, 0.0], [np.inf, 0.0]])
def test_the_p_value_of_several_looks_never_leaves_its_bounds(t):
    found = seen_in(np.eye(len(t)), t)
    assert found[0].p <= p_in_any(found, 0) <= min(1.0, found[0].p * len(t))


def test_looks_without_a_spread_are_corrected_by_their_number():
    still = [Measured(1.0, 1.0, 1.0, 0.0, 0.0, 9), Measured(0.0, 0.0, 0.0, 1.0, 0.0, 9)]
    assert p_in_any(still, 0) == 0.0
    assert p_in_any(still, 1) == 1.0


def test_p_values_of_the_clearest_look_are_uniform_without_an_effect():
    """Five looks at the same sequences that are alike: their number would be too severe."""
    p, by_number = [], []
    for seed in range(400):
        base, pattern, shared = made(seed)
        rng = np.random.default_rng(seed)
        contrast = Contrast(base, pattern, n_bootstrap=200, seed=seed)
        found = [contrast.on_pattern(shared + rng.normal(size=base.shape)) for _ in range(5)]
        at = max(range(5), key=lambda i: found[i].value / found[i].se)
        p.append(p_in_any(found, at))
        by_number.append(min(1.0, 5 * found[at].p))
    assert stats.kstest(p, "uniform").pvalue > 0.01
    assert np.mean(by_number) > np.mean(p) + 0.1


def test_errors_of_few_sequences_are_those_of_students_t():
    """Eight equal sequences: a mean with the textbook's error, interval and p-value."""
    of_sequence = np.random.default_rng(0).normal(0.4, 1.0, 8)
    pattern = np.broadcast_to(np.arange(6) < 3, (8, 6))
    base = np.random.default_rng(1).random(pattern.shape)
    effect = np.broadcast_to(of_sequence[:, None], pattern.shape)
    found = Contrast(base, pattern, n_bootstrap=20_000).on_pattern(effect)
    exact = stats.ttest_1samp(of_sequence, 0, alternative="greater")
    assert found.se == pytest.approx(stats.sem(of_sequence), rel=0.02)  # its own error is 0.5 %
    assert found.p == pytest.approx(exact.pvalue, rel=0.03)
    low, high = stats.t.interval(0.95, 7, of_sequence.mean(), stats.sem(of_sequence))
    assert found.high - found.low == pytest.approx(high - low, rel=0.04)


def test_errors_take_sequences_as_the_unit():
    """On the pattern alone, what tokens of a sequence share does not average out."""
    base, pattern, effect = made(3, n=100)
    found = Contrast(base, pattern).on_pattern(effect)
    width = (found.high - found.low) / (2 * 1.96)
    assert 0.8 * np.sqrt(0.25 / 100) < width < 1.5 * np.sqrt(0.25 / 100 + 1 / pattern.sum())


def test_p_values_of_a_pattern_in_few_sequences_are_no_surer_than_it():
    """It is in 8 of 200 sequences: Student's t has 7 degrees of freedom, not 199."""
    p = []
    for seed in range(300):
        rng = np.random.default_rng(seed)
        pattern = np.zeros((200, 12), bool)
        pattern[:8, 2:9] = True
        effect = rng.normal(size=(200, 1)) + 0.1 * rng.normal(size=pattern.shape)
        base = rng.random(pattern.shape)
        found = Contrast(base, pattern, n_bootstrap=200, seed=seed).on_pattern(effect)
        assert found.p == pytest.approx(stats.t.sf(found.value / found.se, 7))
        p.append(found.p)
    assert np.mean(np.array(p) < 0.05) < 0.05 + 3 * np.sqrt(0.05 * 0.95 / 300)


def test_a_share_of_nothing_is_no_evidence():
    base, pattern, effect = made(7)
    whole = np.zeros_like(effect)
    assert np.isnan(Contrast(base, pattern).share(effect, whole).p)
    whole[pattern.any(1).argmax()] = 1.0  # so that some resamples have none of it
    found = Contrast(base, pattern).share(effect, whole)
    assert np.isnan(found.p) and np.isnan(found.low)


def test_tokens_without_like_others_are_compared_with_the_nearest():
    rng = np.random.default_rng(4)
    pattern = rng.random((30, 20)) < 0.3
    base = np.where(pattern, 0.1 * rng.random(pattern.shape), 3 + rng.random(pattern.shape))
    contrast = Contrast(base, pattern)
    assert contrast.matched_share < 0.4  # only the highest stratum has others
    assert contrast.matched(np.where(pattern, 2.0, 0.5)).value == pytest.approx(1.5)


@pytest.mark.parametrize(
    ("pattern", "message"),
    [
        (np.zeros((20, 30), bool), "0 tokens in 0 sequences; a trial needs at least 20 tokens"),
        (np.arange(30)[None] < np.array([[10]] * 3 + [[0]] * 17), "30 tokens in 3 sequences"),
        (np.arange(600).reshape(20, 30) > 9, "covers all but 10 tokens; at least 20 others"),
    ],
)
def test_too_few_tokens_are_refused(pattern, message):
    with pytest.raises(ValueError, match=message):
        Contrast(np.ones((20, 30)), pattern)


def test_effects_on_a_pattern_that_is_all_there_is_stand_for_themselves():
    """Weighted by how much each token counts."""
    base, _, effect = made(5)
    weights = np.random.default_rng(0).random(base.shape)
    found = Contrast(base, np.ones(base.shape, bool), weights=weights)
    want = float(np.average(effect, weights=weights))
    assert found.matched(effect).value == pytest.approx(want)
    assert found.value(effect) == pytest.approx(want)
    assert "there are no others" in found.words


def test_padding_counts_nowhere():
    base, pattern, effect = made(5)
    padded = np.concatenate([base, np.full_like(base, np.nan)], axis=1)
    twice = np.concatenate([pattern, pattern], axis=1)
    effects = np.concatenate([effect, np.full_like(effect, np.nan)], axis=1)
    assert Contrast(padded, twice).on_pattern(effects).value == pytest.approx(
        Contrast(base, pattern).on_pattern(effect).value
    )


def test_ranks():
    null = np.array([0.0, 1.0, 2.0, 3.0])
    assert rank_p(2.0, null) == pytest.approx(3 / 5)
    assert rank_p(9.0, null) == pytest.approx(1 / 5)


def test_holm_by_hand():
    corrected = holm(np.array([0.01, 0.04, np.nan, 0.03]))
    np.testing.assert_allclose(corrected, [0.03, 0.06, np.nan, 0.06])


def test_hsic_tells_dependence_without_correlation():
    rng = np.random.default_rng(0)
    x = rng.normal(size=80)
    assert hsic_p(x, x**2 + 0.1 * rng.normal(size=80), n_permutations=200) < 0.02
    p = [hsic_p(rng.normal(size=30), rng.normal(size=30), n_permutations=99) for _ in range(60)]
    assert stats.kstest(p, "uniform").pvalue > 0.01


def test_the_error_of_a_mean_over_tokens_is_that_of_its_sequences():
    """Against the bootstrap over sequences."""
    rng = np.random.default_rng(0)
    count = rng.integers(1, 9, 400).astype(float)
    total = count * rng.normal(2.0, 1.0, 400)
    mean, se = ratio_of_sums(total, count)
    draws = rng.integers(0, 400, (2000, 400))
    means = total[draws].sum(1) / count[draws].sum(1)
    assert mean == pytest.approx(total.sum() / count.sum())
    assert se == pytest.approx(means.std(), rel=0.08)  # its own standard error is 1.6 %
    assert np.isnan(ratio_of_sums(total[:1], count[:1])[1])
    assert np.isnan(ratio_of_sums(total, np.zeros(400))[0])


@pytest.mark.parametrize(("apart", "noise"), [(0.0, 1.0), (1.0, 0.1), (0.7, 0.7)])
def test_few_blocks_of_draws_cost_what_they_contribute_to_the_error(apart: float, noise: float):
    """A mean over 40 sequences, known from 4 blocks of draws: p-values are uniform, or above."""
    p = []
    for seed in range(600):
        rng = np.random.default_rng(seed)
        of_sequences = apart / 40**0.5
        value, drawn = of_sequences * rng.normal(), noise * rng.normal(size=4)
        half = HALF_WIDTH * of_sequences * np.sqrt(rng.chisquare(39) / 39)
        alone = Measured(value, value - half, value + half, 0.5, half / HALF_WIDTH, 39)
        whole = replace(alone, value=value + drawn.mean() / 40**0.5)
        p.append(_with_noise(whole, drawn / 40**0.5).p)
    for level in (0.01, 0.05, 0.2):
        assert np.mean(np.array(p) < level) < level + 4 * np.sqrt(level * (1 - level) / 600)


def test_degrees_of_freedom_are_those_of_what_varies():
    found = Measured(1.0, 1 - HALF_WIDTH, 1 + HALF_WIDTH, 0.2, 1.0, 39)
    still = np.array([-1e-3, 1e-3, -1e-3, 1e-3])
    assert _with_noise(found, still).freedom == pytest.approx(39, abs=0.1)
    exact = Measured(1.0, 1.0, 1.0, 0.0, 0.0, 39)
    assert _with_noise(exact, 1e3 * still).freedom == pytest.approx(3)
