"""The grammar of names: what is read, what is made, and that both agree."""

from __future__ import annotations

import pytest

from lens_slt.models.names import (
    ATTENTION,
    HEAD,
    HEADS,
    LAYER,
    MLP,
    Part,
    head_name,
    head_place,
    is_head,
    is_mlp,
    layer_of,
    mlp_name,
    parts_of,
    read_part,
)

NAMES = {
    "L1H3": Part(1, HEAD, 3), "L12H10": Part(12, HEAD, 10), "L0MLP": Part(0, MLP),
    "L1ATTN": Part(1, ATTENTION), "L10": Part(10, LAYER), "L1H*": Part(1, HEADS),
}  # fmt: skip
NO_PARTS = (
    "", "L", "H3", "L1H", "l1h3", "L1H3 ", "L1H-1", "L1H3.K", "L1mlp", "full", "L0H1+L1H3", "L01H3",
    "L1H03", "L００H1",
)  # fmt: skip


def test_reading_and_writing_agree():
    for name, part in NAMES.items():
        assert read_part(name) == part
        assert str(part) == name
    for name in NO_PARTS:
        assert read_part(name) is None


def test_heads_and_mlps():
    assert [name for name in (*NAMES, *NO_PARTS) if is_head(name)] == ["L1H3", "L12H10"]
    assert [name for name in (*NAMES, *NO_PARTS) if is_mlp(name)] == ["L0MLP"]
    assert head_place("L12H10") == (12, 10)
    assert layer_of("L12H10") == 12
    assert head_name(12, 10) == "L12H10"
    assert mlp_name(3) == "L3MLP"
    assert parts_of("L0H1+L1H3") == ["L0H1", "L1H3"]
    assert parts_of("full") == ["full"]


@pytest.mark.parametrize("name", [name for name in (*NAMES, *NO_PARTS) if not is_head(name)])
def test_what_is_no_head_has_no_place(name):
    with pytest.raises(ValueError, match="a head reads 'L1H3'; got"):
        head_place(name)
