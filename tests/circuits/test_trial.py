"""Trials and proposals on models whose circuits are known."""

from __future__ import annotations

import json

import numpy as np
import pandas as pd
import pytest
import torch
import xarray as xr

import lens_slt as ls
from lens_slt.circuits.null_sets import all_paths, other_paths, random_paths, same_shape
from lens_slt.circuits.runs import Runs
from lens_slt.circuits.slt_evidence import refined_on_pattern
from lens_slt.models.adapter import adapt, weights_hash
from lens_slt.structure.pattern_enrichment import labels_of

FEW = dict(n_null=25, n_bootstrap=300, progress=False)


@pytest.fixture(scope="module")
def induction():
    return ls.plant("induction", seed=1, n_heads=6, vocab=16)


@pytest.fixture(scope="module")
def planted_trials(induction):
    p = induction
    before, state = weights_hash(adapt(p.model)), torch.get_rng_state()
    hypotheses = [p.truth, *p.decoys]
    trials = ls.cross_check(p.model, p.tokens[:64], hypotheses, patterns=p.patterns[:, :64], **FEW)
    # The model comes back as it was.
    assert weights_hash(adapt(p.model)) == before
    assert torch.equal(torch.get_rng_state(), state)
    assert all(parameter.grad is None for parameter in p.model.parameters())
    return trials


@pytest.fixture(scope="module")
def matrix(induction):
    p = induction
    draws = ls.sample(
        p.model, p.tokens[:64], "heads", settings=ls.Settings(draws=60, batch_size=4, thin=4),
        probes={"probe": p.tokens[64:]}, progress=False,
    )  # fmt: skip
    return ls.per_token_llc(draws)


def test_the_planted_circuit_is_supported(planted_trials):
    trial = planted_trials[0]
    assert trial.verdict == "supported", str(trial)
    rows = {(one.test, one.part): one for one in trial.evidence}
    assert rows["necessity", "circuit"].effect > 1.5
    assert rows["sufficiency", "circuit"].effect == pytest.approx(1, abs=0.1)
    assert all(one.outcome == "held" for one in trial.evidence if one.votes)
    assert all(one.corrected_p >= one.p for one in trial.evidence if one.votes)
    assert float(trial.curve["faithfulness"][-1]) == pytest.approx(1)
    assert float(trial.curve["cmd"]) < 0.3
    composition = rows["composition", str(trial.hypothesis.edges[0])]
    assert composition.outcome == "held"


def test_no_decoy_is_supported(planted_trials):
    for trial in planted_trials[1:]:
        assert trial.verdict == "contradicted", str(trial)
        assert trial.reasons


def test_a_decoy_that_composes_is_listed_as_disagreement():
    p = ls.plant("decoy", seed=0)
    pair = next(d for d in p.decoys if d.edges and "compos" in d.name)
    trial = ls.cross_check(p.model, p.tokens[:64], pair, patterns=p.patterns[:, :64], **FEW)
    assert trial.verdict == "contradicted"
    assert any("composition speaks for it" in text for text in trial.disagreements)


def test_a_backup_head_shows_as_self_repair_and_is_still_needed():
    p = ls.plant("backup", seed=0, n_heads=6, vocab=16)
    trial = ls.cross_check(p.model, p.tokens[:64], p.truth, patterns=p.patterns[:, :64], **FEW)
    assert trial.verdict == "supported", str(trial)
    pair = sorted({edge.target for edge in p.truth.edges})
    both = ls.circuit("; ".join(pair), p.pattern)
    joint = ls.cross_check(p.model, p.tokens[:64], both, patterns=p.patterns[:, :64], **FEW)
    repair = next(one for one in joint.evidence if one.test == "self-repair")
    assert repair.low > 0
    assert "stand in for each other" in repair.words


def test_the_circuit_is_proposed_from_draws_alone(induction, matrix):
    p = induction
    slt = ls.SltEvidence(matrix, p.patterns[:, 64:])
    first = ls.propose_circuits(slt, p.model)[0]
    assert first.pattern == p.pattern
    assert set(first.edges) == set(p.truth.edges)
    assert first.model == weights_hash(adapt(p.model))
    assert set(first.provenance["heads"]) == set(first.components)
    json.dumps(first.as_dict())  # provenance is plain
    with pytest.raises(ValueError, match="no pattern has enough tokens"):
        ls.propose_circuits(ls.SltEvidence(matrix, p.patterns[:, 64:] & False), p.model)


def test_slt_evidence_is_noted_and_changes_no_verdict(induction, matrix, planted_trials):
    p = induction
    slt = ls.SltEvidence(matrix, p.patterns[:, 64:], ls.modes(matrix, n_bootstrap=20))
    trial = ls.cross_check(
        p.model, p.tokens[:64], p.truth, patterns=p.patterns[:, :64], slt=slt, **FEW
    )
    kinds = {one.test for one in trial.evidence if not one.votes}
    assert {"data-refined rLLC", "reliability", "loading"} <= kinds
    refined = [one for one in trial.evidence if one.test == "data-refined rLLC"]
    assert all(one.outcome == "held" for one in refined)
    # The rest is the same to the last bit: seeds decide everything.
    votes, before = ([e for e in t.evidence if e.votes] for t in (trial, planted_trials[0]))
    assert votes == before


