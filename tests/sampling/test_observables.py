"""Observables at every draw, against the recorded losses and a function of one's own."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import lens_slt as ls
from lens_slt.models.observable import Loss
from tests.tiny_models import native, wrapped_gemma2

SHORT = ls.Settings(draws=4, burn_in=2, chains=2, batch_size=4, thin=2)
MODELS: dict[str, Callable[[], nn.Module]] = {
    "native": lambda: native(attn_only=False),
    "attention": native,
    "gemma2": wrapped_gemma2,
}


def some_tokens(n: int = 6, length: int = 12, seed: int = 0) -> Tensor:
    return torch.randint(1, 49, (n, length), generator=torch.Generator().manual_seed(seed))


def answers(n: int = 6, length: int = 12) -> Tensor:
    """Position weights: two answers in a sequence, of weights 1 and 2, none in the last."""
    weights = torch.zeros(n, length - 1)
    weights[:-1, 4], weights[:-1, -1] = 1, 2
    return weights


def difference(logits: Tensor, sites: ls.Sites) -> Tensor:
    return logits[:, 3] - logits[:, 5]


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(("name", "engine"), [
    ("native", "auto"), ("native", "functional"), ("native", "modules"), ("attention", "auto"),
    ("gemma2", "auto"),
])  # fmt: skip
def test_they_are_read_at_the_drawn_weights(name: str, engine: str) -> None:
    components = ["L0H1", "L1H2", "L1", "embed"]
    probe = ls.Probe(
        some_tokens(seed=1), weights=answers(),
        observables={
            "own": Loss(), "wide": difference, "said": ls.LogitDifference(5, right=3),
            "kl": ls.Divergence(), "right": ls.Accuracy(),
        },
    )  # fmt: skip
    draws = ls.sample(
        MODELS[name](), some_tokens(), components, settings=SHORT, engine=engine,
        probes={"p": probe}, progress=False,
    )  # fmt: skip
    found = draws["probes/p"].to_dataset()
    assert found.attrs["observables"] == "own wide said kl right"
    assert found["own"].dims == ("component", "chain", "draw", "sequence")
    weight = found["weight"].values
    losses = (found["paired_loss"] + found["base_loss"]).values
    with np.errstate(invalid="ignore"):
        expected = np.nansum(losses * weight, -1) / weight.sum(-1)
    np.testing.assert_allclose(found["own"].values, expected, atol=2e-4)
    assert np.isnan(found["own"].values[..., -1]).all()
    np.testing.assert_allclose(found["wide"], found["said"], atol=1e-5)
    assert float(np.nanmin(found["kl"].values)) > 0
    np.testing.assert_allclose(found["base_kl"].values[:-1], 0, atol=1e-5)
    thirds = found["right"].values[..., :-1] * 3
    np.testing.assert_allclose(thirds, thirds.round(), atol=1e-5)
    assert np.abs(found["wide"] - found["base_wide"]).max() > 1e-4


def test_they_are_stored_and_read_back(tmp_path: Path) -> None:
    model, tokens = native(), some_tokens()
    probes = {"p": ls.Probe(tokens, observables=ls.Accuracy()), "q": tokens}

    def run(path: Path | None) -> object:
        return ls.sample(
            model, tokens, "L0H1", settings=SHORT, probes=probes, path=path, progress=False
        )

    memory, disk = run(None), run(tmp_path / "run")
    for draws in (disk, ls.open_draws(tmp_path / "run"), run(tmp_path / "run")):
        for name in ("accuracy", "base_accuracy"):
            np.testing.assert_array_equal(draws["probes/p"][name], memory["probes/p"][name])
        assert "accuracy" not in draws["probes/q"]
    probes["p"] = ls.Probe(tokens, observables=ls.Probability())
    with pytest.raises(ValueError, match=r"holds the draws of another run .*observables"):
        run(tmp_path / "run")


def test_what_is_no_number_is_refused_before_work_starts() -> None:
    def nothing(logits: Tensor, sites: ls.Sites) -> Tensor:
        return logits[:, 0] / 0 - logits[:, 0] / 0

    probe = ls.Probe(some_tokens(), observables=nothing)
    with pytest.raises(ValueError, match="observables: nothing is nan at sequence 0, position 0"):
        ls.sample(native(), some_tokens(), "L0H1", settings=SHORT, probes={"p": probe})
