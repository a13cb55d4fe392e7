"""The course of a component: smaller steps where they are needed, more draws where they tell."""

from __future__ import annotations

import json
from dataclasses import asdict

import numpy as np
import pytest
import torch
from scipy.integrate import quad

import lens_slt as ls
from lens_slt.sampling import driver
from lens_slt.sampling.course import (
    EARLY_CHECKS,
    MOST_STEPS_PER_DRAW,
    Course,
    decide,
    first_course,
    is_decision,
)
from lens_slt.sampling.driver import run_chains
from lens_slt.sampling.settings import DEFAULT_DRAWS, FLOOR, MOST_EXTENSION, Settings
from tests.made_targets import MadeTarget, quadratic, run, store_of

P = 24
H = torch.linspace(0.2, 4.0, P)
SHORT = Settings(chains=4, draws=60, burn_in=5)


def quartic(c):
    """c·Σ u⁴: flat at the given weights, stiff at draws of the prior."""

    def loss(u, rows):
        return c * (u**4).sum(-1)

    return loss


def quartic_exact(c, n_beta=30.0, gamma=200.0, p=P):
    def density(x):
        return np.exp(-n_beta * c * x**4 - gamma / 2 * x**2)

    norm, moment = (
        quad(lambda x, k=k: x**k * density(x), -1, 1, points=[0], limit=200)[0] for k in (0, 4)
    )
    return p * n_beta * c * moment / norm


def column(draws, name, component=0):
    return draws.to_dataset()[name].values[component]


# Where the step has to be smaller ----------------------------------------------------------------


def test_a_stiff_function_makes_the_step_smaller_until_the_answer_is_right():
    """Its first steps diverge; the value is that of quadrature."""
    settings = Settings(chains=8, draws=250)
    draws = run(MadeTarget([{"a": quartic(1e3)}], P, settings))
    stride, exact = int(column(draws, "steps_per_draw")), quartic_exact(1e3)
    assert 4 <= stride <= MOST_STEPS_PER_DRAW
    assert float(column(draws, "step_size")) == pytest.approx(0.8 / 200 / stride)
    assert str(column(draws, "choice")).startswith(f"ε {0.004 / stride:.3g} = 0.8/γ/{stride}")
    found = ls.refined_llc(draws).isel(component=0)
    assert found["certificate"] == "certified"
    assert float(found["se"]) < 0.03 * exact
    assert abs(float(found["llc"]) - exact) < 4 * float(found["se"]) + 0.02 * exact
    again = run(MadeTarget([{"a": quartic(1e3)}], P, settings))
    for name in ("paired_loss", "defect"):
        np.testing.assert_array_equal(again["posterior"][name], draws["posterior"][name])


def test_a_given_step_is_obeyed_and_judged():
    """The same function at 0.8/γ: not healthy, whatever comes out."""
    settings = SHORT.but(step_size=0.8 / 200, draws=200)
    draws = run(MadeTarget([{"a": quartic(300.0)}, {"b": quadratic(H)}], P, settings))
    assert draws["steps_per_draw"].values.tolist() == [1, 1]
    assert draws["step_size"].values.tolist() == pytest.approx([0.004, 0.004])
    assert draws["choice"].values[0] == "ε 0.004 as given"
    assert np.isnan(draws["curvature"].values).all()
    found = ls.refined_llc(draws)
    assert found["verdict"].values[0] != "healthy"
    assert found["certificate"].values.tolist()[1] == "certified"


def spied(target, tmp_path=None):
    """A run, and the courses after every step."""
    books = []
    store = store_of(target, tmp_path)
    outcome = run_chains(target, target.settings, store, books.append)
    return store, outcome, books


def test_no_draw_from_before_a_change_enters():
    """Recorded losses are ½ Σ of the recorded squares, and all belong to the last attempt."""
    p = 6

    def loss(u, rows):
        return 1e6 * (u**4).sum(-1)

    target = MadeTarget([{"a": loss}], p, SHORT.but(draws=30), probes=True)
    store, outcome, books = spied(target)
    attempts = [book.courses[0].attempt for book in books]
    last = attempts[-1]
    assert last >= 1
    changed = attempts.index(last)  # after this many steps the last attempt began
    course = outcome.courses[0]
    assert course.taken == len(books) - changed - 1
    assert course.taken == (course.burn_in + course.draws) * course.stride
    squares = store.read("probes/squares/paired_loss", 0, course.draws)
    loss = store.read("paired_loss", 0, course.draws)
    np.testing.assert_allclose(loss, 1e6 * (squares**2).sum((-1, -2)), rtol=1e-4)
    distance = store.read("squared_distance", 0, course.draws)
    np.testing.assert_allclose(distance, squares.sum((-1, -2)), rtol=1e-5)


