"""``lens-slt match`` on tiny workloads."""

from __future__ import annotations

import csv
from pathlib import Path

import pytest
from typer.testing import CliRunner

from lens_slt import cli, cli_support
from tests.cli_records import record_of

TINY = ["--sequences", "8", "--length", "16", "--batch-size", "4", "--draws", "8",
        "--probe-sequences", "8", "--components", "L0H2,L1H2", "--data", "mix"]  # fmt: skip


@pytest.fixture(autouse=True)
def few_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    make = cli_support.make_settings
    few = {"burn_in": 2, "steps_per_draw": 1}
    monkeypatch.setattr(cli_support, "make_settings", lambda *a, **b: make(*a, **b).but(**few))


def test_partners_circuits_and_files(tmp_path: Path):
    models = ["--model", "attn-2l", "--other", "attn-2l-seed1"]
    circuit = ["--hypotheses", "L0H2", "--pattern", "all"]
    options = ["match", *models, *TINY, *circuit, "--out", str(tmp_path), "--json"]
    done = CliRunner().invoke(cli.app, options)
    assert done.exit_code == 0, done.output
    record = record_of(done, "runs", "files")
    assert [run["settings"]["seed"] for run in record["runs"]] == [0, 1]
    assert set(record["runs"][1]["certificates"]) == {"L0H2", "L1H2"}
    assert [row["component"] for row in record["components"]] == ["L0H2", "L1H2"]
    assert record["circuits"][0]["original"].endswith("L0H2")
    with Path(record["files"]["table"]).open() as file:
        assert [row["component"] for row in csv.DictReader(file)] == ["L0H2", "L1H2"]
    assert "Circuits carried over" in Path(record["files"]["page"]).read_text()
    shown = CliRunner().invoke(cli.app, [*options[:-1]])  # from the draws that are there
    assert shown.exit_code == 0 and "Partners" in shown.stdout


def test_a_circuit_that_does_not_parse(tmp_path: Path):
    models = ["--model", "attn-2l", "--other", "attn-2l-seed1"]
    done = CliRunner().invoke(
        cli.app, ["match", *models, *TINY, "--hypotheses", "L1H2->L0H2.K", "--out", str(tmp_path)]
    )
    assert done.exit_code == 2 and "runs backwards" in done.output
    assert not list(tmp_path.iterdir())
