"""``lens-slt pattern``: weights of the data from a wish, and whether they bring it about."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer
import xarray as xr

from lens_slt.cli_options import (
    BatchSize,
    Bos,
    Chains,
    Checkpoint,
    Config,
    Data,
    Device,
    Draws,
    Json,
    Length,
    Model,
    Out,
    PadId,
    Seed,
    Sequences,
    TargetSe,
)
from lens_slt.cli_support import (
    console,
    finish,
    guarded,
    load_data,
    load_quietly,
    make_settings,
    parse_probes,
    plain_records,
    say,
)
from lens_slt.data.tokens import ARRAY_FILES
from lens_slt.observables.data_response import data_response
from lens_slt.report import page
from lens_slt.report.files import write_csv
from lens_slt.report.plots_patterning import plot_data_response, plot_patterning
from lens_slt.report.plots_retrainings import plot_patterning_check
from lens_slt.report.tables_patterning import patterning_check_table, patterning_table
from lens_slt.sampling.prepare import Probe
from lens_slt.sampling.sample import sample
from lens_slt.training.patterning import patterning
from lens_slt.training.verify_patterning import STRENGTHS, verify_patterning

DRAWS, RETRAININGS, WEIGHTS, PAGE = "draws", "retrainings", "weights.csv", "pattern.html"
CANDIDATES = "candidates"


def pattern_command(
    model: Model,
    data: Data,
    out: Out,
    probe: Annotated[list[str], typer.Option(help="name=source, tokens whose loss is observed.")],
    wish: Annotated[list[str], typer.Option(help="name=change of that loss in nats: code=-0.05.")],
    component: Annotated[str, typer.Option(help="Whose posterior answers.")] = "full",
    strength: Annotated[float, typer.Option(help="Of the change; negative is its opposite.")] = 1.0,
    hold_others: Annotated[bool, typer.Option(help="Other observables are to stay.")] = False,
    probe_sequences: Annotated[int, typer.Option(help="Sequences of every probe.")] = 32,
    verify: Annotated[
        int | None, typer.Option(help="Retrain for so many steps over a ladder of strengths.")
    ] = None,
    n_seeds: Annotated[int, typer.Option(help="Seeds of the retrainings.")] = 3,
    parallel: Annotated[int | None, typer.Option(help="Processes for the retrainings.")] = None,
    config: Config = None,
    checkpoint: Checkpoint = None,
    chains: Chains = None,
    draws: Draws = None,
    target_se: TargetSe = None,
    batch_size: BatchSize = None,
    seed: Seed = None,
    sequences: Sequences = None,
    length: Length = None,
    bos: Bos = True,
    pad_id: PadId = None,
    device: Device = None,
    as_json: Json = False,
) -> None:
    """Which weights of the data bring about a wished change, and do they?"""
    with guarded(as_json, out / DRAWS):
        settings = make_settings(
            None, None, chains=chains, draws=draws, target_se=target_se, batch_size=batch_size,
            seed=seed,
        )  # fmt: skip
        sources, wishes = parse_probes(probe), _wishes(wish)
        for name in wishes:
            if name not in sources:
                raise ValueError(f"--wish {name!r} is no --probe; there are {', '.join(sources)}")
            if sources[name] == data and Path(data).suffix in ARRAY_FILES:
                raise ValueError(f"--probe {name} must hold other sequences than --data, {data}")
        loaded = load_quietly(model, checkpoint, device, config)
        tokens = load_data(data, loaded, sequences, length, bos)
        probes = {
            name: Probe(load_data(source, loaded, probe_sequences, length, bos, 1), pad_id=pad_id)
            for name, source in sources.items()
        }
        drawn = sample(
            loaded, tokens, component, settings=settings, pad_id=pad_id, path=out / DRAWS,
            probes={CANDIDATES: Probe(tokens, pad_id=pad_id), **probes}, progress=not as_json,
            device=device,
        )  # fmt: skip
        response = data_response(drawn, CANDIDATES, {name: name for name in probes})
        found = patterning(response, wishes, strength=strength, hold_others=hold_others)
        check = None
        if verify is not None:
            check = verify_patterning(
                loaded, tokens, response, wishes, probes, steps=verify, path=out / RETRAININGS,
                strengths=[strength * s for s in STRENGTHS],
                hold_others=hold_others, seeds=range(n_seeds), start=checkpoint or 0,
                pad_id=pad_id, parallel=parallel, progress=not as_json,
            )  # fmt: skip
        _written(out, response, found, check, model, as_json)


def _wishes(given: list[str]) -> dict[str, float]:
    """``name=number`` options as a dict."""
    found: dict[str, float] = {}
    for text in given:
        name, _, value = text.partition("=")
        try:
            found[name] = float(value)
        except ValueError:
            raise ValueError(f"--wish must read name=number; got {text!r}") from None
    return found


def _written(
    out: Path, response: xr.Dataset, found: xr.Dataset, check: xr.Dataset | None, name: str,
    as_json: bool,
) -> None:  # fmt: skip
    tables = [patterning_table(found)]
    sections = [
        page.Section("weights", "Weights", page.figure(plot_patterning(found))
                     + page.table(tables[0])),
        page.Section("response", "Response", page.figure(plot_data_response(response))),
    ]  # fmt: skip
    if check is not None:
        tables.append(patterning_check_table(check))
        body = page.figure(plot_patterning_check(check)) + page.table(tables[1])
        sections.insert(0, page.Section("check", "Did it come true?", body))
    weights = found[["weight", "change"]].to_dataframe().reset_index()
    files = {"weights": out / WEIGHTS, "page": out / PAGE}
    write_csv(files["weights"], weights.to_dict("records"))
    lead = "Predictions are to first order, of a local posterior; only retraining shows them right."
    text = page.page(f"Data for a wish, {name}", page.paragraph(lead, "lead"), sections)
    files["page"].write_text(text, "utf-8")
    written = {key: str(file) for key, file in files.items()}
    if not as_json:
        for table in tables:
            console.print(table)
            console.print()
        say(f"written: {', '.join(written.values())}")
    columns = ["wish", "predicted", "predicted_se", "side_effect"]
    record: dict[str, Any] = {
        "observables": plain_records(found[columns].to_dataframe().reset_index()), "files": written,
        "clipped": found.attrs["clipped"],
        "effective_sequences": found.attrs["effective_sequences"],
    }  # fmt: skip
    if check is not None:
        shares = check[["share", "share_se", "excess", "excess_se", "z", "p"]]
        known = shares.to_dataframe().dropna(subset="share")
        record["retrained"] = plain_records(known.reset_index())
    finish(record, as_json)
