"""The page of a sweep: stages, losses, heads, and what could not be read."""

from __future__ import annotations

import json
import re
from dataclasses import replace

import numpy as np
import pytest
import xarray as xr
from rich.console import Console

import lens_slt as ls
from lens_slt.arrays import write_zarr
from lens_slt.development.overview import TOGETHER, refusals, with_whole
from lens_slt.development.pattern_curves import taken_up
from lens_slt.report.development_screen import development_screen
from lens_slt.report.files_circuits import write_trials
from lens_slt.report.tables_development import (
    heads_table,
    stages_table,
    taken_up_table,
    transitions_table,
)
from lens_slt.schema import stamped
from tests.development.test_develop import developed
from tests.made_curves import STEPS, as_result, curves_of, shapes
from tests.made_matrices import HELD_STEPS, held_curves
from tests.made_over_training import made_construction
from tests.report.test_report import words

PATTERNS = ["all", "induction"]
STEPS_HELD = np.array(HELD_STEPS, dtype=float)


@pytest.fixture(scope="module")
def curves() -> xr.DataTree:
    """A sweep of sixteen heads, four of which rise late and at once, with the loss of a pattern."""
    values = shapes()[np.repeat(range(4), 4)][None]
    llc = as_result(curves_of(values, 0.05, n_blocks=8))
    words = np.full(llc["certificate"].shape, "certified", dtype="<U13")
    words[0, 0] = "not certified"
    llc["certificate"] = (llc["certificate"].dims, words)
    llc["verdict"] = (llc["verdict"].dims, np.where(words == "certified", "healthy", words))
    settings = json.dumps(ls.Settings(draws=100).as_dict())
    llc.attrs |= {"settings": settings, "tokens": "256 × 128", "versions": "none"}
    late = shapes()[1]
    loss = np.stack([4 - 0.1 * late, 5 - 0.8 * late], 1)[:, None]
    rng = np.random.default_rng(0)
    sub = xr.Dataset(
        {
            "loss": (("checkpoint", "probe", "pattern"), loss + 0.02 * rng.normal(size=loss.shape)),
            "se": (("checkpoint", "probe", "pattern"), np.full(loss.shape, 0.02)),
            "n_tokens": (("checkpoint", "probe", "pattern"), np.full(loss.shape, 500)),
        },
        {"checkpoint": STEPS, "probe": ["text"], "pattern": PATTERNS}, {"tokens_hash": "t"},
    )  # fmt: skip
    tree = xr.DataTree.from_dict({"refined_llc": llc, "sublosses": stamped(sub, "sublosses")})
    tree.attrs |= {"run": "made", "unit": "step", "settings": settings}
    return stamped(tree, "development")


@pytest.fixture(scope="module")
def view(curves) -> ls.DevelopmentView:
    return ls.read_development(curves, progress=False)


def shown(table) -> str:
    console = Console(width=100)
    with console.capture() as caught:
        console.print(table)
    return caught.get()


def test_the_whole_is_the_sum_with_its_own_error(curves):
    llc = curves["refined_llc"].to_dataset()
    whole = with_whole(llc).sel(component=TOGETHER)
    np.testing.assert_allclose(whole["llc"], llc["llc"].sum("component"))
    blocks = llc["blocks"].sum("component")
    np.testing.assert_allclose(whole["se"], blocks.std("block", ddof=1) / 8**0.5)
    assert list(with_whole(llc)["component"].values[1:]) == list(llc["component"].values)


def test_everything_is_read(view):
    assert not view.refused
    assert view.stages is not None and view.transitions is not None
    one = view.transitions.sel(observable="induction").isel(transition=0)
    middle = np.log1p(STEPS[[0, -1]]) @ [0.3, 0.7]
    assert abs(np.log1p(float(one["midpoint"])) - middle) < 0.3


def test_tables_say_when(view):
    assert f"Stages of {TOGETHER}" in shown(stages_table(view))
    assert re.search(r"induction +\d+ \(\d+–\d+\)", shown(transitions_table(view)))
    heads = shown(heads_table(view))
    assert "L0H0" in heads and "±" in heads
    marked = re.findall(r"(L\dH\d) +\S+ ± \S+ !", heads)
    last = view.curves["refined_llc"].to_dataset().isel(checkpoint=-1)
    unsure = last["component"].values[last["verdict"].values != "healthy"]
    assert marked == unsure.tolist()


def test_the_page_tells_the_story(view, tmp_path):
    text = ls.write_report(view, tmp_path / "report.html").read_text("utf-8")
    for word in (
        "Stages",
        "Losses of patterns",
        "Heads",
        "Limits",
        "L1H7",
        "γ = 200",
        "Trajectories of heads",
        "When each head differentiates",
        "Critical checkpoints",
    ):
        assert word in text, word
    seen = words(text)
    assert "1 number is not certified" in seen and f"L0H0 at step {STEPS[0]}" in seen
    assert "How circuits were built" not in text and "Modes and influence" not in text
    assert "http://" not in re.sub(r"<script.*?</script>", "", text, flags=re.S)


