"""What the report claims of its page, each in a real browser."""

from __future__ import annotations

import re

import numpy as np
import pytest

import lens_slt as ls
from lens_slt.report.token_strips import token_scores
from lens_slt.structure.contexts import token_texts
from tests.report.browsing import ALL_DRAWN, needs_browser

pytestmark = [pytest.mark.slow, needs_browser]

THEMES = ("light", "dark")
EVERYTHING = """() => {
  document.querySelectorAll("[role=tabpanel]").forEach(x => x.hidden = false);
  document.querySelectorAll("details").forEach(x => x.open = true);
  dispatchEvent(new Event("hashchange"));  // draws what is now shown
}"""

# Captions that are cut off, or end beyond the window.
CUT_CAPTIONS = """() => [...document.querySelectorAll("figcaption, caption, .verdict p")].filter(
  node => node.offsetParent !== null).filter(node => {
    const box = node.getBoundingClientRect();
    return box.right > innerWidth + 1 || box.left < -1 ||
      node.scrollWidth > node.clientWidth + 1 || node.scrollHeight > node.clientHeight + 1;
  }).map(node => node.textContent.slice(0, 60))"""

# Texts of figures that reach over the figure's edge.
CUT_TEXTS = """() => [...document.querySelectorAll(".plot")].filter(
  plot => plot.offsetParent !== null).flatMap(plot => {
    const frame = plot.getBoundingClientRect();
    return [...plot.querySelectorAll(".main-svg text")].filter(text => {
      const box = text.getBoundingClientRect();
      return box.width > 0 && !text.closest(".hoverlayer") && (box.right > frame.right + 3 ||
        box.left < frame.left - 3 || box.bottom > frame.bottom + 3 || box.top < frame.top - 3);
    }).map(text => `${plot.ariaLabel}: ${text.textContent}`);
  })"""

# Texts with less contrast than 4.5 to 1 (3 to 1 where large) on what is behind them. Text on the
# cells of a map is left out: plotly chooses it by the cell.
FAINT = """() => {
  const parse = text => {
    const found = (text.match(/[\\d.]+/g) || []).map(Number);
    return found.length < 3 ? null : [...found.slice(0, 3), found[3] ?? 1];
  };
  const over = (top, below) => below.slice(0, 3).map((c, i) => top[3] * top[i] + (1 - top[3]) * c);
  const light = ([r, g, b]) => {
    const [x, y, z] = [r, g, b].map(c => c / 255).map(
      c => c <= 0.04045 ? c / 12.92 : ((c + 0.055) / 1.055) ** 2.4);
    return 0.2126 * x + 0.7152 * y + 0.0722 * z;
  };
  const behind = node => {
    const layers = [];
    for (let one = node; one; one = one.parentElement) {
      const back = parse(getComputedStyle(one).backgroundColor);
      if (back && back[3] > 0) layers.push(back);
      if (back && back[3] === 1) break;
    }
    return layers.reverse().reduce((below, top) => over(top, below), [255, 255, 255]);
  };
  const faint = [];
  const walker = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
  for (let text = walker.nextNode(); text; text = walker.nextNode()) {
    const node = text.parentElement;
    if (!text.data.trim() || node.closest("script, style, .heatmaplayer, .skip")) continue;
    if (!node.getClientRects().length) continue;
    const style = getComputedStyle(node);
    const colour = parse(node instanceof SVGElement ? style.fill : style.color);
    const back = behind(node);
    if (!colour || colour[3] === 0) continue;
    const [a, b] = [light(over(colour, back)), light(back)].sort((x, y) => y - x);
    const size = parseFloat(style.fontSize), bold = Number(style.fontWeight) >= 600;
    const least = size >= 24 || (bold && size >= 18.6) ? 3 : 4.5;
    if ((a + 0.05) / (b + 0.05) < least) faint.push(
      `${((a + 0.05) / (b + 0.05)).toFixed(2)}: ${text.data.slice(0, 40)}`);
  }
  return [...new Set(faint)];
}"""


@pytest.fixture(scope="module")
def file(run):
    return ls.write_report(run)


def test_one_file_and_no_way_out(browser, file):
    page = browser.new_page()
    asked = []
    page.on("request", lambda request: asked.append(request.url))
    page.goto(file.resolve().as_uri())
    page.wait_for_selector(".plot[data-drawn]")
    assert [url for url in asked if url.startswith(("http", "file"))] == [file.resolve().as_uri()]
    ways = "[...document.querySelectorAll('a[href]')].map(a => a.getAttribute('href'))"
    assert all(way.startswith("#") for way in page.evaluate(ways))
    targets = {way for way in page.evaluate(ways) if page.locator(way).count() != 1}
    assert targets == set()
    others = "form, iframe, object, embed, link, base, img[src^=http], script[src]"
    assert page.locator(others).count() == 0
    refused = page.evaluate(
        """() => new Promise(done => {
          document.addEventListener("securitypolicyviolation", e => done(e.violatedDirective));
          fetch("http://127.0.0.1:9/").catch(() => {});
        })"""
    )
    assert refused == "connect-src"
    page.close()


