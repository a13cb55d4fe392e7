"""Which components all models of a family have, and which only some."""

from __future__ import annotations

from collections.abc import Mapping
from itertools import combinations
from math import comb
from typing import Any

import numpy as np
import xarray as xr

from lens_slt.arguments import typed
from lens_slt.schema import stamped
from lens_slt.structure.match import MATCHED, match

Member = tuple[str, str]  # model and component


@typed
def match_family(models: Mapping[str, Any], **options: Any) -> xr.Dataset:
    """Groups of components of several models that match one another.

    Every pair of models is matched; its pairs with the verdict ``matched`` are links. From the most
    similar link on, the groups at its ends become one, unless that would hold two components of one
    model: such a link is left out and counted.

    Args:
        models: by name, what :func:`lens_slt.match` takes of a model; at least two.
        **options: of :func:`lens_slt.match`.

    Returns:
        Dataset over (group, model_name): ``member``, the component, "" where the model has none in
        the group; ``similarity``, its mean similarity to the members it is linked with. Over group,
        the most widespread first: ``n_models``, ``agreement``, the share of pairs of its members
        that are linked (1 for a component without any). Attribute ``conflicts``: links left out.

    Raises:
        TypeError, ValueError: fewer than two models; what :func:`lens_slt.match` refuses.

    Example:
        >>> import lens_slt as ls
        >>> text = ls.load_tokens("mix", n_sequences=16, length=32)
        >>> names = ("attn-2l", "attn-2l-seed1", "attn-2l-seed2")
        >>> found = ls.match_family(
        ...     {name: ls.attention_patterns(ls.load_model(name), text) for name in names},
        ...     n_null=20,
        ...     n_bootstrap=20,
        ... )
        >>> found["member"].dims
        ('group', 'model_name')
    """
    names = list(models)
    if len(names) < 2:
        raise ValueError(f"models must hold at least two; got {', '.join(names) or 'none'}")
    links: dict[tuple[Member, Member], float] = {}
    members: dict[Member, None] = {}
    for a, b in combinations(names, 2):
        try:
            found = match(models[a], models[b], **options)
        except ValueError as error:
            raise ValueError(f"models {a!r} and {b!r}: {error}") from None
        members |= dict.fromkeys((a, str(name)) for name in found["component"].values)
        members |= dict.fromkeys((b, str(name)) for name in found["other"].values)
        sure = found.isel(component=found["verdict"].values == MATCHED)
        for row in range(sure.sizes["component"]):
            one = sure.isel(component=row)
            pair = (a, str(one["component"].values)), (b, str(one["partner"].values))
            links[pair] = float(one["similarity"])
    groups, conflicts = _joined(list(members), links)
    return stamped(_dataset(names, groups, links, conflicts), "match_family")


def _joined(
    members: list[Member], links: Mapping[tuple[Member, Member], float]
) -> tuple[list[set[Member]], int]:
    """Groups with one component of each model at most, and how many links these leave out."""
    group = {one: {one} for one in members}
    conflicts = 0
    for one, other in sorted(links, key=lambda pair: -links[pair]):
        if group[one] is group[other]:
            continue
        if {model for model, _ in group[one]} & {model for model, _ in group[other]}:
            conflicts += 1
            continue
        group[one] |= group[other]
        for member in group[other]:
            group[member] = group[one]
    return list({id(one): one for one in group.values()}.values()), conflicts


def _dataset(
    names: list[str],
    groups: list[set[Member]],
    links: Mapping[tuple[Member, Member], float],
    conflicts: int,
) -> xr.Dataset:
    def linked(group: set[Member]) -> list[float]:
        return [v for pair, v in links.items() if group.issuperset(pair)]

    def agreement(group: set[Member]) -> float:
        n_pairs = comb(len(group), 2)
        return len(linked(group)) / n_pairs if n_pairs else 1.0

    order = sorted(groups, key=lambda g: (-len(g), -sum(linked(g)), sorted(g)))
    component = np.full((len(order), len(names)), "", dtype=object)
    similarity = np.full(component.shape, np.nan)
    for i, group in enumerate(order):
        for model, name in group:
            mine = [v for pair, v in links.items() if (model, name) in pair and group >= {*pair}]
            component[i, names.index(model)] = name
            similarity[i, names.index(model)] = np.mean(mine) if mine else np.nan
    return xr.Dataset(
        {
            "member": (("group", "model_name"), component.astype(str)),
            "similarity": (("group", "model_name"), similarity),
            "n_models": ("group", np.array([len(group) for group in order])),
            "agreement": ("group", np.array([agreement(group) for group in order])),
        },
        coords={"group": np.arange(len(order)), "model_name": names},
        attrs={"n_links": len(links), "conflicts": conflicts},
    )
