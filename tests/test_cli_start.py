"""The command line before any work: start, help, version, completion, colours, Ctrl-C, codes."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from importlib import metadata
from pathlib import Path

import pytest
from click.testing import Result
from typer.testing import CliRunner

import lens_slt as ls
from lens_slt import cli, cli_commands, cli_options, demo
from lens_slt.circuits.replacements import AUTO, HOWS
from lens_slt.circuits.trial import LEAST_EFFECT, N_NULL
from lens_slt.cli_exit import ExitCode
from lens_slt.data.corpora import SOURCES
from lens_slt.observables.susceptibility import ESTIMATORS
from lens_slt.phases.ladder import GAMMAS, N_BETAS
from lens_slt.sampling.folder import DRAWS_FOLDER
from lens_slt.sampling.registry import SAMPLERS
from tests.test_import import HEAVY, loaded

ROOT = Path(__file__).parents[1]
COLOUR = re.compile(r"\x1b\[[\d;]*(?:3[0-8]|9[0-7])[\d;]*m")
COMPLETE = """
import os, sys
os.environ |= {{"_LENS_SLT_COMPLETE": "complete_bash", "COMP_WORDS": {words!r},
               "COMP_CWORD": str({words!r}.count(" "))}}
from lens_slt.cli import app
try:
    app(prog_name="lens-slt")
except SystemExit:
    pass
"""
PRESS = """
import os, signal, sys
from lens_slt.__main__ import main

class Pressed:
    def find_spec(self, name, path, target=None):
        if name == {module!r}:
            try:
                os.kill(os.getpid(), signal.SIGINT)
            except BaseException:
                pass  # as some libraries do while they are imported

