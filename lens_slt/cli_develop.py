"""``lens-slt develop``: a sweep over the checkpoints of a training run, and what it says."""

from __future__ import annotations

import contextlib
import io
import json
import time
from datetime import date
from pathlib import Path
from typing import Annotated, Any

import typer

from lens_slt.arguments import choice
from lens_slt.arrays import write_zarr
from lens_slt.circuits.hypothesis import CircuitHypothesis, circuit
from lens_slt.circuits.pattern_masks import ALL
from lens_slt.circuits.propose import propose_circuits
from lens_slt.circuits.roles import nodes_of
from lens_slt.circuits.slt_evidence import SltEvidence
from lens_slt.cli_options import (
    BatchSize,
    Bos,
    Chains,
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
    Seed,
    Sequences,
)
from lens_slt.cli_support import console, finish, guarded, load_data, make_settings, say
from lens_slt.data.patterns import label_patterns
from lens_slt.development.construction import construction
from lens_slt.development.develop import develop, open_checkpoint
from lens_slt.development.overview import DevelopmentView, read_development
from lens_slt.development.plan import DevelopmentPlan, plan_development
from lens_slt.json_files import read_json
from lens_slt.models.adapter import adapt
from lens_slt.models.checkpoints import Checkpoints, checkpoints, refuse_single
from lens_slt.models.source import model_source
from lens_slt.report.files import BUILT, REPORT, SWEEP, write_about
from lens_slt.report.report import write_report
from lens_slt.report.tables_development import (
    built_table,
    heads_table,
    stages_table,
    transitions_table,
)
from lens_slt.sampling.jobs import backend_options
from lens_slt.sampling.prepare import Probe
from lens_slt.sampling.settings import Settings

PROBE, REFERENCE = "text", "reference"
TRIED = "construction"  # a folder
PLAN = "plan.json"
TRIAL_SEQUENCES, HYPOTHESES = 16, 2
INFERRED, NONE = "inferred", "none"
THIN = 4  # draws with probes


def develop_command(
    model: Model,
    out: Out,
    data: Data = "mix",
    components: Components = "heads",
    steps: Annotated[
        str | None, typer.Option(help="Training steps with commas; by default as time allows.")
    ] = None,
    config: Config = None,
    minutes: Annotated[float, typer.Option(help="That sampling may take.")] = 10.0,
    parallel: Annotated[str | None, typer.Option(help="Processes, or dask or ray.")] = None,
    reference: Annotated[
        str | None, typer.Option(help="A model whose predictions λ̂ is refined by too.")
    ] = None,
    hypothesis: Annotated[
        str, typer.Option(help="A circuit such as 'L0H2->L1H2.K', inferred, or none.")
    ] = INFERRED,
    pattern: Annotated[str, typer.Option(help="Of a circuit that is written out.")] = "induction",
    probe_sequences: Annotated[int, typer.Option(help="Sequences of the probe.")] = 24,
    chains: Chains = None,
    draws: Draws = None,
    batch_size: BatchSize = 8,
    seed: Seed = None,
    sequences: Sequences = None,
    length: Length = 128,
    bos: Bos = True,
    device: Device = None,
    dry_run: DryRun = False,
    as_json: Json = False,
) -> None:
    """How structure formed over training: stages, losses of patterns, heads, circuits."""
    with guarded(as_json, out / SWEEP):
        began = time.monotonic()
        workers = int(parallel) if parallel is not None and parallel.isdigit() else parallel
        run = _run(model, steps, config)
        settings = make_settings(
            None, None, chains=chains, draws=draws, batch_size=batch_size, seed=seed, thin=THIN
        )
        last = _loaded(run, run.steps[-1], device)
        tokens = load_data(data, last, sequences, length, bos)
        probe = load_data(data, last, probe_sequences, length, bos, seed=1)
        probes: dict[str, Any] = {PROBE: probe}
        if reference is not None:
            probes[REFERENCE] = Probe(probe[:8], reference=model_source(reference))
        labels = label_patterns(probe, last.tokenizer)
        _check(run, workers, hypothesis, pattern, last, labels)
        asked = {
            "components": components, "steps": steps, "minutes": minutes, "draws": draws,
            "reference": reference,
        }  # fmt: skip
        plan = _plan_before(out / PLAN, asked, run, settings)
        if plan is None:
            say("planning: the last checkpoint is sampled briefly")
            plan = plan_development(
                run, tokens, components, minutes=minutes, settings=settings, probes=_models(probes),
                workers=workers if isinstance(workers, int) else 1, device=device,
            )  # fmt: skip
        say(str(plan))
        if dry_run:
            finish({"plan": _plan_record(plan)}, as_json)
            return
        _keep_plan(out / PLAN, asked, plan)
        chosen = run if steps is not None else plan.checkpoints
        curves = develop(
            chosen, tokens, components, settings=plan.settings, probes=probes, path=out / SWEEP,
            parallel=workers, device=device, progress=not as_json,
        )  # fmt: skip
        circuits = _circuits(hypothesis, pattern, out / SWEEP, chosen, last, probe, labels)
        built = None
        if circuits:
            text = load_data(data, last, TRIAL_SEQUENCES, length, bos, seed=2)
            built = construction(
                chosen, text, circuits, path=out / TRIED, seed=seed or 0, parallel=workers,
                device=device, progress=not as_json,
            )  # fmt: skip
            write_zarr(built, out / BUILT)
        view = read_development(curves, construction=built, seed=seed or 0, progress=not as_json)
        about = {
            "title": f"Development of {run.name}", "data": data, "plan": str(plan),
            "written on": date.today().isoformat(),
        }  # fmt: skip
        write_about(out, about)
        written = write_report(view, out / REPORT, about=about)
        if not as_json:
            _show(view)
            spent = time.monotonic() - began
            say(f"done in {spent:.0f} s; open {written}; results in {out}")
        finish(_record(view, plan, written), as_json)


