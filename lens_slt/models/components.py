"""Named parts of a model: which weights a local posterior varies.

The grammar, one string per component:

=============  ====================================================================
``L1H3``       head 3 of layer 1: its W_Q, W_K, W_V, W_O
``L1ATTN``     all heads of layer 1: the same four matrices, whole
``L1MLP``      the MLP of layer 1: W_gate (if there is one), W_in, W_out
``L1``         every parameter of layer 1: attention, MLP, norms, biases
``embed``      W_E; ``pos_embed``: W_pos; ``unembed``: W_U
``full``       every parameter of the model
``L0H1+L1H3``  a union: one component that varies both
=============  ====================================================================

Selections expand to several components: ``heads``, ``mlps``, ``layers``, and ``L1H*`` (the heads of
layer 1). A list may be a sequence of strings or one string with commas.

A head is its weight matrices and nothing else, as in Wang et al. 2024 (arXiv 2410.02984), and so is
an MLP: biases and norm parameters belong to ``L1`` and ``full`` only. Under grouped-query attention
a head contains the key/value head that it shares with its group, and says with whom. Where the
embedding is tied to the unembedding there is one matrix: ``embed`` and ``unembed`` both name it.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from lens_slt.arguments import nearest
from lens_slt.models.adapter import AdaptedModel
from lens_slt.models.names import (
    ATTENTION,
    EMBEDDINGS,
    FORMS,
    HEADS,
    LAYER,
    MLP,
    SELECTIONS,
    WHOLE,
    Part,
    head_name,
    mlp_name,
    parts_of,
    read_part,
)

HEAD_TENSORS = ("W_Q", "W_K", "W_V", "W_O")
MLP_TENSORS = ("W_gate", "W_in", "W_out")
TIED_NOTE = "embedding and unembedding are tied: this one matrix is both"


@dataclass(frozen=True)
class Slot:
    """A weight, or one head's part of it.

    ``index`` counts along the first axis of the canonical layout: the head for W_Q and W_O, the
    key/value head for W_K and W_V. None is the whole tensor.
    """

    name: str
    index: int | None = None


@dataclass(frozen=True)
class Component:
    """A named part of the model.

    ``slots`` are in the order of the model's weights (embeddings, layers, final norm, unembedding;
    within attention Q, K, V, O), then by index. ``layer`` is the first block whose input or
    computation the component touches, ``n_layers`` if none. ``head`` is set for exactly one head.
    """

    name: str
    slots: tuple[Slot, ...]
    layer: int
    head: int | None = None
    shares_key_value_with: tuple[str, ...] = ()
    note: str = ""

    def n_parameters(self, shapes: Mapping[str, Sequence[int]]) -> int:
        """Number of parameters, given the canonical shape of every weight."""
        return sum(
            math.prod(shapes[slot.name] if slot.index is None else shapes[slot.name][1:])
            for slot in self.slots
        )


def parse_components(
    spec: str | Sequence[str], model: AdaptedModel, *, argument: str = "components"
) -> list[Component]:
    """Components named by ``spec``, in the order given; selections expand in place.

    ``argument`` is what the caller passes them as, for messages.

    Raises ValueError for an empty list, a name the model does not have, a component named twice,
    and a union with a part inside another part.
    """
    try:
        return _parsed(spec, model)
    except (TypeError, ValueError) as error:
        raise type(error)(f"{argument}: {error}") from None


def head_names(model: AdaptedModel) -> list[str]:
    """All heads, by layer and index."""
    return [head_name(i, j) for i in range(model.n_layers) for j in range(model.n_heads)]


def node_names(model: AdaptedModel, *, embeddings: bool = False) -> list[str]:
    """Heads and MLPs as they stand along the residual stream, behind what begins it if asked for.

    These are the embeddings that are added to the stream: positions only where they are learned.
    """
    positions = EMBEDDINGS if model.positions == "standard" else EMBEDDINGS[:1]
    found = list(positions) if embeddings else []
    for layer in range(model.n_layers):
        found += [head_name(layer, head) for head in range(model.n_heads)]
        found += [] if model.attn_only else [mlp_name(layer)]
    return found


def _parsed(spec: str | Sequence[str], model: AdaptedModel) -> list[Component]:
    names = [name for entry in _entries(spec) for name in _expand(entry, model)]
    if not names:
        raise ValueError(f"{spec!r} names no component; allowed are {FORMS}")
    components: list[Component] = []
    seen: dict[frozenset[Slot], str] = {}
    for name in names:
        component = _component(name, model)
        slots = frozenset(component.slots)
        if slots in seen:
            raise ValueError(_twice(seen[slots], name, model))
        seen[slots] = name
        components.append(component)
    return components


def _entries(spec: str | Sequence[str]) -> list[str]:
    if not isinstance(spec, str) and (
        not isinstance(spec, Sequence) or not all(isinstance(entry, str) for entry in spec)
    ):
        raise TypeError(f"expected a string or a list of strings, got {spec!r}")
    pieces = [spec] if isinstance(spec, str) else spec
    entries = [entry.replace(" ", "") for piece in pieces for entry in piece.split(",")]
    if "" in entries:
        raise ValueError(f"{spec!r} has an empty name; allowed are {FORMS}")
    return entries


def _expand(entry: str, model: AdaptedModel) -> list[str]:
    layers = range(model.n_layers)
    if entry == "heads":
        return head_names(model)
    if entry == "layers":
        return [str(Part(layer, LAYER)) for layer in layers]
    if entry == "mlps":
        names = [mlp_name(layer) for layer in layers if _mlp_slots(layer, model)]
        if not names:
            raise ValueError("'mlps' selects nothing: the model is attention-only")
        return names
    part = read_part(entry)
    if part is None or part.kind != HEADS:
        return [entry]
    if part.layer >= model.n_layers:
        raise ValueError(_missing(entry, model))
    return [head_name(part.layer, head) for head in range(model.n_heads)]


def _component(name: str, model: AdaptedModel) -> Component:
    parts = parts_of(name)
    slots_of = {}
    for part in parts:
        said = read_part(part)
        if part in SELECTIONS or (said is not None and said.kind == HEADS):
            raise ValueError(
                f"{name!r} joins the selection {part!r}; a union joins single "
                "components, such as 'L0H1+L1H3'"
            )
        if part in slots_of:
            raise ValueError(f"{name!r} names {part!r} twice")
        slots_of[part] = _slots(part, model)
    _refuse_nested(name, slots_of, model)
    order = {leaf: place for place, leaf in enumerate(model.leaves)}
    slots = sorted(
        {slot for part in parts for slot in slots_of[part]},
        key=lambda slot: (order[slot.name], -1 if slot.index is None else slot.index),
    )
    one = read_part(name)
    return Component(
        name=name,
        slots=tuple(slots),
        layer=min(_first_layer(slot.name, model) for slot in slots),
        head=None if one is None else one.head,
        shares_key_value_with=() if one is None else _group(one, model),
        note=TIED_NOTE if model.tied_embeddings and {"embed", "unembed"} & set(parts) else "",
    )


def _slots(part: str, model: AdaptedModel) -> list[Slot]:
    """Slots of one part of a union; ValueError if the model has no such part."""
    if part == "full":
        return [Slot(name) for name in model.leaves]
    if part in WHOLE:
        return [Slot(_embedding_name(part, model))]
    said = read_part(part)
    if said is None or said.layer >= model.n_layers:
        raise ValueError(_missing(part, model))
    layer, head = said.layer, said.head
    if said.kind == MLP:
        slots = _mlp_slots(layer, model)
        if not slots:
            raise ValueError(f"{part!r} does not exist: the model is attention-only")
        return slots
    if said.kind == ATTENTION:
        return [Slot(f"blocks.{layer}.attn.{tensor}") for tensor in HEAD_TENSORS]
    if head is None:
        prefix = f"blocks.{layer}."
        return [Slot(name) for name in model.leaves if name.startswith(prefix)]
    if head >= model.n_heads:
        raise ValueError(_missing(part, model))
    key_value = head // (model.n_heads // model.n_key_value_heads)
    return [
        Slot(f"blocks.{layer}.attn.{tensor}", key_value if tensor in ("W_K", "W_V") else head)
        for tensor in HEAD_TENSORS
    ]


def _mlp_slots(layer: int, model: AdaptedModel) -> list[Slot]:
    names = [f"blocks.{layer}.mlp.{tensor}" for tensor in MLP_TENSORS]
    return [Slot(name) for name in names if name in model.leaves]


def _embedding_name(part: str, model: AdaptedModel) -> str:
    name = {"embed": "embed.W_E", "pos_embed": "pos_embed.W_pos", "unembed": "unembed.W_U"}[part]
    if part == "unembed" and model.tied_embeddings:
        return "embed.W_E"
    if name not in model.leaves:
        raise ValueError(
            f"{part!r} does not exist: the model's positions are {model.positions}, "
            "it learns no position embedding"
        )
    return name


def _first_layer(name: str, model: AdaptedModel) -> int:
    if name.startswith("blocks."):
        return int(name.split(".")[1])
    return model.n_layers if name.startswith(("ln_final.", "unembed.")) else 0


def _group(part: Part, model: AdaptedModel) -> tuple[str, ...]:
    """The other heads that share this head's key/value head; none for what is no head."""
    if part.head is None:
        return ()
    size = model.n_heads // model.n_key_value_heads
    first = part.head // size * size
    others = (other for other in range(first, first + size) if other != part.head)
    return tuple(head_name(part.layer, other) for other in others)


