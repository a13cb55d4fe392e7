"""The rule that chooses one setting, on made evidence and on a head of the shipped model."""

from __future__ import annotations

import numpy as np
import pytest
import xarray as xr

import lens_slt as ls
from lens_slt.calibration import Calibration, calibrate, choose, judge
from lens_slt.report.tables import calibration_table
from lens_slt.sampling.settings import Settings

N_BETAS, GAMMAS = [10.0, 30.0, 100.0], [100.0, 400.0]
HEADS = ["L0H0", "L0H1", "L1H0"]


def made_evidence(
    n_beta_power: list[float], gamma_power: float = 0.0, below_prior: float = 0.5
) -> xr.Dataset:
    """λ̂ of every component ∝ the given powers of nβ from one grid value to the next, and of γ."""
    steps = np.concatenate([[0.0], np.array(n_beta_power) * np.diff(np.log(N_BETAS))])
    grid = np.exp(np.cumsum(steps)[:, None] + gamma_power * np.log(GAMMAS)[None, :])
    llc = grid[:, :, None] * np.array([1.0, 2.0, 5.0])
    dims = ("n_beta", "gamma", "component")
    ones = np.ones(llc.shape)
    return xr.Dataset(
        {
            "llc": (dims, llc),
            "se": (dims, 0.02 * llc),
            "rhat": (dims, 1.01 * ones),
            "verdict": (dims, np.full(llc.shape, "healthy", dtype=object)),
            "control_loss": (dims, 0.2 * ones),
            "lowered": (dims, 0.2 * below_prior * ones),
            "lowered_se": (dims, 0.001 * ones),
        },
        coords={"n_beta": N_BETAS, "gamma": GAMMAS, "component": HEADS},
    )


def judged(evidence: xr.Dataset) -> Calibration:
    return choose(judge(evidence), Settings(draws=40))


def test_sensitivity_is_the_power_of_the_knob() -> None:
    # λ̂ ∝ nβ up to 30 and constant beyond, independent of γ. A corner has one nβ neighbour and one
    # γ neighbour, the middle two and one.
    sensitivity = judge(made_evidence([1.0, 0.0]))["sensitivity"].values
    assert sensitivity[:, 0] == pytest.approx([1 / 2, 1 / 3, 0.0])
    assert sensitivity[:, 1] == pytest.approx([1 / 2, 1 / 3, 0.0])
    powers = judge(made_evidence([0.0, 0.0], gamma_power=-0.6))["sensitivity"].values
    assert powers[:, 0] == pytest.approx([0.3, 0.2, 0.3])


def test_takes_the_plateau() -> None:
    found = judged(made_evidence([1.0, 0.0]))
    assert found.settings is not None
    assert found.settings.n_beta == 100
    assert found.settings.draws == 200  # short runs are for the sweep only
    assert "6 of 6 settings accepted" in found.reason


def test_ties_go_to_the_setting_furthest_below_the_prior() -> None:
    evidence = made_evidence([0.3, 0.31], gamma_power=0.3)
    evidence["lowered"].loc[dict(n_beta=30, gamma=100)] *= 1.2
    found = judged(evidence)
    assert found.settings is not None
    assert (found.settings.n_beta, found.settings.gamma) == (30, 100)
    assert "of 6 within 0.02, furthest below the prior" in found.reason


def test_then_ties_go_to_the_lower_n_beta() -> None:
    found = judged(made_evidence([0.3, 0.3]).isel(gamma=[0]))
    assert found.settings is not None
    assert found.settings.n_beta == 10


@pytest.mark.parametrize(
    ("variable", "value", "why"),
    [
        ("verdict", "still rising", "not healthy: L0H1 still rising"),
        ("rhat", 1.08, "R̂ too large for 1 of 3"),
        ("rhat", np.nan, "R̂ is not defined"),
        ("se", 1e3, "λ̂ only 0.0 standard errors"),
    ],
)
def test_one_bad_component_refuses_a_setting(variable: str, value: object, why: str) -> None:
    evidence = made_evidence([1.0, 0.0])
    evidence["lowered"].loc[dict(gamma=400)] *= 1.1
    evidence[variable].loc[dict(n_beta=100, gamma=400, component="L0H1")] = value
    found = judged(evidence)
    at = found.evidence.sel(n_beta=100, gamma=400)
    assert not bool(at["accepted"])
    assert str(at["why"].values) == why
    assert found.settings is not None
    assert (found.settings.n_beta, found.settings.gamma) == (100, 100)


@pytest.mark.parametrize(("rhats", "ok"), [([1.1], True), ([1.1, 1.1], False), ([1.3], False)])
def test_a_few_of_many_r_hats_may_be_large_by_chance(rhats: list[float], ok: bool) -> None:
    evidence = made_evidence([1.0, 0.0]).isel(component=[0] * 10)
    evidence = evidence.assign_coords(component=[f"L0H{i}" for i in range(10)])
    evidence["rhat"][2, 1, : len(rhats)] = rhats
    assert bool(judge(evidence)["accepted"].sel(n_beta=100, gamma=400)) is ok


