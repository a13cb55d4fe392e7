"""Every result has a main figure, and shows itself in a notebook."""

from __future__ import annotations

import io
import re

import numpy as np
import plotly.graph_objects as go
import pytest
import xarray as xr
from matplotlib.figure import Figure
from plotly.offline import get_plotlyjs
from rich.console import Console

import lens_slt as ls
from lens_slt.report import page
from lens_slt.report.figure import Figure as Shown
from lens_slt.report.notebook import SHOWN, register
from lens_slt.report.show import FIGURES, TABLES, kind_of
from lens_slt.schema import stamped
from lens_slt.schemas import SCHEMAS
from tests.phases import made_phases, made_spectrum
from tests.report.hostile import hostile

OVER_TRAINING = {  # in test_development_figures.py and test_figures_over_training.py
    "curves", "development", "sublosses", "differences", "construction", "stages", "transitions",
    "locality", "weight_change", "moved_directions",  # in test_locality.py
    "critical_checkpoints", "mode_development", "differentiation", "migration",
    "pattern_influence", "head_trajectories",
}  # fmt: skip
# In tests/test_calibration.py, tests/structure/test_match.py, tests/report/test_attention.py,
# tests/circuits/test_transfer.py and tests/training/test_patterning.py, test_retrainings.py.
ELSEWHERE = {
    "calibration",
    "match",
    "match_family",
    "transfer",
    "retrainings",
    "developmental_ablation",
    "patterning_check",
    "attention_patterns",
    "data_response",
    "patterning",
} | OVER_TRAINING


@pytest.fixture(scope="module")
def results(draws, views, trial, behaviour, tokens):
    """One result of every kind, by the name of what made it."""
    model = ls.load_model("attn-2l")
    matrix = views["llc"].matrix.load()
    found = ls.clusters(matrix, method="hdbscan", min_size=5)
    patterns = ls.label_patterns(tokens)
    pattern = patterns.sel(pattern="word_start").values
    first, second = ls.halves(matrix)
    observed = ls.sample(
        model, tokens, "L0H1,L1H2", progress=False,
        settings=ls.Settings(draws=8, burn_in=2, batch_size=4, full_loss=True),
        probes={"code": ls.Probe(tokens, observables=ls.Accuracy())},
    )  # fmt: skip
    losses = np.random.default_rng(0).normal(size=(2, 8, 4))
    return {
        "draws": draws,
        "log_likelihood": ls.log_likelihood(observed, "code"),
        "generalisation": ls.generalisation(losses, losses, n_beta=4),
        "wbic": ls.wbic(losses, n_beta=4 / np.log(4)),
        "refined_observable": ls.refined_observable(observed),
        "response": ls.response(observed, "code"),
        "refined_llc": ls.refined_llc(draws),
        "per_token_llc": matrix,
        "susceptibility": views["chi"].matrix,
        "modes": views["llc"].modes,
        "enrichment": views["llc"].by_mode,
        "pattern_llc": ls.pattern_llc(matrix, patterns),
        "patterns": patterns,
        "token_map": views["llc"].map,
        "map_stability": ls.map_stability(views["llc"].map, views["llc"].map),
        "clusters": found,
        "cluster_summary": ls.cluster_summary(found, patterns, matrix, permutations=20),
        "cluster_stability": ls.cluster_stability(
            ls.clusters(first, method="hdbscan"), ls.clusters(second, method="hdbscan")
        ),
        "influence": ls.influence(draws, "L0H1", query="code"),
        "effects": ls.ablate(model, tokens, "L0H2"),
        "composition_scores": ls.composition_scores(model, n_null=2),
        "composition_on_tokens": ls.composition_on_tokens(
            model, ls.load_tokens("code", n_sequences=8, length=24)
        ),
        "composition_by_component": ls.composition_by_component(model, "L0H2", "L1H2", "K"),
        "behaviour_scores": behaviour,
        "edge_attribution": ls.edge_attribution(model, tokens, pattern, steps=1),
        "faithfulness_curve": stamped(trial.curve.copy(), "faithfulness_curve"),
        "trial": trial,
        "hypothesis": trial.hypothesis,
        **made_phases.results(),
        **made_spectrum.results(),
    }


def test_every_kind_of_result_is_here_and_has_a_figure(results):
    others = {"trial", "hypothesis", "calibration", "curves"}
    assert set(FIGURES) == {*SCHEMAS} | others
    assert set(FIGURES) == {*results} | ELSEWHERE
    for name, result in results.items():
        assert kind_of(result) == name
        figure = ls.plot(result)
        assert isinstance(figure, go.Figure), name
        assert figure.layout.title.text, name


