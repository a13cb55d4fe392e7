"""``lens-slt develop`` on a tiny workload: a plan, a sweep, going on, one-line errors."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from click.testing import Result
from typer.testing import CliRunner

import lens_slt as ls
from lens_slt import cli, cli_develop, cli_support
from lens_slt.development.cells import SampleCell
from lens_slt.models import source
from tests.cli_records import record_of

TINY = [
    "--model", "attn-2l", "--components", "L1H2", "--steps", "600,2300,5300", "--sequences", "8",
    "--length", "16", "--chains", "2", "--batch-size", "4", "--probe-sequences", "4",
]  # fmt: skip


def develop(out: Path, *more: str) -> Result:
    return CliRunner().invoke(cli.app, ["develop", *TINY, "--out", str(out), *more])


def test_dry_run_says_the_plan_and_writes_nothing(tmp_path: Path) -> None:
    result = develop(tmp_path / "out", "--dry-run", "--json", "--minutes", "5")
    plan = record_of(result, "settings")["plan"]
    assert plan["steps"] == [600, 2300, 5300]
    assert plan["fits"] and plan["seconds"] < 300
    assert "3 checkpoints (steps 600 to 5300)" in result.stderr
    assert not (tmp_path / "out").exists()


def test_what_loading_prints_is_not_in_the_record(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """TransformerLens prints where it loads a name; the plan loads one more time."""
    loaded, load_model = [], source.load_model

    def loud(*given: Any, **more: Any) -> Any:
        print("Loaded pretrained model")
        loaded.append(given)
        return load_model(*given, **more)

    monkeypatch.setattr(source, "load_model", loud)
    result = develop(tmp_path / "out", "--dry-run", "--json", "--draws", "12", "--parallel", "1")
    assert record_of(result)["plan"]["draws"] == 12 and len(loaded) == 2


def test_all_steps_that_are_named_are_planned(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("lens_slt.development.plan.FEWEST_CHECKPOINTS", 2)
    result = develop(tmp_path / "out", "--dry-run", "--json", "--minutes", "0.0001")
    assert record_of(result)["plan"]["steps"] == [600, 2300, 5300]


@pytest.mark.parametrize(
    ("given", "device", "cores", "expected"),
    [
        (None, None, 2, 2), (None, "cpu", 64, 4), (None, "cpu", 1, None), (None, "cuda:0", 8, None),
        ("1", "cpu", 8, 1), (3, None, 8, 3), ("dask", "cpu", 8, "dask"),
        ("²", "cpu", 8, "²"),
    ],
)  # fmt: skip
def test_a_cpu_is_used_whole_unless_told_otherwise(
    monkeypatch: pytest.MonkeyPatch, given: Any, device: str | None, cores: int, expected: Any
) -> None:
    monkeypatch.setattr(cli_support.joblib, "cpu_count", lambda: cores)
    for one in (torch.cuda, torch.backends.mps):
        monkeypatch.setattr(one, "is_available", lambda: False)
    assert cli_support.processes(given, device) == expected
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert cli_support.processes(None, None) is None


def test_a_sweep_that_takes_much_longer_than_allowed_is_not_begun(tmp_path: Path) -> None:
    result = develop(tmp_path / "out", "--minutes", "0.0001")
    assert result.exit_code == 2
    said = " ".join(result.stderr.split())
    assert "error: --minutes 0.0001 does not do: these checkpoints and components take" in said
    assert "fewer --components" in said
    assert not (tmp_path / "out" / "plan.json").exists()


def test_a_command_goes_on_with_its_plan(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("lens_slt.development.plan.MOST_DRAWS", 10)  # a plan of few
    monkeypatch.setattr("lens_slt.development.plan.FEWEST_DRAWS", 10)
    ran, run = [], SampleCell.run

    def stopped(cell: SampleCell) -> Any:
        if len(ran) == 1:
            raise KeyboardInterrupt
        ran.append(cell.step)
        return run(cell)

    monkeypatch.setattr(SampleCell, "run", stopped)
    result = develop(tmp_path, "--hypothesis", "none", "--json")
    assert result.exit_code == 130
    assert "run the same command again" in result.stderr

    def planned(*_: Any, **__: Any) -> Any:
        raise AssertionError("a plan made anew has other draws")

    monkeypatch.setattr(cli_develop, "plan_development", planned)
    monkeypatch.setattr(SampleCell, "run", lambda cell: ran.append(cell.step) or run(cell))
    result = develop(tmp_path, "--hypothesis", "none", "--json", "--quiet")
    assert (result.exit_code, result.stderr) == (0, "")
    first = record_of(result, "settings", "files")
    assert first["settings"]["draws"] == 10 and len(first["health"]["L1H2"]) == 3
    assert first["run"] == "attn-2l" and first["plan"]["draws"] == 10
    assert len(first["certificates"]["L1H2"]) == 3
    assert "20 checkpoints" in first["refused"]["stages"]
    assert Path(first["report"]).stat().st_size > 10**5
    reported = record_of(CliRunner().invoke(cli.app, ["report", str(tmp_path), "--json"]))
    assert all(reported[key] == first[key] for key in ("settings", "health", "certificates"))
    found = ls.open_development(tmp_path / "sweep")
    assert found["refined_llc"]["checkpoint"].values.tolist() == [600, 2300, 5300]

    done = list(ran)
    again = record_of(develop(tmp_path, "--hypothesis", "none", "--json", "--quiet"))
    assert again | {"seconds": first["seconds"]} == first
    assert ran == done  # nothing is sampled again
    other = develop(tmp_path, "--hypothesis", "none", "--seed", "7", "--json")
    assert other.exit_code == 2 and other.stderr.splitlines()[-1].startswith("error: --out")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--steps", "600,late"], "error: --steps must be whole numbers with commas; got '600,la"),
        (["--steps", "600,601"], "error: "),
        (["--steps", "5300"], "error: checkpoints must be at least two"),
        (["--steps", "5300,600"], "error: "),
        (["--model", "atn-2l"], "error: "),
        (["--components", "L1H9"], "error: components: 'L1H9' does not exist"),
        (["--hypothesis", "L0H2->L1H9.K"], "error: "),
        (
            ["--hypothesis", "L0H2->L1H2.K", "--pattern", "repeats"],
            "error: --pattern must be one of",
        ),
        (["--minutes", "0"], "error: minutes must be a finite number above 0; got 0"),
        (["--parallel", "slurm"], "error: parallel must be None, a number of processes, 'dask' or"),
    ],
)
def test_bad_input_is_one_line_and_writes_nothing(
    tmp_path: Path, arguments: list[str], message: str
) -> None:
    result = develop(tmp_path / "out", "--json", *arguments)
    assert result.exit_code == 2
    assert result.stdout == ""
    assert result.stderr.splitlines()[-1].startswith(message), result.stderr
    assert not (tmp_path / "out").exists()