def test_refined_values_single_out_the_circuit(induction, matrix):
    p = induction
    labels = dict(
        zip(p.patterns["pattern"].values, labels_of(matrix, p.patterns[:, 64:]), strict=True)
    )
    found = refined_on_pattern(matrix, labels[p.pattern])
    z = {name: 2 * one.value / (one.high - one.low) for name, one in found.items()}
    best = sorted(z, key=lambda name: -z[name])[:2]
    assert set(best) == set(p.truth.components)


def test_null_sets_have_the_shape_of_the_circuit():
    p = ls.plant("empty", seed=0, n_layers=3, n_heads=6)
    runs = Runs(adapt(p.model), p.tokens[:4])
    sets = same_shape(frozenset({"L0H1", "L1H2", "L1H3"}), runs, 30, 0)
    assert len(set(sets.members)) == 30
    for one in sets.members:
        assert sorted(name[:2] for name in one) == ["L0", "L1", "L1"]
        assert not one & {"L0H1", "L1H2", "L1H3"}
    every = same_shape(frozenset({"L0H1", "L2H2"}), runs, 100, 0)
    assert len(every.members) == 25
    assert same_shape(frozenset(f"L0H{i}" for i in range(4)), runs, 100, 0).members == ()
    edge = ls.Edge("L0H1", "L1H2", "K")
    others = other_paths(edge, [edge], runs, 1000, 0)
    assert len(others.members) == 6 * 6 * 3 - 1
    universe = all_paths(runs, "KV")
    assert len(universe) == 3 * 36 * 2
    for one in random_paths(frozenset([edge]), universe, 50, 0).members:
        assert one < universe
        assert edge not in one


def test_faithfulness_curve_ends_at_one_and_beats_random(induction):
    p = induction
    mask = p.patterns.sel(pattern=p.pattern).values[:48]
    found = ls.faithfulness_curve(p.model, p.tokens[:48], mask, p.truth.components, n_random=10)
    two = found.sel(size=2)
    assert float(two["faithfulness"]) > 0.9
    assert float(found["faithfulness"][0]) == pytest.approx(0, abs=1e-6)
    assert float(found["faithfulness"][-1]) == pytest.approx(1, abs=1e-6)
    assert float(found["cpr_p"]) == pytest.approx(1 / 11)


def test_results_as_values(planted_trials, tmp_path):
    table = ls.compare(planted_trials)
    assert table.loc[0, "verdict"] == "supported"
    record = json.loads(json.dumps(planted_trials[0].as_dict(), allow_nan=False))
    assert record["verdict"] == "supported"
    assert record["evidence"][0]["test"] == "necessity"
    path = tmp_path / "trials.json"
    path.write_text(json.dumps([record], allow_nan=False))
    (again,) = ls.read_trials(path)
    pd.testing.assert_frame_equal(again.table(), planted_trials[0].table())
    assert (again.hypothesis, again.reasons) == (
        planted_trials[0].hypothesis, planted_trials[0].reasons,
    )  # fmt: skip
    xr.testing.assert_allclose(again.curve, planted_trials[0].curve)
    path.write_text("[{}]")
    with pytest.raises(ValueError, match="trials.json holds no trials"):
        ls.read_trials(path)
    assert {"test", "part", "effect", "corrected_p"} <= set(planted_trials[0].table().columns)
    assert str(planted_trials[0]).startswith("SUPPORTED: ")


def ask(p, text="L0H1", pattern=None, **options):
    pattern = pattern or p.pattern
    options = {"patterns": p.patterns[:, :64], **options}
    return ls.cross_check(p.model, p.tokens[:64], ls.circuit(text, pattern), progress=False,
                          **options)  # fmt: skip


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda p: ask(p, "L0H99"), "L0H99.*does not exist"),
        (lambda p: ask(p, "embed"), "'embed' cannot be ablated"),
        (lambda p: ask(p, pattern="inductoin"), "'inductoin'.*did you mean 'induction'"),
        (lambda p: ask(p, patterns=p.patterns[:, :32]), "32 sequences.*have 64"),
        (lambda p: ask(p, patterns=p.patterns[:, 64:]), "label other tokens"),
        (lambda p: ask(p, patterns=np.ones((64, 31), bool)), "covers all but 0 tokens"),
        (lambda p: ask(p, patterns=np.zeros((64, 31), bool)), "needs at least 20 tokens in 8"),
        (lambda p: ask(p, patterns=np.zeros((64, 32))), "bool array of shape"),
        (lambda p: ask(p, least_effect=0.0), "least_effect must be a finite number above 0"),
        (lambda p: ask(p, n_null=0), "n_null must be an integer of at least 1"),
        (lambda p: ask(p, n_bootstrap=10), "n_bootstrap must be an integer of at least 100"),
        (
            lambda p: ask(p, how=ls.Ablation(reference=p.tokens[:, :9])),
            "reference has sequences of 9",
        ),
        (lambda p: ask(p, how=ls.Ablation(reference=p.tokens + 90)), "reference.*token ids"),
    ],
)
def test_bad_input_is_refused(induction, call, message):
    with pytest.raises(ValueError, match=message):
        call(induction)


def test_hypotheses_of_another_model_are_refused(induction):
    p = induction
    other = ls.circuit("L0H1", p.pattern, model="feed" * 16)
    with pytest.raises(ValueError, match="made for a model with weights feedfeed"):
        ls.cross_check(p.model, p.tokens[:64], other, patterns=p.patterns[:, :64])
