"""Planted circuits: the heads that are called true do the work, and all others do not."""

from __future__ import annotations

from functools import cache
from itertools import pairwise

import numpy as np
import pytest
import torch

from lens_slt.circuits.hypothesis import check_hypothesis
from lens_slt.circuits.planted import FAMILIES, HARD_FAMILIES, PlantedCircuit, plant, planted_suite
from lens_slt.circuits.planted.tokens import BOS, MARK
from lens_slt.models.adapter import adapt, copy_weights
from tests.planted_models import (
    all_heads,
    attention,
    composition,
    decoy,
    head_norms,
    losses,
    on_pattern,
)
from tests.tiny_models import has_hooked_transformer

SEEDS = (1, 2)  # LNPre with a composition decoy; no norm, and none
QUICK = (1,)  # of these; the other is slow only because there are so many
WITH_CIRCUIT = FAMILIES[:-2]
SIZES = {1: (3, 6, 16), 2: (2, 8, 20)}  # seed → layers, heads, vocab


@cache
def planted(family: str, seed: int) -> PlantedCircuit:
    n_layers, n_heads, vocab = SIZES[seed]
    return plant(family, seed=seed, n_layers=n_layers, n_heads=n_heads, vocab=vocab, n_sequences=48)


def each(families: tuple[str, ...] = FAMILIES) -> pytest.MarkDecorator:
    cases = [
        pytest.param(family, seed, marks=[] if seed in QUICK else [pytest.mark.slow])
        for family in families
        for seed in SEEDS
    ]
    return pytest.mark.parametrize(("family", "seed"), cases)


@each(WITH_CIRCUIT)
def test_circuit_carries_the_pattern(family: str, seed: int) -> None:
    p = planted(family, seed)
    assert p.truth is not None
    chance = np.log(p.model.cfg.d_vocab)
    whole = losses(p)
    assert 0.05 < on_pattern(p, whole) < 0.6  # known, and not saturated
    assert on_pattern(p, losses(p, p.truth.heads)) > 0.75 * chance
    # The pattern that W_U knows without heads is not what the circuit is for.
    bigrams = on_pattern(p, losses(p, p.truth.heads), "bigram") - on_pattern(p, whole, "bigram")
    assert bigrams < 0.2


@each(WITH_CIRCUIT)
def test_every_head_of_the_circuit_has_its_part(family: str, seed: int) -> None:
    p = planted(family, seed)
    assert p.truth is not None
    whole = on_pattern(p, losses(p))
    effect = {head: on_pattern(p, losses(p, (head,))) - whole for head in p.truth.heads}
    if family == "backup":
        heads = {edge.target for edge in p.truth.edges}
        joint = on_pattern(p, losses(p, tuple(heads))) - whole
        assert joint > 1.5
        assert sum(effect.pop(head) for head in heads) < 0.75 * joint  # either stands in
        assert min(effect.values()) > 1.5  # the head that both read
    elif family in ("spread", "brackets"):
        assert min(effect.values()) > 0.4  # half of the tokens; or the last opener is a good guess
        assert max(effect.values()) > 1.5
    else:
        assert min(effect.values()) > 1.5


@each()
def test_other_heads_hardly_matter(family: str, seed: int) -> None:
    p = planted(family, seed)
    true = p.truth.heads if p.truth else ()
    whole = losses(p)
    others = [head for head in all_heads(p) if head not in true]
    changes = [losses(p, (head,)) - whole for head in others]
    assert max(abs(on_pattern(p, change)) for change in changes) < 0.1
    assert np.median([abs(on_pattern(p, change)) for change in changes]) < 0.04
    assert max(abs(change).mean() for change in changes) < 0.1
    assert min(abs(change).mean() for change in changes) > 1e-5  # nor are they exactly dead


@each(("decoy", "empty"))
def test_without_circuit_nothing_is_predicted(family: str, seed: int) -> None:
    p = planted(family, seed)
    assert p.truth is None
    assert on_pattern(p, losses(p)) > 0.8 * np.log(p.model.cfg.d_vocab)
    assert on_pattern(p, losses(p), "bigram") < 2.0  # W_U alone


@each(("induction", "spread", "backup"))
def test_induction_attends_where_it_should(family: str, seed: int) -> None:
    p = planted(family, seed)
    assert p.truth is not None
    tokens = p.tokens.numpy()
    for head in {edge.source for edge in p.truth.edges}:
        previous = np.diagonal(attention(p, head), -1, axis1=1, axis2=2)
        assert previous.mean() > 0.9
    # Positions j whose previous token is the current one, for planted tokens.
    before = np.roll(tokens, 1, axis=1)
    matches = tokens[:, :, None] == before[:, None, :]
    matches &= np.tri(tokens.shape[1], dtype=bool)
    matches[:, :, 0] = False
    labels = p.patterns.sel(pattern=p.pattern).values
    for head in {edge.target for edge in p.truth.edges}:
        on_match = (attention(p, head) * matches).sum(-1)[:, :-1]
        assert on_match[labels].mean() > 0.85
        nothing = ~matches.any(-1)[:, :-1] & (np.arange(tokens.shape[1] - 1) > 0)
        assert attention(p, head)[:, :-1, 0][nothing].mean() > 0.35  # rests on BOS


