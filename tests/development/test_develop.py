"""A sweep over checkpoints gives what each checkpoint gives alone, whatever was interrupted."""

from __future__ import annotations

import json
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pytest
import torch
import xarray as xr

import lens_slt as ls
from lens_slt.development import sweep as sweeps
from lens_slt.development.cells import FINISHED, Drawn, SampleCell
from lens_slt.development.sublosses import sublosses
from lens_slt.sampling.folder import SamplingWarning
from tests.tiny_models import native

SETTINGS = ls.Settings(draws=12, burn_in=3, chains=2, batch_size=4, steps_per_draw=1)
TOKENS = torch.randint(0, 50, (8, 10), generator=torch.Generator().manual_seed(0))
PROBE = torch.randint(0, 50, (6, 9), generator=torch.Generator().manual_seed(1))
NAMES = "L0H1, L1H0, L1H2"


def model_at(step):
    """A run whose weights grow."""
    model = native()
    with torch.no_grad():
        for parameter in torch.nn.Module.parameters(model):
            parameter.mul_(1 + step / 100)
    return model


@dataclass(frozen=True)
class FromFiles:
    """A function of the user's that reads files."""

    folder: Path

    def __call__(self, step):
        model = native()
        model.load_state_dict(torch.load(self.folder / f"step-{step}.pt"))
        return model


def run_of(steps):
    return ls.checkpoints(model_at, steps=steps)


def developed(steps, path, **changes):
    options = dict(settings=SETTINGS, probes={"text": PROBE}, progress=False) | changes
    return ls.develop(run_of(steps), TOKENS, NAMES, path=path, **options)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("sweep") / "run"


@pytest.fixture(scope="module")
def found(folder):
    return developed([0, 5, 20], folder)


def test_curves_are_what_each_checkpoint_gives(found):
    for step in (0, 20):
        model = model_at(step)
        draws = ls.sample(
            model, TOKENS, NAMES, settings=SETTINGS, probes={"text": PROBE}, progress=False
        )
        alone = ls.refined_llc(draws)
        curves = found["refined_llc"].to_dataset().sel(checkpoint=step)
        for name in ("llc", "se", "blocks", "probe_llc", "defect"):
            np.testing.assert_allclose(curves[name], alone[name], rtol=2e-4, atol=1e-5)
        matrix = ls.per_token_llc(draws, "text")
        np.testing.assert_allclose(
            found["per_token_llc/text"]["llc"].sel(checkpoint=step), matrix["llc"], atol=2e-3
        )
        assert list(curves["component"].values) == NAMES.split(", ")
        norm = torch.cat(
            [w.flatten() for key in "QKVO" for w in [getattr(model.blocks[1].attn, f"W_{key}")[2]]]
            + [getattr(model.blocks[1].attn, f"b_{key}")[2] for key in "QKV"]
        ).norm()
        assert float(curves["weight_norm"].sel(component="L1H2")) >= 0.9 * float(norm)


def test_sublosses_are_plain_losses(found):
    model = model_at(5)
    with torch.no_grad():
        logits = model(PROBE[:, :-1])
    loss = torch.nn.functional.cross_entropy(
        logits.flatten(0, 1), PROBE[:, 1:].flatten(), reduction="none"
    )
    losses = found["sublosses"]["loss"].sel(checkpoint=5, probe="text")
    assert float(losses.sel(pattern="all")) == pytest.approx(float(loss.mean()), rel=1e-4)
    repeats = ls.label_patterns(PROBE, tokenizer=None).sel(pattern="induction").values.ravel()
    if repeats.any():
        told = float(losses.sel(pattern="induction"))
        assert told == pytest.approx(float(loss.numpy()[repeats].mean()), rel=1e-4)
    blocks = found["sublosses"]["blocks"].sel(checkpoint=5, probe="text", pattern="all")
    assert float(blocks.mean()) == pytest.approx(float(loss.mean()), rel=1e-3)


def test_more_checkpoints_join_and_nothing_is_done_twice(found, folder, monkeypatch):
    ran = []
    run = SampleCell.run
    monkeypatch.setattr(SampleCell, "run", lambda cell: ran.append(cell.step) or run(cell))
    more = developed([0, 5, 10, 20], folder)
    assert set(ran) == {10}
    assert list(more["refined_llc"]["checkpoint"].values) == [0, 5, 10, 20]
    again = more["refined_llc"]["llc"].sel(checkpoint=[0, 5, 20])
    np.testing.assert_array_equal(again, found["refined_llc"]["llc"])
    opened = ls.open_development(folder)
    np.testing.assert_array_equal(opened["refined_llc"]["llc"], more["refined_llc"]["llc"])


