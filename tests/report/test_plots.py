"""Figures show the numbers, their errors and their units, and do not rely on colour."""

from pathlib import Path

import numpy as np
import pytest

from lens_slt.observables.refined_llc import refined_llc
from lens_slt.report.files import write_page, write_rllc
from lens_slt.report.plots import plot_rllc, plot_rllc_map, plot_traces
from tests.made_draws import MEANS, made_draws


def test_ranked_plot_has_values_intervals_and_units() -> None:
    llc = refined_llc(made_draws())
    figure = plot_rllc(llc)
    assert figure.layout.yaxis.categoryarray == ("L0H1", "L0H0", "L1MLP", "L1H0")  # lowest first
    shown = {y: x for trace in figure.data for x, y in zip(trace.x, trace.y, strict=True)}
    assert shown == pytest.approx({name: 30 * mean for name, mean in MEANS.items()}, rel=0.02)
    layer_0 = figure.data[0]
    assert np.allclose(sorted(layer_0.error_x.array), sorted(1.96 * llc["se"].values[:2]))
    assert figure.layout.xaxis.title.text == "λ̂ (dimensionless)"


def test_layers_differ_in_symbol_and_health_in_filling() -> None:
    figure = plot_rllc(refined_llc(made_draws(bad={"L1H0": 1})))
    symbols = {y: s for t in figure.data for y, s in zip(t.y, t.marker.symbol, strict=True)}
    assert symbols == {
        "L0H0": "circle", "L0H1": "circle", "L1H0": "diamond-open", "L1MLP": "diamond",
    }  # fmt: skip


def test_every_probe_is_a_panel() -> None:
    figure = plot_rllc(refined_llc(made_draws(probes=True)))
    panels = [note.text for note in figure.layout.annotations]
    assert panels == ["sampling tokens", "probe: code", "probe: other_text"]


def test_map_puts_heads_at_layer_and_head() -> None:
    heat = plot_rllc_map(refined_llc(made_draws(bad={"L0H1": 1}))).data[0]
    assert list(heat.y) == ["L0", "L1"] and list(heat.x) == ["H0", "H1"]
    assert heat.z[1][0] == pytest.approx(12, rel=0.01)
    assert np.isnan(heat.z[1][1])
    assert "!" in heat.text[0][1] and "!" not in heat.text[0][0]


def test_map_needs_heads() -> None:
    llc = refined_llc(made_draws()).sel(component=["L1MLP"])
    with pytest.raises(ValueError, match="no single heads"):
        plot_rllc_map(llc)


def test_traces_show_burn_in_and_verdicts() -> None:
    figure = plot_traces(made_draws(bad={"L0H1": 1}), "L0H1")
    assert [trace.name for trace in figure.data] == [
        "chain 0: diverged (not used)", "chain 1: healthy", "chain 2: healthy", "chain 3: healthy",
    ]  # fmt: skip
    assert len({trace.line.dash for trace in figure.data}) == 4
    assert len(figure.data[1].x) == 110
    assert (figure.layout.shapes[0].x0, figure.layout.shapes[0].x1) == (0, 10)
    assert figure.layout.yaxis.title.text == "paired loss (nats per token)"
    assert figure.layout.title.text.startswith("L0H1: 1 of 4 chains diverged")


def test_traces_name_the_components_there_are() -> None:
    with pytest.raises(ValueError, match="one of L0H0, L0H1, L1H0, L1MLP; got 'L9H9'"):
        plot_traces(made_draws(), "L9H9")


def test_page_opens_without_a_network(tmp_path: Path) -> None:
    draws = made_draws(bad={"L0H1": 4}, probes=True)
    files = write_rllc(tmp_path, draws, refined_llc(draws), "A <title>")
    page = Path(files["figures"]).read_text()
    assert "<script src=" not in page
    assert "A &lt;title&gt;" in page
    table = Path(files["table"]).read_text().splitlines()
    assert len(table) == 5
    assert table[0].startswith("component,llc,se,se_percent,rhat,ess,chains_used,verdict")
    assert table[0].endswith("llc_code,se_code,llc_other_text,se_other_text")
    assert table[2].startswith("L0H1,,,")


def test_page_holds_the_library_once(tmp_path: Path) -> None:
    figure = plot_rllc_map(refined_llc(made_draws()))
    write_page(tmp_path / "one.html", "one", [], [figure])
    write_page(tmp_path / "three.html", "three", [], [figure] * 3)
    sizes = [(tmp_path / name).stat().st_size for name in ("one.html", "three.html")]
    assert sizes[1] < 1.1 * sizes[0]
