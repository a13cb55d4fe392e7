"""Figures with an axis of training steps hold the numbers of what they are drawn from."""

from __future__ import annotations

import numpy as np
import pytest
import xarray as xr

import lens_slt as ls
from lens_slt.report.plots_development import CURVES
from lens_slt.report.show import FIGURES, kind_of
from lens_slt.schema import stamped
from lens_slt.schemas import LEADING
from tests.made_over_training import STEPS, made, made_construction
from tests.report.hostile import hostile


@pytest.fixture(scope="module")
def llc():
    return made("refined_llc", settings="{}")


def lines(figure):
    return [trace for trace in figure.data if trace.mode == "lines+markers"]


def test_curves_are_drawn_over_log_steps_with_bands(llc):
    figure = ls.plot(llc)
    drawn = lines(figure)
    assert len(drawn) == 2 * (1 + 2)  # components × (sampling tokens and probes)
    np.testing.assert_allclose(drawn[0].x, np.log1p(STEPS))
    np.testing.assert_allclose(drawn[0].y, llc["llc"].sel(component="L0H1"))
    assert [line.name for line in drawn[:3]] == ["sampling tokens", "code", "prose"]
    np.testing.assert_allclose(
        drawn[4].y, llc["probe_llc"].sel(component="L1H2", probe="code").values
    )
    upper, lower = figure.data[0], figure.data[1]
    np.testing.assert_allclose(
        np.array(upper.y) - lower.y, 2 * 1.96 * llc["se"].sel(component="L0H1"), rtol=1e-4
    )
    assert lower.fill == "tonexty" and not upper.fill
    ticks = dict(zip(figure.layout.xaxis.ticktext, figure.layout.xaxis.tickvals, strict=True))
    assert ticks["0"] == 0 and ticks["2k"] == pytest.approx(np.log1p(2000))


def test_stages_are_shaded_where_they_lie(llc):
    figure = ls.plot_curves(llc, [(150, 120, 400)], quantity="llc")
    assert len(lines(figure)) == 2
    spans = {(round(s.x0, 6), round(s.x1, 6)) for s in figure.layout.shapes}
    for begin, end in ((0, 150), (150, 2000), (120, 400), (150, 150)):
        assert (round(float(np.log1p(begin)), 6), round(float(np.log1p(end)), 6)) in spans
    assert "stages" in figure.layout.title.text


def test_every_result_with_curves_has_its_figure(llc):
    attrs = {
        "sublosses": dict(tokens_hash="x"), "refined_observable": dict(settings="{}", probe="code"),
        "per_token_llc": dict(quantity="llc", probe="code"),
        "susceptibility": dict(quantity="chi", probe="code"),
    }  # fmt: skip
    for name in CURVES:
        found = made(name, **({"settings": "{}"} | attrs.get(name, {})))
        assert kind_of(found) == "curves", name
        assert lines(ls.plot(found)), name
        one = found.isel(checkpoint=0, drop=True)
        assert kind_of(one) == name
    tree = xr.DataTree.from_dict({"refined_llc": llc})
    tree.attrs = {"run": "x", "unit": "step", "settings": "{}"}
    tree = stamped(tree, "development")
    assert kind_of(tree) == "development"
    assert len(lines(ls.plot(tree))) == 6


def test_a_selection_of_quantities_is_drawn_too(llc):
    some = llc[["llc", "se"]].drop_vars("probe", errors="ignore").transpose()
    some.attrs = {}
    drawn = lines(ls.plot_curves(some.sel(component=["L1H2"])))
    assert len(drawn) == 1
    np.testing.assert_allclose(drawn[0].y, llc["llc"].sel(component="L1H2"))


def test_what_has_no_curves_is_refused(llc):
    with pytest.raises(ValueError, match="has no dimension 'checkpoint'"):
        ls.plot_curves(llc.isel(checkpoint=0, drop=True))
    with pytest.raises(ValueError, match="quantity must be one of llc, probe_llc"):
        ls.plot_curves(llc, quantity="lcl")
    with pytest.raises(TypeError, match="result must come from"):
        ls.plot_curves(xr.Dataset(attrs={"result": "modes"}))
    with pytest.raises(ValueError, match="checkpoint"):
        ls.plot(made("modes", quantity="llc"))
    with pytest.raises(ValueError, match="stages"):
        ls.plot_curves(llc, "soon")


