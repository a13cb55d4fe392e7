"""The component grammar: what each name selects, and the words of every refusal."""

from __future__ import annotations

from functools import cache

import pytest

from lens_slt.models.adapter import AdaptedModel, adapt
from lens_slt.models.components import TIED_NOTE, Slot, parse_components
from tests.tiny_models import TINY_MODELS

D, H, E, V, N, M = 16, 4, 4, 50, 32, 24  # d_model, heads, d_head, vocabulary, context, d_mlp


@cache
def model(name: str = "native_mlp") -> AdaptedModel:
    return adapt(TINY_MODELS[name]())


def names(spec: str | list[str], name: str = "native_mlp") -> list[str]:
    return [component.name for component in parse_components(spec, model(name))]


def test_selections_expand_in_order() -> None:
    heads = [f"L{layer}H{head}" for layer in range(2) for head in range(4)]
    assert names("heads") == heads
    assert names("layers") == ["L0", "L1"]
    assert names("mlps") == ["L0MLP", "L1MLP"]
    assert names("L1H*") == heads[4:]
    assert names(["embed", "L0H*", "full"]) == ["embed", *heads[:4], "full"]
    assert names("L0H1, L1MLP,L0H1+L1H3") == ["L0H1", "L1MLP", "L0H1+L1H3"]


def test_a_head_is_its_four_matrices() -> None:
    (head,) = parse_components("L1H3", model())
    assert head.slots == tuple(Slot(f"blocks.1.attn.W_{part}", 3) for part in "QKVO")
    assert (head.layer, head.head, head.shares_key_value_with) == (1, 3, ())


def test_slots_of_a_union_are_in_the_order_of_the_weights() -> None:
    (union,) = parse_components("L1H0+embed+L0H3+L0H1", model())
    expected = [Slot("embed.W_E")]
    expected += [Slot(f"blocks.0.attn.W_{part}", head) for part in "QKVO" for head in (1, 3)]
    expected += [Slot(f"blocks.1.attn.W_{part}", 0) for part in "QKVO"]
    assert list(union.slots) == expected
    assert (union.layer, union.head) == (0, None)


def test_layers_hold_biases_and_norms_and_mlps_do_not() -> None:
    layer, mlp, attention = parse_components("L1, L1MLP, L1ATTN", model())
    assert {slot.name for slot in layer.slots} == {
        name for name in model().leaves if name.startswith("blocks.1.")
    }
    assert [slot.name for slot in mlp.slots] == ["blocks.1.mlp.W_in", "blocks.1.mlp.W_out"]
    assert [slot.name for slot in attention.slots] == [f"blocks.1.attn.W_{part}" for part in "QKVO"]
    (gated,) = parse_components("L0MLP", model("native_gated"))
    assert [slot.name[-6:] for slot in gated.slots] == ["W_gate", "p.W_in", ".W_out"]


@pytest.mark.parametrize(
    ("name", "count"),
    [
        ("L0H1", 4 * D * E),
        ("L0ATTN", 4 * D * E * H),
        ("L0MLP", 2 * D * M),
        ("L0", 4 * D * E * H + 3 * H * E + D + 2 * D * M + M + D + 4 * D),
        ("embed", V * D),
        ("pos_embed", N * D),
        ("unembed", V * D),
        ("L0H1+L1H3", 8 * D * E),
    ],
)
def test_number_of_parameters(name: str, count: int) -> None:
    (component,) = parse_components(name, model())
    assert component.n_parameters(model().shapes) == count


def test_full_is_every_parameter() -> None:
    (full,) = parse_components("full", model())
    total = sum(shape.numel() for shape in model().shapes.values())
    assert full.n_parameters(model().shapes) == total
    assert (full.layer, full.head) == (0, None)


@pytest.mark.parametrize(
    ("name", "layer"),
    [("embed", 0), ("pos_embed", 0), ("L1MLP", 1), ("L1H2+L0H1", 0), ("unembed", 2)],
)
def test_first_layer_touched(name: str, layer: int) -> None:
    assert parse_components(name, model())[0].layer == layer


