"""Hard families of planted circuits: the truth does the work, and each is as hard as it says."""

from __future__ import annotations

from functools import cache
from itertools import pairwise

import numpy as np
import pytest
import torch
from torch import Tensor

from lens_slt.circuits.hypothesis import check_hypothesis
from lens_slt.circuits.planted import HARD_FAMILIES, PlantedCircuit, hard_suite, plant
from lens_slt.circuits.planted.tokens import BOS, MARK
from lens_slt.models.adapter import adapt, copy_weights
from lens_slt.models.names import head_place, is_mlp
from tests.planted_models import (
    all_heads,
    attention,
    cached,
    composition,
    decoy,
    head_norms,
    losses,
    on_pattern,
    with_hooks,
)
from tests.tiny_models import has_hooked_transformer

# LNPre where the family has norms, crowds by words, induction; no norm, equal crowds, skip trigrams
SEEDS = (1, 2)
QUICK = (1,)
SIZES = {  # seed → layers, heads, vocab
    "crowd": {1: (3, 4, 16), 2: (2, 5, 20)}, "few_heads": {1: (3, 1, 16), 2: (2, 2, 20)},
}  # fmt: skip


@cache
def planted(family: str, seed: int) -> PlantedCircuit:
    n_layers, n_heads, vocab = SIZES.get(family, {1: (3, 6, 16), 2: (2, 8, 20)})[seed]
    return plant(family, seed=seed, n_layers=n_layers, n_heads=n_heads, vocab=vocab, n_sequences=48)


def each(families: tuple[str, ...] = HARD_FAMILIES) -> pytest.MarkDecorator:
    cases = [
        pytest.param(family, seed, marks=[] if seed in QUICK else [pytest.mark.slow])
        for family in families
        for seed in SEEDS
    ]
    return pytest.mark.parametrize(("family", "seed"), cases)


def components(p: PlantedCircuit) -> list[str]:
    mlps = [] if p.model.cfg.attn_only else [f"L{i}MLP" for i in range(p.model.cfg.n_layers)]
    return all_heads(p) + mlps


def effects(p: PlantedCircuit, names: list[str] | tuple[str, ...], **how: bool) -> dict[str, float]:
    """What the pattern loses without each of these."""
    whole = on_pattern(p, losses(p))
    return {name: on_pattern(p, losses(p, (name,), **how)) - whole for name in names}


@each()
def test_circuit_carries_the_pattern(family: str, seed: int) -> None:
    p = planted(family, seed)
    assert p.truth is not None
    labels = p.patterns.sel(pattern=p.pattern).values
    chance = np.log(len(p.tokens[:, 1:][torch.tensor(labels)].unique()))
    assert 0.05 < on_pattern(p, losses(p)) < 0.6  # known, and not saturated
    without = losses(p, p.truth.components, by_position=True)
    assert on_pattern(p, without) > 0.75 * chance


@each()
def test_every_component_of_the_circuit_has_its_part(family: str, seed: int) -> None:
    p = planted(family, seed)
    assert p.truth is not None
    found = effects(p, p.truth.components, by_position=True)
    if family == "crowd":
        crowd = {edge.target for edge in p.truth.edges}
        assert min(found.pop(head) for head in crowd) > 0.15
    assert min(found.values()) > 1.5


@each()
def test_other_components_hardly_matter(family: str, seed: int) -> None:
    p = planted(family, seed)
    assert p.truth is not None
    whole = losses(p)
    others = [name for name in components(p) if name not in p.truth.components]
    changes = [losses(p, (name,), by_position=True) - whole for name in others]
    assert len(changes) >= 1
    assert max(abs(on_pattern(p, change)) for change in changes) < 0.1
    assert max(abs(change).mean() for change in changes) < 0.1
    assert min(abs(change).mean() for change in changes) > 1e-5  # nor are they exactly dead


@each()
def test_norms_do_not_give_the_circuit_away(family: str, seed: int) -> None:
    p = planted(family, seed)
    assert p.truth is not None
    weights = copy_weights(adapt(p.model))
    for name in ("W_Q", "W_K", "W_V", "W_O"):
        norm = head_norms(p, name)
        others = [norm[head] for head in norm if head not in p.truth.heads]
        for head in p.truth.heads:
            assert 0.7 * min(others) < norm[head] < 1.4 * max(others)
    mlps = [name for name in components(p) if is_mlp(name)]
    for name in ("W_in", "W_out") if mlps else ():
        sizes = [float(weights[f"blocks.{i}.mlp.{name}"].norm()) for i in range(len(mlps))]
        # A norm's scale is multiplied into W_in, and grows by the layer.
        assert max(sizes) < 2.5 * min(sizes)


