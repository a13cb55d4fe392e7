"""λ̂ over a ladder: closed forms, the variance identity, masks, refusals, a model."""

from __future__ import annotations

import json

import numpy as np
import pytest
from scipy.integrate import quad

import lens_slt as ls
from benchmarks.potentials import normal_crossing_exact
from lens_slt.phases import ladder as ladders
from lens_slt.phases.toys.known import deep_linear, normal_crossing
from tests.cli_records import record_of
from tests.phases.made_spectrum import FLAT, N_BETAS, SETTINGS, STIFF, quadratic_draws, rungs

MADE = np.concatenate([STIFF, FLAT])


def shares(h: np.ndarray, n_beta: float, gamma: float = 1.0) -> np.ndarray:
    return n_beta * h / (n_beta * h + gamma)


def crossing_curve(t: float) -> tuple[float, float]:
    """t·E[K] and t²·Var[K] of K = w₁²w₂² under exp(−tK − ‖w‖²/2), w₂ integrated by hand."""

    def over_w1(k: int) -> float:
        """The integral of (t·w₁²)^k (1 + 2t·w₁²)^(−½−k), in log w₁."""

        def integrand(x: float) -> float:
            a = t * np.exp(2 * x)
            return np.exp(x - np.exp(2 * x) / 2) * a**k * (1 + 2 * a) ** (-0.5 - k)

        return quad(integrand, -40, 3, limit=400)[0]

    mean, square = over_w1(1) / over_w1(0), 3 * over_w1(2) / over_w1(0)
    return mean, square - mean**2


def test_a_ladder_has_every_pair_with_a_seed_of_its_own():
    found = ls.ladder([1, 10], [100, 200], ls.Settings(draws=7, seed=3))
    assert [(s.n_beta, s.gamma) for s in found] == [(1, 100), (10, 100), (1, 200), (10, 200)]
    assert len({s.seed for s in found}) == 4
    assert all(s.full_loss and s.draws == 7 for s in found)
    assert found == ls.ladder([10, 1], [200, 100], ls.Settings(draws=7, seed=3))
    longer = ls.ladder([1, 3, 10], [100, 200], ls.Settings(draws=7, seed=3))
    assert all(one in longer for one in found)  # rungs that are there serve on


@pytest.mark.parametrize("grid", [([], [1]), ([0, 1], [1]), ([1, 1], [1]), ([1], [-1])])
def test_a_ladder_refuses_what_is_none(grid):
    with pytest.raises(ValueError, match="n_betas|gammas"):
        ls.ladder(*grid)


def test_the_curve_is_a_regularised_curvature_spectrum():
    found = ls.spectrum(rungs(gammas=(1.0, 4.0)))
    assert found["llc"].dims == ("n_beta", "gamma", "component")
    for c, h in enumerate((STIFF, FLAT)):
        for n_beta in N_BETAS:
            for gamma in (1.0, 4.0):
                s = shares(h, n_beta, gamma)
                cell = found.sel(n_beta=n_beta, gamma=gamma).isel(component=c)
                exact = {
                    "llc": s.sum() / 2, "variance": (s**2).sum() / 2,
                    "gap": (s * (1 - s)).sum() / 2, "stiffness": (s**2).sum() / s.sum(),
                    "effective_directions": s.sum() ** 2 / (s**2).sum(),
                }  # fmt: skip
                for key, value in exact.items():
                    error = float(cell["se" if key == "llc" else f"{key}_se"])
                    assert abs(float(cell[key]) - value) < 4.5 * error, (key, n_beta)
                assert float(cell["se"]) < 0.08 * exact["llc"]