def test_a_new_attempt_has_new_noise():
    """Its start and its steps are keyed by the step of the run, which goes on."""
    target = MadeTarget([{"a": quartic(1e6)}], P, SHORT.but(draws=20))
    used = []
    noise = driver.chain_noise

    def spy(like, names, seed, step, antithetic):
        used.append(step)
        return noise(like, names, seed, step, antithetic)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(driver, "chain_noise", spy)
        _, outcome, books = spied(target)
    assert outcome.courses[0].attempt >= 1
    numbers = [step for step in used if isinstance(step, int)]
    assert sorted(numbers) == numbers
    assert max(numbers.count(n) for n in set(numbers)) <= 2  # of the old and the new attempt
    assert numbers[-1] == len(books)


def test_a_draw_is_the_mean_of_its_steps():
    """k steps are k samples of the defect and of the loss, on k minibatches."""
    target = MadeTarget([{"a": quartic(1e4)}], P, SHORT)
    steps = []
    step = driver._summed

    def spy(seen):
        steps.append(seen.loss[0].numpy().copy())
        return step(seen)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(driver, "_summed", spy)
        store, outcome, _ = spied(target)
    course = outcome.courses[0]
    assert course.stride > 1
    own = np.array(steps[-course.taken :]).reshape(-1, course.stride, 4)[course.burn_in :]
    np.testing.assert_allclose(store.read("step_loss", 0, course.draws), own.mean(1).T, rtol=1e-5)
    np.testing.assert_allclose(store.read("paired_loss", 0, course.draws), own[:, -1].T, rtol=1e-6)


# Decisions on made traces ------------------------------------------------------------------------


def traces(draws, *, mean=0.2, spread=0.02, share=0.0, noise=0.001, chains=4, seed=0):
    """Loss, virial and defect ``[chain, draw]``: the defect is ``share`` of 2λ̂."""
    rng = np.random.default_rng(seed)
    loss = mean + spread * rng.normal(size=(chains, draws))
    size = 60 * mean
    defect = size * (share + noise * rng.normal(size=loss.shape))
    return loss, 60 * loss, defect


def at(draws, settings, stride=1, target=None):
    course = first_course(settings)
    return Course(
        stride, course.burn_in, target or course.target, (course.burn_in + draws) * stride
    )  # fmt: skip


@pytest.mark.parametrize(
    ("draws", "share", "shrinks"),
    [(12, 0.2, False), (12, 0.4, True), (50, 0.08, False), (50, 0.2, True), (200, 0.2, True)],
)
def test_the_step_shrinks_where_the_defect_is_known_to_be_large(draws, share, shrinks):
    settings = Settings()
    course = at(draws, settings)
    assert is_decision(course, settings)
    found = decide(course, *traces(draws, share=share), settings)
    assert (found.stride > 1) == shrinks
    if shrinks:
        assert found == Course(found.stride, course.burn_in, 200, attempt=1)
        assert 2 <= found.stride <= 8
    given = decide(course, *traces(draws, share=share), settings.but(step_size=0.004))
    assert given.stride == 1


def test_a_defect_that_is_not_known_is_not_acted_on_early():
    settings = Settings()
    course = at(12, settings)
    assert decide(course, *traces(12, share=0.4, noise=3.0), settings) == course


@pytest.mark.parametrize("n_bad", [1, 2, 4])
def test_a_chain_that_diverged_asks_for_a_much_smaller_step(n_bad):
    settings = Settings()
    loss, virial, defect = traces(12)
    for trace in (loss, virial, defect):
        trace[:n_bad, 5:] = np.nan
    assert decide(at(12, settings), loss, virial, defect, settings).stride == 8
    ended = decide(at(200, settings, 64), *(_wide(t) for t in (loss, virial, defect)), settings)
    assert ended.stride == 64 and ended.done


