"""The command line on tiny workloads: results, JSON, exit codes, resuming, one-line errors."""

from __future__ import annotations

import csv
import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from click.testing import Result
from typer.testing import CliRunner

import lens_slt as ls
from lens_slt import cli, cli_support, demo
from lens_slt.sampling import lm
from lens_slt.sampling.foresee import foresee
from tests.cli_records import record_of

TINY = ["--sequences", "8", "--length", "16", "--batch-size", "4", "--draws", "8", "--burn-in", "2"]
HEAD = ["--model", "attn-2l", "--data", "code", "--components", "L1H3"]
FEW_STEPS = {"burn_in": 2, "steps_per_draw": 1}
CIRCUIT = ["--model", "attn-2l", "--data", "mix", "--length", "48", "--trial-sequences", "20"]


def call(*arguments: str | Path) -> Result:
    return CliRunner().invoke(cli.app, [str(argument) for argument in arguments])


def rows_of(path: str) -> list[dict[str, str]]:
    with Path(path).open() as file:
        return list(csv.DictReader(file))


@pytest.fixture
def few_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    """Commands that have no option for it burn in for two steps and take one a draw."""
    make = cli_support.make_settings
    monkeypatch.setattr(
        cli_support, "make_settings", lambda *a, **b: make(*a, **b).but(**FEW_STEPS)
    )
    monkeypatch.setattr(demo, "SETTINGS", demo.SETTINGS.but(**FEW_STEPS))


def rllc(out: Path, *more: str | Path) -> Result:
    return call("rllc", *HEAD, *TINY, "--out", out, *more)


@pytest.mark.slow
def test_rllc_as_json_agrees_with_the_library(tmp_path: Path) -> None:
    result = rllc(tmp_path, "--json", "--probe", "text=prose", "--n-beta", "20")
    assert result.exit_code == 0, result.stderr
    record = json.loads(result.stdout)  # one object and nothing else
    tokens = ls.load_tokens("code", n_sequences=8, length=16)
    settings = ls.Settings(n_beta=20, draws=8, burn_in=2, batch_size=4)
    probes = {"text": ls.load_tokens("prose", n_sequences=16, length=16, seed=1)}
    draws = ls.sample(
        ls.load_model("attn-2l"), tokens, "L1H3", settings=settings, probes=probes, progress=False
    )
    llc = ls.refined_llc(draws)
    (row,) = record["components"]
    assert row["component"] == "L1H3"
    assert row["llc"] == pytest.approx(float(llc["llc"][0]), rel=1e-6)
    assert row["llc_text"] == pytest.approx(float(llc["probe_llc"][0, 0]), rel=1e-6)
    assert record["settings"] == settings.as_dict()
    assert Path(record["files"]["report"]).stat().st_size > 10**6
    (line,) = rows_of(record["files"]["table"])
    assert float(line["llc"]) == row["llc"]


def test_rllc_prints_health_before_the_table(tmp_path: Path) -> None:
    result = rllc(tmp_path)
    assert result.exit_code == 0, result.stderr
    assert result.stdout.index("Health:") < result.stdout.index("Refined LLC")
    assert "L1H3" in result.stdout
    assert re.search(r"done in \d+ s; open .*report.html", result.stderr)
    again = rllc(tmp_path, "--quiet")  # from the draws that are there
    assert (again.stdout, again.stderr) == (result.stdout, "")


