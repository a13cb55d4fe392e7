"""The report holds what the run found, in one file that needs nothing else."""

from __future__ import annotations

import html
import json
import re

import pytest
import xarray as xr

import lens_slt as ls
from lens_slt.circuits import behaviour
from lens_slt.data import patterns
from lens_slt.observables.refined_llc import refined_llc
from lens_slt.report.tables import with_error
from lens_slt.sampling import health


@pytest.fixture(scope="module")
def text(run):
    path = ls.write_report(run)
    assert path == run / "report.html"
    assert path.stat().st_size < 15e6
    return path.read_text("utf-8")


def words(text: str) -> str:
    """What a reader sees, without style, scripts and tags."""
    text = re.sub(r"<(script|style)\b.*?</\1>", " ", text, flags=re.S)
    text = re.sub(r"</?(a|span)\b[^>]*>", "", text)
    return html.unescape(re.sub(r"<[^>]+>", " ", text))


def test_sections_come_in_order_and_are_linked(text):
    keys = re.findall(r'<section id="(\w+)"', text)
    assert keys == [
        "ranking", "run", "health", "rllc", "traces", "modes", "tokens", "map", "circuits",
        "disagrees", "limits",
    ]  # fmt: skip
    assert re.findall(r'<li><a href="#(\w+)">', text) == keys


def test_nothing_is_loaded_and_text_is_escaped(text):
    outside = re.sub(r"<script\b.*?</script>", "", text, flags=re.S)
    assert not re.search(r"(src|href)=\"(?!#)", outside)
    assert "A &lt;small&gt; run" in outside
    assert "<small>" not in outside


def test_numbers_are_those_of_the_draws(text, draws):
    seen = words(text)
    llc = refined_llc(draws)
    for name in ("L0H3", "full"):
        row = llc.sel(component=name)
        assert with_error(float(row["llc"]), float(row["se"])) in seen
    assert draws.attrs["model_hash"][:16] in seen
    assert "nβ 30, γ 200, lm with ε₀ 0.004, smaller where needed, 4 chains × 20 draws" in seen
    assert "8 × 24 (sequences × tokens)" in seen


def test_the_matrix_s_probe_is_no_column(text):
    heading = re.search(r"Refined LLC by probe.*?</table>", text, re.S)
    assert heading is not None
    header = re.findall(r"<th[^>]*>([^<]*)</th>", heading[0])
    assert header == ["component", "sampling", "prose"]


def test_trials_and_their_disagreements(text, trial):
    seen = " ".join(words(text).split())
    assert f"Contradicted: {trial.hypothesis}" in seen
    assert "1 contradicted" in seen
    disagrees = text[text.index('id="disagrees"') :]
    assert "L0H6 matters" in words(disagrees)


def test_every_figure_is_named_and_whole(text):
    plots = re.findall(
        r'class="plot" role="img" aria-label="([^"]+)"[^>]*></div>'
        r'<script type="application/json">(.*?)</script>',
        text, flags=re.S,
    )  # fmt: skip
    assert len(plots) > 15
    for label, figure in plots:
        record = json.loads(figure.replace("<\\/", "</"))
        assert record["data"], label
        assert "title" not in record["layout"]


def test_results_at_hand(tmp_path, draws, trial):
    path = ls.write_report(draws, tmp_path / "new" / "one.html")
    assert 'id="circuits"' not in path.read_text("utf-8")
    path = ls.write_report(None, tmp_path / "two.html", trials=[trial])
    seen = words(path.read_text("utf-8"))
    assert "8 sequences of 24 tokens, mean ablation, 60 null sets" in seen
    with pytest.raises(ValueError, match="needs draws, a sweep, trials, behaviour or results"):
        ls.write_report(None, tmp_path / "none.html")
    with pytest.raises(ValueError, match="file is missing"):
        ls.write_report(draws)
    with pytest.raises(ValueError, match="are for results at hand"):
        ls.write_report(tmp_path, trials=[trial])
    with pytest.raises(ValueError, match="result must come from sample"):
        ls.write_report(xr.DataTree(), tmp_path / "none.html")


def test_rules_are_on_the_page(text):
    """All verdicts, patterns, scores and types have theirs."""
    assert set(health.EXCLUDED) < set(health.RULES)
    there = words(text)
    for rules in (health.RULES, patterns.PATTERNS, behaviour.MEANINGS, behaviour.TYPES):
        assert all(words(rule) in there for rule in rules.values())


def test_where_there_is_no_run(tmp_path):
    with pytest.raises(ValueError, match=r"holds neither draws\.zarr nor trials\.json"):
        ls.write_report(tmp_path)


def test_draws_that_were_streamed_to_a_path_of_their_own(run):
    path = ls.write_report(run / "draws.zarr")
    assert path.parent == run / "draws.zarr"
    assert 'id="health"' in path.read_text("utf-8")
    path.unlink()
