"""Circuits followed back: the order in which a planted one was built, and no false ones."""

from __future__ import annotations

from dataclasses import dataclass
from types import SimpleNamespace

import numpy as np
import pytest
import xarray as xr

import lens_slt as ls
from lens_slt.circuits.trial import SHOWN_SETTINGS, Trial
from lens_slt.development import construction, construction_cells
from lens_slt.development.construction import _prepare, _Sweep
from lens_slt.models.checkpoints import Checkpoints
from tests.development.made_runs import EARLY, LATE, STEPS, formed, planted, without

FEW = dict(n_bootstrap=200, n_null=5, progress=False)
SOME = (30, 100, 300, 1000)
PARTS = ("matrix", "patterns", "modes")  # of evidence


@pytest.fixture(scope="module")
def given():
    p = planted()
    return p.tokens[:24], p.patterns[:, :24]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("construction")


@pytest.fixture(scope="module")
def built(given, folder):
    tokens, patterns = given
    run = ls.checkpoints(formed, steps=list(SOME))
    return ls.construction(run, tokens, planted().truth, patterns=patterns, path=folder, **FEW)


def test_other_evidence_makes_another_run(given):
    tokens, patterns = given

    def digest(value):
        held = xr.Dataset({"llc": ("token", [1.0, value])}), xr.DataArray([True]), None
        slt = (
            {} if value is None else {LATE: SimpleNamespace(**dict(zip(PARTS, held, strict=True)))}
        )
        options = dict.fromkeys(("weights", "mask", "pad_id", "metric", "roles"))
        options |= {"patterns": patterns, "how": "auto", "least_effect": 0.1}
        options |= {"n_null": 5, "n_bootstrap": 200, "seed": 0}
        task = construction_cells.ConstructionTask(tokens, (planted().truth,), options, slt, None)
        return _prepare(formed(LATE), task, [planted().truth]).digest

    assert digest(2.0) == digest(2.0)
    assert len({digest(None), digest(2.0), digest(3.0)}) == 3


def onset(found, part, criterion):
    row = found.sel(part=part, criterion=criterion)
    return tuple(float(row[name]) for name in ("onset_low", "onset", "onset_high"))


def test_the_order_of_construction_is_found(built):
    early, late = planted().truth.heads
    (edge,) = map(str, planted().truth.edges)
    assert onset(built, early, "behaves") == (30, EARLY, EARLY)
    assert str(built["behaves_as"].sel(part=early).values) == "previous token"
    for part in (early, late, edge, "circuit"):  # nothing is needed before the second head works
        assert onset(built, part, "needed") == (300, LATE, LATE), part
    assert onset(built, late, "behaves") == (300, LATE, LATE)
    assert onset(built, "circuit", "alone") == (300, LATE, LATE)
    assert built.sel(part=edge)["share"].values[-1] == pytest.approx(1, abs=0.1)
    assert np.isnan(built.sel(part=edge)["share"].values[:3]).all()
    assert float(built["alone_share"].sel(part="circuit")[-1]) == pytest.approx(1, abs=0.1)


def test_effects_are_as_sure_as_the_sequences_with_the_pattern_are_many(given, monkeypatch):
    """It is in 9 of 24: what the others show says nothing of it."""
    tokens, patterns = given
    rested, one_sided = [], construction.one_sided
    monkeypatch.setattr(
        construction, "one_sided", lambda *args: rested.append(args[-1]) or one_sided(*args)
    )
    run = ls.checkpoints(formed, steps=[30, LATE])
    rare = patterns & (patterns["sequence"] < 9)
    ls.construction(run, tokens, planted().truth, patterns=rare, trials="none", **FEW)
    effects, behaviours, alone = rested
    assert effects.ravel().tolist() == alone.tolist() == [9] * 4
    assert behaviours == construction.N_RANDOM


