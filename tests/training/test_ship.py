"""Choosing checkpoints and writing what the package ships."""

import json
import math
from itertools import pairwise
from pathlib import Path

import pytest
import torch
import xarray as xr
from safetensors.torch import save_file

from lens_slt.circuits.hypothesis import Edge
from lens_slt.models.shipped import load_model, shipped_architecture, shipped_weights
from lens_slt.training.ship import (
    choose_checkpoints,
    is_finished,
    ship,
    transition_step,
    write_card,
)
from lens_slt.training.ship_card import Trained, model_card, training_figure
from lens_slt.training.ship_circuits import SITUATIONS, Circuits, Effect, Stage, circuits, stage
from lens_slt.training.train import initial_weights, is_checkpoint

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


def write_run(folder: Path, n_layers: int = 2, mlps: bool = False, last: int = 300) -> None:
    folder.mkdir(parents=True)
    arch = shipped_architecture(n_layers, mlps)
    weights = initial_weights(arch, torch.Generator().manual_seed(0))
    for step in range(last + 1):
        if is_checkpoint(step):
            half = {key: tensor.half() for key, tensor in weights.items()}
            save_file(half, folder / f"step-{step:06d}.safetensors")
    training = {"recipe": RECIPE | {"n_layers": n_layers}, "curve": curve(200, last)}
    (folder / "training.json").write_text(json.dumps(training))


def test_transition_is_where_the_second_half_becomes_two_nats_cheaper() -> None:
    assert transition_step(curve(2300, 5000)) == 2300
    assert transition_step(curve(9000, 5000)) is None


@pytest.mark.parametrize("most", [20, 32])
@pytest.mark.parametrize("formed", [600, 2300, 5300])
def test_checkpoints_are_log_spaced_and_dense_in_the_transition(formed: int, most: int) -> None:
    last = formed + 3000
    steps = [step for step in range(last + 1) if is_checkpoint(step)]
    falling = curve(formed, last)
    for point in falling:  # by 4 nats in 400 steps
        point["second"] = 6.2 - 4 / (1 + math.exp((formed - point["step"]) / 70))
    chosen = choose_checkpoints(steps, falling, most)
    assert len(chosen) == most
    assert (chosen[0], chosen[-1]) == (0, last)
    assert sum(abs(step - formed) <= 200 for step in chosen) >= most / 4
    assert sum(0 < step < 100 for step in chosen) >= most / 5
    assert max(b / a for a, b in pairwise(chosen[1:])) <= 5


def test_noise_of_the_curve_is_no_transition() -> None:
    steps = [step for step in range(12001) if is_checkpoint(step)]
    restless = curve(99999, 12000)
    for point in restless[100:]:
        point["second"] += 0.5 * math.sin(point["step"])
    chosen = choose_checkpoints(steps, restless, 20)
    assert sum(step > 6000 for step in chosen) <= 5
    assert choose_checkpoints([], restless, 20) == []
    assert choose_checkpoints([0, 50], restless, 20) == [0, 50]


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
    write_run(tmp_path / "runs" / "gelu-4l", n_layers=4, mlps=True)
    target = tmp_path / "shipped"
    skipped = ship(tmp_path / "runs", target)
    assert skipped == ["attn-2l-seed1", "attn-2l-seed2"]
    said = capsys.readouterr().out
    assert "attn-2l: the run has not ended" in said
    assert "attn-2l-seed1: skipped, " in said
    assert len(list((target / "attn-2l-seed0").glob("step-*"))) >= 10
    assert not list((target / "attn-1l").glob("step-*"))
    steps = [path.stem for path in sorted((target / "gelu-4l").glob("step-*"))]
    assert (steps[0], steps[-1]) == ("step-000000", "step-000300")


def test_a_card_of_what_was_shipped(tmp_path: Path) -> None:
    write_run(tmp_path / "runs" / "attn-1l", n_layers=1)
    ship(tmp_path / "runs", tmp_path)
    write_card(tmp_path)
    card = (tmp_path / "MODEL_CARD.md").read_text()
    assert "| `attn-1l` | 1 | 0 | 196608 | 300 | 4.000 |" in card
    assert "`attn-2l-seed1`" not in card
    assert (tmp_path / "training-curve.svg").read_text().startswith("<svg")


