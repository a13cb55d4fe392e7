"""``lens-slt pattern``: weights of the data from a wish, and whether they bring it about."""

from __future__ import annotations

from typing import Any

import xarray as xr

from lens_slt.arrays import write_zarr
from lens_slt.cli_commands import Pattern
from lens_slt.cli_output import finish, say, show
from lens_slt.cli_support import (
    is_usable,
    load,
    parse_probes,
    plain_records,
    processes,
    record_of,
    settings_from,
    show_health,
)
from lens_slt.cli_text import text_of
from lens_slt.observables.data_response import data_response
from lens_slt.observables.refined_llc import refined_llc
from lens_slt.report import page
from lens_slt.report.files import write_csv
from lens_slt.report.plots_patterning import plot_data_response, plot_patterning
from lens_slt.report.plots_retrainings import plot_patterning_check
from lens_slt.report.tables_patterning import patterning_check_table, patterning_table
from lens_slt.sampling.prepare import Probe
from lens_slt.sampling.sample import sample
from lens_slt.training.patterning import patterning
from lens_slt.training.verify_patterning import STRENGTHS, verify_patterning

RETRAININGS, WEIGHTS, PAGE = "retrainings", "weights.csv", "pattern.html"
CANDIDATES = "candidates"


def run(options: Pattern) -> None:
    """Sample, find the weights, and retrain with them if that is asked for."""
    settings = settings_from(options)
    sources, wishes = _asked(options)
    model = load(options)
    probes = {
        name: text_of(options, model, options.probe_sequences, source=source, seed=1)
        for name, source in sources.items()
    }
    tokens = text_of(options, model, options.sequences, without=list(probes.values()))
    drawn = sample(
        model, tokens, options.component, settings=settings, path=options.kept,
        probes={CANDIDATES: tokens, **probes}, device=options.device, progress=not options.quiet,
    )  # fmt: skip
    llc = refined_llc(drawn)
    show_health(options, llc)
    if not is_usable(llc):
        say(options, f"no weights: no chain of {options.component} can be used")
        finish(options, record_of(llc) | {"files": {}}, usable=False)
    response = data_response(drawn, CANDIDATES, {name: name for name in probes})
    strength, hold_others = options.strength, options.hold_others
    found = patterning(response, wishes, strength=strength, hold_others=hold_others)
    check = None
    if options.verify is not None:
        check = verify_patterning(
            model, tokens, response, wishes, {name: Probe(one) for name, one in probes.items()},
            steps=options.verify,
            path=options.out / RETRAININGS, strengths=[strength * s for s in STRENGTHS],
            hold_others=hold_others, seeds=range(options.n_seeds), start=options.checkpoint or 0,
            parallel=processes(options.parallel, options.device), progress=not options.quiet,
        )  # fmt: skip
    files = _written(options, response, found, check)
    say(options, f"written: {', '.join(files.values())}")
    finish(options, record_of(llc) | _record(found, check) | {"files": files})


def _asked(options: Pattern) -> tuple[dict[str, str], dict[str, float]]:
    """Sources of the probes, and the wishes about them."""
    sources, wishes = parse_probes(options.probe), _wishes(options.wish)
    if options.verify is not None and options.n_seeds < 2:
        raise ValueError(f"--n-seeds must be at least 2, for intervals; got {options.n_seeds}")
    for name in wishes:
        if name not in sources:
            raise ValueError(f"--wish {name!r} is no --probe; there are {', '.join(sources)}")
    return sources, wishes


def _wishes(given: list[str]) -> dict[str, float]:
    """``name=number`` options as a dict."""
    found: dict[str, float] = {}
    for text in given:
        name, _, value = text.partition("=")
        if name in found:
            raise ValueError(f"--wish names {name!r} twice")
        try:
            found[name] = float(value)
        except ValueError:
            raise ValueError(f"--wish must read name=number; got {text!r}") from None
    return found


def _written(
    options: Pattern, response: xr.Dataset, found: xr.Dataset, check: xr.Dataset | None
) -> dict[str, str]:
    """Tables on the terminal; a CSV file and a page with figures in the folder; its files."""
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
    files = {"weights": options.out / WEIGHTS, "page": options.out / PAGE}
    write_csv(files["weights"], weights.to_dict("records"))
    results = {"patterning": found, "data_response": response, "patterning_check": check}
    for name, result in results.items():  # for lens-slt report
        if result is not None:
            files[name] = options.out / f"{name}.zarr"
            write_zarr(result, files[name])
    lead = "Predictions are to first order, of a local posterior; only retraining shows them right."
    text = page.page(f"Data for a wish, {options.model}", page.paragraph(lead, "lead"), sections)
    files["page"].write_text(text, "utf-8")
    show(options, *tables)
    return {key: str(file) for key, file in files.items()}


def _record(found: xr.Dataset, check: xr.Dataset | None) -> dict[str, Any]:
    """What is predicted of every observable, and what came of it."""
    columns = ["wish", "predicted", "predicted_se", "side_effect"]
    record: dict[str, Any] = {
        "observables": plain_records(found[columns].to_dataframe().reset_index()),
        "clipped": found.attrs["clipped"],
        "effective_sequences": found.attrs["effective_sequences"],
    }
    if check is not None:
        shares = check[["share", "share_se", "excess", "excess_se", "z", "p", "corrected_p"]]
        known = shares.to_dataframe().dropna(subset="share")
        record["retrained"] = plain_records(known.reset_index())
    return record