def test_prior_dominated_settings_are_refused_and_say_so() -> None:
    evidence = made_evidence([0.0, 0.0])
    evidence["lowered"].loc[dict(n_beta=10)] = 0.2 * 0.09  # under a tenth, though significant
    evidence["lowered"].loc[dict(n_beta=30, component=["L0H0", "L0H1"])] = 0.0
    evidence["lowered_se"].loc[dict(n_beta=100, component="L0H0")] = 1.0  # one of three is noise
    found = judged(evidence)
    assert found.evidence["why"].values[:2].tolist() == [["prior-dominated"] * 2] * 2
    assert found.settings is not None
    assert found.settings.n_beta == 100


def test_a_loss_above_the_prior_s_is_refused() -> None:
    # The mean loss falls as nβ rises; one that rises shows a biased sampler, whatever its traces.
    evidence = made_evidence([1.0, 0.0])
    evidence["lowered"].loc[dict(n_beta=100, component="L1H0")] = -0.004  # four standard errors
    found = judged(evidence)
    assert str(found.evidence["why"].sel(n_beta=100, gamma=400).values) == "1 of 3 above the prior"
    assert found.settings is not None
    assert found.settings.n_beta == 30


def test_nothing_accepted_says_what_to_change() -> None:
    found = judged(made_evidence([1.0, 1.0], below_prior=0.01))
    assert found.settings is None
    assert found.reason == (
        "no setting of the grid is accepted; "
        "try a higher nβ or a lower γ (where the prior dominates)"
    )
    spiky = made_evidence([1.0, 1.0])
    spiky["verdict"][:] = "spiky"
    assert "a higher γ or a lower nβ" in judged(spiky).reason


def test_a_single_setting_is_taken_if_it_is_accepted() -> None:
    found = judged(made_evidence([1.0, 0.0]).isel(n_beta=[1], gamma=[0]))
    assert found.settings is not None
    assert (found.settings.n_beta, found.settings.gamma) == (30, 100)
    assert "no neighbours to compare" in found.reason


@pytest.fixture(scope="module")
def calibration() -> Calibration:
    tokens = ls.load_tokens("code", n_sequences=16, length=32)
    return calibrate(
        ls.load_model("attn-2l"), tokens, "L1H3,L0H1", n_betas=(10, 30), gammas=(100,),
        settings=Settings(draws=60, batch_size=8), progress=False,
    )  # fmt: skip


def test_the_likelihood_lowers_the_loss_below_the_prior_s(calibration: Calibration) -> None:
    evidence = calibration.evidence
    control, posterior = evidence["control_loss"], evidence["mean_paired_loss"]
    assert evidence["lowered"].values == pytest.approx((control - posterior).values, rel=1e-4)
    assert bool((evidence["lowered"] > 2 * evidence["lowered_se"]).all())
    # One control for each γ, and more likelihood lowers the loss further.
    assert np.allclose(control.sel(n_beta=10), control.sel(n_beta=30))
    assert bool((posterior.sel(n_beta=30) < posterior.sel(n_beta=10)).all())


def test_evidence_agrees_with_a_run_of_its_own(calibration: Calibration) -> None:
    tokens = ls.load_tokens("code", n_sequences=16, length=32)
    settings = Settings(n_beta=30, gamma=100, draws=60, batch_size=8)
    draws = ls.sample(ls.load_model("attn-2l"), tokens, "L0H1", settings=settings, progress=False)
    at = calibration.evidence.sel(n_beta=30, gamma=100, component="L0H1")
    assert float(at["llc"]) == pytest.approx(float(ls.refined_llc(draws)["llc"][0]), rel=1e-4)


def test_evidence_as_table_and_figure(calibration: Calibration) -> None:
    table = calibration_table(calibration)
    assert table.row_count == 2
    figure = ls.plot(calibration)
    titles = [figure.layout.yaxis.title.text, figure.layout.yaxis2.title.text]
    assert titles == ["λ̂ (dimensionless)", "mean loss below the control's (%)"]
    llc = figure.data[0]
    assert llc.error_y.array is not None and list(llc.x) == [10, 30]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (dict(n_betas=()), "n_betas must be a non-empty list of numbers"),
        (dict(n_betas=(0, 30)), "n_betas\\[0\\] must be a finite number above 0; got 0"),
        (dict(gammas=(100, 100)), "gammas names a value twice"),
        (dict(gammas="100"), "gammas must be a non-empty list"),
        (dict(settings=Settings(sampler="importance")), "settings.sampler must be one of lm"),
    ],
)
def test_bad_grids_are_refused(change: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        calibrate(None, None, **change)
