"""Retrainings side by side, what they say of a wish, and of data that are left out."""

from __future__ import annotations

import pickle

import numpy as np
import pytest
import torch
import xarray as xr

import lens_slt as ls
from lens_slt.models.saved import save_source
from lens_slt.schema import stamped
from lens_slt.statistics import holm
from lens_slt.training.retrainings import MeanLosses, RetrainJob, as_measure, last_crossing
from lens_slt.training.verify_patterning import _candidates, exchanged
from tests.tiny_models import native

N, LENGTH, STEPS = 24, 6, 12
FAST = ls.Optimisation(batch_size=8, learning_rate=1e-2, warmup=1)


def data() -> torch.Tensor:
    """Two tokens in turn, in the first half 3 and 4, in the second 7 and 8."""
    halves = torch.tensor([[3, 4]] * (N // 2) + [[7, 8]] * (N // 2))
    return halves.repeat(1, LENGTH // 2)


PROBES = {"three": ls.Probe(data()[:2]), "seven": ls.Probe(data()[-2:])}
OPTIONS = dict(steps=STEPS, optimisation=FAST, save_at=[6], progress=False)


def made_response() -> xr.Dataset:
    """Observable ``three`` falls with the weight of the first half, ``seven`` with the second's."""
    half = np.repeat([[-1.0, 1.0], [1.0, -1.0]], N // 2, axis=1) * 0.05
    noise = np.random.default_rng(0).normal(size=(6, 2, N)) * 1e-3
    blocks = half + noise - noise.mean(0)
    return stamped(
        xr.Dataset(
            {
                "response": (("observable", "sequence"), half),
                "se": (("observable", "sequence"), blocks.std(0, ddof=1) / 6**0.5),
                "blocks": (("block", "observable", "sequence"), blocks),
                "tokens": (("sequence", "position"), data()[:, 1:].numpy()),
                "group_size": ("sequence", np.ones(N)),
            },
            coords={"observable": ["three", "seven"], "sequence": np.arange(N)},
            attrs={"component": "full", "candidates": "data", "certificate": "certified"},
        ),
        "data_response",
    )


@pytest.fixture(scope="module")
def model():
    return native(n_layers=1)


@pytest.fixture(scope="module")
def checked(model, tmp_path_factory):
    return ls.verify_patterning(
        model, data(), made_response(), {"three": -1.0}, PROBES, seeds=(0, 1), strengths=(-1, 1),
        path=tmp_path_factory.mktemp("verify"), levels={"three": 3.0}, controls=["shuffled"],
        **OPTIONS,
    )  # fmt: skip


def test_values_are_those_of_the_checkpoints(model, tmp_path):
    found = ls.retrainings(
        model, data(), {"usual": None, "threes": np.arange(N) < N // 2}, PROBES, seeds=(0, 1),
        path=tmp_path, **OPTIONS,
    )  # fmt: skip
    assert found["value"].dims == ("checkpoint", "run", "seed", "observable")
    assert found["checkpoint"].values.tolist() == [0, 6, STEPS]
    assert len(ls.plot(found).data) == 8  # runs, seeds, observables
    own = ls.checkpoints(tmp_path / "threes" / "seed-1").load(STEPS)
    with torch.no_grad():
        loss = torch.nn.functional.cross_entropy(
            own(data()[:1, :-1]).transpose(1, 2), data()[:1, 1:]
        )
    last = found["value"].sel(run="threes", seed=1, checkpoint=STEPS)
    assert float(last.sel(observable="three")) == pytest.approx(float(loss), abs=1e-5)
    assert float(last.sel(observable="three")) < float(last.sel(observable="seven"))
    # A worker has the job alone, and finds what is finished.
    job = RetrainJob(
        "threes", save_source(model, tmp_path / "again"), data(), np.arange(N) < N // 2, STEPS,
        1, str(tmp_path / "threes" / "seed-1"), MeanLosses(PROBES), "cpu",
        {"optimisation": FAST, "save_at": [6]},
    )  # fmt: skip
    again = pickle.loads(pickle.dumps(job)).run()
    assert list(again) == [0, 6, STEPS]
    with pytest.raises(ValueError, match=r"holds another retraining \(saved differ\)"):
        ls.retrainings(
            model, data(), {"usual": None}, PROBES, path=tmp_path, **{**OPTIONS, "save_at": [5]}
        )
    with pytest.raises(ValueError, match="retrainings of another model"):
        ls.retrainings(native(n_layers=2), data(), {"new": None}, PROBES, path=tmp_path, **OPTIONS)
    np.testing.assert_allclose(list(again[STEPS].values()), last.values, atol=1e-6)


def test_a_wish_comes_true_and_shuffled_weights_do_not(checked):
    realised = checked["realised"].sel(observable="three")
    assert float(realised.sel(strength=1)) < 0 < float(realised.sel(strength=-1))
    assert float(checked["slope"].sel(observable="three")) > 0
    assert np.isnan(checked["slope"].sel(observable="seven"))
    share = checked["share"].sel(kind="wish")
    np.testing.assert_allclose(share, -realised / checked["strength"], rtol=1e-6)
    assert (checked["excess"].sel(kind="shuffled") > 0).all()
    p = checked["p"].values
    np.testing.assert_array_equal(checked["corrected_p"], holm(p.ravel()).reshape(p.shape))
    assert checked.attrs["strength"] == 1
    # The change is against the usual run of the same seed.
    assert float(np.abs(checked["change"].sel(checkpoint=0)).max()) < 1e-6
    sooner = checked["sooner"].sel(level="three", kind="wish")
    assert (sooner.sel(strength=1) > 0).all() and (sooner.sel(strength=-1) < 0).all()
    assert ls.plot(checked).data


def test_data_left_out_form_late(model, tmp_path):
    found = ls.developmental_ablation(
        model, data(), np.arange(N) >= N // 2, PROBES, {"three": 2.5, "seven": 2.5},
        [(0, 6), (0, STEPS)], seeds=(0, 1), path=tmp_path, **OPTIONS,
    )  # fmt: skip
    formed = found["formed"]
    assert float(formed.sel(level="seven", run=f"0-{STEPS}")) == 0
    assert (formed.sel(run="nothing left out") == 1).all()
    assert np.isinf(found["delay"].sel(level="seven", run=f"0-{STEPS}")).all()
    late = found["delay"].sel(level="seven", run="0-6")
    assert (late > 0).all()
    assert (found["delay"].sel(level="three", run="0-6") <= 0).all()
    assert ls.plot(found).data


def test_surface_controls_keep_length_and_frequency():
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(1, 30, (64, 10), generator=generator)
    ids[:32, 5:] = 0  # short ones
    weight = np.arange(64.0)
    surface = exchanged(weight, ids, ids > 0, "surface", 1)
    assert sorted(surface) == sorted(weight) and (surface != weight).any()
    assert (surface[:32] < 32).all()  # among those of their length
    rows = ids.numpy()
    count = np.log(np.bincount(rows[rows > 0], minlength=30).clip(1))
    mean = (count[rows] * (rows > 0)).sum(1) / (rows > 0).sum(1)
    shuffled = exchanged(weight, ids, ids > 0, "shuffled", 1)
    # A weight names the sequence that it comes from.
    places = np.arange(32, 64), np.flatnonzero(shuffled >= 32)
    apart = [
        np.abs(mean[place] - mean[made[place].astype(int)]).mean()
        for made, place in zip((surface, shuffled), places, strict=True)
    ]
    assert apart[0] < 0.5 * apart[1]


@pytest.mark.parametrize("how", ["pad_id", "attention mask"])
def test_candidates_padded_on_the_left_are_those_of_the_response(model, how):
    """What comes before a text is no text of theirs, nor of the control that keeps its surface."""
    texts = [[5, 3, 4, 3], [5, 7, 8], [5, 9, 6, 2, 1, 4]]
    ids = torch.tensor([[0] * (6 - len(text)) + text for text in texts])
    there = np.array([[0] * (6 - len(text)) + text[1:] for text in texts])
    response = made_response().isel(sequence=slice(3), position=slice(0, 5))
    response["tokens"] = (("sequence", "position"), there)
    attended = {"input_ids": ids, "attention_mask": (ids > 0).long()}
    given, pad_id = (ids, 0) if how == "pad_id" else (attended, None)
    _, real, place = _candidates(model, given, response, None, pad_id)
    assert real.sum(1).tolist() == [4, 3, 6] and place.tolist() == [0, 1, 2]
    assert real[:, 0].all()  # rows are read from their first token on


def test_a_level_is_reached_for_good():
    steps = np.array([0.0, 10, 20, 30])
    assert last_crossing(steps, np.array([-1.0, 1, -1, 3])) == 22.5
    assert last_crossing(steps, np.array([1.0, 1, 1, 1])) == 0
    assert np.isnan(last_crossing(steps, np.array([1.0, 1, 1, -1])))
    assert np.isnan(last_crossing(steps, np.array([1.0, 1, 1, np.nan])))
    assert last_crossing(steps, np.array([np.nan, 1, 1, 1])) == 10


def test_levels_are_of_a_result_that_has_them(checked):
    value = np.array([3.0, 2.0, 1.0])[:, None, None, None]
    coords = {"checkpoint": [0, 10, 20], "run": ["a"], "seed": [0], "observable": ["three"]}
    run = stamped(
        xr.Dataset({"value": (tuple(coords), value)}, coords, {"path": ""}), "retrainings"
    )
    assert ls.reached(run, {"three": 1.5})["step"].item() == 15
    with pytest.raises(ValueError, match="a name in levels must be one of three; got 'thre'"):
        ls.reached(run, {"thre": 1.0})
    with pytest.raises(TypeError, match=r"result must come from retrainings\(…\) or develop"):
        ls.reached(checked, {"three": 1.0})


def test_probes_are_mean_losses_or_are_refused(model, tmp_path):
    ids = data()[:2]
    bare, probe = as_measure({"a": ids})(model), as_measure({"a": ls.Probe(ids)})(model)
    assert bare == probe
    for field, value in (("reference", model), ("observables", "entropy")):
        probes = {"a": ls.Probe(ids, **{field: value})}
        with pytest.raises(ValueError, match=rf"^measure\['a'\] has {field}, .* leave it out"):
            ls.retrainings(model, data(), {"all": None}, probes, path=tmp_path / "x", **OPTIONS)


def test_bad_input_is_refused_before_training(model, tmp_path):
    given = (model, data(), made_response(), {"three": -1.0}, PROBES)
    options = dict(path=tmp_path / "x", **OPTIONS)
    measured = {"three": PROBES["three"]}
    with pytest.raises(ValueError, match="wish: 'seven' is not measured"):
        ls.verify_patterning(*given[:3], {"seven": 1.0}, measured, **options)
    for change, message in (
        (dict(strengths=(0.0,)), "other than 0"), (dict(controls=["none"]), "'none'"),
        (dict(seeds=(1,)), "at least two"),
    ):  # fmt: skip
        with pytest.raises(ValueError, match=message):
            ls.verify_patterning(*given, **options, **change)
    with pytest.raises(ValueError, match="that are others"):
        ls.verify_patterning(model, data().flip(0), *given[2:], **options)
    with pytest.raises(ValueError, match="like must be ints from 0 to 23"):
        ls.verify_patterning(*given, **options, like=[N] * N)
    for without in (np.zeros(N, bool), np.ones(N)):
        with pytest.raises(ValueError, match="without must be"):
            ls.developmental_ablation(model, data(), without, PROBES, {}, [(0, 2)], **options)
    some = np.arange(N) > 3
    with pytest.raises(ValueError, match=r"windows\[0\]\[1\] must be"):
        ls.developmental_ablation(model, data(), some, PROBES, {}, [(4, 4)], **options)
    with pytest.raises(ValueError, match="levels: 'x' is not measured"):
        ls.developmental_ablation(model, data(), some, PROBES, {"x": 1.0}, [(0, 2)], **options)
    with pytest.raises(ValueError, match="'a/b' is a folder"):
        ls.retrainings(model, data(), {"a/b": None}, PROBES, **options)
    with pytest.raises(ValueError, match=r"weights must hold 24 finite numbers"):
        ls.retrainings(model, data(), {"a": None, "b": np.ones(7)}, PROBES, **options)
    assert not (tmp_path / "x").exists()


def test_an_argument_that_is_none_is_named_as_the_caller_gave_it(model, tmp_path):
    with pytest.raises(TypeError, match=r"no argument 'n_seeds'; .*; did you mean 'seeds'\?"):
        ls.retrainings(model, data(), {"all": None}, PROBES, path=tmp_path, steps=2, n_seeds=2)