@each()
def test_decoys_are_false_but_fit_the_model(family: str, seed: int) -> None:
    p = planted(family, seed)
    assert p.truth is not None
    names = [hypothesis.name for hypothesis in p.decoys]
    assert len(set(names)) == len(names) >= 2 and "wrong pattern" in names
    for hypothesis in (p.truth, *p.decoys):
        check_hypothesis(hypothesis, adapt(p.model), "")
        assert hypothesis.pattern in p.patterns.pattern
    for hypothesis in p.decoys:
        same = set(hypothesis.edges) & set(p.truth.edges)
        assert not same or hypothesis.name == "wrong pattern"
    paired = family not in ("crowd", "few_heads", "positions") and seed % 4 < 2
    assert (decoy(p, "composition without function") is not None) == paired


@each()
def test_fast_path_and_labels(family: str, seed: int) -> None:
    p = planted(family, seed)
    model = adapt(p.model)
    assert model.architecture is not None, model.why_generic
    normed = seed % 2 and family != "positions"
    assert model.architecture.norm == ("LNPre" if normed else None)
    assert model.architecture.attn_only == (family != "through_mlp")
    assert p.tokens.dtype == torch.int64 and p.tokens.shape == (48, 32)
    assert p.tokens[:, 0].unique().tolist() == [BOS] and (p.tokens[:, 1:] != BOS).all()
    assert p.patterns.dims == ("pattern", "sequence", "position")
    assert p.patterns.dtype == bool
    assert (p.patterns.token_id.values == p.tokens[:, 1:].numpy()).all()
    assert (p.weights is None) == (family != "answer_only")


@each(("crowd",))
def test_most_heads_of_the_crowd_are_in_the_circuit(family: str, seed: int) -> None:
    p = planted(family, seed)
    assert p.truth is not None
    crowd = [edge.target for edge in p.truth.edges]
    assert len({head_place(head)[0] for head in crowd}) == 1
    n_heads = p.model.cfg.n_heads
    assert n_heads - 2 <= len(crowd) < n_heads and len(crowd) > n_heads / 2
    whole, labels = losses(p), p.patterns.sel(pattern=p.pattern).values
    asked = p.tokens[:, :-1].numpy()
    changes = [losses(p, (head,)) - whole for head in crowd]
    # By the word that is asked for, what each head gives: [word, head].
    by_word = np.array(
        [
            [change[labels & (asked == word)].mean() for change in changes]
            for word in np.unique(asked[labels])
        ]
    )
    largest = by_word.max(1) / by_word.clip(min=0).sum(1)
    if seed == 1:  # each word is one head's
        assert np.median(largest) > 0.8
        assert set(by_word.argmax(1).tolist()) == set(range(len(crowd)))
    else:
        assert np.median(largest) < 1.3 / len(crowd)


@each(("dead_head",))
def test_the_dead_head_attends_and_composes_but_moves_nothing(family: str, seed: int) -> None:
    p = planted(family, seed)
    false = decoy(p, "dead head")
    assert p.truth is not None and false is not None
    [true_edge], [dead_edge] = p.truth.edges, false.edges
    assert dead_edge.source == true_edge.source and dead_edge.target not in p.truth.components
    alone = type(p.truth)(p.truth.components, (true_edge,), p.pattern)
    assert composition(p, false) > 0.99 * composition(p, alone) > 0.2
    live, dead = (attention(p, edge.target) for edge in (true_edge, dead_edge))
    labels = p.patterns.sel(pattern=p.pattern).values
    assert abs(live - dead).sum(-1)[:, :-1][labels].mean() < 0.3  # of 2 at most
    moved = []
    for edge in (true_edge, dead_edge):
        layer, index = head_place(edge.target)
        z = cached(p, f"blocks.{layer}.attn.hook_z")[:, :, index]
        moved.append(float(z.norm(dim=-1).mean()))
    assert moved[1] < 0.2 * moved[0]  # by the noise of its weights
    assert abs(effects(p, (dead_edge.target,))[dead_edge.target]) < 0.02


@each(("positions",))
def test_only_means_by_position_find_the_circuit(family: str, seed: int) -> None:
    p = planted(family, seed)
    assert p.truth is not None
    weights = copy_weights(adapt(p.model))
    tokens, positions = weights["embed.W_E"], weights["pos_embed.W_pos"]
    assert positions.norm(dim=1).median() > 3 * tokens.norm(dim=1).max()
    last = p.model.cfg.n_layers - 1
    idle = [
        head for head in all_heads(p)
        if head_place(head)[0] < last and head not in p.truth.components
    ]  # fmt: skip
    by_mean, by_position = effects(p, idle), effects(p, idle, by_position=True)
    true = effects(p, p.truth.components, by_position=True)
    assert min(by_mean.values()) > 0.5
    assert max(by_mean.values()) > 0.9 * min(true.values())
    assert max(by_position.values()) < 0.05 * min(true.values())


