"""Stages, transitions and critical checkpoints of labelled curves, and what is refused."""

from __future__ import annotations

import numpy as np
import pytest
import xarray as xr

import lens_slt as ls
from lens_slt.development.stages import find_stages

STEPS = np.unique(np.geomspace(1, 20_000, 36).astype(int))
X = np.log1p(STEPS)


def logistic(middle: float, scale: float = 0.2) -> np.ndarray:
    return 1 / (1 + np.exp(-(X - middle) / scale))


def made_curve(**values: np.ndarray) -> xr.Dataset:
    """λ̂ of components with a noise of 0.25, in blocks that share it."""
    rng = np.random.default_rng(0)
    blocks = np.stack([llc + rng.standard_normal((16, len(X))) for llc in values.values()], 2)
    dims = ("block", "checkpoint", "component")
    return xr.Dataset(
        {
            "llc": (dims[1:], blocks.mean(0)),
            "se": (dims[1:], blocks.std(0, ddof=1) / 4),
            "blocks": (dims, blocks),
        },
        coords={"checkpoint": STEPS, "component": list(values)},
    )


def labelled(values: np.ndarray, name: str = "loss") -> xr.DataArray:
    return xr.DataArray(values, coords={"checkpoint": STEPS}, name=name)


@pytest.fixture(scope="module")
def found() -> xr.Dataset:
    rising = -4 + 30 * np.clip((X - 4) / 2, 0, 1) - 10 * np.maximum(X - 8, 0)
    curve = made_curve(L0H0=rising, L0H1=20 + 0 * X)
    noise = 0.01 * np.random.default_rng(1).standard_normal((2, len(X)))
    loss = 8 - np.clip(X - 4, 0, 2) - 0.3 * np.maximum(X - 8, 0) + noise[0]
    repeats = xr.DataArray(
        np.stack([loss, 5 - 3 * logistic(5, 0.1) + noise[1]]),
        coords={"pattern": ["text", "repeats"], "checkpoint": STEPS},
        dims=("pattern", "checkpoint"),
    )  # fmt: skip
    return ls.stages(curve, loss=labelled(loss), sublosses=repeats)


def stage_at(one: xr.Dataset, x: float) -> int:
    """The number of the stage that a place on log(step + 1) lies in."""
    return int(((np.log1p(one["start"]) <= x) & (np.log1p(one["end"]) > x)).values.argmax())


def test_stages_have_boundaries_and_types(found):
    one = found.sel(component="L0H0")
    for x, kind, trend in (
        (3, "below start", "flat"), (5, "A", "rises"), (7, "plateau", "flat"), (9.3, "B", "falls"),
    ):  # fmt: skip
        stage = stage_at(one, x)
        assert (one["type"][stage], one["trend"][stage]) == (kind, trend)
        assert one["probability"][stage] > 0.8
    low, high = np.log1p(one["boundary_step_low"]), np.log1p(one["boundary_step_high"])
    for place in (4, 6, 8):
        assert ((low - 0.1 < place) & (place < high + 0.1) & (high - low < 1.0)).any()
    assert one["n_stages"] in (4, 5)
    assert one["start"][0] == STEPS[0]
    assert one["end"][int(one["n_stages"]) - 1] == STEPS[-1]
    assert one["slope"][stage_at(one, 5)] == pytest.approx(15, abs=2)


def test_a_constant_component_has_one_stage_and_nothing_else(found):
    other = found.sel(component="L0H1")
    assert other["n_stages"] == 1
    assert other["staged"] < 0.5
    assert other["type"][0] == "plateau"
    assert (other["type"][1:] == "").all()
    assert other["boundary_step"].isnull().all()
    assert 0.6 < other["noise"] < 1.5


def test_sublosses_say_in_which_stage_they_fell(found):
    one = found.sel(component="L0H0")
    change = one["subloss_change"].sel(pattern="repeats")
    assert change[stage_at(one, 5)] == pytest.approx(-3, abs=0.4)
    assert abs(change[stage_at(one, 7)]) < 0.3
    low, high = one["subloss_change_low"], one["subloss_change_high"]
    assert ((low <= high) | high.isnull()).all()


@pytest.mark.parametrize(
    "shape", [3 + 5 * np.exp(-0.3 * X), 10 + 0.8 * np.exp(0.35 * X), 10 + 3 * X]
)
def test_power_laws_and_lines_have_one_stage(shape):
    noise = 0.02 * np.random.default_rng(4).standard_normal(len(X)) * shape
    assert len(find_stages(STEPS, shape + noise, se=0.02 * shape).support) == 0


def test_transitions_have_begin_midpoint_and_end():
    noise = 0.01 * np.random.default_rng(5).standard_normal(len(X))
    twice = logistic(4) + logistic(7.5) + noise
    made = ls.transitions(xr.Dataset({"twice": labelled(twice), "none": labelled(noise)}))
    assert made["n_transitions"].values.tolist() == [2, 0]
    for k, middle in enumerate((4, 7.5)):
        one = made.sel(observable="twice").isel(transition=k)
        assert np.log1p(one["midpoint"]) == pytest.approx(middle, abs=0.1)
        assert np.log1p(one["begin"]) == pytest.approx(middle - 0.44, abs=0.25)
        assert np.log1p(one["end"]) == pytest.approx(middle + 0.44, abs=0.25)
        assert one["change"] == pytest.approx(1, abs=0.1)
        assert one["share"] == pytest.approx(0.5, abs=0.05)


