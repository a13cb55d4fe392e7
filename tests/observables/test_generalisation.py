"""Bayes losses, WAIC and WBIC against closed forms, ArviZ, and a regression's exact posterior."""

from __future__ import annotations

import math

import arviz as az
import numpy as np
import pytest
import torch

import lens_slt as ls
from tests.tiny_models import native

DRAWS = (4, 1000)


class Regression:
    """y = x·w + noise of variance 1, prior N(0, 1): posteriors in closed form."""

    def __init__(self, n: int, d: int, seed: int) -> None:
        self.rng = np.random.default_rng(seed)
        self.x, self.truth = self.rng.normal(size=(n, d)), self.rng.normal(size=d)
        self.y = self.x @ self.truth + self.rng.normal(size=n)

    def posterior(self, beta: float) -> tuple[np.ndarray, np.ndarray]:
        """Mean and covariance."""
        covariance = np.linalg.inv(beta * self.x.T @ self.x + np.eye(self.x.shape[1]))
        return covariance @ (beta * self.x.T @ self.y), covariance

    def log_likelihood(self, w: np.ndarray, x: np.ndarray, y: np.ndarray) -> np.ndarray:
        return -((y - w @ x.T) ** 2) / 2 - math.log(2 * math.pi) / 2

    def draws(self, beta: float) -> np.ndarray:
        """Log likelihoods at independent draws."""
        w = self.rng.multivariate_normal(*self.posterior(beta), size=DRAWS)
        return self.log_likelihood(w, self.x, self.y)

    def exact(self, x: np.ndarray, y: np.ndarray) -> dict[str, float]:
        """At β = 1, on any observations."""
        mean, covariance = self.posterior(1.0)
        spread, apart = np.einsum("ni,ij,nj->n", x, covariance, x), y - x @ mean
        bayes = np.log(2 * np.pi * (1 + spread)) / 2 + apart**2 / (2 * (1 + spread))
        return {
            "bayes": bayes.mean(),
            "gibbs": (math.log(2 * math.pi) + (apart**2 + spread).mean()) / 2,
            "variance": (spread**2 / 2 + apart**2 * spread).sum(),
        }


@pytest.fixture(scope="module")
def regression() -> Regression:
    return Regression(n=60, d=3, seed=0)


def within(found: object, name: str, truth: float, sharp: float) -> bool:
    """Within four standard errors, which are small enough to tell."""
    value, se = (float(found[key].item()) for key in (name, f"{name}_se"))  # type: ignore[index]
    return abs(value - truth) < 4 * se and se < sharp


def test_a_regression_against_its_closed_forms(regression: Regression) -> None:
    w = regression.rng.multivariate_normal(*regression.posterior(1.0), size=DRAWS)
    x = regression.rng.normal(size=(300, 3))
    y = x @ regression.truth + regression.rng.normal(size=300)
    found = ls.generalisation(
        regression.log_likelihood(w, regression.x, regression.y),
        regression.log_likelihood(w, x, y), n_beta=60,
    )  # fmt: skip
    here, there = regression.exact(regression.x, regression.y), regression.exact(x, y)
    assert found["correction"].item() == "none"
    assert within(found, "bayes_training_loss", here["bayes"], 1e-3)
    assert within(found, "gibbs_training_loss", here["gibbs"], 1e-3)
    assert within(found, "functional_variance", here["variance"], 0.1)
    assert within(found, "singular_fluctuation", here["variance"] / 2, 0.05)
    assert within(found, "waic", here["bayes"] + here["variance"] / 60, 2e-3)
    assert within(found, "bayes_generalisation_loss", there["bayes"], 2e-3)
    assert within(found, "gibbs_generalisation_loss", there["gibbs"], 2e-3)


def test_waic_is_arvizs(regression: Regression) -> None:
    values = regression.draws(1.0)
    found = ls.generalisation(values, n_beta=60)
    data = az.from_dict(posterior={"w": values[..., 0]}, log_likelihood={"y": values})
    theirs, loo = az.waic(data), az.loo(data)
    assert found["waic"].item() == pytest.approx(-theirs.elpd_waic / 60, rel=1e-9)
    assert found["functional_variance"].item() == pytest.approx(theirs.p_waic, rel=1e-9)
    assert found["waic_observation_se"].item() == pytest.approx(theirs.se / 60, rel=0.02)
    assert found["waic"].item() == pytest.approx(-loo.elpd_loo / 60, abs=1e-3)


def test_singular_fluctuation_and_lambda_of_regular_models() -> None:
    """At β = 1 both are half the number of weights, in the mean over data sets."""
    draws = [Regression(200, 4, seed).draws(1.0)[:, :100] for seed in range(25)]
    found = [ls.generalisation(one, n_beta=200) for one in draws]
    nu = np.array([one["singular_fluctuation"].item() for one in found])
    assert abs(nu.mean() - 2.0) < 4 * nu.std() / 25**0.5 < 0.4


def test_other_temperatures_are_corrected_or_refused(regression: Regression) -> None:
    here = regression.exact(regression.x, regression.y)
    found = ls.generalisation(regression.draws(0.7), n_beta=42)
    assert "from nβ = 42 to 60" in found["correction"].item() and found["k_hat"].item() < 0.7
    assert within(found, "bayes_training_loss", here["bayes"], 2e-3)
    assert within(found, "functional_variance", here["variance"], 0.2)
    with pytest.raises(ValueError, match="too heavy.*sample with n_beta=60"):
        ls.generalisation(regression.draws(1e-3), n_beta=0.06)


