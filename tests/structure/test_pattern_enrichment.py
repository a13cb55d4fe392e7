"""AUCs against scikit-learn's, their errors against simulation, and messages."""

from __future__ import annotations

import numpy as np
import pytest
from sklearn.metrics import roc_auc_score

import lens_slt as ls
from lens_slt.structure.pattern_enrichment import clustered_auc
from tests.made_matrices import planted


@pytest.mark.parametrize("ties", [False, True])
def test_auc_equals_scikit_learn(ties):
    generator = np.random.default_rng(0)
    score = generator.normal(size=300)
    score = np.round(score) if ties else score
    labels = generator.random((4, 300)) < 0.3
    auc, _ = clustered_auc(score, labels, np.arange(300) // 10)
    np.testing.assert_allclose(auc, [roc_auc_score(row, score) for row in labels], rtol=1e-12)


def test_error_knows_that_tokens_of_a_sequence_are_alike():
    """Scores and labels that sequences share: the error is that of the AUC over repetitions."""
    aucs, errors = [], []
    for seed in range(200):
        generator = np.random.default_rng(seed)
        sequence = np.repeat(np.arange(25), 12)
        score = generator.normal(size=25)[sequence] + 0.5 * generator.normal(size=300)
        rate = generator.uniform(0.1, 0.6, 25)[sequence]
        auc, se = clustered_auc(score, (generator.random(300) < rate)[None], sequence)
        aucs.append(auc[0])
        errors.append(se[0])
    assert np.mean(errors) == pytest.approx(np.std(aucs), rel=0.15)
    naive = np.sqrt((90 + 210 + 1) / 12 / 90 / 210)  # of independent tokens
    assert np.mean(errors) > 1.2 * naive


def test_planted_pattern_is_found_and_chance_is_not():
    matrix, patterns, _ = planted()
    found = ls.enrichment(ls.modes(matrix, n_bootstrap=0), patterns)
    first = found.sel(mode=1, pattern="first")
    assert abs(float(first["auc"]) - 0.5) > 0.3
    assert first["q"] < 1e-6
    assert found["q"].sel(pattern="chance").min() > 0.05
    assert (found["low"] <= found["auc"]).all()
    assert (found["auc"] <= found["high"]).all()
    assert int(found["n_tokens"].sel(pattern="first")) == int(patterns[0].sum())


def test_false_discoveries_are_controlled():
    """Labels that have nothing to do with the scores: q < 0.05 in one table of twenty."""
    matrix, patterns, _ = planted(sizes=(1.0,))
    alarms = []
    for seed in range(60):
        generator = np.random.default_rng(seed)
        random = patterns.copy(data=generator.random(patterns.shape) < 0.2)
        alarms.append(bool((ls.enrichment(matrix, random)["q"] < 0.05).any()))
    assert np.mean(alarms) <= 0.05 + 3 * np.sqrt(0.05 * 0.95 / 60)


def test_a_pattern_is_told_as_surely_as_its_complement():
    """In 4 of 30 sequences, or in all but these; two sequences are too few on either side."""
    matrix, patterns, _ = planted()
    four, two = (patterns[:1] & False for _ in range(2))
    four[:, :4], two[:, :2] = True, True
    few, most = ls.enrichment(matrix, four), ls.enrichment(matrix, ~four)
    np.testing.assert_allclose(few["auc"], 1 - most["auc"])
    np.testing.assert_allclose(few["p"], most["p"])
    np.testing.assert_allclose(few["high"], 1 - most["low"])
    assert np.isfinite(few["p"]).all()
    for labels in (two, ~two):
        assert np.isnan(ls.enrichment(matrix, labels)["p"]).all()


def test_components_and_rare_patterns():
    matrix, patterns, _ = planted()
    rare = patterns.copy(data=np.zeros(patterns.shape, bool))
    rare.values[0, 0, :5] = True
    found = ls.enrichment(matrix, rare)
    assert found["auc"].dims == ("component", "pattern")
    assert np.isnan(found["auc"]).all()
    assert np.isnan(found["q"]).all()


def test_messages():
    matrix, patterns, _ = planted()
    with pytest.raises(ValueError, match=r"patterns must come from label_patterns\(…\), whole"):
        ls.enrichment(matrix, patterns.isel(pattern=0))
    with pytest.raises(ValueError, match="label 3 sequences of 20 positions; the matrix has 30"):
        ls.enrichment(matrix, patterns.isel(sequence=slice(3)))
    ids = matrix["token_id"].values.reshape(30, 20) + 1
    other = patterns.assign_coords(token_id=(("sequence", "position"), ids))
    with pytest.raises(ValueError, match="label other tokens than the matrix has"):
        ls.enrichment(matrix, other)