def test_errors_know_that_chains_differ():
    (one,) = rungs([10], curvatures=[MADE])
    chains = np.array([0.5, 1, 1, 1.5])[:, None]
    apart = one.copy(deep=True)
    for name in ("paired_loss", "full_loss", "step_loss"):
        apart["posterior"][name] = chains * one["posterior"][name]
    found = ls.spectrum([apart], trust=True).squeeze()
    t = 10 * apart["posterior"]["full_loss"].values[0]
    without = np.array([np.delete(t, i, 0).var() for i in range(4)])
    error = np.sqrt(3 / 4 * ((without - without.mean()) ** 2).sum())
    assert float(found["variance_se"]) == pytest.approx(error, rel=1e-3)
    assert error > 3 * float(ls.spectrum([one])["variance_se"].squeeze())


def test_lambda_rises_by_as_much_as_the_variances_say():
    found = ls.spectrum(rungs())
    z = (found["identity"] / found["identity_se"]).values
    assert np.isnan(z[0]).all() and (abs(z[1:]) < 4).all()
    made = rungs(curvatures=[MADE])
    hot = made[3].copy(deep=True)
    for name in ("paired_loss", "full_loss", "step_loss"):
        hot["posterior"][name] = 1.3 * hot["posterior"][name]
    broken = ls.spectrum([*made[:3], hot, *made[4:]])
    assert abs(broken["identity"] / broken["identity_se"]).max() > 5


def test_a_normal_crossing_in_two_dimensions():
    case = normal_crossing((1, 1))
    settings = ls.Settings(sampler="importance", chains=16, draws=2000, antithetic=False)
    found = ls.spectrum(
        [
            ls.sample_function(case.loss, case.point, settings=one)
            for one in ls.ladder([3, 30, 300], [1], settings)
        ]
    ).isel(gamma=0, component=0)
    exact = np.array([crossing_curve(t) for t in (3, 30, 300)])
    assert exact[1, 0] == pytest.approx(normal_crossing_exact((1, 1), 30, 1), rel=1e-3)
    z = (found["llc"].values - exact[:, 0]) / found["se"].values
    apart = (found["variance"].values - exact[:, 1]) / found["variance_se"].values
    assert (abs(z) < 4).all() and (abs(apart) < 4).all()
    assert (found["se"].values < 0.02 * exact[:, 0]).all()
    slope = (crossing_curve(31)[0] - crossing_curve(29)[0]) / np.log(31 / 29)
    assert exact[1, 0] - exact[1, 1] == pytest.approx(slope, rel=1e-3)  # the identity itself


def test_minibatches_of_data_have_variances_on_all():
    case = deep_linear((2, 1, 2), 1, seed=0)
    settings = ls.Settings(batch_size=64, draws=100, steps_per_draw=2)
    (one,) = ls.ladder([20], [20], settings)
    data = case.draw(256, 0)
    draws = ls.sample_function(case.row_loss, case.point, data=data, settings=one)
    found = ls.spectrum([draws], trust=True)
    full = 20 * draws["posterior"]["full_loss"].values
    assert float(found["variance"].squeeze()) == pytest.approx(full.var(), rel=1e-3)
    with pytest.raises(ValueError, match="nβ 20, γ 20 has losses on minibatches only"):
        ls.spectrum(
            [
                ls.sample_function(
                    case.row_loss, case.point, data=data, settings=one.but(full_loss=False, draws=8)
                )
            ]
        )


def test_rungs_that_are_not_certified_are_masked_and_named():
    made = rungs()
    h, one = (STIFF, FLAT), ls.ladder([3.0], [1.0], SETTINGS)[0]
    hot = np.zeros((2, SETTINGS.chains, SETTINGS.least_draws))
    hot[0] += 10
    bad = quadratic_draws(one, h, defect=hot)
    with_bad = [*made[:2], bad, *made[3:]]
    found = ls.spectrum(with_bad)
    assert np.isnan(found["llc"].sel(n_beta=3, component="L0H0")).all()
    assert found["llc"].isnull().sum() == 1
    (words,) = json.loads(found.attrs["masked"])
    assert words.startswith("L0H0 at nβ 3, γ 1: the defect allows a bias")
    trusted = ls.spectrum(with_bad, trust=True)
    assert np.isfinite(trusted["llc"]).all() and (trusted["certificate"] != "certified").any()