@each(("skip_trigram", "multigram"))
def test_single_heads_attend_where_they_should(family: str, seed: int) -> None:
    p = planted(family, seed)
    assert p.truth is not None
    [head] = p.truth.heads
    tokens = p.tokens.numpy()
    labels = p.patterns.sel(pattern=p.pattern).values
    if family == "multigram":
        wanted = np.eye(tokens.shape[1], k=-1, dtype=bool)[None].repeat(len(tokens), 0)
    else:
        first = {b: a for a, b, _ in p.truth.provenance["rules"]}
        asked = np.vectorize(lambda token: first.get(token, -1))(tokens)
        wanted = asked[:, :, None] == tokens[:, None, :]
    on_wanted = (attention(p, head) * wanted).sum(-1)[:, :-1]
    assert on_wanted[labels].mean() > 0.85


@each(("brackets",))
def test_brackets_attend_to_the_opener_that_is_closed(family: str, seed: int) -> None:
    p = planted(family, seed)
    assert p.truth is not None
    [edge] = p.truth.edges
    found = attention(p, edge.target)
    opener_of = {closer: opener for opener, closer in p.truth.provenance["rules"]}
    on_opener, deep = [], 0
    for row, labels in enumerate(p.patterns.sel(pattern=p.pattern).values):
        opened: list[int] = []
        for position, token in enumerate(p.tokens[row].tolist()):
            if token in opener_of:
                assert p.tokens[row, opened[-1]] == opener_of[token]  # properly nested
                assert labels[position - 1] and p.tokens[row, position - 1] == MARK
                deep += len(opened) > 1
                on_opener.append(found[row, position - 1, opened.pop()])
            elif token in opener_of.values():
                opened.append(position)
    assert np.mean(on_opener) > 0.85
    assert deep > 0.1 * len(on_opener)
    assert len(on_opener) == p.patterns.sel(pattern=p.pattern).values.sum()


@each()
def test_composition_decoy_is_strong_and_idle(family: str, seed: int) -> None:
    p = planted(family, seed)
    linked = decoy(p, "composition without function")
    assert (linked is not None) == (family == "decoy" or (family != "empty" and seed % 4 < 2))
    if linked is None:
        return
    by_chance = decoy(p, "random heads")
    assert by_chance is not None
    assert composition(p, linked) > 0.22
    assert composition(p, linked) > 1.5 * composition(p, by_chance)
    assert abs(on_pattern(p, losses(p, linked.heads) - losses(p))) < 0.1


@each(WITH_CIRCUIT)
def test_decoys_are_false_but_fit_the_model(family: str, seed: int) -> None:
    p = planted(family, seed)
    assert p.truth is not None
    model = adapt(p.model)
    names = {hypothesis.name for hypothesis in p.decoys}
    swapped = "reversed roles" if p.truth.edges else "same place, other layer"
    assert names >= {"random heads", "wrong pattern", swapped}
    for hypothesis in (p.truth, *p.decoys):
        check_hypothesis(hypothesis, model, "")
        assert hypothesis.pattern in p.patterns.pattern
    for hypothesis in p.decoys:
        right_place = set(hypothesis.heads) & set(p.truth.heads)
        assert not right_place or hypothesis.name == "wrong pattern"
    through = {"brackets": "Q"}.get(family, "K")
    assert all(edge.through == through for edge in p.truth.edges)
    n_edges = {"skip_trigram": 0, "multigram": 0, "spread": 2, "backup": 2}
    assert len(p.truth.edges) == n_edges.get(family, 1)


@each()
def test_norms_do_not_give_the_circuit_away(family: str, seed: int) -> None:
    p = planted(family, seed)
    true = p.truth.heads if p.truth else ()
    for name in ("W_Q", "W_K", "W_V", "W_O"):
        norm = head_norms(p, name)
        others = [norm[head] for head in norm if head not in true]
        assert min(others) > 1.5
        for head in true:
            assert 0.7 * min(others) < norm[head] < 1.4 * max(others)


@each()
def test_fast_path_and_labels(family: str, seed: int) -> None:
    p = planted(family, seed)
    model = adapt(p.model)
    assert model.architecture is not None, model.why_generic
    assert model.architecture.norm == ("LNPre" if seed % 2 else None)
    assert p.tokens.dtype == torch.int64 and p.tokens.shape == (48, 32)
    assert p.tokens[:, 0].unique().tolist() == [BOS] and (p.tokens[:, 1:] != BOS).all()
    assert p.patterns.dims == ("pattern", "sequence", "position")
    assert p.patterns.dtype == bool
    assert (p.patterns.token_id.values == p.tokens[:, 1:].numpy()).all()
    rates = p.patterns.mean(("sequence", "position"))
    assert list(p.patterns.pattern.values) == [p.pattern, "bigram", "random"]
    assert 0.1 < rates.sel(pattern=p.pattern) < 0.5
    assert abs(rates.sel(pattern="random") - rates.sel(pattern=p.pattern)) < 0.05
    assert not (p.patterns.sel(pattern="bigram") & p.patterns.sel(pattern=p.pattern)).any()


