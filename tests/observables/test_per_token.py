"""Per-token matrices against the definitions, written out over all draws at once."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import xarray as xr

import lens_slt as ls
from lens_slt.sampling.result import dataset
from tests.made_probes import SETTINGS, per_token_draws


def by_definition(draws: xr.DataTree, name: str) -> dict[str, np.ndarray]:
    """Everything of DESIGN's formulas, in float64, without blocks."""
    probe = dataset(draws, "probes/text")
    phi_all = dataset(draws, "posterior")["paired_loss"]

    def expectation(component, f):
        phi = phi_all.sel(component=component, draw=probe["draw"]).values.ravel()
        loss = probe["paired_loss"].sel(component=component).values.astype(np.float64)
        loss = (loss + probe["base_loss"].values).reshape(len(phi), -1)
        return f(phi[:, None], loss - phi[:, None]).mean(0)  # L_n(w*) is a constant of D

    phi = expectation(name, lambda phi, d: phi)
    phi_d, d = expectation(name, lambda phi, d: phi * d), expectation(name, lambda phi, d: d)
    d_full = expectation("full", lambda phi, d: d)
    return {
        "chi": -(phi_d - phi * d_full),
        "mean_term": -phi * (d - d_full),
        "covariance_term": -(phi_d - phi * d),
        "loss": d + phi - probe["base_loss"].values.ravel(),
    }


def test_two_posterior_estimator():
    draws = per_token_draws()
    chi = ls.susceptibility(draws)
    assert list(chi["component"].values) == ["L0H0", "L0H1", "L1H0"]
    for name in chi["component"].values:
        for term in ("chi", "mean_term", "covariance_term"):
            got = chi[term].sel(component=name)
            np.testing.assert_allclose(got, by_definition(draws, name)[term], atol=2e-7)


def test_restricted_estimator_and_per_token_llc():
    draws = per_token_draws()
    chi, llc = ls.susceptibility(draws, estimator="restricted"), ls.per_token_llc(draws)
    for name in chi["component"].values:
        expected = by_definition(draws, name)
        np.testing.assert_allclose(
            chi["chi"].sel(component=name), expected["covariance_term"], atol=2e-7
        )
        np.testing.assert_allclose(
            llc["llc"].sel(component=name), 30 * expected["loss"], rtol=1e-5, atol=1e-6
        )
    assert (chi["mean_term"] == 0).all()


@pytest.mark.slow
def test_standard_errors_cover_and_are_not_too_large():
    """z-scores of pieces of a long run against the whole: Student's t, 7 degrees of freedom."""
    long = per_token_draws(settings=SETTINGS.but(draws=50 * 320))
    for kind, estimate in ESTIMATES.items():
        truth, scores = estimate(long), []
        for piece in range(50):
            found = estimate(part_of(long, piece))
            scores.append(((found - truth) / found.attrs["se"]).values.ravel())
        # 1.18 for Student's t; covariances of a skewed x are not quite that.
        assert 0.8 < np.std(scores) < 1.6, kind


def _with_error(matrix: xr.Dataset) -> xr.DataArray:
    return matrix[matrix.attrs["quantity"]].assign_attrs(se=matrix["se"])


ESTIMATES = {
    "chi": lambda draws: _with_error(ls.susceptibility(draws)),
    "restricted": lambda draws: _with_error(ls.susceptibility(draws, estimator="restricted")),
    "llc": lambda draws: _with_error(ls.per_token_llc(draws.sel(component=["L0H0", "L1H0"]))),
}


def part_of(long: xr.DataTree, piece: int) -> xr.DataTree:
    """320 draws of the run, 160 of them with probes."""
    start = 160 * piece
    settings = per_token_draws(settings=SETTINGS.but(draws=320)).attrs["settings"]
    tree = {
        "/": long.to_dataset().assign_attrs(settings=settings),
        "/posterior": dataset(long, "posterior").isel(draw=slice(2 * start, 2 * start + 320)),
        "/probes/text": dataset(long, "probes/text").isel(draw=slice(start, start + 160)),
        "/burn_in": dataset(long, "burn_in"),
        "/health": dataset(long, "health"),
    }
    return xr.DataTree.from_dict(tree)


def test_padding_and_excluded_chains():
    padded = ls.per_token_llc(per_token_draws(padding=3))
    assert padded.sizes["token"] == 6 * 7 - 3
    assert not ((padded["sequence"] == 5) & (padded["position"] >= 4)).any()
    chi = ls.susceptibility(per_token_draws(diverged="L0H1"))
    assert np.isnan(chi["chi"].sel(component="L0H1")).all()
    assert np.isfinite(chi["chi"].sel(component="L0H0")).all()
    assert chi["verdict"].sel(component="L0H1") == "diverged"
    with pytest.raises(ValueError, match="full: none of its chains can be used"):
        ls.susceptibility(per_token_draws(diverged="full"))


def test_blocks_average_to_the_matrix():
    chi = ls.susceptibility(per_token_draws())
    np.testing.assert_allclose(chi["blocks"].mean("block"), chi["chi"], atol=1e-7)
    np.testing.assert_allclose(
        chi["blocks"].std("block", ddof=1) / 8**0.5, chi["se"], rtol=1e-4, atol=1e-8
    )
    assert "blocks" not in ls.susceptibility(per_token_draws(), keep_blocks=False)