def test_grouped_query_heads_name_their_siblings() -> None:
    grouped = model("native_gqa")  # four heads, two key/value heads
    head = parse_components("L1H2", grouped)[0]
    assert head.shares_key_value_with == ("L1H3",)
    assert [slot.index for slot in head.slots] == [2, 1, 1, 2]
    (pair,) = parse_components("L1H2+L1H3", grouped)
    assert [(slot.name[-3:], slot.index) for slot in pair.slots] == [
        ("W_Q", 2),
        ("W_Q", 3),
        ("W_K", 1),
        ("W_V", 1),
        ("W_O", 2),
        ("W_O", 3),
    ]
    assert pair.n_parameters(grouped.shapes) == 6 * D * E


def test_tied_embeddings_are_one_slot() -> None:
    tied = model("wrapped_gpt2")
    (unembed,) = parse_components("unembed", tied)
    assert unembed.slots == (Slot("embed.W_E"),)
    assert unembed.note == TIED_NOTE and unembed.layer == 0
    for spec in ("embed, unembed", "embed+unembed"):
        with pytest.raises(ValueError, match="'embed' and 'unembed' are one matrix .*tied"):
            parse_components(spec, tied)
    assert parse_components("embed", model())[0].note == ""


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        (
            "L2H3",
            "components: 'L2H3' does not exist: the model has layers L0–L1 with 4 heads each; "
            "did you mean 'L1H3'?",
        ),
        (
            "L1H7",
            "'L1H7' does not exist: the model has layers L0–L1 with 4 heads each; did you "
            "mean 'L1H3'?",
        ),
        ("L3MLP", "did you mean 'L1MLP'?"),
        ("L2H*", "did you mean 'L1H*'?"),
        ("l1h3", "components: 'l1h3' is not a component; allowed are a head 'L1H3', "),
        ("l1h3", "did you mean 'L1H3'?"),
        ("head", "did you mean 'heads'?"),
        ("unembd", "did you mean 'unembed'?"),
        ("L0H1, L0H1", "components: 'L0H1' is named twice"),
        ("heads, L0H1", "components: 'L0H1' is named twice"),
        ("L0H1+L1H1, L1H1+L0H1", "'L0H1+L1H1' and 'L1H1+L0H1' are the same weights"),
        ("L0H1+L0H1", "components: 'L0H1+L0H1' names 'L0H1' twice"),
        ("L0+L0H1", "components: 'L0+L0H1': 'L0' already contains 'L0H1'"),
        ("L1ATTN+L1H2", "'L1ATTN' already contains 'L1H2'"),
        ("embed+full", "'full' already contains 'embed'"),
        ("heads+L0MLP", "joins the selection 'heads'; a union joins single components"),
        ("", "components: '' has an empty name; allowed are"),
        ("L0H1,,L0H2", "has an empty name"),
        ("L0H1+", "'' is not a component"),
        ([], "components: [] names no component"),
    ],
)
def test_refusals(spec: str | list[str], message: str) -> None:
    with pytest.raises(ValueError) as error:
        parse_components(spec, model())
    assert message in str(error.value)


@pytest.mark.parametrize("spec", [None, 3, [1, 2], {"L0H1": 1}])
def test_other_types_are_refused(spec: object) -> None:
    # tests run with runtime type checks, whose message comes first for annotated arguments
    message = "components: expected a string or a list of strings|parameter 'spec'"
    with pytest.raises(TypeError, match=message):
        parse_components(spec, model())


@pytest.mark.parametrize(
    ("spec", "name", "message"),
    [
        ("L1MLP", "native_attn_only", "'L1MLP' does not exist: the model is attention-only"),
        ("mlps", "native_attn_only", "'mlps' selects nothing: the model is attention-only"),
        (
            "pos_embed",
            "native_rotary",
            "'pos_embed' does not exist: the model's positions are "
            "rotary, it learns no position embedding",
        ),
    ],
)
def test_what_the_model_lacks_is_said_plainly(spec: str, name: str, message: str) -> None:
    with pytest.raises(ValueError) as error:
        parse_components(spec, model(name))
    assert message in str(error.value)
