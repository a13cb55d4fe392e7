"""Tables, figures and files of modes."""

from __future__ import annotations

import io
import json

import numpy as np
import pandas as pd
import pytest
import xarray as xr
from rich.console import Console

import lens_slt as ls
from lens_slt.circuits.slt_evidence import evidence_of
from lens_slt.models.names import is_head
from lens_slt.report.files_structure import structure_records, write_structure
from lens_slt.report.plots_modes import plot_enrichment, plot_modes
from lens_slt.report.tables_modes import modes_table, reliability_table
from lens_slt.structure.overview import open_views, read_structure


def shown(table) -> str:
    console = Console(width=80, file=io.StringIO())
    console.print(table)
    return console.file.getvalue()


def test_both_matrices(views):
    assert list(views) == ["llc", "chi"]
    assert "full" not in views["llc"].matrix["component"].values
    assert views["chi"].by_mode["auc"].dims == ("mode", "pattern")
    assert views["chi"].by_component["auc"].dims == ("component", "pattern")


def test_tables_fit_a_terminal(views):
    text = shown(reliability_table(views["llc"].matrix, views["chi"].matrix))
    text += shown(modes_table(views["llc"].modes, views["llc"].by_mode))
    assert max(map(len, text.splitlines())) <= 80
    assert "L0H3" in text
    assert "split-half" in text
    assert "…" not in text.replace("…", "", text.count("⏎…"))


def test_figures_say_what_they_show(views):
    figure = plot_modes(views["chi"].modes, n_modes=2)
    assert len(figure.data) == 2
    np.testing.assert_allclose(figure.data[0].x, views["chi"].modes["loading"][0])
    assert "susceptibilities" in figure.layout.title.text
    assert figure.layout.xaxis.title.text == "loading"
    heat = plot_enrichment(views["llc"].by_mode)
    assert heat.data[0].z.shape[1] == views["llc"].modes.sizes["mode"]
    assert "AUC" in heat.layout.title.text


def test_files(views, tmp_path):
    files = write_structure(tmp_path, views)
    loadings = pd.read_csv(files["loadings_llc"])
    assert set(loadings.columns) >= {"mode", "component", "loading", "loading_low", "loading_high"}
    assert len(pd.read_csv(files["top_tokens_chi"])) > 0
    record = structure_records(views)
    assert json.loads(json.dumps(record, allow_nan=False)) == record
    assert set(record["llc"]["modes"][0]["loadings"]) == {f"L0H{h}" for h in range(8)}


@pytest.mark.slow
def test_matrices_are_streamed_and_replaced(tmp_path):
    tokens = ls.load_tokens("code", n_sequences=6, length=24)
    draws = ls.sample(
        ls.load_model("attn-1l"), tokens, "heads", probes={"code": tokens}, progress=False,
        settings=ls.Settings(draws=8, burn_in=0, batch_size=4, steps_per_draw=1),
    )  # fmt: skip
    for _ in range(2):
        found = read_structure(draws, "code", tokens, folder=tmp_path)
        assert list(found) == ["llc"]  # no draws of full
    (opened,) = open_views(tmp_path).values()
    made = found["llc"]
    for part in ("matrix", "modes", "by_mode", "by_component", "map", "clusters"):
        xr.testing.assert_identical(getattr(opened, part).load(), getattr(made, part).load())
    pd.testing.assert_frame_equal(opened.top, made.top)  # needs no tokenizer
    assert open_views(tmp_path / "llc.zarr") == {}


def test_evidence_cites_the_modes_that_are_shown(views, tokens):
    cited = views["llc"].modes
    slt = evidence_of(views["llc"], ls.label_patterns(tokens))
    assert slt.modes is cited
    assert all(is_head(name) for name in slt.matrix["component"].values)
    alone = ls.modes(slt.matrix.load(), whiten=True)  # as read_slt_evidence makes them
    np.testing.assert_allclose(alone["loading"], cited["loading"], atol=1e-6)
    assert ls.plot_modes(cited).layout.title.text.startswith(
        "Modes of the per-token rLLCs, noise-whitened:"
    )