def test_a_file_that_changed_is_sampled_again_and_said(tmp_path, monkeypatch):
    def saved(step, factor):
        weights = {name: factor * w for name, w in model_at(step).state_dict().items()}
        torch.save(weights, tmp_path / "weights" / f"step-{step}.pt")

    (tmp_path / "weights").mkdir()
    for step in (0, 5, 20):
        saved(step, 1.0)
    ran = []
    run = SampleCell.run
    monkeypatch.setattr(SampleCell, "run", lambda cell: ran.append(cell.step) or run(cell))

    def swept():
        checkpoints = ls.checkpoints(FromFiles(tmp_path / "weights"), steps=[0, 5, 20])
        return ls.develop(
            checkpoints, TOKENS, "L1H0", settings=SETTINGS, path=tmp_path / "run",
            behaviour=False, progress=False,
        )  # fmt: skip

    first = swept()["refined_llc"]["llc"].load()
    ran.clear()
    saved(5, 1.1)
    with pytest.warns(SamplingWarning, match="checkpoints 5 have other weights.*sampled again"):
        second = swept()["refined_llc"]["llc"].load()
    assert set(ran) == {5}
    same = (first == second).all("component").values.tolist()
    assert same == [True, False, True]


def test_another_sweep_is_refused(found, folder):
    with pytest.raises(ValueError, match="another sweep.*settings"):
        developed([0, 5], folder, settings=SETTINGS.but(gamma=100))
    with pytest.raises(ValueError, match="another sweep.*probes"):
        developed([0, 5], folder, probes={})


@pytest.mark.slow
def test_half_a_store_is_begun_anew(tmp_path, monkeypatch):
    """A worker that was lost while it wrote: its part is repeated, and the result is the same."""
    place = tmp_path / "torn"
    whole = developed([0, 5], place, keep_draws=True).load()
    [cell] = list((place / "step-00000005").glob("draws-*"))[:1]
    (place / "step-00000005" / FINISHED).unlink()
    (cell / "state.safetensors").unlink(missing_ok=True)
    for file in list(cell.rglob("c/0/0/0"))[:1]:
        file.write_bytes(b"")
    torn = developed([0, 5], place)
    np.testing.assert_array_equal(torn["refined_llc"]["llc"], whole["refined_llc"]["llc"])


@pytest.mark.slow
def test_a_coarse_step_is_made_finer_at_every_checkpoint(tmp_path, monkeypatch):
    """One checkpoint's certificate decides for the component, at all."""
    settings = replace(SETTINGS, steps_per_draw=None)
    monkeypatch.setattr(
        Drawn, "is_coarse", lambda one, scale: one.stride < 4 and one.llc == min_llc(one)
    )
    worst = []

    def min_llc(one):
        worst.append(one.llc)
        return max(worst)

    found = developed([0, 5], tmp_path / "run", settings=settings)
    strides = json.loads((tmp_path / "run" / sweeps.STRIDES).read_text())
    steps = found["refined_llc"]["steps_per_draw"]
    assert max(strides.values()) >= 2
    for name, stride in strides.items():
        assert (steps.sel(component=name) == stride).all()


def test_biases_count_relative_to_the_curve():
    """At λ̂ ≈ 0 a small defect is a large share of it, and does not matter."""
    assert not Drawn(1, 0.01, 0.4, 0.01).is_coarse(10.0)
    assert Drawn(1, 0.01, 4.0, 0.01).is_coarse(10.0)
    assert Drawn(1, float("nan"), 0.0, 0.0).is_coarse(10.0)


@pytest.mark.slow
def test_other_localizations(tmp_path):
    """A tighter prior holds more, at each of the checkpoints that were taken."""
    found = developed([0, 20], tmp_path / "run", gammas=[2000.0], behaviour=False)
    tight, given = found["gamma/2000"]["llc"], found["refined_llc"]["llc"]
    assert tight.dims == given.dims
    assert (abs(tight) < abs(given)).mean() > 0.5
    assert json.loads(found["gamma/2000"].attrs["settings"])["gamma"] == 2000


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        (dict(settings=ls.Settings(target_se=0.1)), "target_se"),
        (dict(patterns={"nothing": None}), "a name in patterns"),
        (dict(gammas=[300.0, -1.0]), r"gammas\[1\] must be a finite number above 0"),
        (dict(gammas=[300.0, 300.0]), "gammas names a value twice"),
        (dict(settings=SETTINGS.but(batch_size=64)), "batch"),
    ],
)
def test_bad_arguments(changes, said):
    with pytest.raises(ValueError, match=said):
        developed([0, 5], None, **changes)


def test_one_checkpoint_is_refused():
    with pytest.raises(ValueError, match="at least two"):
        developed([5], None)


def test_labels_that_have_a_pattern_all_make_no_second_row():
    everything = xr.DataArray(
        np.ones((2, 4, 5), bool), dims=("pattern", "sequence", "position"),
        coords={"pattern": ["all", "code"]},
    )  # fmt: skip
    losses = {"text": np.arange(20.0).reshape(4, 5)}
    found = sublosses(losses, {"text": np.ones((4, 5))}, {"text": everything}, "")
    assert found["pattern"].values.tolist() == ["all", "code"]
    np.testing.assert_allclose(found["loss"], 9.5)