@each(("through_mlp",))
def test_keys_read_the_previous_token_through_the_mlp_alone(family: str, seed: int) -> None:
    p = planted(family, seed)
    assert p.truth is not None
    into, out = p.truth.edges
    assert into.target == out.source and is_mlp(into.target) and into.through == ""
    early, late = head_place(into.source), head_place(out.target)
    weights = copy_weights(adapt(p.model))
    direct = cached(p, f"blocks.{early[0]}.attn.hook_z")[:, :, early[1]]
    direct = direct @ weights[f"blocks.{early[0]}.attn.W_O"][early[1]]
    passed = cached(p, f"blocks.{into.target[1]}.hook_mlp_out")
    scale: Tensor | float = 1.0
    if p.model.cfg.normalization_type:
        scale = cached(p, f"blocks.{late[0]}.ln1.hook_scale")

    def without(written: Tensor) -> float:
        """The pattern's loss with what is written missing in the late head's keys alone."""
        rest = written - written.mean(0)
        rest = (rest - rest.mean(-1, keepdim=True)) / scale
        lost = rest @ weights[f"blocks.{late[0]}.attn.W_K"][late[1]]

        def hook(keys: Tensor, hook: object) -> Tensor:
            keys = keys.clone()
            keys[:, :, late[1]] -= lost
            return keys

        return on_pattern(p, with_hooks(p, [(f"blocks.{late[0]}.attn.hook_k", hook)]))

    whole = on_pattern(p, losses(p))
    assert abs(without(direct) - whole) < 0.1
    assert without(passed) - whole > 1.5
    assert {one.name for one in p.decoys} >= {"past the MLP", "reversed roles"}


@each(("answer_only",))
def test_only_answers_count(family: str, seed: int) -> None:
    p = planted(family, seed)
    assert p.truth is not None and p.weights is not None
    assert p.pattern == p.truth.pattern == "all"
    assert p.weights.shape == (48, 31)
    assert p.weights[:, -1].eq(1).all() and p.weights[:, :-1].eq(0).all()
    answers = p.patterns.sel(pattern="all").values
    assert (answers == p.weights.bool().numpy()).all()
    half = p.patterns.sel(pattern="random").values
    assert not (half & ~answers).any() and 0.2 < half.sum() / answers.sum() < 0.8
    rules = {b: (a, c) for a, b, c in p.truth.provenance["rules"]}
    for row in p.tokens.tolist():
        if rules:
            a, c = rules[row[-2]]
            assert row[-1] == c and a in row[:-1]
        else:
            pairs = list(pairwise(row))
            assert pairs[-1] in pairs[:-1] and row[-2] != MARK


@pytest.mark.skipif(not has_hooked_transformer(), reason="needs HookedTransformer")
@pytest.mark.parametrize("seed", [0, 1])
def test_backends_agree_with_mlps(seed: int) -> None:
    hooked, bridge = (
        plant("through_mlp", seed=seed, n_sequences=16, backend=name)
        for name in ("hooked", "bridge")
    )
    with torch.no_grad():
        theirs = bridge.model(bridge.tokens, return_type="logits")
        ours = hooked.model(hooked.tokens, return_type="logits")
    torch.testing.assert_close(ours, theirs, atol=1e-4, rtol=1e-4)


@pytest.mark.slow
def test_suite_covers_families_and_sizes() -> None:
    instances = list(hard_suite(n_sequences=16))
    assert len({p.name for p in instances}) == len(instances) == 36
    for family in HARD_FAMILIES:
        configs = [p.model.cfg for p in instances if p.family == family]
        assert {cfg.n_layers for cfg in configs} == {2, 3}
        heads = {cfg.n_heads for cfg in configs}
        assert heads == {"crowd": {4, 5, 6}, "few_heads": {1, 2}}.get(family, {6, 7, 8})


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (dict(family="crowd", n_heads=8), "n_heads must be an integer from 4 to 6; got 8"),
        (dict(family="few_heads", n_heads=3), "n_heads must be an integer from 1 to 2; got 3"),
        (dict(family="positions", n_heads=2), "n_heads must be an integer from 6 to 16; got 2"),
        (dict(family="crowds"), "family must be one of .*did you mean 'crowd'"),
    ],
)
def test_errors_name_the_argument(arguments: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        plant(**arguments)


def test_suite_refuses_no_seeds() -> None:
    with pytest.raises(ValueError, match="n_seeds must be an integer of at least 1; got 0"):
        next(hard_suite(0))
