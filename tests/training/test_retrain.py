"""Training on: an own loop gives the same, weights change what is drawn, runs go on."""

from __future__ import annotations

from copy import deepcopy

import numpy as np
import pytest
import torch

import lens_slt as ls
from lens_slt.models.adapter import adapt, weights_hash
from lens_slt.training.retrain import _Draws, _Loop
from tests.tiny_models import TINY_MODELS, native

N = 12
QUICK = ls.Optimisation(batch_size=4, learning_rate=1e-2, warmup=2)


def data(seed: int = 0) -> torch.Tensor:
    return torch.randint(1, 49, (N, 8), generator=torch.Generator().manual_seed(seed))


def test_weights_are_how_often_a_sequence_is_drawn():
    weight = np.array([4.0, 2.0, 1.0, 0.0, 1.0])
    draws = _Draws({0: weight}, 50, 3)
    counts = np.bincount(torch.cat([draws.at(step) for step in range(80)]).numpy(), minlength=5)
    expected = weight / weight.sum() * 4000
    assert counts[3] == 0
    chi = ((counts - expected)[weight > 0] ** 2 / expected[weight > 0]).sum()
    assert chi < 16.3  # 3 degrees of freedom, p = 0.001
    # The same seed: a small change of weights leaves most of a batch as it was.
    other = _Draws({0: weight * [1, 1, 1.2, 1, 1]}, 50, 3)
    same = np.mean([float((draws.at(s) == other.at(s)).float().mean()) for s in range(80)])
    assert 0.9 < same < 1
    # So does one large weight of many: what two distributions have in common is shared.
    heavy = np.ones(200)
    heavy[0] = 40
    even, odd = (_Draws({0: w}, 50, 3) for w in (np.ones(200), heavy))
    same = np.mean([float((even.at(s) == odd.at(s)).float().mean()) for s in range(80)])
    assert 0.78 < same < 0.87  # 1 − 0.5·Σ|p − q| = 0.837; standard error 0.006
    windows = _Draws({0: weight, 5: np.eye(5)[3]}, 4, 3)
    assert windows.at(5).tolist() == [3] * 4 and 3 not in windows.at(4).tolist()


@pytest.mark.parametrize("name", ["native_llama_like", "native_rotary"])
def test_the_loop_is_adamw_on_those_sequences(name, tmp_path):
    model = TINY_MODELS[name]()
    before = weights_hash(adapt(model))
    run = ls.retrain(
        model, data(), steps=3, path=tmp_path / "run", start=10, save_at=[11], seed=1,
        optimisation=QUICK, progress=False,
    )  # fmt: skip
    assert run.steps == (10, 11, 13)
    assert weights_hash(adapt(model)) == before == weights_hash(adapt(run.load(10)))
    own = deepcopy(model)
    parameters = list(own.parameters())
    for p in parameters:
        p.requires_grad_(True)
    optimizer = torch.optim.AdamW(parameters, lr=1e-2, betas=(0.9, 0.98), weight_decay=0.01)
    draws = _Draws({0: np.ones(N)}, 4, 1)
    for step in range(3):
        optimizer.param_groups[0]["lr"] = 1e-2 * min(1, (step + 1) / 2)
        optimizer.zero_grad()
        own(data()[draws.at(step)], return_type="loss").backward()
        optimizer.step()
    tokens = data(5)
    with torch.no_grad():
        here, there, start = (
            float(one(tokens, return_type="loss")) for one in (own, run.load(13), model)
        )
    assert there == pytest.approx(here, abs=1e-4) and abs(here - start) > 0.01


def test_an_interrupted_run_goes_on_as_if_nothing_had_been(tmp_path, monkeypatch):
    options = {"steps": 6, "save_at": [2, 4], "optimisation": QUICK, "progress": False}
    whole = ls.retrain(native(), data(), path=tmp_path / "whole", **options)
    update = _Loop._update

    def interrupted(self, step):
        if step == 5:
            raise KeyboardInterrupt
        update(self, step)

    monkeypatch.setattr(_Loop, "_update", interrupted)
    with pytest.raises(KeyboardInterrupt):
        ls.retrain(native(), data(), path=tmp_path / "parts", **options)
    monkeypatch.setattr(_Loop, "_update", update)
    parts = ls.retrain(native(), data(), path=tmp_path / "parts", **options)
    assert parts.steps == whole.steps == (0, 2, 4, 6)
    assert weights_hash(adapt(parts.load(6))) == weights_hash(adapt(whole.load(6)))
    again = ls.retrain(native(), data(), path=tmp_path / "parts", **options)  # finished: it is read
    assert again.steps == parts.steps
    with pytest.raises(ValueError, match="another retraining .weights differ"):
        ls.retrain(native(), data(), np.arange(N), path=tmp_path / "parts", **options)


def test_a_trainer_of_ones_own(tmp_path):
    def trainer(model, batches, save):
        for p in model.parameters():
            p.requires_grad_(True)
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        for step, batch in enumerate(batches):
            save(step, model)
            optimizer.zero_grad()
            model(batch, return_type="loss").backward()
            optimizer.step()
        save(step + 1, model)

    options = {"steps": 4, "save_at": [2], "optimisation": QUICK, "progress": False}
    run = ls.retrain(native(), data(), path=tmp_path / "a", trainer=trainer, **options)
    assert run.steps == (0, 2, 4)
    hashes = {weights_hash(adapt(run.load(step))) for step in run.steps}
    assert len(hashes) == 3
    with pytest.raises(ValueError, match="trainer ended without its last checkpoint"):
        ls.retrain(
            native(), data(), path=tmp_path / "b", trainer=lambda m, b, s: s(0, m), **options
        )


def test_bad_input(tmp_path):
    def refused(match, weights=None, error=ValueError, **options):
        with pytest.raises(error, match=match):
            ls.retrain(native(), data(), weights, path=tmp_path / "x",
                       **({"steps": 2, "progress": False} | options))  # fmt: skip

    refused(rf"weights must hold {N} finite numbers ≥ 0", np.ones(3))
    refused(r"weights must hold .* from -1", -np.ones(N))
    refused("leaves no sequence", np.zeros(N))
    refused("must say what holds from step 0; it begins at 1", {1: np.ones(N)})
    refused(r"save_at\[0\] must be an integer from 0 to 2", save_at=[5])
    refused("steps must be an integer", steps=0)
    with pytest.raises(FloatingPointError, match="lower learning_rate"):
        ls.retrain(native(), data(), steps=50, path=tmp_path / "y", progress=False,
                   optimisation=ls.Optimisation(learning_rate=1e30, warmup=0))  # fmt: skip