@pytest.mark.parametrize("theme", THEMES)
def test_the_verdict_is_on_the_first_screen_of_a_phone(theme, open_page, file):
    page = open_page(400, theme, file)
    for part in (".verdict", ".decides", ".circuit"):
        box = page.locator(f"header {part}").bounding_box()
        assert box["y"] >= 0 and box["y"] + box["height"] <= 800, part
        assert box["x"] >= 0 and box["x"] + box["width"] <= 400, part
    assert page.locator(".verdict p").count() == 3


@pytest.mark.parametrize("theme", THEMES)
@pytest.mark.parametrize("width", [400, 900, 1600])
def test_nothing_is_cut(width, theme, open_page, file):
    page = open_page(width, theme, file)
    page.evaluate(EVERYTHING)
    page.wait_for_function(ALL_DRAWN)
    assert page.evaluate(CUT_CAPTIONS) == []
    assert page.evaluate(CUT_TEXTS) == []
    page.evaluate("location.hash = 'head-L0H3'")
    page.wait_for_selector("#head-L0H3 .plot[data-drawn]")
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    assert page.evaluate(CUT_CAPTIONS) == []
    assert page.evaluate(CUT_TEXTS) == []


@pytest.mark.parametrize("theme", THEMES)
def test_every_text_has_contrast(theme, open_page, file):
    page = open_page(1600, theme, file)
    page.evaluate(EVERYTHING)
    page.wait_for_function(ALL_DRAWN)
    assert page.evaluate(FAINT) == []
    page.evaluate("location.hash = 'head-L0H3'")
    page.wait_for_selector("#head-L0H3 .plot[data-drawn]")
    assert page.evaluate(FAINT) == []


@pytest.mark.parametrize("theme", THEMES)
def test_axe_finds_nothing(theme, open_page, file):
    axe = pytest.importorskip("axe_playwright_python.sync_playwright").Axe()
    page = open_page(900, theme, file)
    for place in ("main", "head-L0H3"):
        page.evaluate("place => { location.hash = place; }", place)
        page.wait_for_timeout(300)
        found = axe.run(page, options={"exclude": [[".js-plotly-plot"]]}).response["violations"]
        assert [(one["id"], one["nodes"][0]["html"][:120]) for one in found] == []


MIDDLE = """node => {
  scrollTo({ top: 0, behavior: "instant" });
  const box = node.getBoundingClientRect();
  return [box.x + box.width / 2, box.y + box.height / 2];
}"""


def shown_alone(page, key):
    """Whether a head's page is shown and nothing else."""
    page.wait_for_function(f"location.hash === '#{key}'")
    page.wait_for_selector(f"#{key} .plot[data-drawn]")
    return page.evaluate(
        "[...document.querySelectorAll('header .verdict, main > section')].filter("
        "x => x.offsetParent !== null).map(x => x.id)"
    ) == [key]


def test_a_head_s_name_leads_to_its_page_wherever_it_stands(open_page, file):
    page = open_page(1200, file=file)
    drawn = page.locator('header .circuit a[href="#head-L0H2"]')
    page.mouse.click(*drawn.evaluate(MIDDLE))  # Playwright itself misses links in drawings
    assert shown_alone(page, "head-L0H2")
    page.get_by_role("link", name="After: L0H3").click()
    assert shown_alone(page, "head-L0H3")
    page.get_by_role("link", name="All results").click()
    assert page.locator("header .verdict").is_visible()
    for place in ("header .verdict", "#ranking table", "#health table", "#circuits .box.voted"):
        link = page.locator(f'{place} a[href^="#head-"]').first
        key = link.get_attribute("href").removeprefix("#")
        link.click()
        assert shown_alone(page, key), place
        page.go_back()
        page.wait_for_function("location.hash === '#main'")
        assert page.locator("header .verdict").is_visible()


def test_an_address_may_name_a_head(open_page, file):
    page = open_page(900, file=file, place="head-L0H3")
    assert shown_alone(page, "head-L0H3")


# Where on the screen a point of a trace stands.
POINT = """(plot, place) => {
  const layout = plot._fullLayout, trace = plot._fullData[place.trace], box =
    plot.getBoundingClientRect();
  return [box.left + layout.xaxis._offset + layout.xaxis.d2p(trace.x[place.x]),
          box.top + layout.yaxis._offset + layout.yaxis.d2p(trace.y[place.y]),
          trace.y[place.y]];
}"""