def test_induction_labels_by_hand() -> None:
    p = planted("induction", 2)
    for row, labels in zip(p.tokens.tolist(), p.patterns.sel(pattern="induction"), strict=True):
        pairs = list(pairwise(row))
        expected = [pair in pairs[:i] and pair[0] != MARK for i, pair in enumerate(pairs)]
        assert labels.values.tolist() == expected


@pytest.mark.parametrize("family", [*FAMILIES, *HARD_FAMILIES])
def test_same_seed_same_bits_and_no_global_rng(family: str) -> None:
    torch.manual_seed(3)
    state = torch.get_rng_state()
    first, again, other = (plant(family, seed=seed, n_sequences=16) for seed in (5, 5, 6))
    assert torch.equal(torch.get_rng_state(), state)
    assert torch.equal(first.tokens, again.tokens) and first.patterns.equals(again.patterns)
    assert (first.truth, first.decoys) == (again.truth, again.decoys)
    ours, theirs = copy_weights(adapt(first.model)), copy_weights(adapt(again.model))
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)
    assert not torch.equal(first.tokens, other.tokens)


@pytest.mark.skipif(not has_hooked_transformer(), reason="needs HookedTransformer")
@pytest.mark.parametrize("seed", [0, 1])
@pytest.mark.parametrize("family", ["induction", "brackets"])
def test_backends_agree(family: str, seed: int) -> None:
    hooked, bridge = (plant(family, seed=seed, backend=name) for name in ("hooked", "bridge"))
    assert type(hooked.model).__name__ == "HookedTransformer"
    assert type(bridge.model).__name__ == "TransformerBridge"
    assert hooked.model.training is bridge.model.training is False
    with torch.no_grad():
        theirs = bridge.model(bridge.tokens, return_type="logits")
        ours = hooked.model(hooked.tokens, return_type="logits")
    torch.testing.assert_close(ours, theirs, atol=1e-4, rtol=1e-4)


def test_sizes_are_free() -> None:
    p = plant("induction", seed=8, n_layers=4, n_heads=10, vocab=18, n_sequences=64, length=48)
    assert p.truth is not None
    assert (p.model.cfg.n_layers, p.model.cfg.n_heads, p.model.cfg.d_vocab) == (4, 10, 18)
    assert p.model.cfg.n_ctx == 48 and p.tokens.shape == (64, 48)
    assert on_pattern(p, losses(p)) < 0.8
    assert on_pattern(p, losses(p, p.truth.heads)) > 2.0
    assert p.truth.edges[0].source[:2] < p.truth.edges[0].target[:2]


@pytest.mark.slow
def test_suite_covers_families_norms_and_sizes() -> None:
    instances = list(planted_suite())
    assert len(instances) == 48 >= 40
    assert len({p.name for p in instances}) == 48
    assert {p.family for p in instances} == set(FAMILIES)
    sizes = {(p.model.cfg.n_layers, p.model.cfg.n_heads, p.model.cfg.d_vocab) for p in instances}
    assert len(sizes) == 6
    assert {layers for layers, _, _ in sizes} == {2, 3}
    for family in FAMILIES:
        norms = [p.model.cfg.normalization_type for p in instances if p.family == family]
        assert len(norms) == 6 and norms.count("LNPre") == 3
    places = {p.truth.heads for p in instances if p.truth and len(p.truth.heads) == 2}
    assert len(places) > 10


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (dict(family="inductoin"), "family must be one of .*did you mean 'induction'"),
        (dict(family="induction", backend="bridges"), "backend .*did you mean 'bridge'"),
        (dict(family="empty", vocab=25), "vocab must be an integer from 16 to 24; got 25"),
        (dict(family="empty", n_layers=1), "n_layers must be an integer from 2 to 6; got 1"),
        (dict(family="empty", n_heads=8.0), "n_heads must be an integer .* got 8.0"),
        (dict(family="empty", length=True), "length must be an integer .* got True"),
        (dict(family="empty", seed=-1), "seed must be an integer from 0 .* got -1"),
        (dict(family="empty", n_sequences=0), "n_sequences must be an integer from 1 .* got 0"),
    ],
)
def test_errors_name_the_argument(arguments: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        plant(**arguments)


def test_suite_refuses_no_seeds() -> None:
    with pytest.raises(ValueError, match="n_seeds must be an integer of at least 1; got 0"):
        next(planted_suite(0))


@pytest.mark.skipif(has_hooked_transformer(), reason="HookedTransformer is there")
def test_hooked_is_refused_where_it_is_gone() -> None:
    with pytest.raises(ImportError, match="use backend='bridge'"):
        plant("empty", backend="hooked")