@pytest.mark.slow
def test_json_is_a_whole_record_beside_progress(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("lens_slt.progress.SECONDS", 0.0)
    told = rllc(tmp_path / "told", "--json")
    record = record_of(told, "model", "settings", "health", "certificates", "files")
    assert record["command"] == "rllc"
    assert record["options"]["components"] == "L1H3"
    assert record["options"]["out"] == str(tmp_path / "told")
    assert record["settings"]["seed"] == 0
    assert record["certificates"]["L1H3"].startswith(("certified", "biased", "not certified"))
    assert "1 components × 4 chains: " in told.stderr and "done in" in told.stderr
    report = record_of(call("report", tmp_path / "told", "--json"), "settings", "health")
    assert report["settings"] == record["settings"]
    assert report["files"] == {"report": record["files"]["report"]}


@pytest.mark.slow
def test_an_interrupted_run_continues_to_the_same_result(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = json.loads(rllc(tmp_path / "whole", "--json").stdout)
    advance = lm.step

    def interrupted(*arguments: Any) -> Any:
        if arguments[-1] == 6:
            raise KeyboardInterrupt
        return advance(*arguments)

    monkeypatch.setattr(lm, "step", interrupted)
    result = rllc(tmp_path / "parts", "--json")
    assert result.exit_code == 130
    assert result.stdout == ""
    assert "run the same command again to continue from" in result.stderr
    monkeypatch.undo()
    result = rllc(tmp_path / "parts", "--json")
    assert "found draws up to step 6 of 10" in result.stderr
    resumed = json.loads(result.stdout)
    assert resumed["resumed_from_step"] == 6
    assert resumed["components"] == whole["components"]


def test_unusable_chains_exit_with_1(tmp_path: Path) -> None:
    result = rllc(tmp_path, "--json", "--sampler", "sgld", "--step-size", "10")
    assert result.exit_code == 1
    record = json.loads(result.stdout)
    assert record["components"][0]["llc"] is None
    assert "L1H3: diverged (no chain can be used)" in record["health"]


@pytest.mark.parametrize(
    ("command", "options", "steps", "probe_draws"),
    [
        ("rllc", [*HEAD, "--thin", "3", "--burn-in", "2", "--probe", "text=prose"], 10, 3),
        ("susceptibility", HEAD, 16, 8),
        ("cross-check", [*CIRCUIT, "--target-se", "0.1"], 16, 8),
        # Burn-in of 8 / (ε·γ/2) steps: 160 at γ 100, 40 at γ 400; (1 + 1 control) runs at each.
        (
            "calibrate",
            [*HEAD, "--n-betas", "30", "--gammas", "100,400", "--sampler", "sgld"],
            2 * (168 + 48), 0,
        ),
    ],
)  # fmt: skip
def test_dry_run_says_what_it_takes_and_writes_nothing(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    command: str,
    options: list[str],
    steps: int,
    probe_draws: int,
) -> None:
    monkeypatch.setattr("lens_slt.sampling.timing.TRIAL_SECONDS", 0.1)
    monkeypatch.setattr(
        "lens_slt.sampling.estimate.foresee", lambda job, times, _: foresee(job, times, 0.0)
    )
    sizes = ["--sequences", "8", "--length", "16", "--batch-size", "4", "--draws", "8"]
    if command == "cross-check":  # its patterns need longer sequences
        sizes = [*sizes[:2], *sizes[4:], "--probe-sequences", "2", "--chains", "2"]
    arguments = [command, *options, *sizes, "--out", tmp_path / "out", "--dry-run"]
    result = call(*arguments, "--json")
    assert result.exit_code == 0, result.stderr
    found = record_of(result, "settings", "not_in_it")["estimate"]
    assert (found["steps"], found["probe_draws"]) == (steps, probe_draws)
    assert set(found["steps_per_draw"].values()) == {1}
    assert found["seconds"] > 0 and found["memory_bytes"] > 0
    assert (found["disk_bytes"] > 0) == (command != "calibrate")
    assert not (tmp_path / "out").exists()


@pytest.mark.slow
def test_dry_run_in_words(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("lens_slt.sampling.timing.TRIAL_SECONDS", 0.1)
    result = rllc(tmp_path / "out", "--dry-run")
    assert result.exit_code == 0, result.stderr
    assert re.fullmatch(r"about .* on cpu \(\d+ steps of .*\); memory about .*\n", result.stdout)
    assert "nothing was written" in result.stderr
    circuit = ["--hypothesis", "L0H2->L1H2.K", "--pattern", "induction", "--dry-run"]
    result = call("cross-check", *CIRCUIT, *circuit, "--out", tmp_path / "out")
    assert (result.exit_code, result.stdout) == (0, "nothing is sampled\n")
    assert re.search(r"the trials \(up to \d+ runs of the model, \d+ s\)", result.stderr)
    assert not (tmp_path / "out").exists()


@pytest.mark.slow
def test_only_the_package_s_own_warnings_are_shown(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert rllc(tmp_path / "plain", "--json", "--quiet").stderr == ""
    model = ls.load_model("attn-2l", backend="bridge")
    with torch.no_grad():  # as TransformerLens's center_unembed does
        model.unembed.weight.sub_(model.unembed.weight.mean(0))
    monkeypatch.setattr(cli_support, "load_quietly", lambda *_: model)
    words = rllc(tmp_path / "centred", "--json", "--quiet").stderr
    assert words.startswith("warning: model: its weights were processed (unembedding centred")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--components", "L1H9"], "error: components: 'L1H9' does not exist"),
        (["--model", "atn-2l"], "error: there is no model 'atn-2l'; did you mean 'attn-2l'?"),
        (["--data", "nowhere.txt"], "error: source 'nowhere.txt' is neither a file nor a built-in"),
        (["--gamma", "0"], "error: gamma must be a finite number above 0; got 0.0"),
        (["--batch-size", "9"], "error: tokens has 8 sequences, fewer than a batch of 9"),
        (["--preset", "wang2042"], "error: preset must be one of default, wang2024, baker2025"),
        (["--probe", "code"], "error: --probe must read name=source, such as code=code; got"),
        (["--probe", "a=code", "--probe", "a=code"], "error: --probe names 'a' twice"),
        (["--preset", "default", "--settings", "x"], "error: give --preset or --settings, not"),
        (
            ["--settings", "nowhere.json"],
            "error: --settings 'nowhere.json': there is no file nowhere.json",
        ),
        (["--checkpoint", "7"], "error: 'attn-2l' has no checkpoint 7 (nearest: "),
    ],
)
def test_bad_input_is_one_line_and_exit_2(
    tmp_path: Path, arguments: list[str], message: str
) -> None:
    result = rllc(tmp_path, "--json", *arguments)
    assert result.exit_code == 2
    assert result.stdout == ""
    (line,) = result.stderr.splitlines()
    assert line.startswith(message)


def test_draws_of_another_run_are_refused(tmp_path: Path) -> None:
    assert rllc(tmp_path).exit_code == 0
    result = rllc(tmp_path, "--seed", "1")
    assert result.exit_code == 2
    assert "holds the draws of another run (settings" in result.stderr


def test_text_needs_a_tokenizer_and_arrays_do_not(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = ls.load_model("attn-2l")
    model.tokenizer = None
    monkeypatch.setattr(cli_support, "load_quietly", lambda *_: model)
    result = rllc(tmp_path / "text")
    assert result.exit_code == 2
    assert "the model has no tokenizer; give a token array" in result.stderr
    torch.save(ls.load_tokens("code", n_sequences=8, length=16), tmp_path / "tokens.pt")
    result = rllc(tmp_path / "array", "--data", tmp_path / "tokens.pt", "--json")
    assert result.exit_code == 0, result.stderr


@pytest.mark.slow
def test_calibrate_writes_what_rllc_reads(tmp_path: Path) -> None:
    result = call(
        "calibrate", *HEAD, "--out", tmp_path, "--sequences", "16", "--length", "32",
        "--batch-size", "8", "--draws", "80", "--n-betas", "30,100", "--gammas", "100", "--json",
    )  # fmt: skip
    record = record_of(result, "settings", "tried_with", "health", "files")
    assert result.exit_code == 0, record["reason"]
    assert {row["verdict"] for row in record["health"]} and record["tried_with"]["seed"] == 0
    assert len(rows_of(record["files"]["evidence"])) == 2
    assert Path(record["files"]["figure"]).exists()
    settings = Path(record["files"]["settings"])
    result = rllc(tmp_path / "run", "--settings", settings, "--json")
    used = json.loads(result.stdout)["settings"]
    assert used["n_beta"] == record["settings"]["n_beta"] in (30, 100)
    assert (used["gamma"], used["draws"]) == (100, 8)  # options go on top of the file


def test_calibrate_without_an_accepted_setting_exits_with_1(tmp_path: Path) -> None:
    result = call(
        "calibrate", *HEAD, *TINY[:-4], "--draws", "4", "--out", tmp_path, "--n-betas", "1e-3",
        "--gammas", "1e6",
    )  # fmt: skip
    assert result.exit_code == 1
    words = " ".join(result.stdout.split())
    assert "no setting is accepted, with nβ 0.003, nβ 0.009, nβ 0.027 added: the prior" in words
    assert not (tmp_path / "settings.json").exists()


def test_calibrate_refuses_what_is_no_list_of_numbers(tmp_path: Path) -> None:
    result = call("calibrate", *HEAD, "--out", tmp_path, "--n-betas", "10;30")
    assert result.exit_code == 2
    assert result.stderr == "error: --n-betas must be numbers with commas; got '10;30'\n"


def test_models_lists_checkpoints() -> None:
    record = record_of(call("models", "--json"))
    rows = {row["model"]: row for row in record["models"]}
    assert list(rows) == ["attn-2l", "attn-2l-seed1", "attn-2l-seed2", "attn-1l", "gelu-4l"]
    assert rows["attn-2l"]["checkpoints"] == ls.shipped_checkpoints("attn-2l")
    assert (rows["attn-2l"]["layers"], rows["attn-2l"]["heads"]) == (2, 16)
    assert rows["gelu-4l"]["checkpoints"] == ls.shipped_checkpoints("gelu-4l")
    assert (rows["gelu-4l"]["layers"], rows["gelu-4l"]["heads"]) == (4, 24)
    assert "attn-2l-seed1" in call("models").stdout


@pytest.mark.slow
@pytest.mark.usefixtures("few_steps")
def test_demo_shows_all_heads_and_reuses_its_draws(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(demo, "HYPOTHESES", 1)
    tried, run_trials = [], demo.run_trials

    def kept(*given: Any, **options: Any) -> Any:
        tried.append(run_trials(*given, **options))
        return tried[-1]

    monkeypatch.setattr(demo, "run_trials", kept)
    arguments = ["demo", "--out", tmp_path, "--draws", "4", "--sequences", "8", "--length", "24"]
    first = call(*arguments, "--json")
    assert first.exit_code == 0, first.stderr
    record = json.loads(first.stdout)
    assert [row["component"] for row in record["components"]] == [
        *(f"L{layer}H{head}" for layer in (0, 1) for head in range(8)), "full",
    ]  # fmt: skip
    assert list(record["structure"]["chi"]["modes"][0]["loadings"]) == [
        row["component"] for row in record["components"][:16]
    ]
    assert {"llc_code", "llc_prose", "llc_vs_attn_1l"} <= set(record["components"][0])
    again = call(*arguments)
    assert "found finished draws" in again.stderr
    assert again.stdout.count("How to read it") == 3
    assert "Modes: Per-token rLLC" in again.stdout
    monkeypatch.setattr(demo, "run_trials", lambda *_, **__: tried[-1])  # a third time: the draws
    again = json.loads(call(*arguments, "--json").stdout)
    assert again["components"] == record["components"]


@pytest.mark.slow
@pytest.mark.usefixtures("few_steps")
def test_susceptibility_as_json_agrees_with_the_library(tmp_path: Path) -> None:
    options = [*TINY, "--probe-sequences", "4", "--draws", "12", "--batch-size", "8"]
    tiny = ["--model", "attn-1l", "--data", "code", "--components", "L0H1,L0H2,L0H3"]
    options = [x for x in options if x not in ("--burn-in", "2")]
    result = call("susceptibility", *tiny, *options, "--out", tmp_path, "--json")
    assert result.exit_code == 0, result.stderr
    record = json.loads(result.stdout)
    tokens = ls.load_tokens("code", n_sequences=8, length=16)
    probe = ls.load_tokens("code", n_sequences=4, length=16, seed=1)
    draws = ls.sample(
        ls.load_model("attn-1l"), tokens, ["L0H1", "L0H2", "L0H3", "full"], progress=False,
        settings=ls.Settings(draws=12, batch_size=8, **FEW_STEPS), probes={"probe": probe},
    )  # fmt: skip
    chi = ls.susceptibility(draws)
    mean = record["structure"]["chi"]["mean"]
    assert mean["L0H2"] == pytest.approx(float(chi["mean"].sel(component="L0H2")), rel=1e-5)
    assert Path(record["files"]["loadings_llc"]).exists()
    again = call("susceptibility", *tiny, *options, "--out", tmp_path)
    assert again.exit_code == 0, again.stderr
    assert "found finished draws" in again.stderr
    assert "Modes: Susceptibility χ" in again.stdout
    assert max(map(len, again.stdout.splitlines())) <= 80


def test_susceptibility_bad_input_is_one_line(tmp_path: Path) -> None:
    result = call(
        "susceptibility", *HEAD, *TINY[:6], "--out", tmp_path, "--estimator", "two-posterior"
    )  # fmt: skip
    assert result.exit_code == 2
    assert "did you mean 'two_posterior'" in result.stderr


FEW_SETS = ["--null-sets", "8"]


@pytest.mark.slow
def test_cross_check_of_a_given_circuit(tmp_path: Path) -> None:
    result = call(
        "cross-check", *CIRCUIT, *FEW_SETS, "--out", tmp_path, "--json",
        "--hypothesis", "L0H2->L1H2.K", "--pattern", "induction",
    )  # fmt: skip
    assert result.exit_code == 0, result.stderr
    record = json.loads(result.stdout)
    (trial,) = record["trials"]
    assert trial["hypothesis"]["edges"] == ["L0H2→L1H2.K"]
    effects = {one["test"]: one["effect"] for one in trial["evidence"]}
    assert effects["edge"] > 0.2
    assert not (tmp_path / "draws.zarr").exists()  # nothing was sampled
    again = call(
        "cross-check", *CIRCUIT, *FEW_SETS, "--out", tmp_path / "again",
        "--hypothesis", record["files"]["hypotheses"],
    )  # fmt: skip
    assert again.exit_code == 0, again.stderr
    assert again.stdout.index("Heads by behaviour") < again.stdout.index("on trial")


@pytest.mark.slow
@pytest.mark.usefixtures("few_steps")
def test_cross_check_infers_and_says_so_where_nothing_stands_out(tmp_path: Path) -> None:
    result = call(
        "cross-check", *CIRCUIT, *FEW_SETS, "--out", tmp_path, "--probe-sequences", "24",
        "--sequences", "8", "--batch-size", "4", "--draws", "8", "--chains", "2", "--json",
        "--most", "1",
    )  # fmt: skip
    assert result.exit_code == 0, result.stderr
    assert len(json.loads(result.stdout)["trials"]) <= 1
    assert (tmp_path / "draws.zarr").exists()


@pytest.mark.parametrize("command", ["cross-check", "susceptibility"])
def test_components_without_usable_chains_exit_with_1(
    tmp_path: Path, command: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(  # neither command has an option that makes chains diverge
        cli_support, "make_settings",
        lambda *_, **__: ls.Settings(
            sampler="sgld", step_size=10.0, draws=8, burn_in=2, chains=2, batch_size=4
        ),
    )  # fmt: skip
    result = call(
        command, "--model", "attn-1l", "--data", "mix", "--length", "48", "--sequences", "8",
        "--probe-sequences", "4", "--out", tmp_path, "--json",
        *(["--trial-sequences", "8"] if command == "cross-check" else []),
    )  # fmt: skip
    assert result.exit_code == 1, result.stderr
    record = json.loads(result.stdout)
    assert "no chain can be used" in record["health"]
    assert Path(record["files"]["report"]).exists()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--hypothesis", "L0H2->L1H2.K"], "needs --pattern"),
        (["--hypothesis", "L1H2->L0H2.K", "--pattern", "induction"], "runs backwards"),
        (["--hypothesis", "L0H2", "--pattern", "inducton"], "did you mean 'induction'"),
        (
            ["--hypothesis", "L0H2@S2->L1H2.K", "--pattern", "induction"],
            "names roles (S2), and the command line knows no positions of roles",
        ),
        (["--hypothesis", "no.json"], "there is no file no.json"),
        (["--hypothesis", "."], "needs --pattern"),
        (["--how", "men", "--hypothesis", "L0H2", "--pattern", "word_start"], "'mean'?"),
        (["--device", "nonsense"], "device must be a device of this machine: cpu"),
    ],
)
def test_cross_check_bad_input_is_one_line(
    tmp_path: Path, options: list[str], message: str
) -> None:
    result = call("cross-check", *CIRCUIT, "--out", tmp_path, *options)
    assert result.exit_code == 2
    assert message in result.stderr
    assert result.stderr.startswith("error: ")


def test_circuits_of_the_last_token_are_put_on_trial(tmp_path: Path) -> None:
    """The pattern ``all`` is what --positions leaves; nothing is sampled for a given circuit."""
    tokens = ls.load_tokens("mix", n_sequences=24, length=24)
    file = tmp_path / "tokens.npy"
    np.save(file, tokens.numpy())
    options = ["--hypothesis", "L1H2", "--pattern", "all", "--positions", "last"]
    result = call(
        "cross-check", "--model", "attn-2l", "--data", file, "--trial-sequences", 24,
        "--null-sets", 5, *options, "--out", tmp_path / "out", "--json",
    )  # fmt: skip
    assert result.exit_code == 0, result.stderr
    [trial] = ls.read_trials(tmp_path / "out" / "trials.json")
    last = torch.zeros(24, 23)
    last[:, -1] = 1
    again = ls.cross_check(
        ls.load_model("attn-2l"), tokens, trial.hypothesis, weights=last, n_null=5, progress=False
    )
    assert "there are no others" in trial.evidence[0].words
    assert trial.evidence[0].effect == pytest.approx(again.evidence[0].effect, abs=1e-5)
