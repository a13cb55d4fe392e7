"""What the zoo holds, and that the same seed builds the same members."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Generator

from benchmarks.zoo import ModelCase, zoo
from benchmarks.zoo.entries import KINDS, MOST_PARAMETERS
from benchmarks.zoo.functions import FUNCTIONS
from benchmarks.zoo.models import Rescaling, new_model, rescale
from benchmarks.zoo.tasks import TASKS
from lens_slt.models.adapter import adapt
from lens_slt.models.components import parse_components


@pytest.mark.parametrize("seed", [0, 1, 7])
def test_forty_hold_every_kind(seed: int) -> None:
    entries = zoo(seed)
    assert zoo(seed, 10) == entries[:10]
    assert {e.source for e in entries} == {*TASKS, "function", "shipped"}
    assert {e.level for e in entries if e.source == "function"} == set(FUNCTIONS)
    assert {e.level for e in entries if e.source != "function"} == {"none", "half", "full"}
    shapes = [e.shape for e in entries if e.shape]
    for field, options in {
        "n_layers": {1, 2, 3, 4}, "norm": {None, "LN", "LNPre", "RMS"},
        "positions": {"standard", "rotary"},
    }.items():  # fmt: skip
        found = [getattr(shape, field) for shape in shapes]
        assert set(found) == options
        assert min(found.count(x) for x in options) >= 3
    heads, vocabularies = {s.n_heads for s in shapes}, {s.d_vocab for s in shapes}
    assert {1, 12} <= heads
    assert {min(vocabularies), max(vocabularies)} == {8, 512}
    assert 0 < sum(s.d_mlp == 0 for s in shapes) < len(shapes)
    assert 0 < sum(e.weighted for e in entries) < len(shapes)
    factors = {e.rescaling.factor for e in entries}
    assert max(factors) / min(factors) > 10


def test_seeds_differ_and_more_than_forty_go_on() -> None:
    assert zoo(0, 10) != zoo(1, 10)
    more = zoo(0, 41)
    assert len(more) == 41 and more[:40] == zoo(0) and more[40].seed != more[0].seed


@pytest.mark.parametrize("name", TASKS)
def test_tasks(name: str) -> None:
    for seed in range(1 if name == "text" else 3):
        task = TASKS[name](np.random.default_rng(seed))
        tokens = task.draw(50, Generator().manual_seed(0))
        assert tokens.shape == (50, task.length) and task.length <= 32
        assert tokens.min() >= 0 and tokens.max() < task.d_vocab
        assert len(task.answer) == task.length - 1
        assert torch.equal(tokens, task.draw(50, Generator().manual_seed(0)))
    if name == "brackets":  # 1 and 2 open, 3 and 4 close
        depth = (tokens <= 2).long() * (tokens > 0) - (tokens == 3).long() - (tokens == 4).long()
        assert (depth.cumsum(1) >= 0).all() and (depth.sum(1) == 0).all()


def test_building_twice_gives_the_same_and_the_cache_too(tmp_path) -> None:
    torch.manual_seed(3)
    state = torch.get_rng_state()
    entry = next(e for e in zoo(0) if e.training and e.training.steps).shortened()
    cases = [entry.build(), entry.build(tmp_path), entry.build(tmp_path)]
    assert torch.equal(state, torch.get_rng_state())
    first = cases[0]
    assert isinstance(first, ModelCase)
    for case in cases[1:]:
        assert case.components == first.components
        assert torch.equal(case.tokens, first.tokens)
        pairs = zip(case.model.parameters(), first.model.parameters(), strict=True)
        assert all(torch.equal(a, b) for a, b in pairs)
    adapted = adapt(first.model)
    for component in parse_components(first.components, adapted):
        assert component.n_parameters(adapted.shapes) <= MOST_PARAMETERS


def test_preserving_rescalings_change_weights_only() -> None:
    entry = next(e for e in zoo(0) if e.shape)
    model = new_model(entry.shape, Generator().manual_seed(0))
    tokens = entry.task.draw(4, Generator().manual_seed(0))[:, :-1]
    with torch.no_grad():
        before, w_q = model(tokens), model.blocks[0].attn.W_Q.clone()
        rescale(model, Rescaling("preserving", 7.0))
        torch.testing.assert_close(model.blocks[0].attn.W_Q, 7 * w_q)
        torch.testing.assert_close(model(tokens), before, rtol=1e-4, atol=1e-4)
        rescale(model, Rescaling("unembed", 2.0))
        torch.testing.assert_close(model(tokens), 2 * before, rtol=1e-4, atol=1e-4)


def test_kinds_have_no_unknown_names() -> None:
    assert len(KINDS) == 40
    assert {level for source, level in KINDS if source == "function"} == set(FUNCTIONS)
