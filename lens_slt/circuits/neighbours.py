"""Does a better circuit lie one step away? One component or edge more, or one less."""

from __future__ import annotations

from collections.abc import Callable

from lens_slt.circuits.case import Case
from lens_slt.circuits.evidence import Evidence
from lens_slt.circuits.hypothesis import Edge
from lens_slt.circuits.interventions import outside_of
from lens_slt.circuits.runs import Losses
from lens_slt.circuits.shortlist import shortlist

MOST_TRIED = 12  # parts that a circuit is grown by, one after the other


def costs(case: Case) -> dict[str, float]:
    """What ablating each node alone costs the pattern more than matched tokens.

    In a large model those are left out of which gradients promise little.
    """
    nodes = outside_of(frozenset(), case.runs, case.outside)
    chosen = shortlist(case.runs, case.contrast, nodes) | case.nodes
    return {node: case.contrast.value(case.rise([node])) for node in sorted(chosen)}


def neighbours(case: Case) -> list[Evidence]:
    """What growing and shrinking the circuit by one part changes in what it recovers.

    Parts are edges where the hypothesis has any between nodes, else components; those are tried
    whose ends cost the pattern most. Each is the best of several, so its interval is optimistic; it
    has no vote.
    """
    cost = costs(case)
    if case.kinds:
        mine = case.own_paths
        ends = {end for edge in mine for end in (edge.source, edge.target)}
        joined = [e for e in case.universe - mine if e.source in ends or e.target in ends]

        def promise(edge: Edge) -> tuple[float, str]:
            return -cost.get(edge.source, 0.0) - cost.get(edge.target, 0.0), str(edge)

        return _steps(case, mine, sorted(joined, key=promise)[:MOST_TRIED], case.along)
    others = [node for node in cost if node not in case.nodes]
    others.sort(key=lambda node: (-cost[node], node))
    return _steps(case, case.nodes, others[:MOST_TRIED], case.kept)


def _steps(
    case: Case, mine: frozenset, others: list, lost: Callable[[frozenset], Losses]
) -> list[Evidence]:
    """The best part to add and the one that is missed least, by the share of what comes back."""
    whole = lost(frozenset()) - case.runs.base
    if not case.contrast.on_pattern(whole).low > 0:
        return []
    now = lost(mine)
    steps = {
        "grown": {part: now - lost(mine | {part}) for part in others},
        "shrunk": {part: now - lost(mine - {part}) for part in mine if len(mine) > 1},
    }
    found = []
    for test, changes in steps.items():
        shares = {part: case.contrast.share_value(x, whole) for part, x in changes.items()}
        if not shares:
            continue
        best = max(shares, key=lambda part: (shares[part], str(part)))
        share = case.contrast.share(changes[best], whole)
        how = "with it" if test == "grown" else "without it"
        words = f"more of the pattern's loss comes back {how}; best of {len(shares)} tried"
        found.append(
            Evidence(test, str(best), share.value, share.low, share.high, "share", words=words)
        )
    return found
