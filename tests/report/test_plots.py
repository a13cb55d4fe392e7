"""Figures show the numbers, their errors and their units, and do not rely on colour."""

import numpy as np
import pytest
import xarray as xr

from lens_slt.observables.refined_llc import refined_llc
from lens_slt.report.plots import plot_rllc, plot_rllc_map
from lens_slt.report.plots_traces import plot_all_traces, plot_traces
from tests.made_draws import MEANS, made_draws


def test_ranked_plot_has_values_intervals_and_units() -> None:
    llc = refined_llc(made_draws())
    figure = plot_rllc(llc)
    assert figure.layout.yaxis.categoryarray == ("L0H1", "L0H0", "L1MLP", "L1H0")  # lowest first
    shown = {y: x for trace in figure.data for x, y in zip(trace.x, trace.y, strict=True)}
    assert shown == pytest.approx({name: 30 * mean for name, mean in MEANS.items()}, rel=0.02)
    layer_0 = figure.data[0]
    assert np.allclose(
        sorted(layer_0.error_x.array), sorted(1.96 * llc["se"].values[:2]), rtol=1e-4
    )
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


def test_padding_of_a_component_that_stopped_early_is_not_shown() -> None:
    draws = made_draws()
    whole = draws["posterior"].to_dataset()
    loss = whole["paired_loss"].copy()
    loss.loc[{"component": "L0H1"}] = loss.sel(component="L0H1").where(loss["draw"] < 50)
    draws["posterior"] = xr.DataTree(whole.assign(paired_loss=loss))
    draws["n_draws"].loc[{"component": "L0H1"}] = 50
    figure = plot_traces(draws, "L0H1")
    assert len(figure.data[0].x) == 60
    mean = float(loss.sel(component="L0H1").mean())
    assert f"mean after burn-in {mean:.3g} nats" in figure.layout.title.text
    assert figure.layout.shapes[-1].y0 == pytest.approx(mean)
    drawn = [trace for trace in plot_all_traces(draws).data if "L0H1" in trace.hovertemplate]
    assert all(np.isfinite(trace.y).all() and trace.x[-1] < 60 for trace in drawn)


def test_traces_name_the_components_there_are() -> None:
    with pytest.raises(ValueError, match="one of L0H0, L0H1, L1H0, L1MLP; got 'L9H9'"):
        plot_traces(made_draws(), "L9H9")


def test_all_traces_are_panels_with_the_unhealthy_marked() -> None:
    figure = plot_all_traces(made_draws(bad={"L0H1": 4}))
    titles = [note.text for note in figure.layout.annotations]
    assert titles == ["L0H0", "<b>! L0H1</b>", "L1H0", "L1MLP"]
    assert len(figure.data) == 4 * 4  # chains
    loss = made_draws()["posterior"]["paired_loss"].sel(component="L0H0").values[0]
    drawn = plot_all_traces(made_draws()).data[0]
    assert len(drawn.x) <= 120
    assert np.mean(drawn.y[-40:]) == pytest.approx(loss[-len(loss) // 3 :].mean(), rel=0.05)
