"""Choosing checkpoints and writing what the package ships."""

import json
from itertools import pairwise
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from lens_slt.models import forward
from lens_slt.models.ship import choose_checkpoints, is_finished, ship, transition_step, write_card
from lens_slt.models.train import is_checkpoint, shipped_architecture

RECIPE = {
    "n_layers": 2, "seed": 0, "most_steps": 12000, "settle": 1500, "decay": 1500,
    "learning_rate": 3e-3, "betas": [0.9, 0.98], "weight_decay": 0.01, "warmup": 100,
    "batch": 32, "length": 128, "code_share": 0.75, "repeat_share": 0.375,
    "shortest_period": 8, "longest_period": 50,
}  # fmt: skip


def curve(formed: int, last: int) -> list[dict[str, float]]:
    return [
        {"step": s, "loss": 4.0, "first": 6.5, "second": 6.2 if s < formed else 2.0}
        for s in range(0, last + 1, 50)
    ]


def write_run(folder: Path, n_layers: int = 2, last: int = 300) -> None:
    folder.mkdir(parents=True)
    arch = shipped_architecture(n_layers)
    weights = forward.initial_weights(arch, torch.Generator().manual_seed(0))
    for step in range(last + 1):
        if is_checkpoint(step):
            half = {key: tensor.half() for key, tensor in weights.items()}
            save_file(half, folder / f"step-{step:06d}.safetensors")
    training = {"recipe": RECIPE | {"n_layers": n_layers}, "curve": curve(200, last)}
    (folder / "training.json").write_text(json.dumps(training))


def test_transition_is_where_the_second_half_becomes_two_nats_cheaper() -> None:
    assert transition_step(curve(2300, 5000)) == 2300
    assert transition_step(curve(9000, 5000)) is None


@pytest.mark.parametrize("formed", [600, 2300, 5300, 8900])
def test_checkpoints_are_log_spaced_and_dense_around_the_transition(formed: int) -> None:
    last = formed + 3000
    steps = [step for step in range(last + 1) if is_checkpoint(step)]
    chosen = choose_checkpoints(steps, formed)
    assert 16 <= len(chosen) <= 32
    assert (chosen[0], chosen[-1]) == (0, last)
    assert {formed - 400, formed, formed + 400} <= set(chosen)
    ratios = [b / a for a, b in pairwise(chosen[1:])]
    assert max(ratios) <= 3


def test_without_a_transition_they_are_log_spaced() -> None:
    steps = [step for step in range(12001) if is_checkpoint(step)]
    chosen = choose_checkpoints(steps, None)
    assert 16 <= len(chosen) <= 24
    assert (chosen[0], chosen[-1]) == (0, 12000)
    assert choose_checkpoints([], None) == []


def test_a_run_ends_settle_and_decay_after_its_transition() -> None:
    training = {"recipe": RECIPE, "curve": curve(2300, 5300)}
    assert is_finished(training, 5300)
    assert not is_finished(training, 5200)
    assert is_finished({"recipe": RECIPE, "curve": curve(99999, 12000)}, 12000)


def test_missing_and_unfinished_runs_are_named(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_run(tmp_path / "runs" / "attn-2l-seed0")
    write_run(tmp_path / "runs" / "attn-1l", n_layers=1)
    target = tmp_path / "shipped"
    skipped = ship(tmp_path / "runs", target)
    assert skipped == ["attn-2l-seed1", "attn-2l-seed2"]
    said = capsys.readouterr().out
    assert "attn-2l: the run has not ended" in said
    assert "attn-2l-seed1: skipped, " in said
    assert len(list((target / "attn-2l-seed0").glob("step-*"))) >= 10
    assert not list((target / "attn-1l").glob("step-*"))
    write_card(target)
    card = (target / "MODEL_CARD.md").read_text()
    assert "| `attn-2l` | 2 | 0 | 262144 | 300 | 4.000 |" in card
    assert "| `attn-1l` | 1 |" in card
    assert (target / "training-curve.svg").read_text().startswith("<svg")
