"""The grammar of component and head names: the one place that takes them apart and makes them.

:mod:`lens_slt.models.components` has the table of what a name may be.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

SELECTIONS = ("heads", "mlps", "layers")
EMBEDDINGS = ("embed", "pos_embed")
WHOLE = (*EMBEDDINGS, "unembed", "full")
FORMS = (
    "a head 'L1H3', 'L1MLP', 'L1ATTN', a layer 'L1', 'embed', 'pos_embed', 'unembed', 'full', "
    "a union 'L0H1+L1H3', or a selection 'heads', 'mlps', 'layers', 'L1H*'"
)

HEAD, HEADS, MLP, ATTENTION, LAYER = KINDS = ("H", "H*", "MLP", "ATTN", "")  # as in a name
_NUMBER = "0|[1-9][0-9]*"  # one name for each: neither L01 nor other scripts' digits
_PART = re.compile(rf"L(?P<layer>{_NUMBER})(?:H(?P<head>{_NUMBER})|(?P<kind>MLP|ATTN|H\*))?")


@dataclass(frozen=True)
class Part:
    """What a name says: ``L1H3``, ``L1MLP``, ``L1ATTN``, the layer ``L1``, all heads ``L1H*``."""

    layer: int
    kind: str  # one of KINDS
    head: int | None = None

    def __str__(self) -> str:
        return f"L{self.layer}{self.kind}" + ("" if self.head is None else str(self.head))


def read_part(name: str) -> Part | None:
    """What the name of one part of a layer says; None for unions, embeddings and no names."""
    match = _PART.fullmatch(name)
    if match is None:
        return None
    head = int(match["head"]) if match["head"] else None
    return Part(int(match["layer"]), match["kind"] or (LAYER if head is None else HEAD), head)


def parts_of(name: str) -> list[str]:
    """The parts of a union, ``L0H1+L1H3`` → L0H1, L1H3; of anything else itself."""
    return name.split("+")


def is_head(name: str) -> bool:
    """Whether a name is one head's."""
    part = read_part(name)
    return part is not None and part.kind == HEAD


def is_mlp(name: str) -> bool:
    """Whether a name is one MLP's."""
    part = read_part(name)
    return part is not None and part.kind == MLP


def head_place(name: str) -> tuple[int, int]:
    """Layer and index of a head, ``L1H3`` → (1, 3); ValueError for what is no head."""
    part = read_part(name)
    if part is None or part.head is None:
        raise ValueError(f"a head reads 'L1H3'; got {name!r}")
    return part.layer, part.head


def layer_of(name: str) -> int:
    """Layer of a head or MLP; −1 for embeddings, which stand before the first."""
    if name in EMBEDDINGS:
        return -1
    part = read_part(name)
    if part is None:
        raise ValueError(f"a head reads 'L1H3', an MLP 'L1MLP'; got {name!r}")
    return part.layer


def depth_of(name: str) -> int:
    """Where a head, MLP or embedding stands along the residual stream: heads before their MLP."""
    return 2 * layer_of(name) + is_mlp(name)


def head_name(layer: int, head: int) -> str:
    """The name of a head, 1, 3 → L1H3."""
    return str(Part(layer, HEAD, head))


def mlp_name(layer: int) -> str:
    """The name of an MLP, 1 → L1MLP."""
    return str(Part(layer, MLP))
