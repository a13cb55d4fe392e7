"""The rule that chooses one setting, on made evidence and on a head of the shipped model."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import pytest
import xarray as xr

import lens_slt as ls
from lens_slt.calibration import Calibration, calibrate, choose, judge, search
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


def made_setting(about: str) -> xr.Dataset:
    """One setting that is accepted, or refused for what ``about`` says."""
    setting = made_evidence([1.0, 0.0]).isel(n_beta=0, gamma=0, drop=True)
    if "prior" in about:
        setting["lowered"][:] = 0.0
    if "hot" in about:
        setting["verdict"][1] = "1 of 4 chains spiky"
    if "above" in about:
        setting["lowered"][1] = -0.1
    if "diverged" in about:
        setting["verdict"][:] = "diverged"
        for name in ("llc", "se", "rhat", "lowered", "lowered_se", "control_loss"):
            setting[name][:] = np.nan
    if "noise" in about:
        setting["se"][:] = 1.0
    if "slow" in about:
        setting["verdict"][0] = "2 of 4 chains still rising"
    return setting


def searched(
    about: Callable[[float, float], str],
    n_betas: Sequence[float] = (10, 30),
    gammas: Sequence[float] = (100, 300),
) -> tuple[Calibration, list[tuple[float, float]]]:
    """What the search finds where settings are as ``about`` says, and the order it asks in."""
    tried: list[tuple[float, float]] = []

    def measure(n_beta: float, gamma: float) -> xr.Dataset:
        tried.append((n_beta, gamma))
        return made_setting(about(n_beta, gamma))

    return search(measure, n_betas, gammas, Settings()), tried


def test_the_search_raises_n_beta_where_the_prior_dominates() -> None:
    found, tried = searched(lambda n_beta, gamma: "" if n_beta > 100 else "prior")
    assert found.settings is not None
    assert (found.settings.n_beta, found.settings.gamma) == (270, 100)
    assert tried[4:] == [(90, 100), (90, 300), (270, 100), (270, 300)]
    assert "2 of 8 settings (with nβ 90, nβ 270 added, for none of the first was)" in found.reason
    assert found.evidence["n_beta"].values.tolist() == [10, 30, 90, 270]
    assert found.evidence["accepted"].sum() == 2
    assert calibration_table(found).row_count == 8
    assert len(ls.plot(found).data[0].x) == 4


@pytest.mark.parametrize("kind", ["hot", "above", "diverged"])
def test_the_search_raises_gamma_where_chains_leave(kind: str) -> None:
    found, tried = searched(lambda n_beta, gamma: "" if gamma > 1000 and n_beta < 20 else kind)
    assert found.settings is not None
    assert (found.settings.n_beta, found.settings.gamma) == (10, 2700)
    assert tried[4:] == [(10, 900), (30, 900), (10, 2700), (30, 2700)]


def test_the_search_stops_where_refusals_contradict_each_other() -> None:
    found, tried = searched(lambda n_beta, gamma: "hot" if gamma == 100 else "prior", n_betas=[10])
    assert found.settings is None
    assert len(tried) == 2
    assert found.reason == (
        "no setting is accepted: the prior dominates at nβ 10, γ 300, and chains leave the "
        "neighbourhood of the weights at nβ 10, γ 100; try a larger batch_size"
    )


def test_the_search_ends_with_one_reason() -> None:
    found, tried = searched(lambda n_beta, gamma: "prior hot noise")  # a chain may spike by chance
    assert found.settings is None
    assert len(tried) == 4 + 3 * 2
    assert found.reason == (
        "no setting is accepted, with nβ 90, nβ 270, nβ 810 added: the prior dominates everywhere; "
        "try n_betas above 810 or lower gammas"
    )
    found, tried = searched(lambda n_beta, gamma: "hot slow")
    assert len(tried) == 4 + 3 * 2
    assert found.reason == (
        "no setting is accepted, with γ 900, γ 2700, γ 8100 added: chains leave the neighbourhood "
        "of the weights everywhere; try gammas above 8100 or lower n_betas"
    )
    found, _ = searched(lambda n_beta, gamma: "prior" if n_beta < 50 else "hot")
    assert found.reason == (
        "no setting is accepted, with nβ 90 added: the prior dominates at nβ 30, γ 100, and chains "
        "leave the neighbourhood of the weights at nβ 90, γ 300; try a larger batch_size"
    )


@pytest.mark.parametrize(
    ("kind", "reason"),
    [
        ("noise", "needs more draws or a larger batch_size (λ̂ only 1.0 standard errors)"),
        ("slow", "needs a longer burn_in (not healthy: L0H0 2 of 4 chains still rising)"),
    ],
)
def test_no_search_where_no_knob_helps(kind: str, reason: str) -> None:
    found, tried = searched(lambda n_beta, gamma: kind if n_beta == 30 else "prior")
    assert found.settings is None
    assert len(tried) == 4
    assert found.reason == f"no setting is accepted: nβ 30, γ 300 {reason}"


def test_no_search_where_a_setting_is_accepted() -> None:
    found, tried = searched(lambda n_beta, gamma: "" if (n_beta, gamma) == (10, 300) else "hot")
    assert found.settings is not None
    assert len(tried) == 4
    assert "added" not in found.reason


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
        (dict(gammas=100), "gammas must be a .*list"),
        (dict(settings=Settings(sampler="importance")), "settings.sampler must be one of lm"),
    ],
)
def test_bad_grids_are_refused(change: dict, message: str) -> None:
    with pytest.raises((TypeError, ValueError), match=message):
        calibrate(None, None, **change)
