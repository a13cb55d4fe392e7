"""``lens-slt develop``: a sweep over the checkpoints of a training run, and what it says."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from datetime import date
from pathlib import Path
from typing import Any

import xarray as xr
from rich.console import RenderableType

from lens_slt.arguments import choice
from lens_slt.arrays import write_zarr
from lens_slt.circuits.hypothesis import CircuitHypothesis, circuit
from lens_slt.circuits.pattern_masks import ALL
from lens_slt.circuits.propose import propose_circuits
from lens_slt.circuits.roles import nodes_of
from lens_slt.circuits.slt_evidence import SltEvidence
from lens_slt.cli_commands import Develop
from lens_slt.cli_output import finish, say, seconds, show
from lens_slt.cli_support import (
    is_usable,
    processes,
    record_of_curves,
    settings_from,
    whole_numbers,
    with_enough_tokens,
)
from lens_slt.cli_text import first_rows, text_of
from lens_slt.data.patterns import label_patterns
from lens_slt.development.construction import construction
from lens_slt.development.develop import develop, open_checkpoint
from lens_slt.development.overview import DevelopmentView, read_development, refusals
from lens_slt.development.plan import DevelopmentPlan, plan_development
from lens_slt.json_files import read_json
from lens_slt.models.adapter import adapt
from lens_slt.models.checkpoints import Checkpoints, checkpoints, refuse_single
from lens_slt.models.source import model_source
from lens_slt.report.files import BUILT, REPORT, write_about
from lens_slt.report.report import write_report
from lens_slt.report.tables_development import (
    built_table,
    heads_table,
    stages_table,
    taken_up_table,
    transitions_table,
)
from lens_slt.sampling.jobs import backend_options
from lens_slt.sampling.prepare import Probe
from lens_slt.sampling.settings import Settings

PROBE, REFERENCE = "text", "reference"
TRIED = "construction"  # a folder
PLAN = "plan.json"
NOTHING_PROPOSED = "the draws of the last checkpoint propose no circuit; --hypothesis names one"
MINUTES = 15.0  # that a sweep takes where nobody says how long, if that is enough
TRIAL_SEQUENCES, HYPOTHESES = 16, 2
INFERRED, NONE = "inferred", "none"
THIN = 4  # draws with probes
MUCH_LONGER = 1.5  # than allowed, that a sweep is not begun


def run(options: Develop) -> None:
    """Plan, sweep, follow circuits back, report."""
    workers = processes(options.parallel, options.device)
    training = _training(options)
    settings = settings_from(options, thin=THIN)
    last = training.load(training.steps[-1], options.device)
    n_probe = options.probe_sequences
    probe = text_of(options, last, n_probe, seed=1)
    tried = text_of(options, last, TRIAL_SEQUENCES, seed=2, without=[probe])
    tokens = text_of(options, last, options.sequences, without=[probe, tried])
    probes: dict[str, Any] = {PROBE: probe}
    if options.reference is not None:
        probes[REFERENCE] = Probe(first_rows(probe, 8), reference=model_source(options.reference))
    labels = label_patterns(probe, last.tokenizer)
    _check(options, training, workers, last, labels)
    plan = _planned(options, training, tokens, settings, probes, workers)
    if options.dry_run:
        finish(options, {"plan": _plan_record(plan), "settings": plan.settings.as_dict()})
        return
    chosen = plan.checkpoints
    progress = not options.quiet
    curves = develop(
        chosen, tokens, options.components, settings=plan.settings, probes=probes,
        path=options.kept, parallel=workers, device=options.device, progress=progress,
    )  # fmt: skip
    circuits = _circuits(options, chosen, last, probe, labels)
    if options.hypothesis == INFERRED:
        circuits = with_enough_tokens(options, circuits, tried, last)
    built = None
    if circuits:
        built = construction(
            chosen, tried, circuits,
            path=options.out / TRIED, seed=options.seed or 0, parallel=workers,
            device=options.device, progress=progress,
        )  # fmt: skip
        write_zarr(built, options.out / BUILT)
    view = read_development(curves, construction=built, seed=options.seed or 0, progress=progress)
    if options.hypothesis == INFERRED and not circuits:
        view = replace(view, refused={**view.refused, "construction": NOTHING_PROPOSED})
    _finish(options, view, plan, training.name)


def _training(options: Develop) -> Checkpoints:
    """The checkpoints of the training run, those that were asked for."""
    model, config = options.model, options.config
    found = checkpoints(model) if config is None else checkpoints(model, config=config)
    return found if options.steps is None else found.at(whole_numbers("steps", options.steps))


def _check(
    options: Develop, training: Checkpoints, workers: Any, model: Any, labels: xr.DataArray
) -> None:
    """Raise ValueError for what would be refused only after the plan, or after the sweep."""
    refuse_single(training)
    backend_options(workers)
    if options.hypothesis not in (NONE, INFERRED):
        choice("--pattern", options.pattern, [ALL, *map(str, labels["pattern"].values)])
        nodes_of(circuit(options.hypothesis, options.pattern).components, adapt(model))


def _planned(
    options: Develop, training: Checkpoints, tokens: Any, settings: Settings,
    probes: dict[str, Any], workers: Any,
) -> DevelopmentPlan:  # fmt: skip
    """The plan that this command made before, or another, which is kept unless it is a dry run."""
    asked = {
        name: getattr(options, name)
        for name in ("components", "steps", "minutes", "draws", "reference")
    }
    file = options.out / PLAN
    plan = _plan_before(file, asked, training, settings)
    if plan is None:
        say(options, "planning: the last checkpoint is sampled briefly")
        plan = plan_development(
            training, tokens, options.components,
            minutes=MINUTES if options.minutes is None else options.minutes,
            every_checkpoint=options.steps is not None, settings=settings, probes=_models(probes),
            workers=workers if isinstance(workers, int) else 1, device=options.device,
        )  # fmt: skip
        if options.minutes is not None and not options.dry_run:
            _refuse_much_longer(plan)
    say(options, str(plan))
    if not options.dry_run:
        _keep_plan(file, asked, plan)
    return plan


def _refuse_much_longer(plan: DevelopmentPlan) -> None:
    """Raise ValueError where the least that a sweep can be is far from what was allowed."""
    if plan.seconds > MUCH_LONGER * plan.budget:
        least = math.ceil(plan.seconds / 60)
        raise ValueError(
            f"--minutes {plan.budget / 60:g} does not do: these checkpoints and components take "
            f"about {least} min at the least. Allow --minutes {least}, or take fewer --components, "
            "--sequences, --probe-sequences or --steps, or a smaller --length"
        )


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
    options: Develop, run: Checkpoints, model: Any, probe: Any, labels: xr.DataArray
) -> list[CircuitHypothesis]:
    """Circuits to follow back: one that is written out, or those that the last checkpoint shows."""
    if options.hypothesis == NONE:
        return []
    if options.hypothesis != INFERRED:
        return [circuit(options.hypothesis, options.pattern)]
    matrix = open_checkpoint(options.kept, run.steps[-1])[f"per_token_llc/{PROBE}"]
    evidence = SltEvidence(matrix.load(), labels)
    return propose_circuits(evidence, model, probe, most=HYPOTHESES)


def _finish(options: Develop, view: DevelopmentView, plan: DevelopmentPlan, name: str) -> None:
    """Write the report; show what was found, or what was not and why."""
    about = {
        "title": f"Development of {name}", "data": options.data, "plan": str(plan),
        "written on": date.today().isoformat(),
    }  # fmt: skip
    write_about(options.out, about)
    written = write_report(view, options.out / REPORT, about=about)
    show(options, *_tables(view))
    for line in refusals(view):
        say(options, line)
    words = f"open {written}; results in {options.out}"
    say(options, f"done in {seconds(options):.0f} s; {words}")
    llc = view.curves["refined_llc"].to_dataset()
    finish(options, _record(view, plan, written), usable=is_usable(llc))


def _tables(view: DevelopmentView) -> list[RenderableType]:
    found: list[RenderableType] = []
    if view.stages is not None:
        found.append(stages_table(view))
    if view.transitions is not None:
        found.append(transitions_table(view))
    found.append(heads_table(view))
    if view.taken_up is not None:
        found.append(taken_up_table(view))
    if view.construction is not None:
        found.append(built_table(view))
    return found


def _plan_record(plan: DevelopmentPlan) -> dict[str, Any]:
    return {
        "steps": list(plan.checkpoints.steps), "draws": plan.settings.draws,
        "seconds": plan.seconds, "relative_se": plan.relative_se, "fits": plan.fits,
    }  # fmt: skip


def _record(view: DevelopmentView, plan: DevelopmentPlan, written: Path) -> dict[str, Any]:
    record = record_of_curves(view.curves) | {
        "plan": _plan_record(plan), "refused": view.refused, "report": str(written),
        "files": {"report": str(written)},
    }  # fmt: skip
    if view.stages is not None:
        one = view.stages.isel(component=0)
        record["stages"] = [str(word) for word in one["type"].values[: int(one["n_stages"])]]
    return record
