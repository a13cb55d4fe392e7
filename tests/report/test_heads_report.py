"""The ranking of heads and their pages; links to these; words and their meaning."""

from __future__ import annotations

import html
import re
from dataclasses import replace

import numpy as np
import pytest
import xarray as xr

import lens_slt as ls
from lens_slt.circuits.trial_notes import Disagreement
from lens_slt.observables.refined_llc import refined_llc
from lens_slt.report.disagreements import disagreements_section
from lens_slt.report.glossary import GLOSSARY
from lens_slt.report.markup import defined, linked
from lens_slt.report.plots_head import plot_head_attention
from lens_slt.report.ranking import ranking
from lens_slt.report.tables import with_error
from tests.made_draws import made_draws
from tests.report.test_first_screen import words


@pytest.fixture(scope="module")
def text(run):
    return ls.write_report(run).read_text("utf-8")


def section(text: str, key: str) -> str:
    found = re.search(rf'<section[^>]* id="{key}".*?</section>', text, re.S)
    assert found is not None, key
    return re.sub(r"<script\b.*?</script>", "", found[0], flags=re.S)


def test_ranks_that_cannot_be_told_apart():
    names = ["L0H0", "L0H1", "L0H2", "L1H0", "L1MLP"]
    llc = xr.Dataset(
        {"llc": ("component", [5.0, 9.0, 5.1, np.nan, 20.0]), "se": ("component", [0.1] * 5)},
        {"component": names},
    )
    places = {one.name: one for one in ranking(llc)}
    assert list(places) == ["L0H1", "L0H2", "L0H0"]
    assert [one.words for one in places.values()] == ["1", "2–3", "2–3"]


def test_every_head_has_a_page_with_all_that_is_known(text, draws, behaviour):
    keys = re.findall(r'<section class="sheet" id="([^"]+)"', text)
    assert keys == [f"head-L{n}H{h}" for n in (0, 1) for h in range(8)]  # behaviour has two layers
    seen = " ".join(words(section(text, "head-L0H3")).split())
    row = refined_llc(draws).sel(component="L0H3")
    for number in (
        with_error(float(row["llc"]), float(row["se"])),
        with_error(*(float(row[k].sel(probe="prose")) for k in ("probe_llc", "probe_se"))),
        f"{float(behaviour['previous_token'].sel(component='L0H3')):.2f}",
    ):
        assert number in seen
    for part in ("λ̂ per token, mean", "susceptibility χ, mean", "Patterns of L0H3",
                 "Tokens in context", "Attention pattern of L0H3", "L0H3: "):  # fmt: skip
        assert part in seen, part
    assert "Not measured" in seen and "trajectory: lens_slt.develop" in seen
    assert "behaviour: lens_slt" not in seen
    seen = " ".join(words(section(text, "head-L0H2")).split())
    assert "L0H2 on trial" in seen and "0.01 nats (-0.10…0.04) failed" in seen


def test_names_are_links_everywhere_but_on_their_own_page(text):
    for key in ("ranking", "health", "circuits"):
        assert '<a href="#head-L0H2"' in section(text, key), key
    own = section(text, "head-L0H3")
    assert 'href="#head-L0H3"' not in own
    body = re.sub(r"<(script|style)\b.*?</\1>", "", text, flags=re.S)
    body = body[body.index("<header>") :]
    body = re.sub(r"<(a|button|summary|h1|h2|option|title)\b.*?</\1>", "", body, flags=re.S)
    body = re.sub(r'<section class="sheet".*?</section>', "", body, flags=re.S)
    assert not re.search(r"(?<!\w)L[01]H[0-7](?!\w)", re.sub(r"<[^>]*>", "", body))


def test_links_take_whole_names_and_leave_markup_alone():
    places = {"L0H1": "one", "L0H10": "ten"}
    made = linked('<b title="L0H1">L0H10, L0H1+L0H2, xL0H1</b><script>"L0H1"</script>', places)
    assert made == (
        '<b title="L0H1"><a href="#ten">L0H10</a>, <a href="#one">L0H1</a>+L0H2, xL0H1</b>'
        '<script>"L0H1"</script>'
    )
    assert linked("<button>L0H1</button>", places) == "<button>L0H1</button>"
    assert 'tabindex="-1"' in linked("L0H1 L0H1", places)
    assert linked("L0H1", {}) == "L0H1"


def test_words_are_defined_where_they_first_stand(text):
    body = text[text.index("<header>") :]
    body = re.sub(r"<(script|style|nav|button)\b.*?</\1>", "", body, flags=re.S)
    parts = re.split(r"(?=<section\b)", body)
    open_words = dict(GLOSSARY)
    for part in parts:
        meanings = set(map(html.unescape, re.findall(r"<dt>([^<]*)</dt><dd>", part)))
        rest = re.sub(r'<dl class="words".*?</dl>|<h2.*?</h2>', "", part, flags=re.S)
        said = html.unescape(re.sub(r"<[^>]+>", "\n", rest))
        for word, (form, _) in list(open_words.items()):
            if word in meanings:
                del open_words[word]
            else:
                assert not re.search(form, said), (word, part[:60])
    assert {"refined LLC, rLLC, λ̂", "R̂", "AUC", "necessity"}.isdisjoint(open_words)


def test_a_word_is_defined_once():
    known: set[str] = set()
    assert "<dt>AUC</dt>" in defined("<p>AUC of it</p>", known)
    assert defined("<p>AUC of it</p>", known) == ""
    assert defined('<p title="AUC">text</p><button>AUC</button>', set()) == ""


def test_disagreements_are_summed_up_and_folded(trial):
    lines = tuple(
        Disagreement("outside", f"L0H{i}", 2.0, f"L0H{i} costs it 2 nats") for i in range(9)
    )
    more = Disagreement("needed", "L0H2→L1H2.K", 1.1, "composition speaks against L0H2→L1H2.K (0)")
    many = [replace(trial, disagreements=(*lines, more)), replace(trial, disagreements=lines)]
    made = disagreements_section(None, {}, many)
    assert made.count("<details>") == 2 and made.count("<li>") == 19
    shown = re.sub(r"<ul>.*?</ul>", "", made, flags=re.S)
    assert "19 disagreements of 2 kinds" in shown
    assert "18 × Outside of a circuit" in shown and "L0H0 (×2)" in shown
    assert "1 × Needed by intervention" in shown
    assert "Nothing on this page" in disagreements_section(None, {}, [])
    bad = refined_llc(made_draws(bad={"L0H1": 4}))
    assert "1 × Not healthy: L0H1" in disagreements_section(bad, {}, [])


def test_nothing_about_mlps_in_a_model_without(text):
    after = text[text.index("<header>") :]  # plotly's own script stands before
    after = after[: after.index('id="templates"')]
    assert "MLP" not in after and "mlp" not in after


def test_the_attention_pattern_is_the_head_s(tokens):
    found = ls.attention_patterns(ls.load_model("attn-1l"), tokens[:1], "L0H3")
    figure = plot_head_attention(found, "L0H3", texts=["<b>"] * 24)
    value = np.array(figure.data[0].z, dtype=float)
    np.testing.assert_allclose(np.nansum(value, 1), 1, atol=0.02)
    assert np.isnan(value[0, 1]) and value[0, 0] == 1
    assert figure.data[0].text[3][1] == "from 3 &lt;b&gt; to 1 &lt;b&gt;"