def _refuse_nested(name: str, slots_of: Mapping[str, list[Slot]], model: AdaptedModel) -> None:
    """A part of a union inside another part is a mistake, whichever way it is written."""
    if model.tied_embeddings and {"embed", "unembed"} <= set(slots_of):
        raise ValueError(_twice("embed", "unembed", model))
    for outer, outer_slots in slots_of.items():
        whole = {slot.name for slot in outer_slots if slot.index is None}
        for inner, inner_slots in slots_of.items():
            if inner != outer and all(slot.name in whole for slot in inner_slots):
                raise ValueError(f"{name!r}: {outer!r} already contains {inner!r}")


def _twice(first: str, second: str, model: AdaptedModel) -> str:
    if model.tied_embeddings and {first, second} == {"embed", "unembed"}:
        return (
            "'embed' and 'unembed' are one matrix in this model (tied embeddings); name one of them"
        )
    if first == second:
        return f"{first!r} is named twice"
    return f"{first!r} and {second!r} are the same weights"


def _missing(name: str, model: AdaptedModel) -> str:
    """Message for a name that the model does not have, with the nearest name that it has."""
    last = model.n_layers - 1
    layers = "one layer, L0," if last == 0 else f"layers L0–L{last}"
    heads = f"{model.n_heads} head{'s' if model.n_heads > 1 else ''}"
    if read_part(name) is not None:
        message = f"{name!r} does not exist: the model has {layers} with {heads} each"
    else:
        message = f"{name!r} is not a component; allowed are {FORMS}"
    near = _nearest(name, model)
    return f"{message}; did you mean {near!r}?" if near else message


def _nearest(name: str, model: AdaptedModel) -> str | None:
    part = read_part(name)
    if part is not None:
        head = None if part.head is None else min(part.head, model.n_heads - 1)
        return str(Part(min(part.layer, model.n_layers - 1), part.kind, head))
    kinds = (LAYER, ATTENTION, HEADS) if model.attn_only else (LAYER, ATTENTION, HEADS, MLP)
    layers = range(model.n_layers)
    known = [*SELECTIONS, *WHOLE, *head_names(model)]
    known += [str(Part(layer, kind)) for layer in layers for kind in kinds]
    return nearest(name, known, 0.5)
