"""Responses to data and their inversion, against a linear Gaussian posterior."""

from __future__ import annotations

import numpy as np
import pytest

import lens_slt as ls
from lens_slt.sampling.settings import Settings
from lens_slt.training.patterning import _inverted
from tests.made_draws import labelled

N, K, DRAWS = 12, 3, 4000
SETTINGS = Settings(n_beta=5, gamma=200, chains=4, draws=DRAWS, burn_in=10, antithetic=False)


def linear():
    """w ~ N(0, 1)^3; losses of candidates a_j·w and of two observables b_o·w, in three tokens."""
    made = np.random.default_rng(0)
    a, b = made.normal(size=(N, K)), made.normal(size=(2, K))
    w = made.normal(size=(1, 4, DRAWS, K))
    probes = {"data": a, "seen": b}
    per_token, fixed = {}, {}
    for name, rows in probes.items():
        loss = np.repeat((w @ rows.T)[..., None], 3, -1)
        per_token[name] = loss.astype(np.float32)
        shape = (len(rows), 3)
        ids = np.arange(len(rows))[:, None] % 11 + np.zeros(shape, int)  # the last is the first
        fixed[name] = {"base_loss": np.ones(shape), "tokens": ids, "weight": np.ones(shape)}
    phi = (w @ a.mean(0)) + 0.3
    draws = labelled(phi, ["full"], SETTINGS, per_token=per_token, fixed=fixed)
    return draws, a, b


@pytest.fixture(scope="module")
def response():
    draws, a, b = linear()
    one, two = np.array([1.0, 0.0]), np.array([0.0, 1.0])
    observables = {"one": ls.Shift("seen", one), "two": ls.Shift("seen", two)}
    truth = -SETTINGS.n_beta / N * b @ (a - a.mean(0)).T
    return ls.data_response(draws, "data", observables), truth, draws


def test_the_response_is_that_of_the_tilted_normal(response):
    found, truth, draws = response
    value, se = found["response"].values, found["se"].values
    assert np.abs((value - truth) / se).max() < 4.2  # the largest of 24
    assert 0.7 < np.mean(((value - truth) / se) ** 2) < 2 and se.max() < 0.05 * np.abs(truth).max()
    np.testing.assert_allclose(value.sum(1), 0, atol=1e-6)
    whole = ls.data_response(draws, "data", {"all": "seen"})
    np.testing.assert_allclose(whole["response"][0], value.mean(0), atol=1e-6)
    # The same as the shift of one share of the weight to one candidate.
    assert found.attrs["component"] == "full"


def test_groups_are_pooled(response):
    found, truth, draws = response
    groups = np.arange(N) % 3
    pooled = ls.data_response(
        draws, "data", {"one": ls.Shift("seen", np.array([1.0, 0.0]))}, groups=groups
    )
    means = np.array([found["response"].values[0, groups == g].mean() for g in groups])
    np.testing.assert_allclose(pooled["response"][0], means, atol=1e-6)
    assert float(pooled["se"].mean()) < float(found["se"][0].mean())
    expected = np.array([truth[0, groups == g].mean() for g in groups])
    assert np.abs((pooled["response"][0] - expected) / pooled["se"][0]).max() < 4
    # All of a group have one error: inverting the means of three groups costs as much as
    # inverting a response to three candidates would.
    three = _inverted(*(pooled[k].values[:, :3] * 4 for k in ("response", "se")), np.ones(3),
                      np.array([-0.2]))  # fmt: skip
    spread = _inverted(
        *(pooled[k].values for k in ("response", "se")), pooled["group_size"].values,
        np.array([-0.2]),
    )  # fmt: skip
    np.testing.assert_allclose(spread, three[groups], rtol=1e-6)
    with pytest.raises(ValueError, match="a label for each of the 12 candidates"):
        ls.data_response(draws, "data", {"all": "seen"}, groups=[1, 2])