def test_effects_are_those_of_ablations(built, given):
    tokens, patterns = given
    (edge,), head = planted().truth.edges, planted().truth.heads[1]
    model, mask = formed(LATE), patterns.sel(pattern="induction").values
    for part, found in (
        (head, ls.ablate(model, tokens, head)), (str(edge), ls.ablate_path(model, tokens, edge)),
    ):  # fmt: skip
        effect = found["effect"].values
        plain = effect[mask].mean() - effect[~mask].mean()  # matched by loss they differ a little
        row = built.sel(part=part, context="in the whole model").isel(checkpoint=-1)
        assert float(row["effect"]) == pytest.approx(plain, abs=0.4)
        assert 0 < float(row["effect_se"]) < 0.2
        assert float(row["effect_low"]) < float(row["effect"]) < float(row["effect_high"])


def test_the_circuit_is_supported_from_when_it_is(built, folder):
    verdicts = built["verdict"].sel(part="circuit").values.tolist()
    assert verdicts == ["", "contradicted", "contradicted", "supported"]
    assert onset(built, "circuit", "supported") == (300, LATE, LATE)
    assert "necessity" in str(built["reasons"].sel(part="circuit").values[1])
    (trial,) = ls.read_trials(folder / f"step-{LATE:08d}" / "trial-1.json")
    assert trial.verdict == "supported"


def test_stages_are_told_of_every_part(built):
    table = ls.construction_table(built, [(60, 40, 80), (600, 400, 900)])
    behaves = table[table["criterion"] == "behaves"].iloc[0]
    error = float(built["behaviour_se"].sel(part=behaves["part"])[-1])
    half = 2.1314 * error  # Student's t of 16 random sequences
    assert behaves["end_high"] - behaves["end"] == pytest.approx(half, rel=1e-4)
    early, late = planted().truth.heads
    stage = table.set_index(["part", "criterion"])["stage"]
    assert stage[early, "behaves"] == "1–2"  # between 30 and 100, the boundary is in between
    assert stage[late, "behaves"] == "2–3"
    exists = table.set_index(["part", "criterion"])["exists"]
    assert exists[early, "behaves"] == f"{EARLY} (30–{EARLY})"
    assert (table["end"] > table["least"])[table["criterion"] != "supported"].all()
    assert table.iloc[-1]["what"] == "supported" and table.iloc[-1]["verdict"] == "supported"
    assert table.iloc[-1]["exists"] == f"{LATE} (300–{LATE})"


def test_without_a_circuit_nothing_is_there_at_any_step(given):
    tokens, patterns = given
    run = ls.checkpoints(without, steps=[100, 1000])
    found = ls.construction(run, tokens, planted().truth, patterns=patterns, trials="none", **FEW)
    assert np.isnan(found["onset"].sel(criterion=["needed", "alone", "supported"])).all()
    needed = ls.construction_table(found)
    assert set(needed[needed["criterion"] == "needed"]["exists"]) == {"not there at the end"}
    assert not {"attends: previous token", "attends: induction"} & set(needed["what"])


SETTINGS = dict.fromkeys(SHOWN_SETTINGS, 0)


@dataclass(frozen=True)
class Step:
    """A source whose model is its step."""

    step: int

    @property
    def label(self):
        return f"step {self.step}"

    def load(self, device=None):
        return self.step


@pytest.fixture
def sweep(monkeypatch, tmp_path):
    """Trials whose verdicts are known, and the steps that were tried."""
    tried = []

    def trial(step, tokens, hypothesis, **options):
        tried.append(step)
        since = EARLY if hypothesis.name == "early" else LATE
        word = "contradicted" if hypothesis.name == "never" or step < since else "supported"
        return Trial(hypothesis, word, (f"because {step}",), (), (), None, SETTINGS)

    monkeypatch.setattr(construction_cells, "cross_check", trial)
    for step in STEPS:
        (tmp_path / f"step-{step:08d}").mkdir()

    def make(*names):
        run = Checkpoints("made", STEPS, tuple(map(Step, STEPS)))
        hypotheses = tuple(ls.circuit("L0H1", "induction", name=name) for name in names)
        task = construction_cells.ConstructionTask(None, hypotheses, {}, {}, None)
        return _Sweep(run, task, tmp_path, None, False), tried

    return make