sys.meta_path.insert(0, Pressed())
sys.argv = ["lens-slt", "rllc", "--model", "attn-1l", "--data", "code", "--out", {out!r}]
main()
"""


def call(*arguments: str, **env: str) -> Result:
    return CliRunner().invoke(cli.app, list(arguments), env=env, prog_name="lens-slt")


def process(*arguments: str, **env: str) -> subprocess.CompletedProcess[str]:
    clean = {key: value for key, value in os.environ.items() if key not in ("NO_COLOR", "TERM")}
    return subprocess.run(
        [sys.executable, *arguments], capture_output=True, text=True, cwd=ROOT, env=clean | env,
        check=False,
    )  # fmt: skip


def completed(words: str) -> list[str]:
    env = {
        "_LENS_SLT_COMPLETE": "complete_bash", "COMP_WORDS": words,
        "COMP_CWORD": str(words.count(" ")),
    }  # fmt: skip
    return call(**env).stdout.split()


@pytest.mark.parametrize(
    "arguments",
    [["models"], ["models", "--json"], ["--version"], ["--help"], ["rllc", "--help"]],
    ids=" ".join,
)
def test_what_asks_for_no_work_starts_at_once(arguments: list[str]) -> None:
    code = f"from lens_slt.cli import app\napp({arguments!r}, standalone_mode=False)"
    seconds, names = loaded(code)
    assert names.isdisjoint(set(HEAVY) - {"rich"})
    assert seconds < 1.5


def test_completion_starts_at_once() -> None:
    seconds, names = loaded(COMPLETE.format(words="lens-slt rllc --model "))
    assert names.isdisjoint(set(HEAVY) - {"rich"})
    assert seconds < 1.5


def test_version() -> None:
    words = process("-m", "lens_slt", "--version").stdout
    assert words == f"lens-slt {metadata.version('lens-slt')}\n"


def test_help_names_every_command_and_the_options_of_each() -> None:
    words = call("--help").stdout
    for options in cli_commands.COMMANDS:
        assert options.command in words
        one = call(options.command, "--help", COLUMNS="200")
        assert one.exit_code == 0
        assert str(options.__doc__).split("\n")[0] in one.stdout
        assert "--json" in one.stdout and "--quiet" in one.stdout


@pytest.mark.parametrize(
    ("words", "found"),
    [
        ("lens-slt s", ["susceptibility", "spectrum"]),
        ("lens-slt rllc --model attn-2l-", ["attn-2l-seed1", "attn-2l-seed2"]),
        ("lens-slt match --other gelu", ["gelu-4l"]),
        ("lens-slt rllc --model attn-2l --checkpoint 53", ["5300"]),
        ("lens-slt rllc --model attn-1l --checkpoint ", []),
        ("lens-slt rllc --checkpoint 53", []),
        ("lens-slt rllc --data ", ["code", "mix", "prose"]),
        ("lens-slt rllc --preset w", ["wang2024"]),
        ("lens-slt cross-check --how mean", ["mean", "mean_position"]),
    ],
)
def test_values_are_completed(words: str, found: list[str]) -> None:
    assert completed(words) == found


def test_completion_is_installed_by_the_command() -> None:
    assert "_LENS_SLT_COMPLETE=complete_bash" in call("--show-completion", "bash").stdout


def test_what_is_completed_is_what_there_is() -> None:
    known = {
        cli_options.CORPORA: SOURCES, cli_options.PRESETS: ls.PRESETS,
        cli_options.SAMPLERS: SAMPLERS, cli_options.ESTIMATORS: ESTIMATORS,
    }  # fmt: skip
    for words, there in known.items():
        assert words == tuple(sorted(there))
    assert set(cli_options.HOWS) <= {AUTO, *HOWS}
    assert cli_commands.DRAWS == DRAWS_FOLDER


def test_defaults_are_those_of_the_library() -> None:
    trial, grid, shown = cli_commands.CrossCheck, cli_commands.Spectrum, cli_commands.Demo
    assert (trial.least_effect, trial.null_sets) == (LEAST_EFFECT, N_NULL)
    assert grid.n_betas == ",".join(f"{n:g}" for n in N_BETAS)
    assert grid.gammas == ",".join(f"{g:g}" for g in GAMMAS)
    assert (shown.draws, shown.sequences, shown.length) == (
        demo.DRAWS, demo.SEQUENCES, demo.LENGTH,
    )  # fmt: skip
    assert cli_commands.Susceptibility.estimator == ESTIMATORS[0]


@pytest.mark.parametrize("arguments", [["models"], ["rllc", "--help"]], ids=" ".join)
def test_colours_are_left_out_where_they_are_not_wanted(arguments: list[str]) -> None:
    run = ["-m", "lens_slt", *arguments]
    forced = process(*run, FORCE_COLOR="1", TERM="xterm-256color").stdout
    assert "\x1b[" in forced
    assert not COLOUR.search(process(*run, FORCE_COLOR="1", NO_COLOR="1", TERM="xterm").stdout)
    assert "\x1b" not in process(*run, FORCE_COLOR="1", TERM="dumb").stdout
    assert "\x1b" not in process(*run).stdout  # a pipe


@pytest.mark.parametrize("module", ["lens_slt.cli", "typer", "lens_slt.cli_rllc", "torch"])
def test_an_interrupt_while_libraries_load_is_a_word(tmp_path: Path, module: str) -> None:
    done = process("-c", PRESS.format(module=module, out=str(tmp_path / "out")))
    assert (done.returncode, done.stdout, done.stderr) == (130, "", "interrupted\n")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("arguments", "code"),
    [
        (["models"], ExitCode.FINE),
        (["models", "--jsn"], ExitCode.BAD_INPUT),
        (["modles"], ExitCode.BAD_INPUT),
        (["rllc", "--model", "attn-2l"], ExitCode.BAD_INPUT),  # --data is missing
        (["phases", "nowhere.json"], ExitCode.BAD_INPUT),
    ],
)
def test_exit_codes(arguments: list[str], code: int) -> None:
    assert call(*arguments).exit_code == code


def test_the_table_of_exit_codes_is_whole() -> None:
    page = (ROOT / "docs" / "how-to" / "command-line.md").read_text("utf-8")
    assert [int(code) for code in re.findall(r"^\| (\d+) \|", page, re.M)] == list(ExitCode)