def test_other_rungs_are_refused():
    made = rungs()
    with pytest.raises(ValueError, match=r"two have nβ 0\.3, γ 1"):
        ls.spectrum([made[0], made[0]])
    with pytest.raises(ValueError, match="of the same components; got L0H0, L0H1 and L0H0"):
        ls.spectrum([made[0], made[1].sel(component=["L0H0"])])
    with pytest.raises(ValueError, match="rungs must be at least 1"):
        ls.spectrum([])
    with pytest.raises(TypeError, match=r"rungs\[0\] must be a xarray.DataTree"):
        ls.spectrum([ls.refined_llc(made[0])])
    other = made[1].copy()
    other.attrs["tokens_hash"] = "u"
    with pytest.raises(ValueError, match="rungs are of different tokens"):
        ls.spectrum([made[0], other])
    other = made[1].copy()
    other.attrs["directions"] = "3 directions 0123456789ab"
    with pytest.raises(ValueError, match="rungs are of different directions"):
        ls.spectrum([made[0], other])


def test_a_model_over_a_ladder(tmp_path, monkeypatch):
    model = ls.load_model("attn-2l")
    tokens = ls.load_tokens("code", n_sequences=4, length=12)
    few = ls.Settings(draws=8, burn_in=2, chains=2, batch_size=4, steps_per_draw=1)
    grid = dict(n_betas=[10, 30], gammas=[200], settings=few, progress=False, path=tmp_path)
    made = ls.sample_ladder(model, tokens, "L1H2", **grid)
    found = ls.spectrum(made, trust=True)
    assert found.sizes == {"n_beta": 2, "gamma": 1, "component": 1}
    own = [float(ls.refined_llc(one)["llc"][0]) for one in made]
    assert found["llc"].values.ravel().tolist() == own and own[0] != own[1]
    monkeypatch.setattr(ladders, "sample", lambda *_, path, **__: ls.open_draws(path))
    again = ls.spectrum(ls.sample_ladder(model, tokens, "L1H2", **grid), trust=True)
    assert again["llc"].equals(found["llc"])


def test_spectra_over_checkpoints_join_and_have_a_figure():
    later = ls.spectrum(rungs(settings=SETTINGS.but(seed=1)))
    joined = ls.join_checkpoints({0: ls.spectrum(rungs()), 100: later})
    assert joined["llc"].dims == ("checkpoint", "n_beta", "gamma", "component")
    figure = ls.plot(joined)
    assert [a.text for a in figure.layout.annotations] == ["step 0", "step 100"]
    np.testing.assert_allclose(figure.data[2].y, later["llc"][:, 0, 0])


def test_the_command(tmp_path, monkeypatch):
    from typer.testing import CliRunner

    from lens_slt import cli, cli_spectrum

    monkeypatch.setattr(cli_spectrum, "sample_ladder", lambda *_, **__: rungs([1, 3, 10]))
    options = ["--model", "attn-2l", "--data", "code", "--sequences", "8", "--length", "16"]
    options += ["--steps", "600,5300", "--out", str(tmp_path), "--json"]
    done = CliRunner().invoke(cli.app, ["spectrum", *options])
    assert done.exit_code == 0, done.output
    record = record_of(done, "files")
    assert len(record["rungs"]) == 2 * 3 * 2
    assert len(record["runs"]) == 2 * 3 and "settings" in record["runs"][0]
    assert record["rungs"][0]["checkpoint"] == 600
    assert {"n_beta", "gamma", "component", "llc", "se"} <= set(record["rungs"][0])
    assert "Over training" in (tmp_path / "spectrum.html").read_text("utf-8")
    done = CliRunner().invoke(cli.app, ["spectrum", *options, "--n-betas", "3;10"])
    assert done.exit_code == 2 and "--n-betas must be numbers with commas" in done.stderr
