"""Observables against formulae written out on small logits."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from lens_slt.models.observable import (
    Accuracy,
    Divergence,
    LogitDifference,
    Loss,
    Probability,
    Sites,
    named_observables,
    prepared,
)

TOKENS = torch.tensor([[1, 2, 3, 4], [0, 4, 4, 1], [3, 0, 2, 2]])
COUNTS = torch.tensor([[0, 0, 1], [0, 1, 1], [1, 0, 0]], dtype=torch.bool)


@pytest.fixture
def sites() -> Sites:
    return Sites.of(TOKENS, COUNTS)


@pytest.fixture
def logits() -> Tensor:
    return torch.randn(4, 5, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


def test_sites_are_where_losses_count(sites: Sites) -> None:
    assert sites.sequence.tolist() == [0, 1, 1, 2]
    assert sites.position.tolist() == [2, 1, 2, 0]
    assert sites.target.tolist() == [4, 4, 1, 0]
    assert sites.of_rows(slice(1, 2)).index.tolist() == [1, 2]


def test_values_are_those_of_the_formulae(sites: Sites, logits: Tensor) -> None:
    p, target = logits.softmax(-1), [4, 4, 1, 0]
    rows = range(4)
    expected = {
        "loss": [-p[i, target[i]].log() for i in rows],
        "next over 2": [logits[i, target[i]] - logits[i, 2] for i in rows],
        "each": [logits[i, 1] - logits[i, j] for i, j in zip(rows, [3, 0, 0, 2], strict=True)],
        "several": [logits[i, 1] - logits[i, [0, 2]].mean() for i in rows],
        "probability": [p[i, target[i]] for i in rows],
        "greater": [p[i, 3] + p[i, 4] - p[i, 0] - p[i, 1] for i in rows],
        "accuracy": [float(logits[i].argmax() == target[i]) for i in rows],
    }
    observables = {
        "loss": Loss(),
        "next over 2": LogitDifference(2),
        "each": LogitDifference([3, 0, 2], right=1),
        "several": LogitDifference([[0, 2, -1]] * 3, right=torch.tensor([1, 1, 1])),
        "probability": Probability(),
        "greater": Probability([[3, -1, 4]] * 3, minus=[[0, 1]] * 3),
        "accuracy": Accuracy(),
    }
    for name, observable in observables.items():
        found = observable(logits, sites)
        torch.testing.assert_close(found, torch.tensor(expected[name], dtype=found.dtype))


def test_divergence_is_from_the_untouched_model(sites: Sites, logits: Tensor) -> None:
    divergence, values = prepared(Divergence(), logits, sites)
    assert float(values.abs().max()) < 1e-12
    other = logits.flip(0)
    p, q = logits.softmax(-1), other.softmax(-1)
    expected = (p * (p / q).log()).sum(-1)
    torch.testing.assert_close(divergence(other, sites), expected)
    some = sites.of_rows(slice(1, 3))
    torch.testing.assert_close(divergence(other[1:], some), expected[1:])


def test_bad_observables_are_named(sites: Sites, logits: Tensor) -> None:
    with pytest.raises(TypeError, match=r"LogitDifference is a class; write LogitDifference\("):
        named_observables(LogitDifference)
    with pytest.raises(TypeError, match="expected an observable such as LogitDifference"):
        named_observables([3])
    with pytest.raises(ValueError, match="two of them are called 'logit_difference'"):
        named_observables([LogitDifference(1), LogitDifference(2)])
    with pytest.raises(ValueError, match="'base_loss' is not a name that is free"):
        named_observables({"base_loss": Accuracy()})

    def wide(logits: Tensor, sites: Sites) -> Tensor:
        return logits

    def nothing(logits: Tensor, sites: Sites) -> Tensor:
        return logits[:, 0] * float("nan")

    for function, words in (
        (wide, r"shape \[4\]; got \[4, 5\]"),
        (nothing, "nan at sequence 0, pos"),
    ):
        observable = named_observables(function)[function.__name__]
        with pytest.raises(ValueError, match=words):
            prepared(observable, logits, sites)
    with pytest.raises(ValueError, match="wrong has answers for 2 sequences, tokens"):
        LogitDifference([1, 2])(logits, sites)
    with pytest.raises(ValueError, match="wrong has the token id 5; the model predicts ids from 0"):
        LogitDifference(5)(logits, sites)
    with pytest.raises(TypeError, match="right must be token ids"):
        LogitDifference(1, right=0.5)(logits, sites)