def test_the_first_screen_and_the_pages_of_heads(view, tmp_path):
    built = replace(view, construction=made_construction())
    text = ls.write_report(built, tmp_path / "report.html").read_text("utf-8")
    seen = " ".join(words(text[text.index("<header>") :]).split())
    assert f"16 heads of made at {len(STEPS)} checkpoints, steps {STEPS[0]} to" in seen
    n = view.curves["refined_llc"]["certificate"].size
    assert f"Believe {n - 1} of {n} numbers, which are certified" in seen
    assert "held the tightest of 16 heads, and training has" in seen
    assert "1 of 1 circuits on trial held at the end" in seen
    assert "Supported at the end: L0H1→L1H2.K, for induction Step 2000 (1000–2000)" in seen
    keys = re.findall(r'<section class="sheet" id="([^"]+)"', text)
    assert keys == [f"head-{name}" for name in view.curves["refined_llc"]["component"].values]
    sheet = words(text[text.index('id="head-L0H1"') :].partition("</section>")[0])
    for part in ("L0H1 over training", "Stages of L0H1", "L0H1 in circuits"):
        assert part in sheet, part


def test_the_page_says_who_took_a_pattern_up_and_when(view, tmp_path):
    held = held_curves(3 / (1 + np.exp(-(np.array(HELD_STEPS) - 300.0) / 50)))
    found = replace(view, held=held, taken_up=taken_up(held, 0))
    text = ls.write_report(found, tmp_path / "report.html").read_text("utf-8")
    seen = " ".join(words(text[text.index("<header>") :]).split())
    since = re.search(r"L0H2 holds first most, since about step (\d+)", seen)
    assert since and abs(int(since[1]) - 300) < 60
    assert "first in L0H2" in seen and "on the tokens of a pattern, minus" in seen
    assert "pattern LLC" in text[text.index('id="head-L0H2"') :]


def test_a_head_that_is_not_certified_at_the_end_is_not_called_held_the_tightest(curves):
    llc = curves["refined_llc"].to_dataset().copy(deep=True)
    best = str(llc["component"].values[int(llc["llc"].values[-1].argmax())])
    llc["verdict"].loc[{"component": best}] = "diverged"
    bad = curves.copy()
    bad["refined_llc"] = xr.DataTree(llc)
    found = development_screen(ls.DevelopmentView(bad))
    assert "held the tightest of the 15 to believe of 16 heads" in found
    assert f"{best} (λ̂" in development_screen(ls.DevelopmentView(curves))
    assert best not in found


@pytest.mark.parametrize(
    ("sizes", "said", "begin"),
    [
        (5 + 0 * STEPS_HELD, "L0H2 holds first most, already at the first checkpoint.", "before"),
        (0.01 * STEPS_HELD**0.7, "L0H2 holds first most.", "–"),
    ],
)
def test_without_one_rise_no_step_is_named(curves, sizes, said, begin):
    held = held_curves(sizes)
    found = ls.DevelopmentView(curves, held=held, taken_up=taken_up(held, 0))
    assert f", and {said}" in development_screen(found)
    assert re.search(rf"first in L0H2 +{begin}", shown(taken_up_table(found)))


def test_a_head_whose_number_begins_another_s_is_part_of_the_circuit(view, tmp_path):
    parts = ["L1H1", "L0H1→L1H10.K", "circuit"]
    built = made_construction().assign_coords(part=parts, piece=("part", [*parts[:2], "induction"]))
    found = replace(view, construction=built)
    text = ls.write_report(found, tmp_path / "report.html").read_text("utf-8")
    seen = " ".join(words(text[text.index("<header>") :]).split())
    assert "Supported at the end: L0H1→L1H10.K; L1H1, for induction" in seen


def test_too_few_checkpoints_are_said(curves, tmp_path):
    few = curves.map_over_datasets(
        lambda one: one.isel(checkpoint=slice(0, 6)) if "checkpoint" in one.dims else one
    )
    few.attrs.update(curves.attrs)
    view = ls.read_development(few, progress=False)
    assert "20" in view.refused["stages"] and view.stages is None
    text = ls.write_report(view, tmp_path / "few.html").read_text("utf-8")
    assert "No stages" in text


def test_a_folder_and_what_develop_returned_are_taken(tmp_path):
    found = developed([0, 5], tmp_path / "run", behaviour=False)
    write_zarr(made_construction(), tmp_path / "run" / "construction.zarr")
    refused = ls.read_development(found, progress=False).refused
    assert "held" in refused and "taken_up" not in refused  # for the same reason
    path = ls.write_report(tmp_path / "run", about={"title": "Two <steps>"})
    assert path == tmp_path / "run" / "report.html"
    text = path.read_text("utf-8")
    assert "Two &lt;steps&gt;" in text and "Modes and influence" in text
    same = ls.write_report(found, tmp_path / "tree.html").read_text("utf-8")
    keys = re.findall('<section id="([^"]+)"', same)
    assert keys == ["run", "stages", "losses", "heads", "structure", "limits"]
    keys.insert(5, "construction")
    assert re.findall('<section id="([^"]+)"', text) == keys
    with pytest.raises(ValueError, match="the report of a sweep takes none"):
        ls.write_report(found, tmp_path / "none.html", behaviour=xr.Dataset())


def test_a_sweep_and_a_run_in_one_folder_become_one_page(tmp_path, trial):
    developed([0, 5], tmp_path / "sweep", behaviour=False)
    write_trials(tmp_path, [trial])
    text = ls.write_report(tmp_path).read_text("utf-8")
    keys = re.findall('<section id="([^"]+)"', text)
    assert keys == [
        "run", "circuits", "stages", "losses", "heads", "structure", "disagrees", "limits",
    ]  # fmt: skip


def test_a_reason_is_said_once(view):
    few = "stages and transitions need at least 20 checkpoints"
    gone = replace(view, refused={"stages": few, "transitions": few, "modes": "no probe"})
    assert refusals(gone) == [f"no stages, no transitions: {few}", "no modes: no probe"]