def test_bisection_finds_where_support_begins_with_few_trials(sweep):
    made, tried = sweep("early", "late", "never")
    made.bisect()
    yes = {place for place, (word, _) in made.verdicts.items() if word == "supported"}
    assert min(step for step, one in yes if one == 0) == EARLY
    assert min(step for step, one in yes if one == 1) == LATE
    assert 2 not in {one for _, one in yes}
    assert {step for step, one in made.verdicts if one == 2} == {STEPS[-1]}
    assert len(tried) <= 2 * (1 + 3) + 1
    last_without = {0: 30, 1: 300}
    for i, step in last_without.items():
        assert made.verdicts[step, i][0] == "contradicted"
    made.bisect()  # from the files
    n_tried = len(tried)
    again, _ = sweep("early", "late", "never")
    again.bisect()
    assert len(tried) == n_tried and again.verdicts == made.verdicts
    again.try_all()
    assert len(again.verdicts) == 3 * len(STEPS)


def test_what_is_finished_is_not_done_again(given, folder, built, monkeypatch):
    tokens, patterns = given
    measured = []
    real = construction_cells.measures
    monkeypatch.setattr(construction_cells, "measures", lambda *a: measured.append(1) or real(*a))
    (folder / "step-00000100" / "finished.json").unlink()
    again = ls.construction(
        ls.checkpoints(formed, steps=list(SOME)), tokens, planted().truth, patterns=patterns,
        path=folder, **FEW,
    )  # fmt: skip
    assert len(measured) == 1
    xr.testing.assert_identical(again, built)
    with pytest.raises(ValueError, match="holds another sweep, which differs in tokens and opt"):
        ls.construction(
            ls.checkpoints(formed, steps=list(SOME)), tokens[:20], planted().truth,
            patterns=patterns[:, :20], trials="none", path=folder, **FEW,
        )  # fmt: skip


def test_parts_have_names_that_tell_circuits_apart():
    two = [ls.circuit("L0H1 -> L1H2.K", "induction"), ls.circuit("L1H2", "induction", name="x")]
    labels = [part.label for part in construction_cells.parts_of(two)]
    assert labels == [
        "induction: L0H1", "induction: L1H2", "induction: L0H1→L1H2.K", "induction: circuit",
        "x: L1H2", "x: circuit",
    ]  # fmt: skip
    same = [ls.circuit("L0H1", "induction"), ls.circuit("L1H2", "induction")]
    assert construction_cells.circuit_names(same) == ["induction 1", "induction 2"]
    assert [part.label for part in construction_cells.parts_of(two[:1])][-1] == "circuit"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (dict(hypotheses=[]), "hypotheses: there are none"),
        (dict(checkpoints=[1000]), "checkpoints must be at least two"),
        (dict(trials="some"), "trials must be one of bisect, all, none"),
        (dict(least_effect=0.0), "least_effect must be a finite number above 0"),
        (dict(hypotheses=ls.circuit("L9H2", "induction")), "L9H2"),
        (dict(hypotheses=ls.circuit("L0H2", "rhymes")), "pattern 'rhymes' is not among"),
        (dict(hypotheses=ls.circuit("L0H2", "induction", model="ab")), "was made for a model"),
        (dict(slt={77: None}), "has no step 77"),
    ],
)
def test_bad_arguments_are_refused_before_any_work(change, message, given):
    tokens, patterns = given
    steps = change.pop("checkpoints", [EARLY, LATE])
    options = {"hypotheses": planted().truth, "patterns": patterns, **FEW} | change
    hypotheses = options.pop("hypotheses")
    with pytest.raises(ValueError, match=message):
        ls.construction(ls.checkpoints(formed, steps=steps), tokens, hypotheses, **options)