def test_the_card_shows_circuits_and_transitions() -> None:
    def effects(repeats: float) -> dict[str, Effect]:
        return dict(
            zip(SITUATIONS, (Effect(repeats, 0.1), Effect(0, 0), Effect(0, 0)), strict=True)
        )

    measured = {"L0H0": 1.0, "L1H1": 2.0, "L1H0": 0.0, "L0MLP": 3.0}
    found = Circuits(
        head_types={"L0H0": "previous token", "L1H1": "induction", "L1H0": "other"},
        components={name: effects(repeats) for name, repeats in measured.items()},
        induction_heads=effects(2.5),
        edges={Edge("L0H0", "L1H1", "K"): Effect(0.9, 0.05)},
        together={"L0H0": {"Q": Effect(0, 0), "K": Effect(1.5, 0.25), "V": Effect(0, 0)}},
    )
    scores = xr.Dataset(
        {name: ("component", [0.6, 0.1]) for name in ("previous_token", "prefix_matching")},
        {"component": ["L0H0", "L1H1"]},
    )
    stages = [Stage(step, 4.0, 6.5, 6.0, ("L0H0", 0.6), ("L1H1", 0.25)) for step in (0, 100)]
    model = Trained("tiny", RECIPE, curve(200, 300), 100, 6.5, 2.0, 200, scores, found, stages)
    card = model_card([model], 10**6)
    assert "| all induction heads | induction | 2.50 ± 0.10 | 0.00 ± 0.00 | 0.00 ± 0.00 |" in card
    rows = [line for line in card.splitlines() if line.startswith("| L")]
    assert rows[0] == "| L0MLP | MLP | 3.00 ± 0.10 | 0.00 ± 0.00 | 0.00 ± 0.00 |"
    assert [row.split()[1] for row in rows[:4]] == ["L0MLP", "L1H1", "L0H0", "L1H0"]
    assert rows[4] == "| L0H0→L1H1.K | previous token | 0.90 ± 0.05 |"
    assert rows[5] == "| L0H0 | previous token | 0.00 ± 0.00 | 1.50 ± 0.25 | 0.00 ± 0.00 |"
    assert "| 100 | 4.00 | 6.50 | 6.00 | L0H0 0.60 | L1H1 0.25 |" in card
    assert "| `tiny` | L0H0 | 0.60 | 0.60 |" in card
    assert "| `tiny` | L1H1 |" not in card
    assert training_figure([model]).count("v-7") == 2  # a tick a checkpoint


@pytest.mark.slow
def test_ablations_find_the_induction_circuit() -> None:
    found = circuits(load_model("attn-2l", device="cpu"), sequences=4)
    assert found.head_types["L0H2"] == "previous token"
    assert found.head_types["L1H2"] == "induction"
    assert next(iter(found.edges)) == Edge("L0H2", "L1H2", "K")
    repeats = {name: effects["repeats"].mean for name, effects in found.components.items()}
    assert sorted(repeats, key=repeats.__getitem__)[-2:] == ["L1H2", "L0H2"]
    assert found.induction_heads is not None
    assert found.induction_heads["repeats"].mean > repeats["L1H2"]
    keys = {name: effects["K"] for name, effects in found.together.items()}
    assert keys["L0H2"].mean > 4
    assert 0 < keys["L0H2"].se < 0.5
    assert all(effect.mean < 2 for name, effect in keys.items() if name != "L0H2")


def test_stages_know_what_a_checkpoint_can_do() -> None:
    before, after = (stage(step, shipped_weights("attn-2l", step), 2) for step in (0, 5300))
    assert before.first - before.second < 0.2 < 2 < after.first - after.second
    assert before.text > 6 > 3 > after.text
    assert before.prefix[1] < 0.1 < 0.5 < after.prefix[1]
    assert (after.previous[0], after.prefix[0]) == ("L0H2", "L1H2")
