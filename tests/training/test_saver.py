"""Schedules and the saver: which steps, that weights come back, where the loss bends, bad input."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file
from torch import nn

import lens_slt as ls
from lens_slt.models.adapter import adapt, weights_hash
from lens_slt.training import saver as saver_module
from lens_slt.training.saver import save_weights
from lens_slt.training.schedule import LossCurve, least_bend
from tests.tiny_models import has_hooked_transformer, hooked, native, wrapped_gpt2

WEIGHTS = {"embed.weight": torch.arange(6.0).reshape(2, 3) / 7}
only_hooked = pytest.mark.skipif(
    not has_hooked_transformer(), reason="HookedTransformer was removed in 4.0"
)


@pytest.mark.parametrize("spacing", ["log", "linear", "both"])
def test_schedules_are_as_many_different_steps_as_asked_for(spacing: Any) -> None:
    for n_steps in (1, 2, 5, 37, 1000, 143_000):
        for n in (2, 3, 6, 24, 100):
            if n <= n_steps + 1:
                steps = ls.checkpoint_schedule(n_steps, n=n, spacing=spacing)
                assert len(set(steps)) == n
                assert steps == sorted(steps)
                assert (steps[0], steps[-1]) == (0, n_steps)
                assert all(type(step) is int for step in steps)


def test_spacings() -> None:
    linear = np.diff(ls.checkpoint_schedule(10_000, n=41, spacing="linear"))
    assert (linear == 250).all()
    log = ls.checkpoint_schedule(10**6, n=26, spacing="log")
    assert log[1] == 1
    ratios = np.array(log[10:]) / log[9:-1]
    assert ratios.max() / ratios.min() < 1.2
    both = ls.checkpoint_schedule(10**6, n=26)
    assert np.diff(both).max() < 0.25 * np.diff(log).max()  # no long gap at the end
    assert sum(step < 1000 for step in both) >= 5  # and not empty at the start


@pytest.mark.parametrize(
    ("n_steps", "n", "spacing", "message"),
    [
        (0, 5, "log", r"n_steps must be an integer of at least 1; got 0"),
        (10, 12, "log", r"n must be an integer from 2 to 11 \(0 to n_steps\); got 12"),
        (10, 1, "log", r"n must be an integer from 2"),
        (
            10,
            5,
            "lin",
            r"spacing must be one of log, linear, both; got 'lin'; did you mean 'linear",
        ),
    ],
)
def test_schedules_that_cannot_be(n_steps: int, n: int, spacing: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        ls.checkpoint_schedule(n_steps, n=n, spacing=spacing)


@pytest.mark.parametrize(
    "make",
    [
        native,
        pytest.param(hooked, marks=only_hooked),
        pytest.param(partial(hooked, normalization_type=None), marks=only_hooked),
    ],
    ids=["native", "hooked", "no norm"],
)
@pytest.mark.parametrize("precision", ["half", "full"])
def test_what_is_saved_comes_back_without_a_config(
    make: Callable[[], Any], precision: Any, tmp_path: Path
) -> None:
    model = make()
    saver = ls.CheckpointSaver(tmp_path / "run", [0, 5, 9], precision=precision)
    weights = {}
    for step in range(10):
        saver(step, model)
        weights[step] = {k: w.clone() for k, w in model.state_dict().items()}
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.mul_(1.1)
    series = ls.checkpoints(tmp_path / "run")
    assert series.steps == (0, 5, 9)
    for step in series:
        found = series.load(step, "cpu").state_dict()
        for name, w in found.items():
            expected = weights[step][name]
            half = (
                precision == "half" and expected.is_floating_point() and expected.isfinite().all()
            )
            torch.testing.assert_close(
                w, expected.half().float() if half else expected, rtol=0, atol=0
            )
    assert series.check() == {}


def test_a_whole_model_in_full_precision_is_the_same_model(tmp_path: Path) -> None:
    model = ls.load_model("attn-1l", device="cpu")
    ls.CheckpointSaver(tmp_path, [3], precision="full")(3, model)
    again = ls.checkpoints(tmp_path).load(3, "cpu")
    assert weights_hash(adapt(again)) == weights_hash(adapt(model))
    text = "def f(x):\n    return x"  # its tokenizer lies beside it
    assert torch.equal(again.to_tokens(text), model.to_tokens(text))


def test_models_within_others_and_state_dicts(tmp_path: Path) -> None:
    class Parallel(nn.Module):
        def __init__(self, module: nn.Module) -> None:
            super().__init__()
            self.module = module

    model: Any = native()
    config = model.cfg
    ls.CheckpointSaver(tmp_path / "a", [0])(0, Parallel(model))
    ls.CheckpointSaver(tmp_path / "b", [0], config=config)(0, dict(model.state_dict()))
    digests = {weights_hash(adapt(ls.checkpoints(tmp_path / name).load(0, "cpu"))) for name in "ab"}
    assert len(digests) == 1
    ls.CheckpointSaver(tmp_path / "c", [0])(0, dict(model.state_dict()))
    with pytest.raises(ValueError, match="config must be given"):
        ls.checkpoints(tmp_path / "c")
    assert ls.checkpoints(tmp_path / "c", config=config).steps == (0,)


def test_values_beyond_half_precision_stay_whole(tmp_path: Path) -> None:
    weights = {"large": torch.tensor([1.0, 1e6]), "small": torch.tensor([1.0, 3.0])}
    save_weights(weights, tmp_path / "w.safetensors")
    found = load_file(tmp_path / "w.safetensors")
    assert found["large"].dtype == torch.float32
    assert found["small"].dtype == torch.float16
    assert all(torch.equal(found[name].float(), w) for name, w in weights.items())


def test_a_step_that_is_passed_by_is_saved_at_the_next_call(tmp_path: Path) -> None:
    saver = ls.CheckpointSaver(tmp_path, [0, 1, 7, 25, 30], extra=0)
    written = [step for step in range(0, 31, 10) if saver(step, WEIGHTS)]
    assert written == [0, 10, 30]
    assert saver.kept == dict.fromkeys(written, "schedule")


def train(saver: ls.CheckpointSaver, curve: Callable[[int], float], noise: float = 0.05) -> None:
    """The calls of a training loop whose expected loss is a given curve."""
    generator = np.random.default_rng(0)
    for step in range(saver.schedule[-1] + 1):
        saver(step, WEIGHTS, curve(step) + noise * generator.standard_normal())
        n = len(list(saver.folder.glob("step-*.safetensors")))
        assert n <= len(saver.schedule) + saver.extra
        assert n == len(saver.kept)


def smooth(step: int) -> float:
    """A power law: no bend in log(step) is sharper than another by much."""
    return 2 + 4 * (1 + step) ** -0.15


def dropping(step: int) -> float:
    """The same, with a drop of 1.5 nats at 1200, 90 % of it between about 1060 and 1360."""
    return smooth(step) - 1.5 / (1 + math.exp(-(math.log(1 + step) - math.log(1200)) / 0.04))


def test_checkpoints_are_dense_where_the_loss_bends(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(saver_module, "save_weights", lambda w, path, *rest: path.write_bytes(b"x"))
    schedule = ls.checkpoint_schedule(5000, n=12, spacing="log")
    found = {}
    for name, curve in (("drop", dropping), ("smooth", smooth)):
        saver = ls.CheckpointSaver(tmp_path / name, schedule, extra=12)
        train(saver, curve)
        found[name] = [step for step, why in saver.kept.items() if why == "bend"]
        assert set(schedule) <= set(saver.kept)
    near = [step for step in found["drop"] if 900 <= step <= 1600]
    assert len(near) >= 6  # of 12; the drop is a fifteenth of log(5000)
    around = [step for step in found["smooth"] if 900 <= step <= 1600]
    assert len(around) <= 3
    assert "12 where the loss bends (steps" in repr(saver)


def test_least_bend_is_that_of_least_area() -> None:
    steps = [0, 9, 99, 999, 9999]  # at 0, 1, 2, 3, 4 decades
    loss = {0: 5.0, 9: 4.0, 99: 2.9, 999: 2.0, 9999: 0.0}
    with_errors = {step: (value, 0.0) for step, value in loss.items()}
    # Distances from the line between neighbours: 0.05, 0.1 and 0.55.
    assert least_bend(steps, [9, 99, 999], with_errors) == 9
    assert least_bend(steps, [99, 999], with_errors) == 99
    assert least_bend(steps, [0, 9999], with_errors) is None
    noisy = with_errors | {99: (2.9, 1.0), 9: (4.0, 1.0)}  # bends within the noise are none:
    assert least_bend([0, 9, 60, 99, 999, 9999], [9, 60, 99, 999], noisy) == 60  # narrowest gap


def test_the_loss_around_a_step_has_the_error_of_a_mean() -> None:
    generator = np.random.default_rng(1)
    scores, errors = [], []
    for _ in range(200):
        curve = LossCurve()
        for step in range(400):
            curve.add(step, 3 - 0.001 * step + generator.normal(0, 0.2))
        mean, error = curve.at(300)  # type: ignore[misc]
        scores.append((mean - 2.7) / error)
        errors.append(error)
    assert np.mean(np.square(errors)) == pytest.approx(0.2**2 / 31, rel=0.1)
    assert 0.85 < np.std(scores) < 1.2
    assert abs(np.mean(scores)) < 0.25
    curve.add(401, math.nan)
    assert curve.steps[-1] == 399
    assert LossCurve().at(5) is None


def test_bytes_are_bounded(tmp_path: Path) -> None:
    schedule = [0, 10, 100, 1000]
    ls.CheckpointSaver(tmp_path / "one", [0])(0, WEIGHTS)
    size = next((tmp_path / "one").glob("*.safetensors")).stat().st_size
    most = 7 * size + 100  # sizes differ by the digits of losses
    saver = ls.CheckpointSaver(tmp_path / "two", schedule, extra=50, most_bytes=most)
    for step in range(1001):
        saver(step, WEIGHTS, smooth(step))
        assert sum(p.stat().st_size for p in (tmp_path / "two").glob("*.safetensors")) <= most
    assert set(schedule) <= set(saver.kept)
    assert list(saver.kept.values()).count("bend") >= 2
    tight = ls.CheckpointSaver(tmp_path / "three", schedule, most_bytes=3 * size)
    with pytest.raises(
        ValueError, match=r"most_bytes: the 4 steps of the schedule need \d+ bytes; "
    ):
        tight(0, WEIGHTS)
    assert not list((tmp_path / "three").iterdir())


def test_a_kill_leaves_no_half_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    saver = ls.CheckpointSaver(tmp_path, [0, 1])
    saver(0, WEIGHTS)

    def killed(tensors: Any, path: Path, noted: Any) -> None:
        path.write_bytes(b"half")
        raise KeyboardInterrupt

    monkeypatch.setattr(saver_module, "save_file", killed)
    with pytest.raises(KeyboardInterrupt):
        saver(1, WEIGHTS)
    assert [path.name for path in tmp_path.iterdir()] == ["step-000000.safetensors"]


def test_a_saver_goes_on_in_its_folder(tmp_path: Path) -> None:
    schedule = [0, 10, 40, 100]
    first = ls.CheckpointSaver(tmp_path, schedule, extra=4)
    for step in range(60):
        first(step, WEIGHTS, smooth(step))
    second = ls.CheckpointSaver(tmp_path, schedule, extra=4)
    assert second.kept == first.kept
    for step in range(41, 101):
        second(step, WEIGHTS, smooth(step))
    assert set(schedule) <= set(second.kept)
    assert list(second.kept.values()).count("bend") == 4
    files = {int(path.stem[5:]) for path in tmp_path.glob("step-*")}
    assert files == set(second.kept)
    with safe_open(tmp_path / "step-000040.safetensors", framework="pt") as file:
        noted = file.metadata()
    assert noted["why"] == "schedule"
    mean, error = json.loads(noted["loss"])
    assert mean == pytest.approx(smooth(39), abs=0.1)
    assert error >= 0


def test_another_model_in_the_folder(tmp_path: Path) -> None:
    ls.CheckpointSaver(tmp_path, [0, 1])(0, native())
    with pytest.raises(
        ValueError, match=r"holds checkpoints of another model \(d_vocab.* differ\)"
    ):
        ls.CheckpointSaver(tmp_path, [0, 1])(0, native(d_vocab=60))
    torch.save({}, tmp_path / "step-1.safetensors")
    with pytest.raises(ValueError, match=r"step-1.safetensors' is no checkpoint of this class"):
        ls.CheckpointSaver(tmp_path, [0, 1])


def test_bad_arguments(tmp_path: Path) -> None:
    for schedule, message in (
        ([], "schedule must hold at least one step"),
        ([0, 5, 5], r"schedule\[2\] must be an integer of at least 6 \(steps rise\); got 5"),
        ([0, "5"], r"schedule\[1\] must be an integer"),
    ):
        with pytest.raises(ValueError, match=message):
            ls.CheckpointSaver(tmp_path, schedule)
    with pytest.raises(ValueError, match="precision must be one of half, full; got 'double'"):
        ls.CheckpointSaver(tmp_path, [0], precision="double")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="extra must be an integer of at least 0; got -1"):
        ls.CheckpointSaver(tmp_path, [0], extra=-1)
    saver = ls.CheckpointSaver(tmp_path, [0, 1, 2])
    saver(1, WEIGHTS)
    with pytest.raises(
        ValueError, match=r"step must be an integer of at least 2 \(steps rise from"
    ):
        saver(1, WEIGHTS)
    with pytest.raises(TypeError, match="model must be a model or a state dict; got list"):
        saver(2, [1.0])  # type: ignore[arg-type]


def test_hugging_face_models_are_told_how(tmp_path: Path) -> None:
    model: Any = wrapped_gpt2()
    for one in (model, model.original_model):
        saver = ls.CheckpointSaver(tmp_path, [0])
        with pytest.raises(ValueError, match=r"wraps, a Hugging Face model, .* save_pretrained\(f"):
            saver(0, one)
    assert not [name for name in os.listdir(tmp_path) if name.endswith(".safetensors")]
