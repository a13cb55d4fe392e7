"""The report in a real browser: nothing fails, overlaps, or needs a mouse."""

from __future__ import annotations

from dataclasses import fields, replace
from types import SimpleNamespace

import pytest

import lens_slt as ls
from tests.report.browsing import ALL_DRAWN, needs_browser
from tests.report.hostile import HOSTILE, hostile

WIDTHS = (400, 900, 1600)

pytestmark = [pytest.mark.slow, needs_browser]

# What markup that was taken for markup leaves in a page.
INJECTED = """() => [
  window.attacked === undefined ? "" : "a script ran",
  ...[...document.querySelectorAll(
    'img[src="x"], .attacked, a[href^="http"], [onerror], a[href*="attacked"]')]
    .map(node => node.outerHTML.slice(0, 80)),
  ...[...document.querySelectorAll(".modebar-btn")]
    .map(node => node.dataset.title || "").filter(title => /share|cloud|studio/i.test(title)),
].filter(Boolean)"""

# Points at everything that has a hover text, figure after figure.
HOVERED = """() => [...document.querySelectorAll(".js-plotly-plot")].map(plot => {
  plot._fullData.forEach((trace, i) => {
    const point = trace.type === "heatmap" ? [0, 0] : 0;
    try { Plotly.Fx.hover(
      plot, [{ curveNumber: i, pointNumber: point }], trace.xaxis + trace.yaxis); }
    catch (error) { /* nothing to point at */ }
  });
  return plot.textContent.length;
})"""

# Texts of one figure that must not lie on each other.
OVERLAPS = """() => {
  const found = [];
  const kinds = ['.legend', '.g-xtitle', '.g-ytitle', '.annotation', '.colorbar'];
  for (const plot of document.querySelectorAll('.plot')) {
    if (plot.offsetParent === null) continue;
    const boxes = kinds.flatMap(kind => [...plot.querySelectorAll(kind)].filter(
      node => node.textContent.trim()).map(
      node => [kind, node.textContent.slice(0, 40), node.getBoundingClientRect()]));
    boxes.forEach(([a, textA, x], i) => boxes.slice(i + 1).forEach(([b, textB, y]) => {
      const wide = Math.min(x.right, y.right) - Math.max(x.left, y.left);
      const tall = Math.min(x.bottom, y.bottom) - Math.max(x.top, y.top);
      if (wide > 2 && tall > 2) found.push(`${plot.ariaLabel}: ${a} ${textA} / ${b} ${textB}`);
    }));
  }
  const blocks = [...document.querySelectorAll('section > *, section figure')].filter(
    node => node.offsetParent !== null);
  for (const node of blocks) {
    const next = node.nextElementSibling;
    if (next && next.offsetParent !== null &&
        next.getBoundingClientRect().top < node.getBoundingClientRect().bottom - 1)
      found.push(`${node.textContent.slice(0, 40)} / ${next.textContent.slice(0, 40)}`);
  }
  return found;
}"""


@pytest.mark.slow
@pytest.mark.parametrize("theme", ["light", "dark"])
@pytest.mark.parametrize("width", WIDTHS)
def test_nothing_overlaps_or_sticks_out(width, theme, open_page):
    page = open_page(width, "dark" if theme == "light" else "light")
    page.evaluate("document.querySelectorAll('[role=tabpanel]').forEach(x => x.hidden = false)")
    page.locator("#theme").click()  # draws what is now shown
    page.wait_for_function(ALL_DRAWN)
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    assert page.evaluate(OVERLAPS) == []
    back = page.evaluate("getComputedStyle(document.body).backgroundColor")
    assert (back == "rgb(255, 255, 255)") == (theme == "light")


def test_tabs_work_with_the_keyboard_and_draw_what_they_show(open_page):
    page = open_page()
    tabs = page.locator('#modes [role="tablist"]').first.locator('[role="tab"]')
    tabs.nth(0).focus()
    page.keyboard.press("ArrowRight")
    assert tabs.nth(1).get_attribute("aria-selected") == "true"
    assert tabs.nth(0).get_attribute("tabindex") == "-1"
    panel = page.locator(f"#{tabs.nth(1).get_attribute('aria-controls')}")
    assert panel.is_visible()
    assert panel.locator(".plot[data-drawn]").count() > 0
    page.keyboard.press("ArrowRight")  # around the end
    assert tabs.nth(0).get_attribute("aria-selected") == "true"
    assert not panel.is_visible()