def _run(model: str, steps: str | None, config: Path | None) -> Checkpoints:
    run = checkpoints(model) if config is None else checkpoints(model, config=config)
    if steps is None:
        return run
    try:
        wanted = [int(step) for step in steps.split(",")]
    except ValueError:
        raise ValueError(f"--steps must be whole numbers with commas; got {steps!r}") from None
    return run.at(wanted)


def _check(
    run: Checkpoints, workers: Any, hypothesis: str, pattern: str, model: Any, labels: Any
) -> None:
    """Raise ValueError for what would be refused only after the plan, or after the sweep."""
    refuse_single(run)
    backend_options(workers)
    if hypothesis not in (NONE, INFERRED):
        choice("--pattern", pattern, [ALL, *map(str, labels["pattern"].values)])
        nodes_of(circuit(hypothesis, pattern).components, adapt(model))


def _loaded(run: Checkpoints, step: int, device: str | None) -> Any:
    """A model, without what TransformerLens prints while loading."""
    with contextlib.redirect_stdout(io.StringIO()):
        return run.load(step, device)


def _plan_before(
    file: Path, asked: dict[str, Any], run: Checkpoints, settings: Settings
) -> DevelopmentPlan | None:
    """The plan of this command before it was interrupted: another would have other draws."""
    if not file.exists():
        return None
    kept = read_json(file)
    if kept["asked"] != asked:
        return None
    plan = dict(kept["plan"])
    return DevelopmentPlan(run.at(plan.pop("steps")), settings.but(draws=plan.pop("draws")), **plan)


def _keep_plan(file: Path, asked: dict[str, Any], plan: DevelopmentPlan) -> None:
    if file.exists():
        return  # of what lies in the folder; develop says where it does not fit
    file.parent.mkdir(parents=True, exist_ok=True)
    numbers = {
        name: getattr(plan, name)
        for name in ("seconds", "seconds_per_checkpoint", "relative_se", "budget")
    }
    chosen = {"steps": list(plan.checkpoints.steps), "draws": plan.settings.draws}
    file.write_text(json.dumps({"asked": asked, "plan": chosen | numbers}), encoding="utf-8")


def _models(probes: dict[str, Any]) -> dict[str, Any]:
    """Probes for the plan: without references, whose cost is that of other probes."""
    return {
        name: probe.tokens if isinstance(probe, Probe) else probe for name, probe in probes.items()
    }


def _circuits(
    hypothesis: str,
    pattern: str,
    folder: Path,
    run: Checkpoints,
    model: Any,
    probe: Any,
    labels: Any,
) -> list[CircuitHypothesis]:
    """Circuits to follow back: one that is written out, or those that the last checkpoint shows."""
    if hypothesis == NONE:
        return []
    if hypothesis != INFERRED:
        return [circuit(hypothesis, pattern)]
    matrix = open_checkpoint(folder, run.steps[-1])[f"per_token_llc/{PROBE}"]
    evidence = SltEvidence(matrix.load(), labels)
    return propose_circuits(evidence, model, probe, most=HYPOTHESES)


def _show(view: DevelopmentView) -> None:
    if view.stages is not None:
        console.print(stages_table(view))
        console.print()
    if view.transitions is not None:
        console.print(transitions_table(view))
        console.print()
    console.print(heads_table(view))
    console.print()
    if view.construction is not None:
        console.print(built_table(view))
        console.print()
    for name, why in view.refused.items():
        say(f"no {name}: {why}")


def _plan_record(plan: DevelopmentPlan) -> dict[str, Any]:
    return {
        "steps": list(plan.checkpoints.steps), "draws": plan.settings.draws,
        "seconds": plan.seconds, "relative_se": plan.relative_se, "fits": plan.fits,
    }  # fmt: skip


def _record(view: DevelopmentView, plan: DevelopmentPlan, written: Path) -> dict[str, Any]:
    llc = view.curves["refined_llc"].to_dataset()
    record: dict[str, Any] = {
        "run": view.curves.attrs["run"], "plan": _plan_record(plan),
        "certificates": {
            str(name): [str(word) for word in llc["certificate"].sel(component=name).values]
            for name in llc["component"].values
        },
        "refused": view.refused, "report": str(written),
    }  # fmt: skip
    if view.stages is not None:
        one = view.stages.isel(component=0)
        record["stages"] = [str(word) for word in one["type"].values[: int(one["n_stages"])]]
    return record
