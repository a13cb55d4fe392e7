"""The command line's own models and position weights, from files and data sets."""

from __future__ import annotations

import json
import re
from dataclasses import fields
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from click.testing import Result
from typer.testing import CliRunner

import lens_slt as ls
from lens_slt import cli, cli_commands
from lens_slt.cli_options import OfText
from lens_slt.cli_support import load_weighted
from lens_slt.data.inputs import read_inputs
from tests.tiny_models import SIZES, native

CONFIG = {**SIZES, "attn_only": True}
TINY = ("--batch-size", "2", "--draws", "6", "--burn-in", "2", "--chains", "2")


def call(*arguments: str | Path) -> Result:
    return CliRunner().invoke(cli.app, [str(argument) for argument in arguments])


@pytest.fixture(scope="module")
def mine(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model of one's own, tokens for it, and weights of theirs."""
    folder = tmp_path_factory.mktemp("mine")
    torch.save(dict(native(**CONFIG).state_dict()), folder / "mine.pt")
    (folder / "config.json").write_text(json.dumps(CONFIG))
    tokens = torch.randint(1, 49, (6, 10), generator=torch.Generator().manual_seed(0))
    np.save(folder / "tokens.npy", tokens.numpy())
    weights = torch.rand(6, 9, generator=torch.Generator().manual_seed(1))
    torch.save(weights, folder / "weights.pt")
    rows = [
        {"input_ids": row[: 4 + i].tolist(), "answer": [0] * (3 + i) + [1]}
        for i, row in enumerate(tokens)
    ]
    (folder / "data").mkdir()
    lines = "\n".join(map(json.dumps, rows))
    (folder / "data" / "train.jsonl").write_text(lines)
    return folder


def rllc(mine: Path, out: Path, *more: str | Path) -> Result:
    return call(
        "rllc", "--model", mine / "mine.pt", "--config", mine / "config.json", "--components",
        "L1H2", "--out", out, "--json", *TINY, *more,
    )  # fmt: skip


def test_a_model_of_ones_own_with_weights_from_a_file(mine: Path, tmp_path: Path) -> None:
    found = rllc(
        mine, tmp_path, "--data", mine / "tokens.npy", "--positions", mine / "weights.pt",
        "--sequences", "4",
    )  # fmt: skip
    assert found.exit_code in (0, 1), found.stderr
    record = json.loads(found.stdout)
    model = ls.load_model(mine / "mine.pt", config=CONFIG)
    settings = ls.Settings(batch_size=2, draws=6, burn_in=2, chains=2)
    draws = ls.sample(
        model, np.load(mine / "tokens.npy")[:4], "L1H2", settings=settings, progress=False,
        weights=torch.load(mine / "weights.pt")[:4],
    )  # fmt: skip
    assert record["components"][0]["llc"] == pytest.approx(float(ls.refined_llc(draws)["llc"][0]))
    assert record["model"] == "mine"


def test_weights_of_the_last_token(mine: Path) -> None:
    model: Any = native(**CONFIG)
    _, weights = load_weighted(str(mine / "tokens.npy"), "last", model, None, None, True)
    assert torch.equal(weights.nonzero()[:, 1], torch.full((6,), 8))
    tokens = np.load(mine / "tokens.npy")
    tokens[1, 6:] = tokens[2, :4] = 49
    np.save(mine / "padded.npy", tokens)
    _, weights = load_weighted(str(mine / "padded.npy"), "last", model, None, None, True, 49)
    assert weights.sum(1).tolist() == [1] * 6
    assert weights.argmax(1).tolist() == [8, 4, 8, 8, 8, 8]


def test_weights_of_a_column(mine: Path) -> None:
    name = f"hf:{mine / 'data'}:train:input_ids"
    model: Any = native(**CONFIG)
    tokens, weights = load_weighted(name, "answer", model, 6, None, True)
    assert sorted(map(len, tokens["input_ids"])) == [4, 5, 6, 7, 8, 9]
    last = torch.tensor([len(row) - 2 for row in tokens["input_ids"]])
    assert torch.equal(weights.argmax(1), last) and (weights.sum(1) == 1).all()
    _, same = load_weighted(name, "last", model, 6, None, True)
    assert torch.equal(same, weights)
    settings = ls.Settings(batch_size=2, draws=2, burn_in=1, chains=2)
    ls.sample(model, tokens, "L1H2", weights=weights, settings=settings, progress=False)


def test_every_command_on_text_can_leave_padding_out(mine: Path, tmp_path: Path) -> None:
    for command in cli_commands.COMMANDS:
        if issubclass(command, OfText):
            assert "pad_id" in {one.name for one in fields(command)}, command
    tokens = torch.from_numpy(np.load(mine / "tokens.npy"))
    tokens[:, 7:] = 0
    np.save(mine / "ends.npy", tokens.numpy())
    how = [
        "susceptibility", "--model", mine / "mine.pt", "--config", mine / "config.json",
        "--components", "L1H2", "--estimator", "restricted", "--data", mine / "ends.npy",
        "--probe-sequences", "3", "--json", "--batch-size", "2", "--draws", "6", "--chains", "2",
    ]  # fmt: skip
    found = call(*how, "--out", tmp_path / "refused")
    assert found.exit_code == 2
    assert "Pass --pad-id 0 to leave the padding out of the loss, or --pad-id -1" in found.stderr
    found = call(*how, "--out", tmp_path / "out", "--pad-id", "0")
    assert found.exit_code in (0, 1), found.stderr
    draws = ls.open_draws(tmp_path / "out" / cli_commands.DRAWS)
    counts = np.isfinite(draws["probes/probe"]["base_loss"].values)
    assert counts[:, :6].all() and not counts[:, 6:].any()


@pytest.mark.parametrize("source", ["tokens.npy", "data"])
def test_no_sequence_serves_two_purposes(mine: Path, source: str) -> None:
    """Nor where rows are given: a circuit's trial would be held where it was found."""
    name = str(mine / source) if "." in source else f"hf:{mine / source}:train:input_ids"
    model: Any = native(**CONFIG)
    trial, _ = load_weighted(name, None, model, 2, None, True, None, 2)
    probe, _ = load_weighted(name, None, model, 1, None, True, None, 1, 2)
    n = None if "." in source else 3
    rest, _ = load_weighted(name, None, model, n, None, True, None, 0, 3)
    pieces = [read_inputs(one).ids for one in (trial, probe, rest)]
    rows = [tuple(row[row != 0].tolist())[:4] for piece in pieces for row in piece]
    assert [len(piece) for piece in pieces] == [2, 1, 3] and len(set(rows)) == 6
    weights = torch.arange(54.0).reshape(6, 9)
    torch.save(weights, mine / "ordered.pt")
    if n is None:
        _, found = load_weighted(
            name, str(mine / "ordered.pt"), model, None, None, True, None, 0, 3
        )
        assert torch.equal(found, weights[3:].double())
        for rows, skip, words in (
            (None, 6, "has 6 sequences, of which 6 are for probes and trials: 0 are left; give"),
            (4, 3, "3 are left, and 4 were asked for; give more, or ask for fewer"),
        ):
            with pytest.raises(ValueError, match=words):
                load_weighted(name, None, model, rows, None, True, None, 0, skip)


@pytest.mark.parametrize("command", ["rllc", "susceptibility"])
def test_a_probe_of_the_same_rows_leaves_its_own_to_it(
    mine: Path, tmp_path: Path, command: str
) -> None:
    name = {"rllc": "own=", "susceptibility": ""}[command]
    found = call(
        command, "--model", mine / "mine.pt", "--config", mine / "config.json", "--components",
        "L1H2", "--data", mine / "tokens.npy", "--probe", f"{name}{mine / 'tokens.npy'}",
        "--probe-sequences", "2", "--out", tmp_path, "--json", "--batch-size", "2", "--draws", "8",
        "--chains", "2",
    )  # fmt: skip
    assert found.exit_code in (0, 1), found.stderr
    draws = ls.open_draws(tmp_path / cli_commands.DRAWS)
    assert draws.attrs["tokens"] == "4 × 10"
    assert next(iter(draws["probes"].values()))["base_loss"].sizes["sequence"] == 2


def test_weights_of_text_are_not_skipped(mine: Path) -> None:
    """Its seeds cut other sequences: none are left out."""
    model = ls.load_model("attn-1l")
    torch.save(torch.ones(8, 15), mine / "text.pt")
    tokens, weights = load_weighted(
        "mix", str(mine / "text.pt"), model, 8, 16, True, None, seed=0, skip=5
    )
    assert len(tokens) == len(weights) == 8


def test_padding_of_a_column_is_told_by_its_id(mine: Path) -> None:
    (mine / "filled").mkdir()
    rows = [{"input_ids": [5, 6, 7, 8, *[0] * 6]}, {"input_ids": [9, 8, 7, 6, 5, 4, *[0] * 4]}] * 3
    lines = "\n".join(map(json.dumps, rows))
    (mine / "filled" / "train.jsonl").write_text(lines)
    name = f"hf:{mine / 'filled'}:train:input_ids"
    model: Any = native(**CONFIG)
    tokens, weights = load_weighted(name, "last", model, 6, None, True, 0)
    assert sorted(read_inputs(tokens).real.sum(1).tolist()) == [4, 4, 4, 6, 6, 6]
    assert sorted(weights.argmax(1).tolist()) == [2, 2, 2, 4, 4, 4]


def test_a_mask_of_all_tokens_loses_its_first_position(mine: Path) -> None:
    mask = np.zeros((6, 10), dtype=bool)
    mask[:, [0, 4]] = True
    np.save(mine / "mask.npy", mask)
    model: Any = native(**CONFIG)
    _, weights = load_weighted(
        str(mine / "tokens.npy"), str(mine / "mask.npy"), model, None, None, True
    )
    assert torch.equal(weights, torch.from_numpy(mask[:, 1:]).double())


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (("--positions", "first"), r"--positions 'first' must be last, a file \(.npy, .pt, .safe"),
        (("--positions", "absent.npy"), r"absent.npy"),
        (("--positions", "tokens.pt"), r"tokens.pt"),
    ],
)
def test_bad_positions(mine: Path, tmp_path: Path, more: tuple[str, str], message: str) -> None:
    found = rllc(mine, tmp_path / "out", "--data", mine / "tokens.npy", *more)
    assert found.exit_code == 2
    assert found.stderr.startswith("error: ") and found.stderr.count("\n") == 1
    assert re.search(message, found.stderr), found.stderr


def test_bad_columns_and_configs(mine: Path, tmp_path: Path) -> None:
    name = f"hf:{mine / 'data'}:train:input_ids"
    found = rllc(mine, tmp_path, "--data", name, "--sequences", "6", "--positions", "anser")
    assert found.exit_code == 2
    assert "has no column 'anser': input_ids, answer; did you mean 'answer'?" in found.stderr
    found = call("rllc", "--model", mine / "mine.pt", "--data", name, "--out", tmp_path)
    assert found.exit_code == 2 and "needs config=" in found.stderr
    found = rllc(mine, tmp_path, "--data", "code")
    assert found.exit_code == 2 and "is text and the model has no tokenizer" in found.stderr
