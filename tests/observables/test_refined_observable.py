"""Refined observables against refined LLCs, and errors of the text against resampled texts."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor

import lens_slt as ls
from lens_slt.models.observable import Loss
from lens_slt.statistics import ratio_of_sums
from tests.tiny_models import native

SETTINGS = ls.Settings(
    draws=30, burn_in=10, chains=4, antithetic=False, batch_size=4, step_size=1e-3
)


def some_tokens(n: int = 8, length: int = 12, seed: int = 0) -> Tensor:
    return torch.randint(1, 49, (n, length), generator=torch.Generator().manual_seed(seed))


def test_of_the_loss_it_is_the_refined_llc() -> None:
    probe = ls.Probe(some_tokens(seed=1), observables={"own": Loss(), "acc": ls.Accuracy()})
    draws = ls.sample(
        native(), some_tokens(), "L0H1,L1H2", settings=SETTINGS,
        probes={"p": probe, "q": some_tokens(seed=2)}, progress=False,
    )  # fmt: skip
    llc, found = ls.refined_llc(draws), ls.refined_observable(draws)
    own = found.sel(observable="own")
    for mine, theirs in (("shift", "probe_llc"), ("se", "probe_se"), ("text_se", "probe_text_se")):
        expected = llc[theirs].sel(probe="p") / SETTINGS.n_beta
        np.testing.assert_allclose(own[mine], expected, rtol=2e-3, atol=1e-6)
    assert (found["certificate"].values == llc["certificate"].values).all()
    recorded, used = draws["probes/p"], draws["health"]["used"].values.astype(bool)
    values = recorded["acc"].values
    mean = np.array([values[i, used[i]].mean() for i in range(2)])
    np.testing.assert_allclose(found["expectation"].sel(observable="acc"), mean, rtol=1e-6)
    np.testing.assert_allclose(
        found["shift"].sel(observable="acc"), mean - recorded["base_acc"].values.mean(), atol=1e-7
    )


def test_the_error_of_the_text_is_the_spread_over_texts() -> None:
    generator = np.random.default_rng(0)
    errors, means = [], []
    for _ in range(2000):
        weight = generator.integers(1, 5, 20).astype(float)
        values = generator.normal(3, 2, 20) / np.sqrt(weight)
        errors.append(ratio_of_sums(values * weight, weight)[1])
        means.append(np.average(values, weights=weight))
    # The standard deviation of 2000 means is known to 1.6 %, and the estimate is a little low.
    assert np.mean(errors) == pytest.approx(np.std(means), rel=0.08)


def test_which_probe_is_meant() -> None:
    draws = ls.sample(native(), some_tokens(), "L0H1", settings=SETTINGS, progress=False)
    with pytest.raises(ValueError, match="draws recorded no observables; sample with"):
        ls.refined_observable(draws)
    probes = {name: ls.Probe(some_tokens(), observables=ls.Accuracy()) for name in ("one", "other")}
    draws = ls.sample(
        native(), some_tokens(), "L0H1", settings=SETTINGS, probes=probes, progress=False
    )
    with pytest.raises(ValueError, match="probe must be named, several .*: one, other"):
        ls.refined_observable(draws)
    with pytest.raises(ValueError, match="probe must be one of one, other; got 'ones'"):
        ls.refined_observable(draws, "ones")