def test_a_transition_under_way_has_no_begin():
    made = ls.transitions(labelled(np.minimum(X, 4) + 0.01 * np.sin(40 * X)))
    assert made["n_transitions"] == 1
    assert made["begin"].isnull().all()
    assert made["midpoint"].isnull().all()
    assert np.log1p(made["end"].item()) == pytest.approx(0.9 * 4 + 0.1 * X[0], abs=0.2)


def test_critical_checkpoints_say_where_and_which():
    noise = 0.01 * np.random.default_rng(6).standard_normal((4, len(X)))
    curves = xr.DataArray(
        noise + np.stack([logistic(4), 5 * logistic(4), -logistic(7), 0 * X]),
        coords={"behaviour": ["a", "b", "c", "none"], "checkpoint": STEPS},
        dims=("behaviour", "checkpoint"),
    )
    made = ls.critical_checkpoints(curves)
    low, high = np.log1p(made["at_step_low"]), np.log1p(made["at_step_high"])
    assert made.sizes["critical"] == 2
    assert low[0] < 4 < high[0]
    assert low[1] < 7 < high[1]
    assert (high - low < 0.7).all()
    assert made["moves"].values.tolist() == [True, True, True, False]
    np.testing.assert_allclose(made["share"][0], [0.5, 0.5, 0, 0], atol=0.15)
    np.testing.assert_allclose(made["share"][1], [0, 0, 1, 0], atol=0.1)
    assert made["speed"][np.abs(X - 4).argmin()] > 5 * made["speed"][np.abs(X - 5.5).argmin()]


def test_what_moves_evenly_has_no_critical_checkpoint():
    noise = 0.01 * np.random.default_rng(6).standard_normal(len(X))
    assert ls.critical_checkpoints(labelled(X + noise)).sizes["critical"] == 0
    assert ls.critical_checkpoints(labelled(noise)).sizes["critical"] == 0


CURVE = made_curve(full=20 + 0 * X)


def with_steps(steps: np.ndarray) -> xr.Dataset:
    return CURVE.assign_coords(checkpoint=steps)


def changed(place: int, by: float) -> np.ndarray:
    return np.where(np.arange(len(STEPS)) == place, by, STEPS)


@pytest.mark.parametrize(
    ("curve", "message"),
    [
        (CURVE.isel(checkpoint=slice(12)), "at least 20 checkpoints, got 12.*Measure more of them"),
        (CURVE.isel(checkpoint=[0]), "at least 20 checkpoints, got 1"),
        (with_steps(changed(5, STEPS[4])), f"step {STEPS[4]} repeats"),
        (CURVE.isel(checkpoint=slice(None, None, -1)), "strictly increasing; step .* comes after"),
        (with_steps(changed(0, -3)), "at least 0"),
        (
            CURVE.assign(llc=CURVE["llc"].where(CURVE["checkpoint"] != STEPS[3])),
            f"at step {STEPS[3]} it is not",
        ),
        (CURVE.assign(se=0 * CURVE["se"]), "se must be finite and above 0"),
        (CURVE.drop_vars("se"), "se is missing"),
        (CURVE.drop_vars("checkpoint"), "assign_coords"),
        (CURVE.isel(checkpoint=0), "must have the dimension 'checkpoint'"),
        (CURVE.isel(block=slice(2)), "blocks must have the shape"),
        (CURVE.assign(llc=CURVE["llc"].expand_dims(probe=2)), "llc of curve must have the dimen"),
    ],
)
def test_bad_curves_are_refused_in_words(curve, message):
    with pytest.raises(ValueError, match=message):
        ls.stages(curve)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (dict(flat=0.0), "flat must be"),
        (dict(level=1.0), "level must be"),
        (dict(seed=-1), "seed must be"),
        (dict(loss=labelled(X).isel(checkpoint=slice(30))), "loss must be over the checkpoints of"),
        (dict(loss=labelled(np.where(X > 3, X, np.nan))), "loss loss must be finite"),
        (dict(loss=labelled(X).expand_dims(pattern=["a", "b"])), "loss must have the dimension"),
    ],
)
def test_bad_arguments_are_refused_in_words(given, message):
    with pytest.raises(ValueError, match=message):
        ls.stages(CURVE, **given)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (dict(covariance=np.eye(36), se=np.ones(36)), "pass it alone"),
        (dict(covariance=np.ones((36, 36))), "pass the blocks instead"),
        (dict(covariance=np.triu(np.ones((36, 36)))), "symmetric"),
        (dict(covariance=np.eye(3)), "must have the shape"),
        (dict(se=np.ones(4)), "se must have the shape"),
        (dict(blocks=np.ones((16, 36))), "differ from one another"),
    ],
)
def test_bad_errors_are_refused_in_words(given, message):
    steps = np.arange(1, 37)
    with pytest.raises(ValueError, match=message):
        find_stages(steps, np.sin(steps), **given)


def test_standard_errors_must_be_those_of_the_curves():
    curves = xr.Dataset({"a": labelled(X), "b": labelled(X)})
    with pytest.raises(ValueError, match="se must be of a, b; got a"):
        ls.transitions(curves, se=curves[["a"]])
    with pytest.raises(ValueError, match="blocks must have the dimension 'block'; got checkpoint"):
        ls.transitions(curves, blocks=curves)
    with pytest.raises(ValueError, match="blocks must be of a, b; got a"):
        ls.transitions(curves, blocks=curves[["a"]].expand_dims(block=4))
