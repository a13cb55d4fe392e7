"""The command line: ``lens-slt demo | rllc | susceptibility | cross-check | report | …``.

Tables go to standard output, words about the work to standard error; with ``--json`` standard
output holds one JSON object and nothing else. Exit codes: 0 fine, 1 a result that cannot be used
(a component without usable chains, no accepted setting), 2 bad input, 130 interrupted.
"""

from __future__ import annotations

import json
import time
from datetime import date
from pathlib import Path
from typing import Annotated, Any

import typer

from lens_slt import demo as demonstration
from lens_slt.arguments import choice
from lens_slt.calibration import MOST_ROUNDS, SHORT, sweep
from lens_slt.calibration import calibrate as run_calibration
from lens_slt.circuits.behaviour import behaviour_scores
from lens_slt.circuits.hypothesis import CircuitHypothesis, circuit, read_hypotheses
from lens_slt.circuits.pattern_masks import every_prediction
from lens_slt.circuits.propose import propose_circuits
from lens_slt.circuits.slt_evidence import SltEvidence, evidence_of
from lens_slt.circuits.trial import LEAST_EFFECT, N_NULL, Trial
from lens_slt.circuits.trial import cross_check as run_trials
from lens_slt.circuits.trial_cost import trial_seconds
from lens_slt.cli_develop import develop_command
from lens_slt.cli_match import match_command
from lens_slt.cli_options import (
    BatchSize,
    Bos,
    Chains,
    Checkpoint,
    Components,
    Config,
    Data,
    Device,
    Draws,
    DryRun,
    Json,
    Length,
    Model,
    Out,
    PadId,
    Positions,
    Sampler,
    Seed,
    Sequences,
    TargetSe,
)
from lens_slt.cli_pattern import pattern_command
from lens_slt.cli_phases import phases_command
from lens_slt.cli_spectrum import spectrum_command
from lens_slt.cli_support import (
    console,
    finish,
    found_steps,
    guarded,
    load_data,
    load_quietly,
    load_weighted,
    make_settings,
    parse_probes,
    read_numbers,
    say,
    shipped_rows,
    show_estimate,
    show_health,
)
from lens_slt.data.inputs import read_inputs
from lens_slt.data.patterns import label_patterns
from lens_slt.observables.refined_llc import refined_llc
from lens_slt.observables.susceptibility import ESTIMATORS
from lens_slt.report import page
from lens_slt.report.files import DRAWS, rllc_rows, write_about, write_csv, write_rllc
from lens_slt.report.files_circuits import write_trials
from lens_slt.report.files_structure import structure_records, write_structure
from lens_slt.report.plots import plot_calibration
from lens_slt.report.report import write_report
from lens_slt.report.tables import (
    calibration_table,
    health_summary,
    models_table,
    notes,
    probe_table,
    rllc_table,
)
from lens_slt.report.tables_circuits import behaviour_table, evidence_table, verdicts_table
from lens_slt.report.tables_modes import modes_table, reliability_table
from lens_slt.sampling.course import first_course
from lens_slt.sampling.estimate import estimate
from lens_slt.sampling.prepare import Probe
from lens_slt.sampling.result import settings_of
from lens_slt.sampling.sample import sample
from lens_slt.structure.overview import View, read_structure
from lens_slt.text import visible

app = typer.Typer(
    name="lens-slt", no_args_is_help=True, add_completion=False, pretty_exceptions_enable=False,
    help="Singular learning theory for TransformerLens models.",
)  # fmt: skip

SEARCH = (
    f"loading the model, up to {MOST_ROUNDS} more values of nβ or γ where no setting is accepted, "
    "tables and figures"
)
TRIALS = "loading the model, tables and figures"


