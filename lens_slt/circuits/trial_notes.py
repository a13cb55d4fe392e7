"""What a trial notes beside its tests: disagreements, composition, the faithfulness curve."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import xarray as xr

from lens_slt.circuits import faithfulness
from lens_slt.circuits.case import Case
from lens_slt.circuits.evidence import Evidence
from lens_slt.circuits.hypothesis import LOGITS, Edge
from lens_slt.circuits.interventions import in_parts
from lens_slt.circuits.neighbours import costs
from lens_slt.circuits.roles import node_of
from lens_slt.models.names import EMBEDDINGS, is_head
from lens_slt.statistics import SIGNIFICANT

MOST_LINES = 4  # of components outside of a circuit
Disagrees = Literal["needed", "not needed", "outside"]


@dataclass(frozen=True)
class Disagreement:
    """One thing in which other evidence, or another head, speaks against a hypothesis or a test.

    Attributes:
        kind: by intervention the part is ``needed`` or ``not needed``, and what is noted beside
            says otherwise; or it is ``outside`` of the circuit and its ablation costs much.
        part: a component or an edge.
        effect: of its ablation.
        words: the whole of it, with numbers.
    """

    kind: Disagrees
    part: str
    effect: float
    words: str

    def __str__(self) -> str:
        return self.words


def summed_up(found: Sequence[Disagreement]) -> list[str]:
    """In words, components outside of the circuit in one line if they are many."""
    outside = sorted((one for one in found if one.kind == "outside"), key=lambda one: -one.effect)
    if len(outside) <= MOST_LINES:
        return list(map(str, found))
    others = ", ".join(f"{one.part} {one.effect:.2f}" for one in outside[1:MOST_LINES])
    words = f"{outside[0]}; so does that of {len(outside) - 1} others ({others}, …)"
    return [*(str(one) for one in found if one.kind != "outside"), words]


def disagreements(case: Case, voting: list[Evidence], noted: list[Evidence]) -> list[Disagreement]:
    """Where composition scores, rLLCs or susceptibilities say other than interventions."""
    found = []
    outcomes = {one.part: one for one in voting if one.test in ("minimality", "edge")}
    for one in noted:
        vote = outcomes.get(one.part)
        opposite = {"held": "failed", "failed": "held"}.get(one.outcome)
        if vote is not None and vote.outcome == opposite and one.test != "reliability":
            kind: Disagrees = "needed" if vote.outcome == "held" else "not needed"
            says = "for" if one.outcome == "held" else "against"
            words = (
                f"{one.part}: by intervention it is {kind} ({vote.effect:.2f} {vote.unit}), "
                f"{one.test} speaks {says} it ({one.effect:.2f} {one.unit})"
            )
            found.append(Disagreement(kind, one.part, vote.effect, words))
    cost = costs(case)
    mine = set(map(node_of, case.nodes))
    inside = [cost[node] for node in case.nodes if is_head(node_of(node))]
    for head in case.runs.heads if inside else ():
        effect = cost.get(head, 0.0)
        if head not in mine and effect >= max(case.least_effect, max(inside) / 2):
            words = (
                f"{head} is not in the circuit, but its ablation costs the pattern {effect:.2f} "
                f"{case.unit} more than matched tokens"
            )
            found.append(Disagreement("outside", head, effect, words))
    return found


def composes(edge: Edge) -> bool:
    """Whether there is a composition score of an edge: between heads and MLPs."""
    return edge.source not in EMBEDDINGS and edge.target != LOGITS


def composition_evidence(case: Case, composition: xr.Dataset | None) -> list[Evidence]:
    found = []
    for edge in case.hypothesis.edges:
        ends = {"source": edge.source, "target": edge.target, "through": edge.through}
        if composition is None or any(end not in composition[d] for d, end in ends.items()):
            continue
        one = composition.sel(ends)
        if bool(one["score"].isnull()):  # an MLP that is left out
            continue
        q = max(float(one["q_random"]), float(one["q_rotation"]))
        p = max(float(one["p_random"]), float(one["p_rotation"]))
        z = f"z {float(one['z_random']):.1f}, {float(one['z_rotation']):.1f}"
        found.append(
            Evidence(
                "composition", str(edge), float(one["score"]), unit="score", p=p, corrected_p=q,
                null="random matrices and random rotations, over all pairs",
                outcome="held" if q < SIGNIFICANT else "failed", words=f"{z} against the two nulls",
            )
        )  # fmt: skip
    return found


def faithfulness_of(case: Case) -> xr.Dataset | None:
    """Faithfulness, the circuit first and the rest by what its ablation costs.

    The attribute ``n_circuit`` says how many nodes the circuit is: a layer is many, and embeddings,
    which are never ablated, are none.
    """
    universe = in_parts(case.nodes, case.runs, case.outside)
    cost = costs(case)
    ranking = sorted(
        universe, key=lambda node: (node not in case.nodes, -cost.get(node, 0.0), node)
    )
    try:
        found = faithfulness.curve(case.runs, case.contrast, ranking, case.outside, 10, case.seed)
    except ValueError:
        return None  # ablating everything does not hurt; sufficiency has said so
    return found.assign_attrs(n_circuit=sum(node in case.nodes for node in universe))