def test_reliability_of_signal_and_of_noise():
    chi = ls.per_token_llc(per_token_draws())
    assert (chi["split_half"] > 0.95).all()
    np.testing.assert_allclose(
        chi["reliability"], 2 * chi["split_half"] / (1 + chi["split_half"]), rtol=1e-6
    )
    draws = per_token_draws(constant="L0H0")
    flat = ls.per_token_llc(draws)
    assert np.isnan(flat["split_half"].sel(component="L0H0"))


@pytest.mark.parametrize("draws", [1, 3])
def test_few_draws(draws):
    """The value can still be said, its error and reliability cannot."""
    settings = SETTINGS.but(draws=draws, thin=1, chains=1)
    found = ls.per_token_llc(per_token_draws(settings=settings))
    assert np.isfinite(found["llc"]).all()
    assert np.isnan(found["se"]).all()
    assert np.isnan(found["split_half"]).all()


def test_streamed_to_disk(tmp_path):
    draws = per_token_draws()
    stored = ls.susceptibility(draws, path=tmp_path / "chi.zarr")
    xr.testing.assert_allclose(stored.load(), ls.susceptibility(draws))
    with pytest.raises(ValueError, match="is not empty"):
        ls.susceptibility(draws, path=tmp_path / "chi.zarr")


def test_full_from_another_run():
    draws = per_token_draws()
    apart = ls.susceptibility(
        draws.sel(component=["L0H0", "L1H0"]), full=draws.sel(component=["full"])
    )
    together = ls.susceptibility(draws).sel(component=["L0H0", "L1H0"])
    xr.testing.assert_identical(apart, together)


@pytest.mark.parametrize(
    ("break_it", "message"),
    [
        (lambda d: ls.susceptibility(d.sel(component=["L0H0"])), "needs draws of the component"),
        (lambda d: ls.susceptibility(d, estimator="restrictd"), "did you mean 'restricted'"),
        (lambda d: ls.susceptibility(d, "tekst"), "probe must be one of text; got 'tekst'"),
        (lambda d: ls.susceptibility(d.sel(component=["full"])), "no component besides 'full'"),
        (
            lambda d: ls.susceptibility(d.sel(component=["L0H0"]), full=per_token_draws(seed=1)),
            "full: drawn with another probe tokens",
        ),
        (
            lambda d: ls.susceptibility(
                d.sel(component=["L0H0"]), full=per_token_draws(settings=SETTINGS.but(seed=3))
            ),
            "full: drawn with another settings",
        ),
        (
            lambda d: ls.susceptibility(d.sel(component=["L0H0"]), full=d.sel(component=["L1H0"])),
            "full must hold draws of the component 'full'; it holds L1H0",
        ),
    ],
)
def test_messages(break_it, message):
    with pytest.raises(ValueError, match=message):
        break_it(per_token_draws())


def test_draws_without_a_probe_or_with_a_divergence():
    model = ls.load_model("attn-1l")
    tokens = ls.load_tokens("code", n_sequences=4, length=16)
    short = ls.Settings(draws=4, burn_in=0, batch_size=2, chains=2)
    options = {"settings": short, "progress": False}
    with pytest.raises(ValueError, match="draws have no probe"):
        ls.per_token_llc(ls.sample(model, tokens, "L0H0", **options))
    against = {"self": ls.Probe(tokens, reference=model)}
    with pytest.raises(ValueError, match="recorded a divergence"):
        ls.per_token_llc(ls.sample(model, tokens, "L0H0", probes=against, **options))
    with pytest.raises(TypeError, match=r"draws must come from sample\(…\); got Tensor"):
        ls.per_token_llc(torch.zeros(3))


def test_halves_are_those_of_the_draws():
    draws = per_token_draws()
    matrix = ls.per_token_llc(draws)
    first, second = ls.halves(matrix)
    for half, keep in ((first, slice(0, 20)), (second, slice(20, 40))):
        part = draws.copy()
        part["probes/text"] = type(draws)(dataset(draws, "probes/text").isel(draw=keep))
        np.testing.assert_allclose(half["llc"], ls.per_token_llc(part)["llc"], rtol=1e-5, atol=1e-6)
        np.testing.assert_allclose(half["mean"], half["llc"].mean("token"), rtol=1e-5)
        blocks = half["blocks"].values
        assert len(blocks) == len(matrix["blocks"]) // 2
        np.testing.assert_allclose(
            half["se"], blocks.std(0, ddof=1) / len(blocks) ** 0.5, rtol=1e-4, atol=1e-7
        )
    assert float(ls.halves(first)[0]["mean"][0]) != float(first["mean"][0])  # of a half, its half
    r = np.corrcoef(first["llc"].values[0], second["llc"].values[0])[0, 1]
    assert r == pytest.approx(float(matrix["split_half"][0]), abs=1e-5)
    with pytest.raises(ValueError, match="no blocks to halve"):
        ls.halves(ls.per_token_llc(draws, keep_blocks=False))
