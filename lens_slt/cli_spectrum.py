"""``lens-slt spectrum``: λ̂ of components over a ladder of nβ and γ, at one or more checkpoints."""

from __future__ import annotations

from typing import Any

import xarray as xr

from lens_slt.arrays import write_zarr
from lens_slt.cli_commands import Spectrum
from lens_slt.cli_output import finish, say, show
from lens_slt.cli_support import (
    is_usable,
    load_quietly,
    plain_records,
    read_numbers,
    record_of,
    settings_from,
    whole_numbers,
)
from lens_slt.cli_text import weighted_text
from lens_slt.development.curves import CHECKPOINT, join_checkpoints
from lens_slt.observables.refined_llc import refined_llc
from lens_slt.phases.curvatures import curvatures
from lens_slt.phases.ladder import sample_ladder
from lens_slt.phases.multiplicity import multiplicity
from lens_slt.phases.spectrum import spectrum
from lens_slt.report import page
from lens_slt.report.files import write_csv
from lens_slt.report.plots_spectrum import plot_curvatures, plot_multiplicity, plot_spectrum
from lens_slt.report.tables_spectrum import curvatures_table, multiplicity_table, spectrum_table

TABLE, PAGE = "spectrum.csv", "spectrum.html"


def run(options: Spectrum) -> None:
    """Sample a ladder at every checkpoint, and show what its rungs say."""
    settings = settings_from(options)
    grid: dict[str, Any] = {
        "n_betas": read_numbers("n-betas", options.n_betas),
        "gammas": read_numbers("gammas", options.gammas),
    }
    steps: list[int | None] = [None]
    if options.steps is not None:
        steps = [*whole_numbers("steps", options.steps)]
    found, runs = {}, []
    for step in steps:
        model = load_quietly(options.model, step, options.device, options.config)
        tokens, weights = weighted_text(options, model, options.sequences)
        rungs = sample_ladder(
            model, tokens, options.components, settings=settings, weights=weights,
            path=options.kept / ("last" if step is None else str(step)),
            device=options.device, progress=not options.quiet, **grid,
        )  # fmt: skip
        found[step] = spectrum(rungs, trust=options.trust)
        runs += [(step, refined_llc(rung)) for rung in rungs]
    rows, files = _written(options, found)
    say(options, f"written: {', '.join(files.values())}")
    record = {"rungs": rows, "runs": [_run(step, llc) for step, llc in runs], "files": files}
    finish(options, record, usable=is_usable(_used(runs)))


def _run(step: int | None, llc: xr.Dataset) -> dict[str, Any]:
    """Settings, health and certificates of one rung."""
    return ({} if step is None else {CHECKPOINT: step}) | record_of(llc)


def _used(runs: list[tuple[int | None, xr.Dataset]]) -> xr.Dataset:
    """The chains that can be used, of all rungs."""
    return xr.concat([llc[["chains_used"]] for _, llc in runs], "rung")


def _written(
    options: Spectrum, found: dict[int | None, xr.Dataset]
) -> tuple[list[dict[str, Any]], dict[str, str]]:
    """Tables on the terminal; a CSV file and a page with figures in the folder; rows and files."""
    rows, sections = [], []
    results: dict[str, xr.Dataset] = {}  # for lens-slt report
    for step, one in found.items():
        fitted, curved = multiplicity(one, trust=options.trust), curvatures(one)
        results = {"spectrum": one, "curvatures": curved, "multiplicity": fitted}
        name = "Spectrum" if step is None else f"Spectrum at step {step}"
        tables = spectrum_table(one), curvatures_table(curved), multiplicity_table(fitted)
        show(options, *tables)
        figures = plot_spectrum(one), plot_curvatures(curved), plot_multiplicity(fitted)
        body = "".join(
            page.figure(figure) + page.table(table)
            for figure, table in zip(figures, tables, strict=True)
        )
        sections.append(page.Section(f"step-{step}", name, body))
        rows += _rows(step, one)
    if len(found) > 1:
        joined = join_checkpoints({int(step or 0): one for step, one in found.items()})
        body = page.figure(plot_spectrum(joined))
        sections.insert(0, page.Section("over-training", "Over training", body))
        results = {"spectrum": joined}
    files = {"table": options.out / TABLE, "page": options.out / PAGE}
    for name, result in results.items():
        files[name] = options.out / f"{name}.zarr"
        write_zarr(result, files[name])
    write_csv(files["table"], rows)
    lead = "λ̂ over nβ and γ is a regularised curvature spectrum, not an asymptote."
    text = page.page(f"Spectrum of {options.model}", page.paragraph(lead, "lead"), sections)
    files["page"].write_text(text, "utf-8")
    return rows, {key: str(file) for key, file in files.items()}


def _rows(step: int | None, one: xr.Dataset) -> list[dict[str, Any]]:
    """One plain record per rung and component; null where λ̂ is not certified."""
    table = one[["llc", "se", "stiffness", "effective_directions", "certificate"]]
    frame = table.to_dataframe().reset_index()
    if step is not None:
        frame.insert(0, CHECKPOINT, step)
    return plain_records(frame)