def test_the_first_key_leads_past_the_navigation(open_page):
    page = open_page()
    page.keyboard.press("Tab")
    assert page.evaluate("document.activeElement.textContent") == "Skip to the results"


def test_the_map_tells_a_token_in_context(open_page):
    page = open_page(1600)
    plot = page.locator("#map .plot").first
    plot.scroll_into_view_if_needed()
    place = plot.evaluate(
        """node => {
          const trace = node._fullData[0], layout = node._fullLayout, box =
            node.getBoundingClientRect();
          return [box.left + layout.xaxis._offset + layout.xaxis.c2p(trace.x[0]),
                  box.top + layout.yaxis._offset + layout.yaxis.c2p(trace.y[0])];
        }"""
    )
    page.mouse.move(place[0] - 30, place[1] - 30)
    page.mouse.move(*place, steps=5)
    shown = plot.locator(".hoverlayer .hovertext").first
    shown.wait_for()
    assert "«" in shown.text_content()


@pytest.fixture(scope="module")
def hostile_pages(tmp_path_factory, draws, views, trial, behaviour, tokens):
    """Every kind of page, made of results whose texts are markup."""
    folder = tmp_path_factory.mktemp("hostile")
    bad = {
        key: replace(view, **{one.name: hostile(getattr(view, one.name)) for one in fields(view)})
        for key, view in views.items()
    }
    about = {"title": f"title {HOSTILE}", "data": f"{HOSTILE}.txt", HOSTILE: HOSTILE}
    report = ls.write_report(
        hostile(draws), folder / "report.html", views=bad, trials=[hostile(trial)],
        behaviour=hostile(behaviour), about=about,
    )  # fmt: skip
    figure = folder / "figure.html"
    places = bad["llc"].map
    ls.plot_map(
        places, [HOSTILE] * places.sizes["token"], [HOSTILE] * places.sizes["token"],
        title=HOSTILE, label=HOSTILE,
    ).write_html(figure)  # fmt: skip
    attention = folder / "attention.html"
    tokenizer = SimpleNamespace(decode=lambda ids: HOSTILE, bos_token_id=0)
    shown = ls.show_attention(ls.load_model("attn-1l"), tokens, "L0H0, L0H1", tokenizer=tokenizer)
    attention.write_text(f"<!doctype html><meta charset=utf-8>{shown}", "utf-8")
    return {"report": report, "figure": figure, "attention": attention}


@pytest.mark.parametrize("kind", ["report", "figure", "attention"])
def test_markup_in_texts_is_shown_and_never_runs(kind, hostile_pages, open_page):
    opened = open_page(1600, file=hostile_pages[kind])
    opened.evaluate("document.querySelectorAll('[role=tabpanel]').forEach(x => x.hidden = false)")
    opened.evaluate("document.querySelectorAll('details').forEach(x => x.open = true)")
    if kind == "report":
        opened.locator("#theme").click()  # draws what is now shown
        opened.wait_for_function(ALL_DRAWN)
    if kind != "attention":
        opened.evaluate(HOVERED)
        assert opened.locator(".modebar-btn").count() > 0
    opened.wait_for_timeout(300)
    assert opened.evaluate(INJECTED) == []
    if kind == "attention":
        return  # its words are drawn on a canvas
    text = opened.evaluate("document.body.textContent")
    assert "<img src=x onerror='window.attacked=1'>" in text
    assert "[/1][red]" in text and "␛[31m" in text
    if kind == "report":
        assert opened.title().startswith("title <img src=x")


def test_the_theme_can_be_switched(open_page):
    page = open_page()
    button = page.locator("#theme")
    assert button.get_attribute("aria-label") == "Switch to dark colours"
    button.click()
    assert page.evaluate("document.documentElement.dataset.theme") == "dark"
    assert page.evaluate("document.querySelector('.plot[data-drawn]').dataset.drawn") == "dark"
