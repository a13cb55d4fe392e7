"""Components with different numbers of draws, and runs whose arrays grow."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

import lens_slt as ls
from lens_slt.sampling import course as course_module
from lens_slt.sampling import driver
from lens_slt.sampling import store as store_module
from lens_slt.sampling.course import Course
from lens_slt.sampling.result import dataset, probe_array
from lens_slt.sampling.settings import Settings
from lens_slt.sampling.spread import independent_units, standard_error
from tests.made_probes import per_token_draws
from tests.made_targets import PROBE, MadeTarget, quadratic, run, store_of

COUNTS = {"L0H0": 30, "L0H1": 80, "L1H0": 57, "full": 41}  # draws; every second has probes


@pytest.fixture(scope="module")
def ragged():
    return per_token_draws(n_draws=list(COUNTS.values()))


@pytest.fixture(scope="module")
def whole():
    return per_token_draws()


def own_draws(whole, component):
    """φ and per-token losses of the draws that count, cut by hand from a run of equal lengths."""
    n = COUNTS[component]
    posterior = dataset(whole, "posterior").sel(component=component)
    probe = dataset(whole, "probes/text").sel(component=component)
    phi = posterior["paired_loss"].values[:, :n].astype(np.float64)
    loss = probe["paired_loss"].values[:, : -(-n // 2)].astype(np.float64)
    return phi, loss.reshape(*loss.shape[:2], -1)


def test_traces_are_nothing_beyond_their_draws(ragged):
    posterior = dataset(ragged, "posterior")
    assert posterior.sizes["draw"] == max(COUNTS.values())
    assert dataset(ragged, "probes/text").sizes["draw"] == 40
    for name, n in COUNTS.items():
        for trace in posterior.data_vars.values():
            own = trace.sel(component=name).values
            assert np.isfinite(own[:, :n]).all() and np.isnan(own[:, n:]).all()
    assert ragged["n_draws"].values.tolist() == list(COUNTS.values())


def test_refined_llcs_are_those_of_each_component_s_own_draws(ragged, whole):
    table = ls.refined_llc(ragged)
    for name in COUNTS:
        phi, loss = own_draws(whole, name)
        own = table.sel(component=name)
        assert float(own["llc"]) == pytest.approx(30 * phi.mean(), rel=1e-6)
        assert float(own["se"]) == pytest.approx(30 * standard_error(phi), rel=1e-6)
        probe = own.sel(probe="text")
        assert float(probe["probe_llc"]) == pytest.approx(30 * loss.mean(), rel=1e-5)
        assert float(probe["probe_se"]) == pytest.approx(
            30 * standard_error(loss.mean(-1)), rel=1e-5
        )
    assert np.isfinite(table["rhat"]).all()
    assert (table["chains_used"] == 4).all()


def test_per_token_llcs_are_those_of_each_component_s_own_draws(ragged, whole):
    table = ls.per_token_llc(ragged)
    for name in COUNTS:
        _, loss = own_draws(whole, name)
        expected = 30 * loss.mean((0, 1))
        np.testing.assert_allclose(table["llc"].sel(component=name), expected, rtol=1e-5, atol=1e-6)
    assert np.isfinite(table["se"]).all()


@pytest.mark.parametrize("estimator", ["two_posterior", "restricted"])
def test_susceptibilities_are_those_of_each_component_s_own_draws(ragged, whole, estimator):
    table = ls.susceptibility(ragged, estimator=estimator)

    def expectations(name):
        phi, loss = own_draws(whole, name)
        phi = phi[:, ::2, None]
        apart = loss - phi
        return phi.mean(), apart.mean((0, 1)), (phi * apart).mean((0, 1))

    _, whole_apart, _ = expectations("full")
    for name in list(COUNTS)[:3]:
        phi, apart, product = expectations(name)
        if estimator == "restricted":
            expected = -(product - phi * apart)
        else:
            base = dataset(whole, "probes/text")["base_loss"].values.ravel()
            shift = apart - whole_apart  # the loss at the given weights cancels
            expected = -(product + phi * base - phi * (whole_apart + base))
            np.testing.assert_allclose(
                table["mean_term"].sel(component=name), -phi * shift, rtol=1e-4, atol=1e-6
            )
        np.testing.assert_allclose(table["chi"].sel(component=name), expected, rtol=1e-4, atol=1e-6)
    assert np.isfinite(table["se"]).all()


@pytest.mark.parametrize("unit", ["sequence", "token"])
@pytest.mark.parametrize("name", list(COUNTS))
def test_influence_is_that_of_the_component_s_own_draws(ragged, whole, name, unit):
    _, loss = own_draws(whole, name)
    series = loss.reshape(-1, 6, 7).mean(-1) if unit == "sequence" else loss.reshape(-1, 42)
    found = ls.influence(ragged, name, unit=unit)
    expected = -np.cov(series.T, bias=True)
    np.testing.assert_allclose(found["influence"], expected, rtol=1e-5, atol=1e-9)


def test_blocks_are_consecutive_and_hold_all_draws(ragged):
    """As many for every component; the shortest decides: 15 draws with probes are three fives."""
    table = ls.per_token_llc(ragged)
    assert table.sizes["block"] == min(4, 15 // 2, 32) or table.sizes["block"] == 15 // 5
    np.testing.assert_allclose(table["blocks"].mean("block"), table["llc"], rtol=1e-4, atol=1e-5)


def test_a_first_component_that_is_shorter_than_thin(whole):
    """One draw at which the probe was evaluated has a value and no error."""
    draws = per_token_draws(n_draws=[1, 80, 57, 41])
    found = ls.per_token_llc(draws).isel(component=0)
    expected = 30 * dataset(whole, "probes/text")["paired_loss"].values[0, :, 0].mean(0).ravel()
    np.testing.assert_allclose(found["llc"], expected, rtol=1e-4)
    assert np.isnan(found["se"]).all()


# Runs --------------------------------------------------------------------------------------------

P = PROBE[0] * PROBE[1]
H = torch.linspace(1.0, 8.0, P)
NAMES = ("soft", "stiff", "wide", "other")
THIN = 3


def quartic(u, rows):
    return 3e3 * (u**4).sum(-1)


def target_of(settings):
    one = torch.zeros(P)
    one[0] = 60.0
    losses = [
        {"soft": quadratic(30 * H), "stiff": quartic, "wide": quadratic(one)},
        {"other": quadratic(30 * H)},
    ]
    return MadeTarget(losses, P, settings, probes=True)


RUN = Settings(target_se=0.06, draws=160, burn_in=4, thin=THIN, chains=16, full_loss=True)


@pytest.fixture(scope="module")
def uneven():
    """Steps shrink for one component, arrays grow, all end at other times than the first."""
    return run(target_of(RUN))


def test_the_run_is_uneven(uneven):
    counts, strides = uneven["n_draws"].values, uneven["steps_per_draw"].values
    assert strides[0] == strides[2] == strides[3] == 1 < strides[1]
    assert counts[0] == counts[3] == 50 < counts[2]
    assert uneven["posterior"].sizes["draw"] == counts.max() > RUN.least_draws


def test_probes_and_full_losses_belong_to_their_draws(uneven):
    """Every loss is known from the recorded squares, at every thin-th draw of every component."""
    squares = dataset(uneven, "probes/squares")["paired_loss"].values.astype(np.float64)
    posterior = dataset(uneven, "posterior")
    h = H.numpy().astype(float)
    one = np.zeros(P)
    one[0] = 60.0
    for i, name in enumerate(NAMES):
        n = int(uneven["n_draws"][i])
        x = squares[i].reshape(RUN.chains, -1, P)[:, : -(-n // THIN)]
        assert np.isfinite(x).all()
        direct = {
            "soft": (x * 30 * h).sum(-1) / 2,
            "stiff": 3e3 * (x**2).sum(-1),
            "wide": (x * one).sum(-1) / 2,
            "other": (x * 30 * h).sum(-1) / 2,
        }[name]
        for key in ("paired_loss", "full_loss"):
            recorded = posterior[key].values[i, :, :n:THIN]
            np.testing.assert_allclose(recorded, direct, rtol=1e-4, atol=1e-7)


def test_nothing_is_left_of_courses_that_were_given_up(monkeypatch, tmp_path):
    """Also where they had more draws than the last: ``flat`` begins anew at 50 and ends at 20."""
    decide = course_module.decide

    def late(course, loss, virial, defect, settings):
        if course.draws == 50 and not loss.any():
            return Course(2, course.burn_in, 20, attempt=1)
        return decide(course, loss, virial, defect, settings)

    monkeypatch.setattr(driver, "decide", late)
    settings = Settings(draws=100, burn_in=2, thin=THIN, chains=2)
    target = MadeTarget([{"a": quadratic(H), "flat": quadratic(0 * H)}], P, settings, probes=True)
    for path in (None, tmp_path / "run"):
        draws = run(target, path)
        assert draws["n_draws"].values.tolist() == [100, 20]
        found = dataset(draws, "probes/squares")["paired_loss"].values
        for i, n in enumerate((100, 20)):
            assert np.isnan(found[i, :, -(-n // THIN) :]).all()
            assert np.isfinite(found[i, :, : -(-n // THIN)]).all()


@pytest.mark.slow
@pytest.mark.parametrize("stops", [(3, 15, 16, 30, 55), (20, 54, 130, 500)])
def test_a_run_killed_anywhere_ends_bit_equal(uneven, stops, tmp_path):
    for step in stops:

        def stop(book, step=step):
            if book.step == step:
                raise KeyboardInterrupt

        with pytest.raises(KeyboardInterrupt):
            run(target_of(RUN), tmp_path / "run", stop)
    same(run(target_of(RUN), tmp_path / "run"), uneven)


class Killed(BaseException):
    """Nothing is saved after it."""


def killed_at_save(target, path, nth):
    """A run that is killed at its nth save: values are on disk, their state is not."""
    saves = []

    def dead(*args, **options):
        saves.append(args)
        if len(saves) >= nth:
            raise Killed
        save_file(*args, **options)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(store_module, "save_file", dead)
        with pytest.raises(Killed):
            run(target, path)


@pytest.mark.slow
def test_a_run_killed_before_it_saves_ends_bit_equal(uneven, tmp_path):
    for nth in (1, 2, 2, 1, 3, 8, 20):
        killed_at_save(target_of(RUN), tmp_path / "run", nth)
    same(run(target_of(RUN), tmp_path / "run"), uneven)


@pytest.mark.parametrize("nth", [2, 3, 4])
def test_a_kill_after_a_course_began_anew_overwrites_nothing_that_is_needed(
    nth, tmp_path, monkeypatch
):
    """It begins anew at step 16; what it records until step 20 lies where older draws were."""
    decide = course_module.decide

    def anew(course, *rest):
        if course.draws == 12 and not course.attempt:
            return Course(1, course.burn_in, course.target, attempt=1)
        return decide(course, *rest)

    monkeypatch.setattr(driver, "decide", anew)
    settings = Settings(draws=30, burn_in=4, thin=THIN, chains=2)
    target = MadeTarget([{"a": quadratic(H), "b": quadratic(2 * H)}], P, settings, probes=True)
    killed_at_save(target, tmp_path / "run", nth)
    same(run(target, tmp_path / "run"), run(target))


def test_an_interrupt_while_values_are_written_loses_none(tmp_path):
    """Ctrl-C comes where the time goes: in the middle of a write. The rest is saved, then."""
    settings = Settings(draws=40, burn_in=3, chains=2, thin=2)
    target = MadeTarget([{"a": quadratic(H), "b": quadratic(2 * H)}], P, settings, probes=True)

    class Interrupted:
        def __init__(self, array):
            self.array, self.writes = array, 0
            self.shape = array.shape

        def __getitem__(self, key):
            return self.array[key]

        def __setitem__(self, key, values):
            self.writes += 1
            if self.writes == 2:
                raise KeyboardInterrupt
            self.array[key] = values

    name = probe_array("squares")
    with store_of(target, tmp_path / "run") as store:
        store.arrays[name] = Interrupted(store.arrays[name])
        with pytest.raises(KeyboardInterrupt):
            driver.run_chains(target, settings, store)
    same(run(target, tmp_path / "run"), run(target))


def same(a, b):
    for path in ("/", "posterior", "burn_in", "probes/squares", "health"):
        x, y = a[path].to_dataset(), b[path].to_dataset()
        assert set(x.data_vars) == set(y.data_vars)
        for key in x.data_vars:
            np.testing.assert_array_equal(x[key].values, y[key].values, err_msg=f"{path} {key}")


@pytest.mark.slow
def test_many_small_writes_are_the_same_run(uneven, tmp_path, monkeypatch):
    monkeypatch.setattr(store_module, "LARGEST_PENDING", 1)
    same(run(target_of(RUN), tmp_path / "run"), uneven)


def test_the_order_of_rows_survives_components_that_leave(uneven):
    """Each component's summary is that of a run of its own."""
    for name in ("stiff", "other"):
        i = NAMES.index(name)
        losses = target_of(RUN).losses[i // 3]
        alone = run(MadeTarget([{name: losses[name]}], P, RUN, probes=True))
        n = int(alone["n_draws"][0])
        assert n == int(uneven["n_draws"][i])
        for key in ("paired_loss", "defect", "squared_distance"):
            np.testing.assert_array_equal(
                alone["posterior"][key].values[0], uneven["posterior"][key].values[i, :, :n]
            )


def test_units_of_ragged_draws(uneven):
    """λ̂ and its error by hand, from the component's own draws of the mean over steps."""
    table = ls.refined_llc(uneven)
    for i in range(len(NAMES)):
        n = int(uneven["n_draws"][i])
        trace = uneven["posterior"]["step_loss"].values[i, :, :n].astype(float)
        units = independent_units(trace, np.ones(RUN.chains, bool), antithetic=True)
        assert float(table["llc"][i]) == pytest.approx(30 * units.mean(), rel=1e-6)
        assert float(table["se"][i]) == pytest.approx(30 * standard_error(units), rel=1e-6)
