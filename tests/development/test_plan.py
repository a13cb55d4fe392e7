"""Plans keep to their budget: draws go first, then checkpoints."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

import lens_slt as ls
from lens_slt.development.plan import (
    FEWEST_CHECKPOINTS,
    FEWEST_DRAWS,
    MOST_DRAWS,
    _evenly,
    _fitting,
)
from tests.development.test_develop import TOKENS, run_of


def cost(n, n_draws):
    return n * (n_draws + 10)


@pytest.mark.parametrize(
    ("budget", "expected"),
    [(1e9, (40, MOST_DRAWS)), (40 * 110, (40, 100)), (30 * 50, (30, FEWEST_DRAWS)),
     (1, (FEWEST_CHECKPOINTS, FEWEST_DRAWS))],
)  # fmt: skip
def test_what_fits(budget, expected):
    run = ls.checkpoints(run_of, steps=list(range(40)))
    assert _fitting(run, ls.Settings(), cost, budget) == expected


def test_draws_that_were_given_stay():
    run = ls.checkpoints(run_of, steps=list(range(40)))
    assert _fitting(run, ls.Settings(draws=200), cost, 25 * 210) == (25, 200)


def test_checkpoints_that_were_asked_for_stay():
    run = ls.checkpoints(run_of, steps=list(range(40)))
    assert _fitting(run, ls.Settings(), cost, 1, fewest=40) == (40, FEWEST_DRAWS)
    assert _fitting(run, ls.Settings(), cost, 40 * 110, fewest=40) == (40, 100)


@pytest.mark.parametrize(
    ("seconds", "error", "said"),
    [
        (90, 0.03, "about 1 min 30 s, one every 30 s; λ̂ within about 3.0 % (one standard error; "
         "differences are sharper)"),
        (1200, float("nan"), "about 20 min, one every 30 s; the error of λ̂ cannot be foreseen; "
         "the least there is, more than 15 min"),
    ],
)  # fmt: skip
def test_a_plan_in_words(seconds, error, said):
    plan = ls.DevelopmentPlan(
        run_of([0, 5, 20]), ls.Settings(draws=40), seconds, seconds_per_checkpoint=30.0,
        relative_se=error, budget=900.0,
    )  # fmt: skip
    assert str(plan) == f"3 checkpoints (steps 0 to 20) × 40 draws: {said}"


def test_ends_are_kept():
    assert _evenly([0, 1, 5, 9, 20], 3) == [0, 5, 20]


def test_examples_name_steps_that_every_plan_takes():
    run = ls.checkpoints("attn-2l")
    root = Path(__file__).parents[2]
    for file in ("README.md", "docs/concepts/phases.md"):
        text = (root / file).read_text("utf-8")
        named = re.findall(r"lens-slt phases \S+ --steps ([\d,]+)", text)
        assert named
        for step in map(int, ",".join(named).split(",")):
            for n in range(FEWEST_CHECKPOINTS, len(run) + 1):
                assert step in _evenly(run.steps, n), (file, step, n)


def test_a_plan_of_a_real_run():
    settings = ls.Settings(chains=2, burn_in=3, batch_size=4)
    plan = ls.plan_development(run_of([0, 5, 20]), TOKENS, "L1H0", settings=settings, minutes=10)
    assert plan.fits and plan.settings.draws >= FEWEST_DRAWS
    assert "3 checkpoints" in str(plan)
    tight = ls.plan_development(run_of([0, 5, 20]), TOKENS, "L1H0", settings=settings, minutes=1e-6)
    assert not tight.fits and "more than" in str(tight)