def _wide(trace):
    return np.pad(trace, [(0, 0), (0, 188)], mode="wrap")


def test_chains_that_are_left_of_pairs_are_units():
    """Chains 1, 2 and 3 are a single one and a pair: a pair is one unit, not two."""
    settings = Settings(sampler="sgld", n_beta=30.0)
    loss, virial, defect = traces(200, spread=0.3, mean=0.2, noise=0.001)
    loss[3] = loss[2]  # an even loss: the pair's are equal
    loss[0, 100:] = np.nan
    defect[0, 100:] = np.nan
    course = at(200, settings)
    units = np.array([loss[1], loss[2]])
    error = units.mean(0).std() / 200**0.5
    wanted = settings.but(target_se=1.05 * error / units.mean(), draws=400)
    assert not decide(
        course, loss, virial, defect, wanted.but(target_se=0.8 * error / units.mean())
    ).done
    assert decide(
        course, loss, virial, defect, wanted.but(target_se=1.4 * error / units.mean())
    ).done


def test_done_when_certified_and_precise():
    settings = Settings()
    course = at(200, settings)
    assert decide(course, *traces(200), settings).done
    wide = decide(course, *traces(200, spread=1.5), settings)  # 5 % needs more
    assert not wide.done and wide.target == 400 and wide.taken == course.taken
    unsure = decide(course, *traces(200, noise=2.0), settings)
    assert not unsure.done and unsure.target == 400
    fixed = decide(course, *traces(200, noise=2.0), settings.but(draws=200))
    assert fixed.done
    last = DEFAULT_DRAWS * MOST_EXTENSION
    assert decide(at(last, settings, target=last), *traces(last, noise=9.0), settings).done


def test_a_signal_of_nothing_is_precise_enough_in_absolute_terms():
    settings = Settings()
    spread = FLOOR / 30 * (4 * 200) ** 0.5 / 4
    loss, virial, defect = traces(200, mean=1e-6, spread=spread)
    assert decide(at(200, settings), loss, virial, defect, settings).done


@pytest.mark.parametrize("sampler", ["sgld", "lm"])
def test_a_defect_that_is_known_to_be_large_is_not_waited_for(sampler):
    """More draws at a given step cannot certify what fails."""
    settings = Settings(sampler=sampler, step_size=1e-3)
    assert decide(at(200, settings), *traces(200, share=0.3), settings).done


# Precision ---------------------------------------------------------------------------------------


