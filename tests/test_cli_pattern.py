"""``lens-slt pattern`` on tiny workloads."""

from __future__ import annotations

import csv
from pathlib import Path

import pytest
from typer.testing import CliRunner

import lens_slt as ls
from lens_slt import cli, cli_support
from tests.cli_records import record_of

TINY = ["--model", "attn-1l", "--data", "mix", "--sequences", "8", "--length", "16", "--draws",
        "24", "--batch-size", "4", "--probe-sequences", "4", "--component", "L0H0"]  # fmt: skip
ASKED = ["--probe", "code=code", "--probe", "prose=prose", "--wish", "code=-0.01"]


@pytest.fixture(autouse=True)
def few_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    make = cli_support.make_settings
    few = {"burn_in": 2, "steps_per_draw": 1}
    monkeypatch.setattr(cli_support, "make_settings", lambda *a, **b: make(*a, **b).but(**few))


def test_weights_and_whether_they_bring_it_about(tmp_path: Path):
    verify = ["--verify", "1", "--n-seeds", "2", "--out", str(tmp_path)]
    done = CliRunner().invoke(cli.app, ["pattern", *TINY, *ASKED, *verify, "--json"])
    assert done.exit_code == 0, done.output
    record = record_of(done, "settings", "health", "certificates", "files")
    assert [row["observable"] for row in record["observables"]] == ["code", "prose"]
    assert {row["kind"] for row in record["retrained"]} == {"wish", "shuffled", "surface"}
    with Path(record["files"]["weights"]).open() as file:
        weights = [float(row["weight"]) for row in csv.DictReader(file)]
    assert sum(weights) / len(weights) == pytest.approx(1) and len(weights) == 8
    assert "Did it come true?" in Path(record["files"]["page"]).read_text()
    shown = CliRunner().invoke(cli.app, ["pattern", *TINY, *ASKED, *verify])
    assert shown.exit_code == 0 and "Data for a wish" in shown.stdout
    assert ls.open_draws(tmp_path)["posterior"].sizes["draw"] == 24  # as of every command
    assert CliRunner().invoke(cli.app, ["report", str(tmp_path)]).exit_code == 0
    page = (tmp_path / "report.html").read_text()
    assert 'id="health"' in page and 'id="patterning"' in page


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--probe", "code=code", "--wish", "text=-1"], "'text' is no --probe; there are code"),
        (["--probe", "code=code", "--wish", "code=-1", "--wish", "code=1"], "names 'code' twice"),
        (["--probe", "code=code", "--wish", "code"], "--wish must read name=number; got 'code'"),
    ],
)
def test_bad_wishes(tmp_path: Path, options: list[str], words: str):
    done = CliRunner().invoke(cli.app, ["pattern", *TINY, *options, "--out", str(tmp_path)])
    assert done.exit_code == 2 and words in " ".join(done.output.split())
    assert not list(tmp_path.iterdir())