@app.command()
def demo(
    out: Out = Path("lens-slt-demo"),
    as_json: Json = False,
    seed: Annotated[int, typer.Option(help="Everything random follows from it.")] = 0,
    draws: Annotated[int, typer.Option(help="Draws per chain.")] = demonstration.DRAWS,
    sequences: Annotated[int, typer.Option(help="Sequences.")] = demonstration.SEQUENCES,
    length: Annotated[int, typer.Option(help="Tokens per sequence.")] = demonstration.LENGTH,
) -> None:
    """Refined LLC of every head of the shipped model, with error bars and health verdicts."""
    path = out / DRAWS
    with guarded(as_json, path):
        settings = demonstration.demo_settings(draws, seed)
        say(demonstration.WHAT)
        before = found_steps(path)
        began = time.monotonic()
        result, views = demonstration.run_demo(
            path, settings, sequences=sequences, length=length, progress=not as_json
        )
        llc = refined_llc(result).drop_sel(probe=demonstration.STRUCTURE)
        record = _show_rllc(result, llc, out, as_json, demonstration.HOW_TO_READ)
        record |= _show_structure(views, out, as_json, demonstration.HOW_TO_READ_MODES)
        trials, behaviour = demonstration.run_trials(views, length=length, progress=not as_json)
        how = demonstration.HOW_TO_READ_CIRCUITS
        record |= _show_trials(trials, behaviour, llc, out, as_json, how)
        about = _about("The shipped model, from refined LLCs to circuits", "mix")
        _finish_run(record, result, llc, out, as_json, before, began, about)


@app.command()
def rllc(
    model: Model,
    data: Data,
    out: Out,
    components: Components = "heads",
    config: Config = None,
    checkpoint: Checkpoint = None,
    preset: Annotated[str | None, typer.Option(help="Published settings by name.")] = None,
    settings: Annotated[
        Path | None, typer.Option(help="settings.json from lens-slt calibrate.")
    ] = None,
    n_beta: Annotated[float | None, typer.Option(help="Inverse temperature nβ.")] = None,
    gamma: Annotated[float | None, typer.Option(help="Localization γ.")] = None,
    step_size: Annotated[
        float | None, typer.Option(help="ε; chosen for every component by default.")
    ] = None,
    sampler: Sampler = None,
    chains: Chains = None,
    draws: Draws = None,
    target_se: TargetSe = None,
    burn_in: Annotated[
        int | None, typer.Option(help="Draws' worth of steps before the first.")
    ] = None,
    batch_size: BatchSize = None,
    thin: Annotated[int | None, typer.Option(help="Probes at every thin-th draw.")] = None,
    seed: Seed = None,
    probe: Annotated[
        list[str] | None, typer.Option(help="name=source, tokens for a data-refined column.")
    ] = None,
    probe_sequences: Annotated[int, typer.Option(help="Sequences of every probe.")] = 16,
    sequences: Sequences = None,
    length: Length = None,
    bos: Bos = True,
    positions: Positions = None,
    pad_id: PadId = None,
    device: Device = None,
    dry_run: DryRun = False,
    as_json: Json = False,
) -> None:
    """Refined LLCs of any components of any model on any tokens."""
    path = out / DRAWS
    with guarded(as_json, path):
        chosen = make_settings(
            preset, settings, n_beta=n_beta, gamma=gamma, step_size=step_size, sampler=sampler,
            chains=chains, draws=draws, target_se=target_se, burn_in=burn_in,
            batch_size=batch_size, thin=thin, seed=seed,
        )  # fmt: skip
        sources = parse_probes(probe or [])
        loaded = load_quietly(model, checkpoint, device, config)
        tokens, weights = load_weighted(data, positions, loaded, sequences, length, bos, pad_id)
        probes = {
            name: load_data(source, loaded, probe_sequences, length, bos)
            for name, source in sources.items()
        }
        if dry_run:
            found = estimate(
                loaded, tokens, components, settings=chosen, probes=probes, weights=weights,
                pad_id=pad_id, path=path, device=device,
            )  # fmt: skip
            show_estimate(found, as_json, "loading the model, tables and figures")
            return
        before = found_steps(path)
        began = time.monotonic()
        result = sample(
            loaded, tokens, components, settings=chosen, probes=probes, weights=weights,
            pad_id=pad_id, path=path, device=device, progress=not as_json,
        )  # fmt: skip
        llc = refined_llc(result)
        record = _show_rllc(result, llc, out, as_json)
        about = _about(f"Refined LLCs of {model}", data)
        _finish_run(record, result, llc, out, as_json, before, began, about)


