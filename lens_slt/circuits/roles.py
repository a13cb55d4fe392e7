"""The grammar of roles: ``L5H5@S2`` is what head 5 of layer 5 puts out at the positions of role S2.

A name without a role speaks of every position, ``@~S2~END`` of every position but those of S2 and
END. Names with a role are names everywhere in this package; :func:`split_role` takes them apart.
"""

from __future__ import annotations

import re
from collections.abc import Iterable

from lens_slt.models.adapter import AdaptedModel
from lens_slt.models.components import Component, parse_components
from lens_slt.models.names import (
    ATTENTION,
    EMBEDDINGS,
    HEAD,
    LAYER,
    MLP,
    head_name,
    mlp_name,
    parts_of,
    read_part,
)

EVERYWHERE = ""
BUT = "~"  # before each role that a position must not have

_NAME = re.compile(r"[\w+-]+")


def split_role(name: str) -> tuple[str, str]:
    """A node or component and its role, ``L5H5@S2`` → L5H5, S2; the role is "" without one."""
    node, at, role = name.partition("@")
    if at:
        check_role(role, name)
    return node, role


def node_of(name: str) -> str:
    """A name without its role."""
    return name.partition("@")[0]


def at_role(node: str, role: str) -> str:
    """A node with a role, L5H5, S2 → ``L5H5@S2``."""
    return f"{node}@{role}" if role else node


def role_names(role: str) -> list[str]:
    """The roles whose positions it takes to know where a role is: of ``~S2~END`` both."""
    return [name for name in role.split(BUT) if name]


def check_role(role: str, where: str) -> None:
    """Raise ValueError for what is no role."""
    names = role.split(BUT)[1:] if role.startswith(BUT) else [role]
    if not names or not all(map(_NAME.fullmatch, names)) or len(set(names)) < len(names):
        raise ValueError(
            f"a role is letters, digits, '_', '+' and '-', as in 'L5H5@S2', or '~S2~END' for "
            f"everywhere but at these; got {role!r} in {where!r}"
        )


def apart(roles: Iterable[str]) -> tuple[str, ...]:
    """Roles that together are every position: those that are named, and the rest.

    No two share a position if those that are named do not.
    """
    names = sorted({name for role in roles for name in role_names(role)})
    return (*names, "".join(BUT + name for name in names)) if names else (EVERYWHERE,)


def pieces(role: str, whole: tuple[str, ...]) -> frozenset[str]:
    """Which of some roles from :func:`apart` a role consists of."""
    if role.startswith(BUT):
        return frozenset(whole) - frozenset(role_names(role))
    return frozenset(whole) if role == EVERYWHERE else frozenset([role])


def meet(one: str, other: str) -> bool:
    """Whether two roles are of the same positions, or one is inside the other, by their names."""
    whole = apart((one, other))
    return bool(pieces(one, whole) & pieces(other, whole))


def rest(roles: Iterable[str]) -> frozenset[str]:
    """The roles of every position that none of some roles has."""
    roles = frozenset(roles)
    whole = apart(roles)
    return frozenset(whole).difference(*(pieces(role, whole) for role in roles))


def parse_at_roles(
    spec: str | Iterable[str], adapted: AdaptedModel, argument: str = "components"
) -> list[tuple[Component, str]]:
    """Components with their roles, as :func:`lens_slt.models.components.parse_components` has them.

    Raises ValueError as there, within each role, and for what is no role.
    """
    names = [spec] if isinstance(spec, str) else list(spec)
    if not any(isinstance(name, str) and "@" in name for name in names):
        return [
            (component, EVERYWHERE)
            for component in parse_components(names, adapted, argument=argument)
        ]
    by_role: dict[str, list[str]] = {}
    for entry in (entry for name in names for entry in name.replace(" ", "").split(",")):
        node, role = split_role(entry)
        by_role.setdefault(role, []).append(node)
    return [
        (component, role)
        for role, nodes in by_role.items()
        for component in parse_components(nodes, adapted, argument=argument)
    ]  # fmt: skip


def nodes_of(
    components: str | Iterable[str], adapted: AdaptedModel, argument: str = "components"
) -> frozenset[str]:
    """Heads, MLPs and embeddings, with their roles, that components consist of.

    Raises ValueError for what the model does not have, and for the unembedding.
    """
    found: set[str] = set()
    for component, role in parse_at_roles(components, adapted, argument):
        for name in parts_of(component.name):
            found |= {at_role(node, role) for node in _nodes(name, adapted, argument)}
    return frozenset(found)


def _nodes(name: str, adapted: AdaptedModel, argument: str) -> set[str]:
    part = read_part(name)
    if name in EMBEDDINGS:
        return {name}
    if part is None:
        raise ValueError(
            f"{argument}: {name!r} cannot be ablated; heads, MLPs, layers and embeddings can"
        )
    found = {name} if part.kind in (HEAD, MLP) else set()
    if part.kind in (LAYER, ATTENTION):
        found |= {head_name(part.layer, head) for head in range(adapted.n_heads)}
    if part.kind == LAYER and not adapted.attn_only:
        found.add(mlp_name(part.layer))
    return found
