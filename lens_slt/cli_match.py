"""``lens-slt match``: the components of one model and those of another, and circuits across."""

from __future__ import annotations

from typing import Any

import xarray as xr

from lens_slt.arrays import write_zarr
from lens_slt.circuits.attention import attention_patterns
from lens_slt.circuits.transfer import Transfer, transfer
from lens_slt.cli_commands import Match
from lens_slt.cli_output import finish, say, show
from lens_slt.cli_support import (
    circuits_of,
    is_usable,
    load_quietly,
    plain_records,
    record_of,
    settings_from,
)
from lens_slt.cli_text import first_rows, text_of
from lens_slt.observables.per_token_llc import per_token_llc
from lens_slt.observables.refined_llc import refined_llc
from lens_slt.report import page
from lens_slt.report.files import write_csv
from lens_slt.report.plots_match import plot_match, plot_transfer
from lens_slt.report.results_said import with_partners
from lens_slt.report.tables_match import match_table, transfer_table
from lens_slt.sampling.sample import sample
from lens_slt.structure.match import match

TABLE, PAGE = "match.csv", "match.html"
PROBE = "text"
ATTENDED = 16  # sequences of attention patterns
TRIED = 64  # sequences of trials, at most


def run(options: Match) -> None:
    """Sample both models, match their components, carry circuits over."""
    settings = settings_from(options)
    circuits = [
        one
        for given in options.hypotheses or []
        for one in circuits_of("hypotheses", given, options.pattern)
    ]
    a = load_quietly(options.model, options.checkpoint, options.device)
    b = load_quietly(options.other, options.other_checkpoint, options.device)
    _refuse_other_tokenizers(a, b)
    tokens, probe, trial = _tokens(options, a)
    drawn = [
        sample(
            model, tokens, options.components, path=options.kept / "ab"[i],
            settings=settings.but(seed=settings.seed + i),  # one seed would share its noise
            probes={PROBE: probe}, progress=not options.quiet,
        )
        for i, model in enumerate((a, b))
    ]  # fmt: skip
    seen = [_seen(options, *one, probe) for one in zip((a, b), drawn, strict=True)]
    found = match(*seen)
    carried = None
    if circuits:
        carried = transfer(circuits, found, b, trial, progress=not options.quiet)
    record = _written(options, found, carried)
    say(options, f"written: {', '.join(record['files'].values())}")
    llcs = [refined_llc(one) for one in drawn]
    record |= {"runs": [record_of(llc) for llc in llcs]}
    finish(options, record, usable=all(map(is_usable, llcs)))


def _seen(options: Match, model: Any, drawn: xr.DataTree, probe: Any) -> dict[str, xr.Dataset]:
    """What components are matched by: attention patterns only where all of them are heads."""
    found = {"rllc": per_token_llc(drawn)}
    if options.components == "heads":
        found["attention"] = attention_patterns(model, first_rows(probe, ATTENDED))
    return found


def _tokens(options: Match, model: Any) -> tuple[Any, Any, Any]:
    """Sequences to sample on, to match on, and for trials: others each."""
    sequences, n_probe = options.sequences, options.probe_sequences
    n_trial = min(sequences or TRIED, TRIED)
    probe = text_of(options, model, n_probe, seed=1)
    trial = text_of(options, model, n_trial, seed=2, without=[probe])
    return text_of(options, model, sequences, without=[probe, trial]), probe, trial


def _refuse_other_tokenizers(a: Any, b: Any) -> None:
    vocabularies = [None if one.tokenizer is None else one.tokenizer.get_vocab() for one in (a, b)]
    if None not in vocabularies and vocabularies[0] != vocabularies[1]:
        raise ValueError(
            "--other has another tokenizer than --model: heads are compared on the same tokens, "
            "which both must read alike"
        )


def _written(options: Match, found: xr.Dataset, carried: Transfer | None) -> dict[str, Any]:
    """Tables on the terminal; a CSV file and a page with figures in the folder; the record."""
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
    files = {"table": options.out / TABLE, "page": options.out / PAGE}
    files["match"] = options.out / "match.zarr"  # for lens-slt report
    write_zarr(found, files["match"])
    if carried is not None:
        files["transfer"] = options.out / "transfer.zarr"
        write_zarr(carried.summary, files["transfer"])
    write_csv(files["table"], rows)
    lead = f"{with_partners(found)}."
    text = page.page(
        f"Match of {options.model} and {options.other}", page.paragraph(lead, "lead"), sections
    )
    files["page"].write_text(text, "utf-8")
    show(options, *tables)
    written = {key: str(file) for key, file in files.items()}
    record: dict[str, Any] = {"components": rows, "files": written}
    if carried is not None:
        shown = ["original", "mapped", "verdict", "reason", "chance", "n_maps", "n_possible"]
        record["circuits"] = plain_records(carried.summary[shown].to_dataframe())
        record |= {key: float(carried.summary.attrs[key])
                   for key in ("transfer_rate", "chance_rate", "p")}  # fmt: skip
    return record