@app.command()
def susceptibility(
    model: Model,
    data: Data,
    out: Out,
    components: Components = "heads",
    probe: Annotated[
        str | None, typer.Option(help="Tokens of the matrix; other sequences of --data by default.")
    ] = None,
    probe_sequences: Annotated[int, typer.Option(help="Sequences of the probe.")] = 32,
    estimator: Annotated[str, typer.Option(help="two_posterior or restricted.")] = "two_posterior",
    control: Annotated[bool, typer.Option("--control", help="nβ = 0: the prior alone.")] = False,
    config: Config = None,
    checkpoint: Checkpoint = None,
    settings: Annotated[
        Path | None, typer.Option(help="settings.json from lens-slt calibrate.")
    ] = None,
    n_beta: Annotated[float | None, typer.Option(help="Inverse temperature nβ.")] = None,
    gamma: Annotated[float | None, typer.Option(help="Localization γ.")] = None,
    chains: Chains = None,
    draws: Draws = None,
    target_se: TargetSe = None,
    batch_size: BatchSize = None,
    thin: Annotated[int | None, typer.Option(help="The probe at every thin-th draw.")] = None,
    seed: Seed = None,
    sequences: Sequences = None,
    length: Length = None,
    bos: Bos = True,
    positions: Positions = None,
    device: Device = None,
    dry_run: DryRun = False,
    as_json: Json = False,
) -> None:
    """Susceptibilities and per-token rLLCs of a probe's tokens, their modes and patterns."""
    path = out / DRAWS
    with guarded(as_json, path):
        choice("estimator", estimator, ESTIMATORS)
        chosen = make_settings(
            None, settings, n_beta=0.0 if control else n_beta, gamma=gamma, chains=chains,
            draws=draws, target_se=target_se, batch_size=batch_size, thin=thin, seed=seed,
        )  # fmt: skip
        loaded = load_quietly(model, checkpoint, device, config)
        tokens, weights = load_weighted(data, positions, loaded, sequences, length, bos)
        probe_tokens = load_data(probe or data, loaded, probe_sequences, length, bos, seed=1)
        names = [components, "full"] if estimator == "two_posterior" else [components]
        if dry_run:
            found = estimate(
                loaded, tokens, names, settings=chosen, probes={"probe": probe_tokens},
                weights=weights, path=path, device=device,
            )  # fmt: skip
            show_estimate(found, as_json, "loading the model, matrices, modes and figures")
            return
        before = found_steps(path)
        began = time.monotonic()
        result = sample(
            loaded, tokens, names, settings=chosen, probes={"probe": probe_tokens},
            weights=weights, path=path, device=device, progress=not as_json,
        )  # fmt: skip
        views = read_structure(
            result, "probe", probe_tokens, tokenizer=loaded.tokenizer, estimator=estimator,
            folder=out,
        )  # fmt: skip
        llc = refined_llc(result)
        if not as_json:
            show_health(llc)
        record = _show_structure(views, out, as_json)
        about = _about(f"Structure of {model}", data)
        _finish_run(record, result, llc, out, as_json, before, began, about)


