"""``lens-slt match``: the components of one model and those of another, and circuits across."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer
import xarray as xr

from lens_slt.circuits.attention import attention_patterns
from lens_slt.circuits.hypothesis import CircuitHypothesis, circuit, read_hypotheses
from lens_slt.circuits.transfer import Transfer, transfer
from lens_slt.cli_options import (
    BatchSize,
    Bos,
    Chains,
    Components,
    Data,
    Device,
    Draws,
    Json,
    Length,
    Out,
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
    plain_records,
    say,
)
from lens_slt.data.tokens import ARRAY_FILES
from lens_slt.observables.per_token_llc import per_token_llc
from lens_slt.report import page
from lens_slt.report.files import write_csv
from lens_slt.report.plots_match import plot_match, plot_transfer
from lens_slt.report.tables_match import match_table, transfer_table
from lens_slt.sampling.sample import sample
from lens_slt.sampling.settings import Settings
from lens_slt.structure.match import match

TABLE, PAGE = "match.csv", "match.html"
PROBE = "text"
ATTENDED = 16  # sequences of attention patterns
TRIED = 64  # sequences of trials, at most


def match_command(
    model: Annotated[
        str, typer.Option(help="A shipped model, a folder, a file, or a TransformerLens name.")
    ],
    other: Annotated[str, typer.Option(help="Another one, with the same tokenizer.")],
    data: Data,
    out: Out,
    components: Components = "heads",
    checkpoint: Annotated[int | None, typer.Option(help="Training step of --model.")] = None,
    other_checkpoint: Annotated[int | None, typer.Option(help="Training step of --other.")] = None,
    hypotheses: Annotated[
        list[str] | None,
        typer.Option(help="Circuits of --model to carry over, as L0H2->L1H2.K, or a JSON file."),
    ] = None,
    pattern: Annotated[str, typer.Option(help="Of circuits that are given as text.")] = "induction",
    probe_sequences: Annotated[int, typer.Option(help="Sequences that are matched on.")] = 48,
    chains: Chains = None,
    draws: Draws = None,
    target_se: TargetSe = None,
    batch_size: BatchSize = None,
    seed: Seed = None,
    sequences: Sequences = None,
    length: Length = None,
    bos: Bos = True,
    device: Device = None,
    as_json: Json = False,
) -> None:
    """Which head is which, by rLLCs and attention; circuits on trial in the other model."""
    with guarded(as_json, out):
        settings = make_settings(
            None, None, chains=chains, draws=draws, target_se=target_se, batch_size=batch_size,
            seed=seed,
        )  # fmt: skip
        circuits = _circuits(hypotheses or [], pattern)
        a = load_quietly(model, checkpoint, device)
        b = load_quietly(other, other_checkpoint, device)
        _refuse_other_tokenizers(a, b)
        tokens, probe, trial = _tokens(data, a, sequences, probe_sequences, length, bos)
        results = []
        for i, one in enumerate((a, b)):
            mine = settings.but(seed=settings.seed + i)  # one seed would share its noise
            results.append(
                _measured(one, tokens, probe, components, mine, out / "ab"[i], not as_json)
            )
        found = match(*results)
        carried = None
        if circuits:
            carried = transfer(circuits, found, b, trial, progress=not as_json)
        _written(out, found, carried, f"{model} and {other}", as_json)


def _measured(
    model: Any, tokens: Any, probe: Any, components: str, settings: Settings, path: Path,
    progress: bool,
) -> dict[str, xr.Dataset]:  # fmt: skip
    """What components are matched by: attention patterns only where all of them are heads."""
    drawn = sample(
        model, tokens, components, settings=settings, probes={PROBE: probe}, path=path,
        progress=progress,
    )  # fmt: skip
    found = {"rllc": per_token_llc(drawn)}
    if components == "heads":
        found["attention"] = attention_patterns(model, probe[:ATTENDED])
    return found


def _tokens(
    data: str, model: Any, sequences: int | None, n_probe: int, length: int | None, bos: bool
) -> tuple[Any, Any, Any]:
    """Sequences to sample on, to match on, and for trials: others each."""
    n_trial = min(sequences or TRIED, TRIED)
    if Path(data).suffix not in ARRAY_FILES:
        sizes = (sequences, n_probe, n_trial)
        made = [load_data(data, model, n, length, bos, seed=i) for i, n in enumerate(sizes)]
        return made[0], made[1], made[2]
    rows = load_data(data, model, None, length, bos)
    left = len(rows) - n_probe - n_trial
    if left < 1:
        raise ValueError(
            f"--data has {len(rows)} sequences; {n_probe} are matched on and {n_trial} are for "
            "trials: give more, or fewer --probe-sequences"
        )
    probe, trial, rest = rows.split([n_probe, n_trial, left])
    return rest[:sequences], probe, trial


def _circuits(given: list[str], pattern: str) -> list[CircuitHypothesis]:
    found: list[CircuitHypothesis] = []
    for text in given:
        is_file = text.endswith(".json")
        found += read_hypotheses(Path(text).expanduser()) if is_file else [circuit(text, pattern)]
    return found


def _refuse_other_tokenizers(a: Any, b: Any) -> None:
    vocabularies = [None if one.tokenizer is None else one.tokenizer.get_vocab() for one in (a, b)]
    if None not in vocabularies and vocabularies[0] != vocabularies[1]:
        raise ValueError(
            "--other has another tokenizer than --model: heads are compared on the same tokens, "
            "which both must read alike"
        )


def _written(
    out: Path, found: xr.Dataset, carried: Transfer | None, names: str, as_json: bool
) -> None:
    tables = [match_table(found)]
    figures = [plot_match(found)]
    if carried is not None:
        tables.append(transfer_table(carried.summary))
        figures.append(plot_transfer(carried.summary))
    titles = (("partners", "Partners"), ("circuits", "Circuits carried over"))
    sections = [
        page.Section(key, title, page.figure(figure) + page.table(table))
        for (key, title), figure, table in zip(titles, figures, tables, strict=False)
    ]
    columns = ["partner", "similarity", "p", "stability", "runner_up", "verdict"]
    rows = plain_records(found[columns].to_dataframe().reset_index())
    files = {"table": out / TABLE, "page": out / PAGE}
    write_csv(files["table"], rows)
    matched = int((found["verdict"] == "matched").sum())
    lead = f"{matched} of {found.sizes['component']} components of the first have a partner."
    text = page.page(f"Match of {names}", page.paragraph(lead, "lead"), sections)
    files["page"].write_text(text, "utf-8")
    written = {key: str(file) for key, file in files.items()}
    if not as_json:
        for table in tables:
            console.print(table)
            console.print()
        say(f"written: {', '.join(written.values())}")
    record: dict[str, Any] = {"components": rows, "files": written}
    if carried is not None:
        shown = ["original", "mapped", "verdict", "reason", "chance", "n_maps", "n_possible"]
        record["circuits"] = plain_records(carried.summary[shown].to_dataframe())
        record |= {key: float(carried.summary.attrs[key])
                   for key in ("transfer_rate", "chance_rate", "p")}  # fmt: skip
    finish(record, as_json)