def test_target_se_stops_every_component_when_it_is_there():
    settings = Settings(target_se=0.03, chains=8)
    easy, hard = quadratic(40 * H), quadratic(torch.tensor([40.0] * 2 + [0.0] * (P - 2)))
    draws = run(MadeTarget([{"easy": easy, "hard": hard}], P, settings))
    counts = draws["n_draws"].values
    assert counts[0] < counts[1]
    assert set(counts) <= {50 * 2**k for k in range(9)}
    found = ls.refined_llc(draws)
    assert (found["se"] <= 0.03 * found["llc"] + 1e-6).all()
    assert (found["certificate"] == "certified").all()
    half = draws["posterior"]["step_loss"].values[1, :, : counts[1] // 2].astype(float)
    units = half.reshape(4, 2, -1).mean(1)  # it was not there at half of its draws
    assert units.mean(0).std() / units.shape[1] ** 0.5 / units.mean() > 0.02


def test_target_se_is_given_up_at_the_most_draws():
    settings = Settings(target_se=1e-4, draws=120, burn_in=5)
    draws = run(MadeTarget([{"a": quadratic(H)}], P, settings))
    assert int(column(draws, "n_draws")) == 120
    assert draws["posterior"].sizes["draw"] == 120


def test_more_draws_go_on_with_the_same_chain():
    """A run that extends itself equals one that was asked for as many draws."""
    noisy = quadratic(torch.tensor([8.0] + [0.0] * (P - 1)))
    draws = run(MadeTarget([{"a": noisy}], P, Settings(burn_in=5)))
    n = int(column(draws, "n_draws"))
    assert n > DEFAULT_DRAWS
    long = run(MadeTarget([{"a": noisy}], P, Settings(burn_in=5, draws=n)))
    for name in ("paired_loss", "step_loss", "defect", "squared_distance"):
        np.testing.assert_array_equal(draws["posterior"][name], long["posterior"][name])


@pytest.mark.parametrize("sampler", ["pcn", "importance", "rmsprop_sgld"])
def test_samplers_without_a_defect_go_on_until_they_are_precise(sampler):
    noisy = quadratic(torch.tensor([20.0] + [0.0] * (P - 1)))
    draws = run(MadeTarget([{"a": noisy}], P, Settings(sampler=sampler, antithetic=False)))
    n, found = int(column(draws, "n_draws")), ls.refined_llc(draws).isel(component=0)
    assert n in (200, 400, 800, 1600)
    precise = max(0.05 * float(found["llc"]), FLOOR)
    assert n == 1600 or float(found["se"]) <= precise
    if n > 200:  # it was not there before
        assert float(found["se"]) > 0.5 * precise


@pytest.mark.parametrize("sampler", ["pcn", "importance"])
def test_no_step_is_said_of_a_sampler_that_uses_none(sampler):
    settings = SHORT.but(sampler=sampler, step_size=0.001, draws=20)
    assert run(MadeTarget([{"a": quartic(1.0)}], P, settings))["choice"].values[0] == ""


def test_the_control_is_done_at_the_least_draws():
    draws = run(MadeTarget([{"a": quadratic(H)}], P, Settings(n_beta=0.0)))
    assert int(column(draws, "n_draws")) == DEFAULT_DRAWS
    assert ls.refined_llc(draws)["verdict"].values[0] == "healthy"


def test_a_single_chain_and_double_precision():
    settings = Settings(chains=1, antithetic=False, burn_in=5, draws=100)
    target = MadeTarget([{"a": quadratic(H.double())}], P, settings, torch.zeros(1, 1).double())
    draws = run(target)
    assert np.isfinite(draws["posterior"]["paired_loss"].values).all()
    found = ls.refined_llc(draws).isel(component=0)
    exact = float((30 * H / (30 * H + 200)).sum() / 2)
    assert abs(float(found["llc"]) - exact) < 4 * float(found["se"])


def test_courses_survive_as_plain_values():
    course = Course(8, 5, 200, 77, 2, False)
    assert Course(**json.loads(json.dumps(asdict(course)))) == course
    assert (course.draws, course.between, course.burning_in) == (77 // 8 - 5, False, False)
    assert sorted(EARLY_CHECKS) == [12, 50]


def test_steps_per_draw_as_given():
    """A quartic that needs many small steps keeps the stride that was given, without retries."""
    stiff = quartic(1e3)
    chosen = run(MadeTarget([{"L0H0": stiff}], P, SHORT))
    k = int(chosen["steps_per_draw"].values[0])
    assert k > 1
    given = SHORT.but(steps_per_draw={"L0H0": k})
    draws = run(MadeTarget([{"L0H0": stiff}], P, given))
    assert int(draws["steps_per_draw"].values[0]) == k
    assert "as given" in str(draws["choice"].values[0])
    llc = ls.refined_llc(draws)
    exact = quartic_exact(1e3)
    assert abs(float(llc["llc"][0]) - exact) < 4 * float(llc["se"][0]) + 0.03 * exact


def test_shared_noise_makes_differences_sharper():
    """Two losses that differ little, at one step size: their blocks tell the difference apart."""
    settings = SHORT.but(steps_per_draw=1)
    one, other = (
        ls.refined_llc(run(MadeTarget([{"L0H0": quadratic(scale * H)}], P, settings)))
        for scale in (1.0, 1.05)
    )
    difference = (other["blocks"] - one["blocks"])[:, 0]
    n = difference.sizes["block"]
    np.testing.assert_allclose(difference.mean(), other["llc"][0] - one["llc"][0], rtol=1e-4)
    assert float(difference.std(ddof=1)) / n**0.5 < 0.3 * float(one["se"][0])


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        (dict(steps_per_draw=0), "at least 1"),
        (dict(steps_per_draw={"L0H0": 1.5}), "L0H0"),
        (dict(steps_per_draw=2, step_size=1e-3), "leave one of them out"),
        (dict(steps_per_draw=2, sampler="sgld"), "leave one of them out"),
    ],
)
def test_steps_per_draw_is_checked(changes, said):
    with pytest.raises((ValueError, TypeError), match=said):
        Settings(**changes)