@pytest.fixture(scope="module")
def construction():
    return made_construction()


def test_construction_shows_onsets_intervals_and_stages(construction):
    assert kind_of(construction) == "construction"
    figure = ls.plot_construction(construction, [500])
    rows = figure.layout.yaxis.categoryarray[::-1]
    assert list(rows) == [
        "L0H1 needed", "L0H1 attends: previous token", "L0H1→L1H2.K needed", "circuit needed",
        "circuit alone", "circuit supported",
    ]  # fmt: skip
    thin, thick, symbols = (t for t in figure.data if t.legendgroup == "needed")
    x = np.log1p([100, 2000, 0, 2000])  # of the circuit no end is known: all of the run
    np.testing.assert_allclose([v for v in thin.x if v is not None], x)
    np.testing.assert_allclose([v for v in thick.x if v is not None], np.log1p([2000] * 4))
    np.testing.assert_allclose(symbols.x, np.log1p([1000, np.nan, 1000]))
    assert "not there at the end" in symbols.text[1]
    assert "1000 (100–2000)" in symbols.text[0]
    assert [a.text for a in figure.layout.annotations] == ["stage 1", "2"]  # a narrow one
    below = 16 * figure.layout.title.text.count("<br>")  # lines under the title
    assert figure.layout.margin.t >= 15 + 24 + below + 25  # and the names of stages
    table = ls.construction_table(construction, [500])
    assert list(table["stage"]) == ["1–2", "1", "", "", "1–2", "2"]


def test_stages_and_transitions_show_their_curves_and_where_they_change():
    found = made("stages", flat=0.05, level=0.95).isel(checkpoint=0, boundary=[0], drop=True)
    found["boundary_step"][:] = [[150], [np.nan]]
    found["boundary_step_low"][:] = found["boundary_step_high"][:] = 150
    figure = ls.plot(found)
    np.testing.assert_allclose(lines(figure)[1].y, found["fit"].sel(component="L1H2"))
    np.testing.assert_allclose(lines(figure)[0].x, np.log1p(STEPS))
    lines_at = [s.x0 for s in figure.layout.shapes if s.type == "line"]
    assert lines_at == [pytest.approx(np.log1p(150))]  # the other component has no boundary
    found = made("transitions", level=0.95).isel(checkpoint=0, transition=[0], drop=True)
    for name, step in (("begin", 100), ("midpoint", 150), ("end", 1000)):
        found[name][:] = step
    shapes = {s.type: s for s in ls.plot(found).layout.shapes}
    assert (shapes["rect"].x0, shapes["rect"].x1) == pytest.approx(tuple(np.log1p([100, 1000])))
    assert shapes["line"].x0 == pytest.approx(np.log1p(150))


def test_what_lies_outside_of_the_run_is_not_drawn(llc):
    figure = ls.plot_curves(llc.isel(checkpoint=slice(1, None)), [50, 150, 9000])
    assert all(np.log1p(100) <= s.x0 <= s.x1 <= np.log1p(2000) for s in figure.layout.shapes)


def test_differences_are_shown_the_clearest_first(llc):
    one, other = (llc.isel(checkpoint=i, drop=True) for i in (0, 2))
    difference = ls.compare(one, other)
    figure = ls.plot(difference)
    z = np.abs(np.array(figure.data[0].x) / np.array(figure.data[0].error_x.array))
    assert (np.diff(z) <= 1e-12).all()
    assert len(z) == 2 + 4
    values = np.concatenate([difference[n].values.ravel() for n in ("llc", "probe_llc")])
    np.testing.assert_allclose(sorted(figure.data[0].x), sorted(values))


@pytest.mark.parametrize("kind", ["llc", "construction", "sublosses", "differences"])
def test_markup_in_texts_is_text(kind, llc, construction):
    result = {
        "llc": llc, "construction": construction,
        "sublosses": made("sublosses", tokens_hash="x").isel(checkpoint=0, drop=True),
        "differences": ls.compare(*(llc.isel(checkpoint=i, drop=True) for i in (0, 2))),
    }[kind]  # fmt: skip
    figure = ls.plot(hostile(result)).to_json()
    for raw in ("\\u003cimg", "<img", "\\u003ca ", "<a ", "%{attacked}", "$", "\\u001b"):
        assert raw not in figure, raw


def test_leading_dimensions_are_those_of_the_schema():
    assert "checkpoint" in LEADING and "curves" in FIGURES
