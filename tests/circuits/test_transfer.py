"""A circuit goes over to a model with the same heads in other places; random maps do not."""

from __future__ import annotations

from copy import deepcopy
from itertools import product

import numpy as np
import pytest
import torch

import lens_slt as ls
from lens_slt.models.adapter import adapt, copy_weights

HEADS = 6
ORDERS = {0: [2, 5, 0, 4, 1, 3], 1: [3, 1, 5, 0, 2, 4]}  # place → which head of A stands there


def with_other_places(model):
    """The same model with the heads of each layer in another order."""
    other = deepcopy(model)
    leaves = adapt(other).leaves
    with torch.no_grad():
        for name, values in copy_weights(adapt(model)).items():
            parts = name.split(".")
            if ".attn.W_" in name or parts[-1] in ("b_Q", "b_K", "b_V"):
                leaf = leaves[name]
                leaf.view(leaf.parameter).copy_(values[ORDERS[int(parts[1])]])
    return other


@pytest.fixture(scope="module")
def both():
    planted = ls.plant("induction", n_heads=HEADS, seed=3)
    other = with_other_places(planted.model)
    a, b = (ls.attention_patterns(one, planted.tokens[:32]) for one in (planted.model, other))
    found = ls.match(a, b, n_null=20, n_bootstrap=20)
    result = ls.transfer(
        [planted.truth, planted.decoys[0]], found, other, planted.tokens[:32], n_null=5,
        patterns=planted.patterns[:, :32], progress=False,
    )  # fmt: skip
    return planted, other, found, result


def test_the_heads_are_found_in_their_new_places(both):
    planted, other, found, _ = both
    np.testing.assert_allclose(
        other(planted.tokens[:2]).detach(), planted.model(planted.tokens[:2]).detach(), atol=1e-5
    )
    expected = [f"L{i}H{ORDERS[i].index(j)}" for i, j in product((0, 1), range(HEADS))]
    sure = found["verdict"].values == "matched"
    assert sure.any()
    assert found["partner"].values[sure].tolist() == np.array(expected)[sure].tolist()


def test_the_circuit_is_carried_over_and_random_maps_are_not(both):
    planted, other, _, result = both
    first, second = (result.summary.isel(circuit=i) for i in (0, 1))
    (edge,) = [e for e in planted.truth.edges if e.target != "logits"]
    (_, i), (_, j) = ((int(name[1]), int(name[3:])) for name in (edge.source, edge.target))
    assert f"L0H{ORDERS[0].index(i)}→L1H{ORDERS[1].index(j)}.{edge.through}" in str(
        first["mapped"].values
    )
    assert str(first["verdict"].values) == "supported" and str(second["verdict"].values) != (
        "supported"
    )
    assert int(first["n_maps"]) == int(first["n_possible"]) == HEADS**2
    assert float(first["chance"]) == 1 / HEADS**2
    assert result.summary.attrs["transfer_rate"] == 0.5
    assert result.summary.attrs["p"] == float(result.summary["chance"].sum())
    figure = ls.plot(result.summary)
    assert figure.data[0].x[0] == float(first["chance"]) and len(figure.data[0].y) == 2
    assert result.trials[0].verdict == "supported" and result.trials[0].curve is not None
    # A trial that only reaches its verdict reaches that of the whole one.
    verdicts = dict(zip(first["map_circuit"].values, first["map_verdict"].values, strict=True))
    some = [name for name in verdicts if name != str(first["mapped"].values)][::18]
    for name in some:
        text = name.partition(": ")[2]
        whole = ls.cross_check(
            other, planted.tokens[:32], ls.circuit(text, planted.pattern), n_null=5,
            patterns=planted.patterns[:, :32], progress=False,
        )  # fmt: skip
        assert whole.verdict == verdicts[name]


def test_what_has_no_partner_has_no_map(both):
    planted, other, found, _ = both
    name = planted.truth.components[0]
    lonely = found["verdict"].where(found["component"] != name, "no partner")
    again = ls.transfer(
        [planted.truth], found.assign(verdict=lonely), other, planted.tokens[:32], progress=False
    )
    assert again.trials == (None,) and again.summary.attrs["transfer_rate"] == 0
    assert str(again.summary["reason"][0].values) == f"no partner of {name}"
    with pytest.raises(ValueError, match="'L0' of .* neither a head nor an MLP"):
        ls.transfer([ls.circuit("L0", "all")], found, other, planted.tokens, progress=False)
    with pytest.raises(ValueError, match="hypotheses must hold at least one"):
        ls.transfer([], found, other, planted.tokens, progress=False)


def test_many_maps_are_sampled_without_repetition(both):
    planted, other, found, _ = both
    few = ls.transfer(
        [planted.truth], found, other, planted.tokens[:32], most_maps=3, verdict_only=True,
        patterns=planted.patterns[:, :32], progress=False,
    ).summary  # fmt: skip
    assert int(few["n_maps"][0]) == 3 < int(few["n_possible"][0])
    assert len(set(few["map_circuit"].values[0])) == 3
    # Their share is known from a sample, in which the match's own map counts.
    supported = int((few["map_verdict"] == "supported").sum())
    assert float(few["chance"][0]) == (1 + supported) / 4 == few.attrs["p"]