@app.command("cross-check")
def cross_check(
    model: Model,
    data: Data,
    out: Out,
    hypothesis: Annotated[
        str,
        typer.Option(help="A JSON file, a circuit such as 'L0H2->L1H2.K', or inferred."),
    ] = "inferred",
    pattern: Annotated[
        str | None, typer.Option(help="Of a circuit that is written out, such as induction.")
    ] = None,
    slt: Annotated[
        bool, typer.Option("--slt", help="Sample for a given hypothesis too, as evidence.")
    ] = False,
    most: Annotated[int, typer.Option(help="Inferred hypotheses to try.")] = 6,
    trial_sequences: Annotated[int, typer.Option(help="Sequences to ablate on.")] = 32,
    probe_sequences: Annotated[int, typer.Option(help="Sequences that circuits come from.")] = 32,
    how: Annotated[
        str, typer.Option(help="auto, mean, mean_position, resample, zero: what ablation puts in.")
    ] = "auto",
    least_effect: Annotated[float, typer.Option(help="Nats; less is no effect.")] = LEAST_EFFECT,
    null_sets: Annotated[int, typer.Option(help="Random sets to compare with.")] = N_NULL,
    config: Config = None,
    checkpoint: Checkpoint = None,
    settings: Annotated[
        Path | None, typer.Option(help="settings.json from lens-slt calibrate.")
    ] = None,
    n_beta: Annotated[float | None, typer.Option(help="Inverse temperature nβ.")] = None,
    gamma: Annotated[float | None, typer.Option(help="Localization γ.")] = None,
    chains: Chains = None,
    draws: Draws = None,
    target_se: TargetSe = None,
    batch_size: BatchSize = None,
    thin: Annotated[int | None, typer.Option(help="The probe at every thin-th draw.")] = None,
    seed: Seed = None,
    sequences: Sequences = None,
    length: Length = None,
    bos: Bos = True,
    positions: Positions = None,
    device: Device = None,
    dry_run: DryRun = False,
    as_json: Json = False,
) -> None:
    """Put circuit hypotheses on trial: ablations, path ablations, composition, statistics."""
    path = out / DRAWS
    with guarded(as_json, path):
        given = _hypotheses(hypothesis, pattern)
        chosen = make_settings(
            None, settings, n_beta=n_beta, gamma=gamma, chains=chains, draws=draws,
            target_se=target_se, batch_size=batch_size, thin=thin, seed=seed,
        )  # fmt: skip
        loaded = load_quietly(model, checkpoint, device, config)
        began = time.monotonic()
        found: SltEvidence | None = None
        llc, record = None, dict[str, Any]()
        trial_tokens, trial_weights = load_weighted(
            data, positions, loaded, trial_sequences, length, bos, seed=2
        )
        if dry_run:  # an inferred circuit is about as large as the one that stands in for it
            likely = given or [circuit("L0H0 -> L1H0.K", "induction")] * most
            runs, seconds = trial_seconds(loaded, trial_tokens, likely, null_sets)
            trials_cost = f"the trials (up to {runs} runs of the model, {seconds:.0f} s)"
        if slt or given is None:
            tokens, weights = load_weighted(data, positions, loaded, sequences, length, bos)
            probe, counts = load_weighted(
                data, positions, loaded, probe_sequences, length, bos, seed=1
            )
            probes = {"probe": Probe(probe, weights=counts)}
            if dry_run:
                needed = estimate(
                    loaded, tokens, "heads", settings=chosen, weights=weights, probes=probes,
                    path=path, device=device,
                )  # fmt: skip
                show_estimate(needed, as_json, f"{TRIALS}, and {trials_cost}")
                return
            found_steps(path)
            result = sample(
                loaded, tokens, "heads", settings=chosen, weights=weights, probes=probes,
                path=path, device=device, progress=not as_json,
            )  # fmt: skip
            llc = refined_llc(result)
            if not as_json:
                show_health(llc)
            views = read_structure(
                result, "probe", probe, tokenizer=loaded.tokenizer, folder=out, maps=False
            )
            record = {"health": health_summary(llc)} | _show_structure(views, out, as_json)
            if views:
                everything = positions is not None  # that counts
                labels = (
                    every_prediction(read_inputs(probe).ids) if everything
                    else label_patterns(probe, loaded.tokenizer)
                )  # fmt: skip
                found = evidence_of(views["llc"], labels)
        if dry_run:
            show_estimate(None, as_json, f"{TRIALS}, and {trials_cost}")
            return
        if given is None:
            given = (
                []
                if found is None
                else propose_circuits(found, loaded, probe, most=most, weights=counts)
            )
        trials = run_trials(
            loaded, trial_tokens, given, slt=found, how=how, weights=trial_weights,
            least_effect=least_effect, n_null=null_sets, seed=seed or 0, progress=not as_json,
        )  # fmt: skip
        behaviour = behaviour_scores(loaded, trial_tokens, weights=trial_weights)
        record |= _show_trials(trials, behaviour, llc, out, as_json)
        record["files"] = record.pop("structure_files", {}) | record.pop("trial_files")
        _finish_report(record, out, as_json, began, _about(f"Circuits of {model} on trial", data))
        finish(record, as_json, usable=llc is None or _usable(llc))