def test_names_in_figures_lead_there_too(open_page, file):
    page = open_page(1200, file=file)
    ranked = page.locator("#rllc .plot").nth(1)
    ranked.scroll_into_view_if_needed()
    label = ranked.locator(".ytick text", has_text="L0H5").first
    label.click()
    assert shown_alone(page, "head-L0H5")
    page.go_back()
    ranked.scroll_into_view_if_needed()
    x, y, name = ranked.evaluate(POINT, {"trace": 0, "x": 1, "y": 1})
    page.mouse.move(x, y)
    page.mouse.click(x, y)
    assert shown_alone(page, f"head-{name}")
    page.go_back()
    cells = page.locator("#rllc .plot").first
    cells.scroll_into_view_if_needed()
    x, y, _ = cells.evaluate(POINT, {"trace": 0, "x": 3, "y": 0})
    page.mouse.move(x, y)
    page.mouse.click(x, y)
    assert shown_alone(page, "head-L0H3")


def test_the_keyboard_reaches_a_head_and_figures_take_no_stops(open_page, file):
    page = open_page(1200, file=file)
    page.locator("#ranking table a").first.focus()
    name = page.evaluate("document.activeElement.textContent")
    page.keyboard.press("Enter")
    assert shown_alone(page, f"head-{name}")
    assert page.evaluate("document.activeElement.textContent") == name  # its title
    page.go_back()
    page.evaluate(EVERYTHING)
    page.wait_for_function(ALL_DRAWN)
    stops = page.evaluate(
        """[...document.querySelectorAll(".plot")].map(plot => [...plot.querySelectorAll(
          "a, button, input, [tabindex]")].filter(x => x.tabIndex >= 0).length)"""
    )
    assert page.locator(".modebar-btn").count() > 0
    assert max(stops) == 0
    twice = page.evaluate(
        """[...document.querySelectorAll("main > section:not(.sheet)")].flatMap(section => {
          const stops = [...section.querySelectorAll('a[href^="#head-"]')].filter(
            a => a.tabIndex >= 0).map(a => a.hash);
          return stops.filter((x, i) => stops.indexOf(x) !== i);
        })"""
    )
    assert twice == []  # every head once a section


def test_tokens_can_be_searched(open_page, file, views):
    page = open_page(1200, file=file)
    found = views["llc"].modes
    texts, sequence = token_texts(found), found["sequence"].values
    page.locator("#find").fill("e")
    by_hand = [i for i, text in enumerate(texts) if "e" in text.lower()]
    assert page.locator("#n-found").text_content().startswith(f"{len(by_hand)} of {len(texts)} ")
    column = f"λ̂ of {found['component'].values[0]}"
    page.locator("#by").select_option(label=column)
    scores = (
        np.rint(
            10 * dict(token_scores(views["llc"].matrix, found))[str(found["component"].values[0])]
        )
        / 10
    )
    shown = [float(text) for text in page.locator("#found .score").all_text_contents()]
    assert shown == sorted((scores[i] for i in by_hand), reverse=True)[: len(shown)]
    page.locator("#order").select_option(label="lowest first")
    lowest = float(page.locator("#found .score").first.text_content())
    assert lowest == min(scores[i] for i in by_hand)
    pair = next(
        i for i in range(5, len(texts)) if sequence[i] == sequence[i - 1] and texts[i].strip()
    )
    page.locator("#find").fill(texts[pair - 1] + texts[pair])  # over two tokens
    assert re.match(r"[1-9]", page.locator("#n-found").text_content())
    page.locator("#order").select_option(label="as in the text")
    assert texts[pair] in page.locator("#found .token.here").all_text_contents()
    page.locator("#find").fill("no token ends with this")
    assert page.locator("#n-found").text_content().startswith("0 of")
    assert page.locator("#found li").count() == 0


def test_what_votes_looks_other_than_what_is_noted(open_page, file):
    page = open_page(1200, file=file)
    looks = page.evaluate(
        """["voted", "noted"].map(kind => {
          const style = getComputedStyle(document.querySelector(`#circuits .box.${kind}`));
          return [style.borderTopStyle, style.color];
        })"""
    )
    assert looks[0][0] == "solid" and looks[1][0] == "dashed" and looks[0][1] != looks[1][1]
    assert page.locator("#circuits .noted details").count() == 1  # folded
    assert page.locator("#circuits .voted table").is_visible()
    assert not page.locator("#circuits .noted table").is_visible()


def test_what_was_folded_is_drawn_when_it_is_opened(open_page, tmp_path, draws):
    from lens_slt.report import page as made
    from lens_slt.report.plots import plot_rllc

    folded = made.fold("More", made.figure(plot_rllc(ls.refined_llc(draws))))
    shown = made.figure(plot_rllc(ls.refined_llc(draws)))
    file = tmp_path / "fold.html"
    file.write_text(made.page("x", "", [made.Section("one", "One", shown + folded)]), "utf-8")
    page = open_page(900, file=file)
    page.locator("summary").click()
    page.wait_for_selector("details .plot[data-drawn]")
