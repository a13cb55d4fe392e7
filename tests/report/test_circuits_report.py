"""Trials as tables, graphs, figures and files."""

from __future__ import annotations

import io
import json
from dataclasses import replace

import networkx as nx
import numpy as np
import pandas as pd
import xarray as xr
from rich.console import Console

import lens_slt as ls
from lens_slt.report.files_circuits import write_trials
from lens_slt.report.plots_circuits import plot_circuit, plot_evidence, plot_faithfulness
from lens_slt.report.tables_circuits import behaviour_table, evidence_table, verdicts_table
from tests.tiny_models import native


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
        "kind": "head", "layer": 0, "depth": 0, "head_type": "previous token", "outcome": "held",
        "effect": 1.4,
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


MIXED = (
    "embed -> L0H2.Q; L0H2 -> L0MLP -> L1H2.K -> L1MLP -> logits; embed -> logits; L0H1 -> L1MLP"
)


def test_mlps_and_embeddings_stand_along_the_stream():
    graph = ls.circuit_graph(ls.circuit(MIXED + "; L2+L3", "induction"))
    depth = dict(graph.nodes(data="depth"))
    order = ["embed", "L0H2", "L0MLP", "L1H2", "L1MLP", "L2+L3", "logits"]
    assert sorted(order, key=depth.get) == order and depth["L0H1"] == depth["L0H2"]
    kinds = dict(graph.nodes(data="kind"))
    assert [kinds[name] for name in order] == [
        "embedding", "head", "mlp", "head", "mlp", "other", "logits"
    ]  # fmt: skip
    assert dict(graph.nodes(data="layer"))["L1MLP"] == 1


def test_no_edge_of_the_figure_runs_through_a_node():
    figure = plot_circuit(ls.circuit(MIXED, "induction"))
    points = {}
    for trace in figure.data:
        if "markers" in trace.mode:
            name = trace.text[0].split("<b>")[1].split("</b>")[0]
            points[name] = trace.x[0], trace.y[0]
    across = {name: x for name, (x, _) in points.items()}
    order = ["embed", "L0H2", "L0MLP", "L1H2", "L1MLP", "logits"]
    assert sorted(order, key=across.get) == order and len(set(across.values())) == 6
    lines = [trace for trace in figure.data if "lines" in trace.mode]
    assert len(lines) == 7
    for line in lines:
        for x, y in points.values():
            if line.x[0] < x < line.x[-1]:
                assert abs(np.interp(x, line.x, line.y) - y) > 0.2


def test_effects_are_in_the_units_of_the_metric(trial):
    settings = {**trial.settings, "metric": "logit_difference", "units": "logits"}
    evidence = [replace(e, unit="logits" if e.unit == "nats" else e.unit) for e in trial.evidence]
    made = replace(trial, settings=settings, evidence=tuple(evidence))
    hover = " ".join(trace.hovertemplate for trace in plot_circuit(made).data)
    assert "1.10 logits" in hover and "nats" not in hover
    figure = plot_evidence(made)
    assert figure.layout.xaxis.title.text == "effect (logits per token)"
    assert {str(y) for t in figure.data for y in t.y} >= {"necessity", "faithfulness"}
    assert "Q failed (0.01 logits)" in ls.to_dot(ls.circuit_graph(made))
    assert "necessity: logits" in shown(verdicts_table([made]))
    (axes,) = ls.paper_evidence(made).axes
    assert axes.get_xlabel() == "effect (logits per token)"
    assert len(axes.get_yticklabels()) == 5


def test_composition_with_mlps_has_a_panel_of_what_they_read():
    scores = ls.composition_scores(native(attn_only=False), n_null=2)
    figure = ls.plot(scores)
    assert [note.text for note in figure.layout.annotations][3] == "into MLPs"
    panel = figure.data[3]
    assert list(panel.x) == ["L0MLP", "L1MLP"] and "L0MLP" in panel.y
    row, column = list(panel.y).index("L0H2"), list(panel.x).index("L1MLP")
    one = scores["score"].sel(source="L0H2", target="L1MLP", through="")
    assert panel.z[row][column] == float(one)
    assert "L1MLP" not in figure.data[0].x
