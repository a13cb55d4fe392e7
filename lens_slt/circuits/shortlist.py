"""Which nodes of a large model are worth an ablation each: first-order estimates for all at once.

To first order, ablating a node changes the loss by (ablated − clean)·∂L/∂output (attribution
patching, Syed et al. 2023, arXiv 2310.10348): one backward pass for all nodes.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor

from lens_slt.circuits.paths import place_of
from lens_slt.circuits.roles import node_of, split_role
from lens_slt.circuits.runs import Runs
from lens_slt.circuits.statistics import Contrast

ALL_UP_TO = 64  # nodes that are ablated one by one without asking
KEPT = 32  # of more


def shortlist(runs: Runs, contrast: Contrast, nodes: Iterable[str]) -> set[str]:
    """All nodes where they are few, else those with the largest estimated effect on the pattern."""
    nodes = set(nodes)
    if len(nodes) <= ALL_UP_TO:
        return nodes
    asked = ("node effects", contrast.members.tobytes(), frozenset(nodes))
    size = runs.remembered(asked, lambda: {
        node: abs(value) for node, value in node_effects(runs, contrast.members, nodes).items()
    })  # fmt: skip
    return set(sorted(nodes, key=lambda node: (-size[node], node))[:KEPT])


def node_effects(runs: Runs, pattern: Any, nodes: Iterable[str]) -> dict[str, float]:
    """Estimated rise of the mean loss of a pattern's tokens when each node alone is ablated."""
    nodes = sorted(nodes)
    places = sorted({place_of(node_of(node))[0] for node in nodes})
    total = dict.fromkeys(nodes, 0.0)
    for rows in runs.batches():
        # Found here, because a run cannot start inside the hooks of another.
        instead = {node: runs.replacement(node_of(node), rows) for node in nodes}
        clean, gradients = _gradients(runs, rows, pattern, places)
        for node in nodes:
            place, head = place_of(node_of(node))
            value, gradient = clean[place], gradients[place]
            if head is not None:
                value, gradient = value[:, :, head], gradient[:, :, head]
            change = ((instead[node] - value) * gradient).sum(-1)
            where = runs.where(split_role(node)[1], rows)
            total[node] += float((change if where is None else change * where.to(change)).sum())
    return {node: value / int(pattern.sum()) for node, value in total.items()}


def _gradients(
    runs: Runs, rows: slice, pattern: Any, places: list[str]
) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Outputs at hooks, and gradients there of the summed loss of the pattern's tokens."""
    kept: dict[str, Tensor] = {}

    def watch(name: str) -> Any:
        def hook(value: Tensor, hook: Any) -> Tensor:
            kept[name] = value if value.requires_grad else value.detach().requires_grad_()
            return kept[name]

        return hook

    adapted = runs.adapted
    inputs = runs.tokens[rows, :-1].to(adapted.device)
    sites = runs.sites.of_rows(rows)
    chosen = torch.from_numpy(pattern)[sites.sequence, sites.column]
    with torch.enable_grad():
        logits = adapted.module.run_with_hooks(
            inputs, return_type="logits", fwd_hooks=[(name, watch(name)) for name in places]
        )
        at_sites = logits[sites.sequence - rows.start, sites.column].float()
        loss = (runs.sign * runs.metric(at_sites, sites))[chosen.to(at_sites.device)].sum()
        gradients = torch.autograd.grad(loss, [kept[name] for name in places], allow_unused=True)
    found = {
        name: torch.zeros_like(kept[name]) if g is None else g
        for name, g in zip(places, gradients, strict=True)
    }
    return {name: value.detach() for name, value in kept.items()}, found