def test_weights_bring_about_the_wish(response):
    found, truth, _ = response
    plan = ls.patterning(found, {"one": -0.2}, hold_others=True)
    realised = truth @ (plan["weight"].values - 1)
    np.testing.assert_allclose(realised, [-0.2, 0], atol=0.01)
    gap = (plan["predicted"].values - realised) / plan["predicted_se"].values
    assert np.abs(gap).max() < 4 and float(plan["predicted_se"].max()) < 0.02
    assert 0.9 < plan.attrs["shrinkage"] < 1.1 and plan.attrs["clipped"] == 0
    assert not plan["side_effect"].any() and float(plan["weight"].mean()) == pytest.approx(1)
    assert plan.attrs["duplicates"] == "11 is 0"
    free = ls.patterning(found, {"one": -0.2})
    assert bool(free["side_effect"].sel(observable="two"))
    assert np.linalg.norm(free["change"]) < np.linalg.norm(plan["change"])
    back = ls.patterning(found, {"one": -0.2}, strength=-1)
    np.testing.assert_allclose(back["predicted"][0], -free["predicted"][0], rtol=0.05)
    far = ls.patterning(found, {"one": -0.2}, strength=20)
    assert far.attrs["clipped"] > 0.05 and far.attrs["effective_sequences"] < N
    assert (far["weight"] >= 0).all()
    assert ls.plot(plan).data[0].x.shape == (N,)


def test_noise_is_not_inverted(response):
    """Of a response that is only noise nearly nothing is promised, and nothing is predicted."""
    found, _, _ = response
    made = np.random.default_rng(3)
    blocks = made.normal(size=found["blocks"].shape) * 5
    noise = found.assign(
        blocks=(found["blocks"].dims, blocks),
        response=(found["response"].dims, blocks.mean(0)),
        se=(found["se"].dims, blocks.std(0, ddof=1) / np.sqrt(len(blocks))),
    )
    plan = ls.patterning(noise, {"one": 1.0})
    assert abs(float(plan["predicted"][0])) < 3 * float(plan["predicted_se"][0])
    assert abs(plan.attrs["shrinkage"]) < 0.5


def test_bad_input(response):
    found, _, draws = response
    with pytest.raises(ValueError, match="wish: 'three' is no observable of the response: one, tw"):
        ls.patterning(found, {"three": 1.0})
    with pytest.raises(ValueError, match="wish must ask for a change"):
        ls.patterning(found, {"one": 0.0})
    with pytest.raises(ValueError, match="observables must name at least one"):
        ls.data_response(draws, "data", {})
    with pytest.raises(ValueError, match="component must be one of"):
        ls.data_response(draws, "data", {"a": "seen"}, component="L0H0")
    with pytest.raises(TypeError, match=r"observables\['a'\] must be a Shift"):
        ls.data_response(draws, "data", {"a": 3})
    few = draws.isel(draw=slice(0, 4))
    with pytest.raises(ValueError):
        ls.data_response(few, "data", {"a": "seen"})


def test_a_short_sequence_moves_the_mean_loss_less():
    """Of tokens 1, 2 or 3 a sequence: p_j is the share of the tokens, L their mean over tokens."""
    made = np.random.default_rng(2)
    a, b = made.normal(size=(N, K)), made.normal(size=(1, K))
    w = made.normal(size=(1, 4, DRAWS, K))
    lengths = np.arange(N) % 3 + 1
    real = np.arange(3) < lengths[:, None]
    loss = np.where(real, (w @ a.T)[..., None], np.nan)
    ones = np.ones((1, 3))
    fixed = {
        "data": {
            "base_loss": np.where(real, 1.0, np.nan),
            "tokens": 0 * real,
            "weight": 1.0 * real,
        },
        "seen": {"base_loss": ones, "tokens": 0 * ones, "weight": ones},
    }
    per_token = {"data": loss, "seen": np.repeat((w @ b.T)[..., None], 3, -1)}
    share = lengths / lengths.sum()
    draws = labelled(w @ (share @ a), ["full"], SETTINGS, per_token=per_token, fixed=fixed)
    found = ls.data_response(draws, "data", {"one": "seen"})
    truth = -SETTINGS.n_beta * share * (b @ (a - share @ a).T)
    assert np.abs((found["response"].values - truth) / found["se"].values).max() < 4
    assert float(found["se"].max()) < 0.05 * np.abs(truth).max()
    np.testing.assert_allclose(found["response"].values.sum(), 0, atol=1e-6)
