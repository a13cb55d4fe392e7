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
from lens_slt.cli_options import OfText, OfWeightedText
from lens_slt.cli_support import with_enough_tokens
from lens_slt.cli_text import text_of, weighted_text
from lens_slt.data.datasets import dataset_columns
from lens_slt.data.inputs import read_inputs, sequences_in
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
        {
            "input_ids": row[: 4 + i].tolist(),
            "answer": [0] * (3 + i) + [1],
            "predicted": [1] * (3 + i),
        }
        for i, row in enumerate(tokens)
    ]
    (folder / "data").mkdir()
    lines = "\n".join(map(json.dumps, rows))
    (folder / "data" / "train.jsonl").write_text(lines)
    return folder


def made(**options: Any) -> OfWeightedText:
    """What a command was told of text."""
    return OfWeightedText(**options)


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
    _, weights = weighted_text(made(data=str(mine / "tokens.npy"), positions="last"), model, None)
    assert torch.equal(weights.nonzero()[:, 1], torch.full((6,), 8))
    tokens = np.load(mine / "tokens.npy")
    tokens[1, 6:] = tokens[2, :4] = 49
    np.save(mine / "padded.npy", tokens)
    _, weights = weighted_text(
        made(data=str(mine / "padded.npy"), positions="last", pad_id=49), model, None
    )
    assert weights.sum(1).tolist() == [1] * 6
    assert weights.argmax(1).tolist() == [8, 4, 8, 8, 8, 8]


def test_weights_of_a_column(mine: Path) -> None:
    name = f"hf:{mine / 'data'}:train:input_ids"
    model: Any = native(**CONFIG)
    tokens, weights = weighted_text(made(data=name, positions="answer"), model, 6)
    assert sorted(map(len, tokens["input_ids"])) == [4, 5, 6, 7, 8, 9]
    last = torch.tensor([len(row) - 2 for row in tokens["input_ids"]])
    assert torch.equal(weights.argmax(1), last) and (weights.sum(1) == 1).all()
    _, same = weighted_text(made(data=name, positions="last"), model, 6)
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


@pytest.mark.parametrize("source", ["tokens.npy", "data", "short.txt"])
def test_no_sequence_serves_two_purposes(mine: Path, source: str) -> None:
    """A circuit's trial would be held where it was found."""
    is_rows, model = source != "short.txt", native(**CONFIG)
    if not is_rows:
        model = ls.load_model("attn-1l")
        (mine / source).write_text("".join(f"{i} and {i * i}\n" for i in range(60)))
    name = f"hf:{mine / source}:train:input_ids" if source == "data" else str(mine / source)
    options = made(data=name, length=None if is_rows else 32)
    n_rest = 3 if source == "data" else None
    trial, _ = weighted_text(options, model, 2, seed=2)
    probe, _ = weighted_text(options, model, 1, seed=1, without=[trial])
    rest, _ = weighted_text(options, model, n_rest, without=[trial, probe])
    rows = [row for one in (trial, probe, rest) for row in sequences_in(one)]
    every = 6 if is_rows else len(ls.load_tokens(name, length=32))
    assert len(rows) == len(set(rows)) == every >= 6
    if source == "tokens.npy":
        weights = torch.arange(54.0).reshape(6, 9)
        torch.save(weights, mine / "ordered.pt")
        weighted = made(data=name, positions=str(mine / "ordered.pt"))
        _, found = weighted_text(weighted, model, None, without=[trial, probe])
        assert torch.equal(found, weights[3:].double())
        for n, others, words in (
            (None, [trial, probe, rest], "6 are for probes and trials: 0 are left; give more"),
            (4, [trial, probe], "3 are left, and 4 were asked for; give more, or ask for fewer"),
        ):
            with pytest.raises(ValueError, match=words):
                text_of(options, model, n, without=others)


