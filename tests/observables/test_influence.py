"""Influence against NumPy's covariance, its errors against repetition, attribution, messages."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import stats

import lens_slt as ls
from lens_slt.sampling.result import dataset
from tests.made_probes import SETTINGS, per_token_draws


def _losses(draws, component="L0H0"):
    probe = dataset(draws, "probes/text")["paired_loss"].sel(component=component)
    return probe.values.astype(np.float64).reshape(-1, *probe.shape[2:])


@pytest.mark.parametrize("kind", ["covariance", "correlation"])
@pytest.mark.parametrize("unit", ["sequence", "token"])
def test_equal_to_numpy(kind, unit):
    draws = per_token_draws()
    found = ls.influence(draws, "L0H0", unit=unit, kind=kind)
    loss = _losses(draws)
    series = loss.mean(2) if unit == "sequence" else loss.reshape(len(loss), -1)
    expected = np.corrcoef(series.T) if kind == "correlation" else np.cov(series.T, bias=True)
    np.testing.assert_allclose(found["influence"], -expected, rtol=1e-5, atol=1e-9)


def test_padding_does_not_enter():
    draws = per_token_draws(padding=3)
    found = ls.influence(draws, "L0H0")
    loss = np.nanmean(_losses(draws), axis=2)
    np.testing.assert_allclose(found["influence"], -np.cov(loss.T, bias=True), rtol=1e-5)
    assert ls.influence(draws, "L0H0", unit="token").sizes["query"] == 6 * 7 - 3


def test_a_sequence_is_the_mean_of_its_tokens_as_they_count():
    draws = per_token_draws()
    probe = dataset(draws, "probes/text")
    weight = np.random.default_rng(0).random(probe["weight"].shape) + 0.1
    draws["probes/text"] = type(draws)(probe.assign(weight=(probe["weight"].dims, weight)))
    means = (_losses(draws) * weight).sum(2) / weight.sum(1)
    found = ls.influence(draws, "L0H0")
    np.testing.assert_allclose(found["influence"], -np.cov(means.T, bias=True), rtol=1e-5)


def test_standard_errors():
    """Errors equal the spread over repetitions with other noise, tokens fixed."""
    many = per_token_draws(settings=SETTINGS.but(draws=50 * 160))
    probe = dataset(many, "probes/text")
    values, errors = [], []
    for piece in range(50):
        part = many.copy()
        keep = slice(80 * piece, 80 * (piece + 1))
        part["probes/text"] = type(many)(probe.isel(draw=keep))
        found = ls.influence(part, "L0H0")
        values.append(found["influence"].values)
        errors.append(found["se"].values)
    ratio = np.mean(errors, axis=0) / np.std(values, axis=0, ddof=1)
    assert 0.75 < np.median(ratio) < 1.25


def test_attribution_finds_what_is_planted():
    """Sequence 1 moves with sequence 0, sequence 2 against it, the rest alone."""
    draws = per_token_draws()
    generator = np.random.default_rng(5)
    probe = dataset(draws, "probes/text")
    noise = generator.normal(size=(*probe["paired_loss"].shape[:3], 6, 1))
    noise[..., 1, :] = noise[..., 0, :] + 0.3 * noise[..., 1, :]
    noise[..., 2, :] = -noise[..., 0, :] + 0.3 * noise[..., 2, :]
    values = np.broadcast_to(noise, probe["paired_loss"].shape)
    draws["probes/text"] = type(draws)(
        probe.assign(paired_loss=(probe["paired_loss"].dims, values))
    )
    table = ls.attribute(ls.influence(draws, "L0H0", kind="correlation"), 0, n=2)
    clear = table[table["clear"]]
    assert list(zip(clear["effect"], clear["source_sequence"], strict=True)) == [
        ("helps", 1), ("hurts", 2),
    ]  # fmt: skip
    assert 0 not in table["source_sequence"].values  # itself
    # What a sequence says of itself is sure and no part of the family: others get no clearer by it.
    made = ls.influence(draws, "L0H0").isel(query=[0]).copy(deep=True)
    made["influence"][0], made["se"][0] = [-9.0, 0, 0, 0, 0, 2.35], [0.1, 1, 1, 1, 1, 1]
    table = ls.attribute(made, 0).set_index("source_sequence")
    freedom = made.attrs["blocks"] - 1
    assert table.loc[5, "clear"] == (5 * 2 * stats.t.sf(2.35, freedom) < 0.05)
    with pytest.raises(ValueError, match="query must be an integer from 0 to 5; got 6"):
        ls.attribute(ls.influence(draws, "L0H0"), 6)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"component": "L0H9"}, "component must be one of L0H0, L0H1, L1H0, full; got 'L0H9'"),
        ({}, "the run has more than one"),
        ({"component": "L0H0", "unit": "word"}, "unit must be one of sequence, token"),
        ({"component": "L0H0", "kind": "corelation"}, "did you mean 'correlation'"),
        ({"component": "L0H0", "query": "code"}, "probe must be one of text; got 'code'"),
    ],
)
def test_messages(options, message):
    with pytest.raises(ValueError, match=message):
        ls.influence(per_token_draws(), **options)


def test_no_usable_chain_and_too_few_draws():
    with pytest.raises(ValueError, match="component 'L0H1': no chain can be used"):
        ls.influence(per_token_draws(diverged="L0H1"), "L0H1")
    few = per_token_draws(settings=SETTINGS.but(draws=3, thin=1))
    with pytest.raises(ValueError, match="at least 4 draws with probes; got 3"):
        ls.influence(few, "L0H0")
