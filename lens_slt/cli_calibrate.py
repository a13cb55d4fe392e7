"""``lens-slt calibrate``: nβ and γ for all components of a model."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from lens_slt.calibration import MOST_ROUNDS, SHORT, Calibration, calibrate, sweep
from lens_slt.cli_commands import Calibrate
from lens_slt.cli_output import finish, say, show
from lens_slt.cli_support import (
    load,
    plain_records,
    read_numbers,
    settings_from,
    show_estimate,
)
from lens_slt.cli_text import weighted_text
from lens_slt.report import page
from lens_slt.report.files import write_csv
from lens_slt.report.plots import plot_calibration
from lens_slt.report.tables import calibration_table
from lens_slt.sampling.course import first_course
from lens_slt.sampling.estimate import Estimate, estimate
from lens_slt.sampling.settings import Settings

NOT_IN_IT = (
    f"loading the model, up to {MOST_ROUNDS} more values of nβ or γ where no setting is accepted, "
    "tables and figures"
)


def run(options: Calibrate) -> None:
    """Search a grid, and write settings for ``lens-slt rllc``."""
    short = settings_from(options, SHORT)
    grid: dict[str, Any] = {
        "n_betas": read_numbers("n-betas", options.n_betas),
        "gammas": read_numbers("gammas", options.gammas),
    }
    model = load(options)
    tokens, weights = weighted_text(options, model, options.sequences)
    given: dict[str, Any] = {"weights": weights, "device": options.device}
    if options.dry_run:
        runs = sweep(**grid, settings=short)
        found = _foreseen(model, tokens, options.components, runs, given)
        show_estimate(options, found, NOT_IN_IT, short)
        return
    chosen = calibrate(
        model, tokens, options.components, settings=short, progress=not options.quiet,
        **given, **grid,
    )  # fmt: skip
    files = _written(options.out, chosen, options.model)
    show(options, calibration_table(chosen))
    say(options, f"written: {', '.join(files.values())}")
    finish(options, _record(chosen, short) | {"files": files}, chosen.settings is not None)


def _foreseen(
    model: Any, tokens: Any, components: str, runs: list[Settings], given: dict[str, Any]
) -> Estimate:
    """What all runs take, from the one that goes furthest from the given weights."""
    hardest = max(runs, key=lambda one: one.n_beta / one.gamma)
    found = estimate(model, tokens, components, settings=hardest, **given)
    least = {one: first_course(one).steps_left for one in runs}
    return found.repeated([found.steps * least[one] // least[hardest] for one in runs])


def _record(found: Calibration, short: Settings) -> dict[str, Any]:
    """What is chosen and why; health of every component at every setting that was tried."""
    columns = ["llc", "se", "rhat", "verdict"]
    return {
        "settings": None if found.settings is None else found.settings.as_dict(),
        "reason": found.reason,
        "tried_with": short.as_dict(),
        "health": plain_records(found.evidence[columns].to_dataframe()[columns].reset_index()),
    }


def _written(out: Path, found: Calibration, model: str) -> dict[str, str]:
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