def test_figures_hold_the_numbers(results):
    figure = ls.plot(results["per_token_llc"])
    np.testing.assert_allclose(figure.data[0].x, results["per_token_llc"]["mean"])
    np.testing.assert_allclose(
        figure.data[0].error_x.array, 1.96 * results["per_token_llc"]["mean_se"], rtol=1e-4
    )
    edges = ls.plot(results["edge_attribution"]).data[0]
    effect = results["edge_attribution"]["effect"]
    assert abs(edges.x[0]) == pytest.approx(float(abs(effect).max()))
    source, rest = edges.y[0].split("→")
    target, _, through = rest.partition(".")
    assert float(effect.sel(source=source, target=target, through=through)) == edges.x[0]
    share = ls.plot(results["patterns"]).data[0]
    assert share.x[-1] == pytest.approx(
        100 * results["patterns"].mean(("sequence", "position")).max()
    )
    panels = ls.plot(results["composition_scores"]).data
    score = results["composition_scores"]["score"]
    assert np.nanmax(panels[1].z) == pytest.approx(float(score.sel(through="K").max()))
    panels = ls.plot(results["composition_on_tokens"]).data
    share = results["composition_on_tokens"]["share"]
    assert np.nanmax(panels[2].z) == pytest.approx(float(share.sel(through="V").max()))
    effects = ls.plot(results["effects"])
    assert f"{float(results['effects']['effect'].mean()):.3f}" in effects.layout.title.text


@pytest.mark.parametrize("kind", sorted({*FIGURES} - ELSEWHERE))
def test_markup_in_any_text_of_a_result_is_text_in_its_figure(kind, results):
    made = hostile(results[kind])
    assert kind_of(made) == kind
    figure = ls.plot(made).to_json()
    for raw in ("\\u003cimg", "<img", "\\u003ca ", "<a ", "%{attacked}", "$", "\\u001b"):
        assert raw not in figure, raw
    table = page.table(TABLES[kind](made)) if kind in TABLES else ""
    assert not {"<img", "<a ", "\x1b"} & set(re.findall(r"<img|<a |\x1b", table))
    if kind in TABLES:
        console = Console(file=io.StringIO(), width=4000, markup=True)
        console.print(TABLES[kind](made))
        words = console.file.getvalue()
        assert "\x1b" not in words and ("[/1][red]" in words or "attacked" not in words)


def test_figures_outside_of_reports_offer_no_upload(results):
    shown = ls.plot(results["patterns"]).to_html()
    (config,) = re.findall(
        r'\{[^{}]*"showSendToCloud": [^{}]*\}', shown.replace(get_plotlyjs(), "")
    )
    assert '"showSendToCloud": false' in config
    assert "http" not in config


def test_what_is_no_result_is_refused(results):
    with pytest.raises(TypeError, match="result must be what a function of lens_slt returned"):
        ls.plot([1, 2])
    with pytest.raises(TypeError, match="got Dataset"):
        ls.plot(xr.Dataset({"x": ("y", [1, 2])}))
    selection = results["modes"].isel(mode=0)  # an array like others
    assert kind_of(selection) == ""
    with pytest.raises(ValueError, match=r"as result\.isel\(mode=\[0\]\) does"):
        ls.plot(selection)


def test_notebooks_show_table_and_figure(results, monkeypatch):
    shells = pytest.importorskip("IPython.core.interactiveshell")
    capture = pytest.importorskip("IPython.utils.capture")
    shell = shells.InteractiveShell.instance()
    register(shell)
    # The bundle alone: a figure that shows itself asks for a front end.
    monkeypatch.setattr(Shown, "_ipython_display_", None, raising=False)
    other = xr.Dataset({"x": ("y", [1, 2])})
    for name in ("draws", "refined_llc", "modes", "trial", "composition_scores"):
        with capture.capture_output() as shown:
            shell.display_formatter.format(results[name])
        text = "".join(str(output.data) for output in shown.outputs)
        assert len(shown.outputs) >= 2, name
        assert ("<table>" in text) == (name != "composition_scores"), name
    with capture.capture_output() as shown:
        shell.display_formatter.format(other)
    assert len(shown.outputs) == 1
    assert "xr-wrap" in shown.outputs[0].data["text/html"]


def test_the_classes_that_notebooks_show_are_named_right():
    classes = (
        xr.DataTree, xr.Dataset, xr.DataArray, ls.Trial, ls.CircuitHypothesis, ls.Calibration,
    )  # fmt: skip
    assert tuple((one.__module__, one.__name__) for one in classes) == SHOWN


def test_paper_figures_are_vectors_with_every_component(results, trial, tmp_path):
    llc = results["refined_llc"]
    for figure, rows in (
        (ls.paper_rllc(llc), llc.sizes["component"]),
        (ls.paper_modes(results["modes"], n_modes=2), results["modes"].sizes["component"]),
        (ls.paper_evidence(trial), 5),
    ):
        assert isinstance(figure, Figure)
        assert len(figure.axes[0].get_yticks()) == rows
        figure.savefig(tmp_path / "figure.pdf")
        assert (tmp_path / "figure.pdf").read_bytes().startswith(b"%PDF")
    order = [label.get_text() for label in ls.paper_rllc(llc).axes[0].get_yticklabels()]
    assert order[-1] == str(llc["component"][int(llc["llc"].values.argmax())].values)