@app.command()
def report(
    run: Annotated[Path, typer.Argument(help="Folder of a finished run or sweep.")],
    as_json: Json = False,
) -> None:
    """Write report.html for a finished run or sweep: one file that opens offline."""
    with guarded(as_json):
        written = str(write_report(run))
        if not as_json:
            say(f"written: {written}")
        finish({"files": {"report": written}}, as_json)


@app.command()
def calibrate(
    model: Model,
    data: Data,
    out: Out,
    components: Components = "heads",
    config: Config = None,
    checkpoint: Checkpoint = None,
    n_betas: Annotated[str, typer.Option(help="Inverse temperatures to begin with.")] = "10,30,100",
    gammas: Annotated[str, typer.Option(help="Localizations to begin with.")] = "100,300",
    sampler: Sampler = None,
    chains: Chains = None,
    draws: Draws = None,
    batch_size: BatchSize = None,
    seed: Seed = None,
    sequences: Sequences = None,
    length: Length = None,
    bos: Bos = True,
    positions: Positions = None,
    pad_id: PadId = None,
    device: Device = None,
    dry_run: DryRun = False,
    as_json: Json = False,
) -> None:
    """Choose nβ and γ for all components; writes settings.json for lens-slt rllc --settings."""
    with guarded(as_json):
        short = make_settings(
            None, None, base=SHORT, sampler=sampler, chains=chains, draws=draws,
            batch_size=batch_size, seed=seed,
        )  # fmt: skip
        grid = {
            "n_betas": read_numbers("n-betas", n_betas),
            "gammas": read_numbers("gammas", gammas),
        }
        loaded = load_quietly(model, checkpoint, device, config)
        tokens, weights = load_weighted(data, positions, loaded, sequences, length, bos, pad_id)
        if dry_run:
            runs = sweep(**grid, settings=short)
            hardest = max(runs, key=lambda run: run.n_beta / run.gamma)
            one = estimate(
                loaded, tokens, components, settings=hardest, weights=weights, pad_id=pad_id,
                device=device,
            )  # fmt: skip
            least = {run: first_course(run).steps_left for run in runs}
            all_runs = one.repeated([one.steps * least[run] // least[hardest] for run in runs])
            show_estimate(all_runs, as_json, SEARCH)
            return
        found = run_calibration(
            loaded, tokens, components, settings=short, weights=weights, pad_id=pad_id,
            device=device, progress=not as_json, **grid,
        )  # fmt: skip
        files = _write_calibration(out, found, model)
        chosen = None if found.settings is None else found.settings.as_dict()
        record = {"settings": chosen, "reason": found.reason, "files": files}
        if not as_json:
            console.print(calibration_table(found))
            say(f"written: {', '.join(files.values())}")
        finish(record, as_json, usable=chosen is not None)


@app.command()
def models(as_json: Json = False) -> None:
    """The models that come with the package, and their checkpoints."""
    with guarded(as_json):
        rows = shipped_rows()
        if not as_json:
            console.print(models_table(rows))
        finish({"models": rows}, as_json)


app.command("develop")(develop_command)
app.command("match")(match_command)
app.command("pattern")(pattern_command)
app.command("phases")(phases_command)
app.command("spectrum")(spectrum_command)


def main() -> None:
    """Entry point of ``lens-slt``."""
    app()


def _show_rllc(draws: Any, llc: Any, out: Path, as_json: bool, how: str = "") -> dict[str, Any]:
    """Health first, then the tables, then how to read them; the record of ``--json``."""
    files = write_rllc(out, llc)
    if not as_json:
        show_health(llc)
        console.print(rllc_table(llc, notes(draws)))
        console.print()
        if "probe" in llc.dims:
            console.print(probe_table(llc))
            console.print()
        if how:
            console.print(f"{how}\n")
    return {"components": rllc_rows(llc), "files": files}


def _show_structure(
    views: dict[str, View], out: Path, as_json: bool, how: str = ""
) -> dict[str, Any]:
    """Reliability and the modes of each matrix with their patterns; the record of ``--json``."""
    files = write_structure(out, views)
    if views and not as_json:
        console.print(reliability_table(*(view.matrix for view in views.values())))
        console.print()
        for view in views.values():
            console.print(modes_table(view.modes, view.by_mode))
            console.print()
        if how:
            console.print(f"{how}\n")
    return {"structure": structure_records(views), "structure_files": files}


def _show_trials(
    trials: list[Trial],
    behaviour: Any,
    llc: Any,
    out: Path,
    as_json: bool,
    how: str = "",
) -> dict[str, Any]:
    """Verdicts, the evidence of each trial, heads by behaviour; the record of ``--json``."""
    files = write_trials(out, trials, behaviour)
    if not as_json:
        console.print(behaviour_table(behaviour, llc))
        console.print()
        if trials:
            console.print(verdicts_table(trials))
            console.print()
        else:
            console.print("No circuit was proposed: no head that can be used stands out.\n")
        for trial in trials:
            console.print(evidence_table(trial))
            for line in str(trial).split("\n")[1:]:
                console.print(visible(line))
            console.print()
        if how:
            console.print(f"{how}\n")
    return {"trials": [trial.as_dict() for trial in trials], "trial_files": files}


def _hypotheses(given: str, pattern: str | None) -> list[CircuitHypothesis] | None:
    """Hypotheses of a file or of the text itself; None where they are to be inferred."""
    if given == "inferred":
        return None
    if Path(given).suffix == ".json":
        found = read_hypotheses(given)
    elif pattern is None:
        raise ValueError(
            f"--hypothesis {given!r} needs --pattern, the tokens that the circuit is for"
        )
    else:
        found = [circuit(given, pattern)]
    roles = sorted({role for one in found for role in one.roles})
    if roles:
        raise ValueError(
            f"--hypothesis names roles ({', '.join(roles)}), and the command line knows no "
            "positions of roles: use lens_slt.cross_check with roles= in Python"
        )
    return found


def _about(title: str, data: str) -> dict[str, Any]:
    """What a report says first about a run."""
    return {"title": title, "data": data, "written on": date.today().isoformat()}


def _finish_run(
    record: dict[str, Any],
    draws: Any,
    llc: Any,
    out: Path,
    as_json: bool,
    before: int,
    began: float,
    about: dict[str, Any],
) -> None:
    """What every run with draws says at its end."""
    for more in ("structure_files", "trial_files"):
        record["files"] = record.get("files", {}) | record.pop(more, {})
    record["files"]["draws"] = str(out / DRAWS)
    record |= {
        "model": draws.attrs["model"],
        "settings": settings_of(draws).as_dict(),
        "health": health_summary(llc),
        "certificates": {
            str(name): f"{word}: {why}"
            for name, word, why in zip(
                *(llc[key].values for key in ("component", "certificate", "why")), strict=True
            )
        },
        "resumed_from_step": before,
    }
    _finish_report(record, out, as_json, began, about)
    finish(record, as_json, usable=_usable(llc))


def _usable(llc: Any) -> bool:
    """Whether every component has a chain that can be used."""
    return bool((llc["chains_used"] > 0).all())


def _finish_report(
    record: dict[str, Any], out: Path, as_json: bool, began: float, about: dict[str, Any]
) -> None:
    """Write the report and say where it is."""
    write_about(out, about)
    written = str(write_report(out))
    record["files"]["report"] = written
    record |= {"title": about["title"], "seconds": round(time.monotonic() - began, 2)}
    if not as_json:
        say(f"done in {record['seconds']:.0f} s; open {written}; tables and draws in {out}")


def _write_calibration(out: Path, found: Any, model: str) -> dict[str, str]:
    out.mkdir(parents=True, exist_ok=True)
    files = {"evidence": out / "evidence.csv", "figure": out / "calibration.html"}
    rows = found.evidence.to_dataframe().reset_index()
    write_csv(files["evidence"], rows.to_dict("records"))
    body = page.figure(plot_calibration(found)) + page.table(calibration_table(found))
    section = page.Section("calibration", "Calibration", body)
    text = page.page(f"Calibration of {model}", page.paragraph(found.reason, "lead"), [section])
    files["figure"].write_text(text, "utf-8")
    if found.settings is not None:
        files["settings"] = out / "settings.json"
        files["settings"].write_text(json.dumps(found.settings.as_dict(), indent=1) + "\n")
    return {key: str(path) for key, path in files.items()}