def test_wbic_at_its_own_temperature(regression: Regression) -> None:
    beta = 1 / math.log(60)
    mean, covariance = regression.posterior(beta)
    spread = np.einsum("ni,ij,nj->n", regression.x, covariance, regression.x)
    apart = regression.y - regression.x @ mean
    truth = (math.log(2 * math.pi) * 60 + (apart**2 + spread).sum()) / 2
    found = ls.wbic(regression.draws(beta), n_beta=60 * beta)
    assert found["correction"].item() == "none"
    assert within(found, "wbic", truth, 0.2)
    warmer = ls.wbic(regression.draws(1.5 * beta), n_beta=90 * beta)
    assert (
        within(warmer, "wbic", truth, 0.5) and "importance weights" in warmer["correction"].item()
    )


def test_errors_know_of_autocorrelation(regression: Regression) -> None:
    """Every draw said ten times is no more precise."""
    values = regression.draws(1.0)[:, :200]
    once, again = (ls.generalisation(x, n_beta=60) for x in (values, np.repeat(values, 10, axis=1)))
    for name in ("bayes_training_loss_se", "waic_se", "functional_variance_se"):
        assert 0.7 < again[name].item() / once[name].item() < 1.5


@pytest.mark.parametrize(
    ("values", "options", "message"),
    [
        (np.zeros((4, 10)), {"n_beta": 10}, r"\[chain, draw, observation\]; got \(4, 10\)"),
        (np.full((2, 5, 4), np.nan), {"n_beta": 4}, "not all finite"),
        (np.zeros((2, 5, 4)), {}, "n_beta must be given.*4 where every"),
        (np.zeros((2, 5, 4)), {"n_beta": -1}, "n_beta must be a finite number at least 0"),
        (np.zeros((2, 5, 2)), {"n_beta": 2}, "2 observations; at least 3"),
        (np.zeros((2, 5, 4)), {"n_beta": 4, "prior": "wide"}, "prior must be"),
        (
            np.zeros((2, 5, 4)), {"n_beta": 4, "held_out": np.zeros((2, 6, 4))},
            "held_out must be of the same draws",
        ),
    ],
)  # fmt: skip
def test_bad_arrays(values: np.ndarray, options: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        ls.generalisation(values, **options)  # type: ignore[arg-type]


@pytest.fixture(scope="module")
def run() -> dict[str, object]:
    """A model's head under its own posterior at β = 1: 8 sequences of 5 predicted tokens."""
    tokens = torch.randint(16, (8, 6), generator=torch.Generator().manual_seed(0))
    others = torch.randint(16, (5, 6), generator=torch.Generator().manual_seed(1))
    draws = ls.sample(
        native(), tokens, "L0H0", progress=False, probes={"train": tokens, "test": others},
        settings=ls.Settings(n_beta=40.0, gamma=100.0, sampler="pcn", draws=20),
    )  # fmt: skip
    return {"draws": draws, "tokens": tokens}


def test_draws_of_a_model(run: dict[str, object]) -> None:
    draws = run["draws"]
    training, other = (ls.log_likelihood(draws, name) for name in ("train", "test"))
    assert training.sizes["observation"] == 8 and training.attrs["n_tokens"] == 40
    used = training["used"].sel(component="L0H0").values
    total = -training.sel(component="L0H0").sum("observation")[used] / 40
    paired = draws["posterior"]["paired_loss"].sel(component="L0H0")[used]
    np.testing.assert_allclose(total - training.attrs["base_loss"], paired, atol=1e-5)
    found = ls.generalisation(training, other, prior="local").sel(component="L0H0")
    assert found["correction"].item() == "none"
    assert found["gibbs_training_loss"].item() == pytest.approx(5 * float(total.mean()), rel=1e-5)
    assert found["bayes_generalisation_loss"] < found["gibbs_generalisation_loss"]
    information = ls.wbic(training, prior="local").sel(component="L0H0")
    assert "to 19.2" in information["correction"].item()  # 40 tokens / log 8 sequences
    assert information["llc"].item() == pytest.approx(
        (information["wbic"].item() - 40 * training.attrs["base_loss"]) / math.log(8), rel=1e-4
    )
    assert ls.log_likelihood(draws, "train", unit="token").sizes["observation"] == 40


def test_draws_that_are_no_posterior_of_the_formulae(run: dict[str, object]) -> None:
    training, other = (ls.log_likelihood(run["draws"], name) for name in ("train", "test"))
    with pytest.raises(ValueError, match="localization γ = 100.*prior='local'.*prior='flat'"):
        ls.generalisation(training)
    with pytest.raises(ValueError, match="from γ = 100 to 0 are too heavy"):
        ls.generalisation(training, prior="flat")
    with pytest.raises(ValueError, match="probe 'test', whose loss at w.*very tokens"):
        ls.generalisation(other, prior="local")
    with pytest.raises(ValueError, match="n_beta is known.*leave it out"):
        ls.wbic(training, n_beta=3.0)
    tokens = ls.log_likelihood(run["draws"], "test", unit="token")
    with pytest.raises(ValueError, match="held_out is of one token an observation and log_like"):
        ls.generalisation(training, tokens, prior="local")
    elsewhere = other.assign_attrs(directions="3 directions 0123456789ab")
    with pytest.raises(ValueError, match="of another run"):
        ls.generalisation(training, elsewhere, prior="local")
    with pytest.raises(ValueError, match="unit must be"):
        ls.log_likelihood(run["draws"], "train", unit="word")
