"""``lens-slt spectrum``: λ̂ of components over a ladder of nβ and γ, at one or more checkpoints."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer
import xarray as xr

from lens_slt.cli_options import (
    BatchSize,
    Bos,
    Chains,
    Components,
    Config,
    Data,
    Device,
    Draws,
    Json,
    Length,
    Model,
    Out,
    PadId,
    Positions,
    Seed,
    Sequences,
    TargetSe,
)
from lens_slt.cli_support import (
    console,
    finish,
    guarded,
    load_quietly,
    load_weighted,
    make_settings,
    plain_records,
    read_numbers,
    say,
)
from lens_slt.development.curves import CHECKPOINT, join_checkpoints
from lens_slt.phases.curvatures import curvatures
from lens_slt.phases.ladder import GAMMAS, N_BETAS, sample_ladder
from lens_slt.phases.multiplicity import multiplicity
from lens_slt.phases.spectrum import spectrum
from lens_slt.report import page
from lens_slt.report.files import write_csv
from lens_slt.report.plots_spectrum import plot_curvatures, plot_multiplicity, plot_spectrum
from lens_slt.report.tables_spectrum import curvatures_table, multiplicity_table, spectrum_table

RUNGS, TABLE, PAGE = "rungs", "spectrum.csv", "spectrum.html"


def spectrum_command(
    model: Model,
    data: Data,
    out: Out,
    components: Components = "heads",
    config: Config = None,
    checkpoints: Annotated[
        str | None, typer.Option(help="Training steps with commas; the last by default.")
    ] = None,
    n_betas: Annotated[str, typer.Option(help="Inverse temperatures of the rungs.")] = ",".join(
        f"{n:g}" for n in N_BETAS
    ),
    gammas: Annotated[str, typer.Option(help="Localizations of the rungs.")] = ",".join(
        f"{g:g}" for g in GAMMAS
    ),
    chains: Chains = None,
    draws: Draws = None,
    target_se: TargetSe = None,
    batch_size: BatchSize = None,
    seed: Seed = None,
    sequences: Sequences = None,
    length: Length = None,
    bos: Bos = True,
    positions: Positions = None,
    pad_id: PadId = None,
    device: Device = None,
    trust: Annotated[bool, typer.Option(help="Show λ̂ that is not certified.")] = False,
    as_json: Json = False,
) -> None:
    """λ̂ over nβ and γ: a regularised curvature spectrum; directions by curvature; λ and m."""
    with guarded(as_json, out / RUNGS):
        settings = make_settings(
            None, None, chains=chains, draws=draws, target_se=target_se, batch_size=batch_size,
            seed=seed,
        )  # fmt: skip
        grid = {
            "n_betas": read_numbers("n-betas", n_betas), "gammas": read_numbers("gammas", gammas),
        }  # fmt: skip
        found = {}
        for step in _steps(checkpoints):
            loaded = load_quietly(model, step, device, config)
            tokens, weights = load_weighted(data, positions, loaded, sequences, length, bos, pad_id)
            place = out / RUNGS / ("last" if step is None else str(step))
            rungs = sample_ladder(
                loaded, tokens, components, settings=settings, weights=weights, pad_id=pad_id,
                path=place, device=device, progress=not as_json, **grid,
            )  # fmt: skip
            found[step] = spectrum(rungs, trust=trust)
        _written(out, found, model, trust, as_json)


def _steps(text: str | None) -> list[int | None]:
    if text is None:
        return [None]
    try:
        return [int(step) for step in text.split(",")]
    except ValueError:
        raise ValueError(f"--checkpoints must be whole numbers with commas; got {text!r}") from None


def _written(
    out: Path, found: dict[int | None, xr.Dataset], model: str, trust: bool, as_json: bool
) -> None:
    """Tables on the terminal; a CSV file and a page with figures in the folder."""
    rows, sections = [], []
    for step, one in found.items():
        fitted, curved = multiplicity(one, trust=trust), curvatures(one)
        name = "Spectrum" if step is None else f"Spectrum at step {step}"
        tables = spectrum_table(one), curvatures_table(curved), multiplicity_table(fitted)
        for table in tables if not as_json else ():
            console.print(table)
            console.print()
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
    files = {"table": out / TABLE, "page": out / PAGE}
    write_csv(files["table"], rows)
    lead = "λ̂ over nβ and γ is a regularised curvature spectrum, not an asymptote."
    text = page.page(f"Spectrum of {model}", page.paragraph(lead, "lead"), sections)
    files["page"].write_text(text, "utf-8")
    written = {key: str(file) for key, file in files.items()}
    if not as_json:
        say(f"written: {', '.join(written.values())}")
    finish({"rungs": rows, "files": written}, as_json)


def _rows(step: int | None, one: xr.Dataset) -> list[dict[str, Any]]:
    """One plain record per rung and component; null where λ̂ is not certified."""
    table = one[["llc", "se", "stiffness", "effective_directions", "certificate"]]
    frame = table.to_dataframe().reset_index()
    if step is not None:
        frame.insert(0, CHECKPOINT, step)
    return plain_records(frame)
