"""Trials as tables, graphs, figures and files."""

from __future__ import annotations

import io
import json

import networkx as nx
import numpy as np
import pandas as pd
import xarray as xr
from rich.console import Console

import lens_slt as ls
from lens_slt.report.files_circuits import write_trials
from lens_slt.report.plots_circuits import plot_circuit, plot_evidence, plot_faithfulness
from lens_slt.report.tables_circuits import behaviour_table, evidence_table, verdicts_table


def shown(table) -> str:
    console = Console(width=80, file=io.StringIO())
    console.print(table)
    return console.file.getvalue()


def test_tables_say_what_was_found(trial, behaviour):
    text = shown(verdicts_table([trial]))
    assert "contradicted" in text
    assert "1.50" in text
    text = shown(evidence_table(trial))
    assert "(1.20…1.80)" in text
    assert "< 0.001" in text
    assert "-0.20…0.30" in text
    llc = xr.Dataset({"llc": ("component", [8.5])}, coords={"component": ["L1H2"]})
    text = shown(behaviour_table(behaviour, llc))
    assert "previous token" in text
    assert "8.50" in text
    assert max(len(line) for line in text.splitlines()) <= 80


def test_the_graph_holds_parts_and_outcomes(trial, behaviour):
    graph = ls.circuit_graph(trial, behaviour)
    assert nx.is_directed_acyclic_graph(graph)
    assert graph.nodes["L0H2"] == {
        "layer": 0, "head_type": "previous token", "outcome": "held", "effect": 1.4
    }  # fmt: skip
    edges = {d["through"]: d["outcome"] for _, _, d in graph.edges(data=True)}
    assert edges == {"K": "held", "Q": "failed", "": ""}
    assert ls.circuit_graph(trial.hypothesis).nodes["L1H2"]["outcome"] == ""


def test_dot_is_well_formed(trial):
    text = ls.to_dot(ls.circuit_graph(trial))
    assert text.startswith('digraph "mine for induction')
    assert '"L0H2" -> "L1H2" [label="Q failed (0.01 nats)", color="#D55E00"' in text
    assert text.count("{") == text.count("}") == 1


def test_figures_show_every_part(trial, behaviour):
    figure = plot_circuit(trial, behaviour)
    hover = " ".join(trace.hovertemplate for trace in figure.data)
    for part in ("L0H2→L1H2 K, held, 1.10 nats", "L1H2→logits", "induction"):
        assert part in hover
    figure = plot_evidence(trial)
    shown_names = {str(y) for trace in figure.data for y in trace.y}
    assert {"necessity", "edge: L0H2→L1H2.Q", "faithfulness"} <= shown_names
    assert np.allclose(plot_faithfulness(trial).data[-1].y, [0, 0.5, 1])


def test_files_can_be_read_again(trial, behaviour, tmp_path):
    files = write_trials(tmp_path, [trial], behaviour)
    assert ls.read_hypotheses(files["hypotheses"]) == [trial.hypothesis]
    (record,) = json.loads((tmp_path / "trials.json").read_text())
    assert record["verdict"] == "contradicted"
    assert record["evidence"][5]["corrected_p"] is None
    assert len(pd.read_csv(files["evidence"])) == 6
    (again,) = ls.read_trials(tmp_path / "trials.json")
    assert str(again) == str(trial)