def test_a_short_text_is_said_to_be_short(mine: Path, tmp_path: Path) -> None:
    (mine / "short.txt").write_text("".join(f"{i} and {i * i}\n" for i in range(60)))
    found = call(
        "susceptibility", "--model", "attn-1l", "--data", mine / "short.txt", "--length", "32",
        "--probe-sequences", "8", "--sequences", "9", "--out", tmp_path,
    )  # fmt: skip
    assert found.exit_code == 2
    words = "sequences of 32 tokens beside 8 for probes and trials; 9 were asked for: ask for fewer"
    assert words in " ".join(found.stderr.split())


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


def test_weights_of_text_are_of_positions_alone(mine: Path) -> None:
    """Which sequences are cut is not the caller's to know: a row for each would be of others."""
    model = ls.load_model("attn-1l")
    torch.save(torch.ones(8, 15), mine / "rows.pt")
    torch.save(torch.arange(15.0), mine / "places.pt")
    options = made(data="mix", length=16, positions=str(mine / "rows.pt"))
    with pytest.raises(ValueError, match=r"rows.pt' has a row for every sequence, and which seq"):
        weighted_text(options, model, 8)
    options = made(data="mix", length=16, positions=str(mine / "places.pt"))
    tokens, weights = weighted_text(options, model, 8)
    assert tokens.shape == (8, 16) and torch.equal(weights, torch.arange(15.0).double())


def test_ids_of_a_data_set_are_cut_and_weighed(mine: Path) -> None:
    torch.save(torch.arange(3.0), mine / "places.pt")
    name = f"hf:{mine / 'data'}:train:input_ids"
    options = made(data=name, length=4, positions=str(mine / "places.pt"))
    tokens, weights = weighted_text(options, native(**CONFIG), 6)
    assert set(map(len, tokens["input_ids"])) == {4}
    assert torch.equal(weights, torch.arange(3.0).double())
    found = dataset_columns(name, 6, ["answer", "predicted"], length=4)
    assert set(map(len, found["answer"])) == {4} and set(map(len, found["predicted"])) == {3}


def test_padding_of_a_column_is_told_by_its_id(mine: Path) -> None:
    (mine / "filled").mkdir()
    rows = [{"input_ids": [5, 6, 7, 8, *[0] * 6]}, {"input_ids": [9, 8, 7, 6, 5, 4, *[0] * 4]}] * 3
    lines = "\n".join(map(json.dumps, rows))
    (mine / "filled" / "train.jsonl").write_text(lines)
    name = f"hf:{mine / 'filled'}:train:input_ids"
    model: Any = native(**CONFIG)
    tokens, weights = weighted_text(made(data=name, positions="last", pad_id=0), model, 6)
    assert sorted(read_inputs(tokens).real.sum(1).tolist()) == [4, 4, 4, 6, 6, 6]
    assert sorted(weights.argmax(1).tolist()) == [2, 2, 2, 4, 4, 4]


def test_a_mask_of_all_tokens_loses_its_first_position(mine: Path) -> None:
    mask = np.zeros((6, 10), dtype=bool)
    mask[:, [0, 4]] = True
    np.save(mine / "mask.npy", mask)
    model: Any = native(**CONFIG)
    _, weights = weighted_text(
        made(data=str(mine / "tokens.npy"), positions=str(mine / "mask.npy")), model, None
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
    assert (
        "has no column 'anser': input_ids, answer, predicted; did you mean 'answer'?"
        in found.stderr
    )
    found = call("rllc", "--model", mine / "mine.pt", "--data", name, "--out", tmp_path)
    assert found.exit_code == 2 and "needs config=" in found.stderr
    found = rllc(mine, tmp_path, "--data", "code")
    assert found.exit_code == 2 and "is text and the model has no tokenizer" in found.stderr


def test_circuits_of_rare_patterns_are_not_tried(capsys: pytest.CaptureFixture[str]) -> None:
    model, tokens = ls.load_model("attn-1l"), ls.load_tokens("mix", n_sequences=12, length=32)
    circuits = [ls.circuit("L0H1", "word_start"), ls.circuit("L0H2", "quote")]
    assert with_enough_tokens(made(data="mix"), circuits, tokens, model) == circuits[:1]
    said = " ".join(capsys.readouterr().err.split())
    assert re.search(
        r"not tried: circuit for quote: L0H2: .* has \d+ quote tokens in \d+ of its 12 seq", said
    )
