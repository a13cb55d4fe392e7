"""What the loss of every token becomes when parts of a model are ablated, kept or put back.

Four questions, one table each over (sequence, position):

- :func:`ablate`: what if these components did nothing specific?
- :func:`ablate_path`: what if this head could not read that one?
- :func:`keep_only`: what can these components do alone?
- :func:`knock_in`: what do their outputs bring where everything else is ablated?

The caller's model is used as it stands and comes back as it was.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
import pandas as pd
import xarray as xr

from lens_slt.arguments import choice, integer, typed
from lens_slt.circuits.hypothesis import LOGITS, Edge, circuit
from lens_slt.circuits.replacements import Ablation
from lens_slt.circuits.roles import BUT, at_role, node_of, nodes_of, rest, split_role
from lens_slt.circuits.runs import Losses, Runs
from lens_slt.data.columns import moved_back
from lens_slt.models.adapter import adapt
from lens_slt.models.components import parse_components
from lens_slt.schema import require, stamped
from lens_slt.structure.contexts import contexts
from lens_slt.torch_state import plain_torch

OUTSIDE = ("heads", "all")


@typed
@plain_torch
def ablate(
    model: Any,
    tokens: Any,
    components: str | Iterable[str],
    *,
    roles: Mapping[str, Any] | None = None,
    how: str | Ablation = "auto",
    metric: Any = None,
    weights: Any = None,
    mask: Any = None,
    pad_id: int | None = None,
) -> xr.Dataset:
    """Losses with components ablated: heads, MLPs (``L1MLP``), layers (``L1``), embeddings.

    Args:
        model: HookedTransformer or TransformerBridge.
        tokens: ``[sequence, position]``.
        components: such as ``"L1H2"`` or ``["L0H2", "L1MLP"]``; they are ablated together. One at a
            role, ``"L1H2@END"``, is ablated at the positions of that role.
        roles: positions of each role, as :class:`lens_slt.Prompts` has them: bool
            ``[sequence, position - 1]``, or ints ``[sequence]`` or ``[sequence, place]``.
        how: what replaces their output: ``mean``, ``mean_position``, ``mean_pattern``,
            ``resample``, ``interchange``, ``zero``, or an :class:`lens_slt.Ablation`, which says
            also from which tokens and at which positions. ``auto`` is ``mean_position`` where
            positions matter, else ``mean``.
        metric: an observable instead of the loss: :class:`lens_slt.LogitDifference`,
            ``Probability``, ``Accuracy``, ``Divergence``, or a function of logits
            ``[site, d_vocab]`` and :class:`lens_slt.Sites`.
        weights, mask, pad_id: which predictions count, as in :func:`lens_slt.sample`; others are
            NaN.

    Returns:
        Dataset over (sequence, position): ``base_loss``, ``loss`` and ``effect``, their difference
        in nats, positive where the ablation hurts; ``token_id`` of the predicted token. With a
        metric its name stands for ``loss``, ``effect`` is in its units, and the attribute
        ``cost_sign`` is −1 where less of it is worse.

    Raises:
        ValueError: components the model does not have, tokens or reference of another vocabulary or
            length, a position of ``mean_position`` that the reference does not reach, a role that
            ``roles`` lacks.

    Example:
        >>> import lens_slt as ls, torch
        >>> model, tokens = ls.load_model("attn-1l"), torch.arange(1, 41).reshape(4, 10)
        >>> found = ls.ablate(model, tokens, "L0H2@END", roles={"END": torch.full((4,), 8)})
        >>> bool((found["effect"].isel(position=slice(8)) == 0).all())
        True
    """
    components = components if isinstance(components, str) else list(components)
    runs = Runs(
        adapt(model), tokens, how, metric=metric, weights=weights, mask=mask, pad_id=pad_id,
        roles=roles,
    )  # fmt: skip
    nodes = nodes_of(components, runs.adapted)
    return effects(runs, runs.loss(nodes), f"{runs.how} ablation of {_named(components)}")


@typed
@plain_torch
def ablate_path(
    model: Any,
    tokens: Any,
    paths: str | Edge | Iterable[Edge],
    *,
    roles: Mapping[str, Any] | None = None,
    how: str | Ablation = "auto",
    metric: Any = None,
    weights: Any = None,
    mask: Any = None,
    pad_id: int | None = None,
) -> xr.Dataset:
    """Losses where what a node writes is ablated for one reader only.

    The direct path alone: what reaches the target through heads and MLPs in between stays.
    ``"L0H2 -> L1H2.K"`` is such a path, ``"L0H2 -> L0MLP"`` one into an MLP, ``"embed -> L0H1.V"``
    one from the embedding, ``"L1H2 -> logits"`` the one into the unembedding; several are ablated
    together. With a role, ``"L0H2@S2 -> L1H2.K"``, it is what the node writes at the positions of
    that role. Under grouped-query attention keys and values belong to the target's whole group.
    Other arguments and the result are those of :func:`ablate`.

    Raises ValueError for nodes the model does not have, edges that run backwards, and models whose
    nodes do not write straight into the residual stream.

    Example:
        >>> import lens_slt as ls
        >>> model, text = ls.load_model("attn-2l"), ls.load_tokens("mix", n_sequences=16)
        >>> found = ls.ablate_path(model, text, "L0H2 -> L1H2.K")
        >>> repeats = ls.label_patterns(text).sel(pattern="induction").values
        >>> float(found["effect"].where(repeats).mean()) > 0.5  # nats
        True
    """
    edges = _edges(paths)
    runs = Runs(
        adapt(model), tokens, how, metric=metric, weights=weights, mask=mask, pad_id=pad_id,
        roles=roles,
    )  # fmt: skip
    ends = {end for edge in edges for end in (edge.source, edge.target)} - {LOGITS}
    parse_components(sorted(ends), runs.adapted, argument="paths")
    what = f"{runs.how} ablation of {', '.join(map(str, edges))}"
    return effects(runs, runs.loss(paths=edges), what)


@typed
@plain_torch
def keep_only(
    model: Any,
    tokens: Any,
    components: str | Iterable[str],
    *,
    outside: str = "heads",
    roles: Mapping[str, Any] | None = None,
    how: str | Ablation = "auto",
    metric: Any = None,
    weights: Any = None,
    mask: Any = None,
    pad_id: int | None = None,
) -> xr.Dataset:
    """Losses with everything outside some components ablated.

    ``outside`` says what that is: all other ``heads`` (MLPs stay, as in Wang et al. 2211.00593), or
    ``all`` other heads and MLPs. Other arguments and the result are those of :func:`ablate`.

    Example:
        >>> import lens_slt as ls
        >>> model, text = ls.load_model("attn-2l"), ls.load_tokens("mix", n_sequences=16)
        >>> found = ls.keep_only(model, text, "L0H2, L1H2")
        >>> float(found["effect"].mean()) > 0  # the other heads do something, too
        True
    """
    components = components if isinstance(components, str) else list(components)
    runs = Runs(
        adapt(model), tokens, how, metric=metric, weights=weights, mask=mask, pad_id=pad_id,
        roles=roles,
    )  # fmt: skip
    rest = outside_of(nodes_of(components, runs.adapted), runs, outside)
    return effects(runs, runs.loss(rest), f"{runs.how} ablation of all but {_named(components)}")


@typed
@plain_torch
def knock_in(
    model: Any,
    tokens: Any,
    components: str | Iterable[str],
    *,
    outside: str = "heads",
    roles: Mapping[str, Any] | None = None,
    how: str | Ablation = "auto",
    metric: Any = None,
    weights: Any = None,
    mask: Any = None,
    pad_id: int | None = None,
) -> xr.Dataset:
    """Losses where all is ablated but some components put out what they do in the whole model.

    Unlike in :func:`keep_only` the components do not compute on ablated inputs: this asks what
    their outputs are worth, not whether they can work alone. Arguments and result as there.

    Example:
        >>> import lens_slt as ls
        >>> model, text = ls.load_model("attn-2l"), ls.load_tokens("mix", n_sequences=16)
        >>> repeats = ls.label_patterns(text).sel(pattern="induction").values
        >>> found = ls.knock_in(model, text, "L1H2")["effect"].where(repeats)
        >>> bool(found.mean() < ls.keep_only(model, text, "L1H2")["effect"].where(repeats).mean())
        True
    """
    components = components if isinstance(components, str) else list(components)
    runs = Runs(
        adapt(model), tokens, how, metric=metric, weights=weights, mask=mask, pad_id=pad_id,
        roles=roles,
    )  # fmt: skip
    nodes = nodes_of(components, runs.adapted)
    rest = outside_of(nodes, runs, outside)
    what = f"{_named(components)} knocked into a model under {runs.how} ablation"
    return effects(runs, runs.loss(rest, restored=nodes), what)


@typed
def affected_tokens(
    result: xr.Dataset, tokenizer: Any = None, *, n: int = 10, width: int = 12
) -> pd.DataFrame:
    """The tokens that an intervention hurts and helps most, in context; one of each sequence.

    Args:
        result: from :func:`ablate` and its like.
        tokenizer: of the model; needs ``decode``. May be left out for the shipped models' tokens.
        n: tokens of each kind.
        width: tokens of context.

    Returns:
        Columns ``kind`` (hurt or helped), ``effect``, ``base_loss`` (or that of the metric),
        ``sequence``, ``position`` and ``context``, with the predicted token in « ».

    Example:
        >>> import lens_slt as ls
        >>> model, text = ls.load_model("attn-2l"), ls.load_tokens("mix", n_sequences=16)
        >>> table = ls.affected_tokens(ls.ablate(model, text, "L1H2"), n=2)
        >>> table["kind"].tolist()
        ['hurt', 'hurt', 'helped', 'helped']
    """
    result = require(result, "effects", argument="result")
    integer("n", n, at_least=1)
    integer("width", width, at_least=0)
    flat = result.stack(token=("sequence", "position")).reset_index("token")
    flat = flat.isel(token=np.isfinite(flat["effect"].values))
    effect, sequence = flat["effect"].values, flat["sequence"].values
    base = f"base_{result.attrs['metric']}"
    cost = effect * (result.attrs["cost_sign"] or 1)
    rows = []
    for kind, order in (("hurt", np.argsort(-cost)), ("helped", np.argsort(cost))):
        _, first = np.unique(sequence[order], return_index=True)
        best = order[np.sort(first)[:n]]
        for token, text in zip(
            best, contexts(flat, tokenizer, width=width, rows=best), strict=True
        ):
            one = flat.isel(token=token)
            rows.append(
                {
                    "kind": kind, "effect": float(one["effect"]),
                    base: float(one[base]), "sequence": int(one["sequence"]),
                    "position": int(one["position"]), "context": text,
                }
            )  # fmt: skip
    return pd.DataFrame(rows)


def effects(runs: Runs, loss: Losses, what: str) -> xr.Dataset:
    """Losses under an intervention beside those without it."""
    dims = ("sequence", "position")
    tokens = moved_back(runs.tokens, runs.shift)
    base, loss = (moved_back(values, runs.shift) for values in (runs.base, loss))
    name, sign = runs.metric.name, np.float32(runs.sign)
    found = xr.Dataset(
        {
            f"base_{name}": (dims, sign * base),
            name: (dims, sign * loss),
            "effect": (dims, sign * (loss - base)),
        },
        coords={
            "sequence": np.arange(loss.shape[0]),
            "position": np.arange(loss.shape[1]),
            "token_id": (dims, tokens[:, 1:].numpy()),
        },
        attrs={
            "intervention": what,
            "how": runs.how,
            "model": runs.adapted.name,
            "metric": name,
            "units": runs.metric.units,
            "cost_sign": runs.metric.cost_sign,
        },
    )
    return stamped(found, "effects")


def outside_of(nodes: frozenset[str], runs: Runs, outside: str) -> frozenset[str]:
    """Heads, or heads and MLPs, that are not among ``nodes``; of a node at roles the rest."""
    choice("outside", outside, OUTSIDE)
    roles: dict[str, set[str]] = {}
    for name in nodes:
        node, role = split_role(name)
        roles.setdefault(node, set()).add(role)
    for some in roles.values():
        runs.roles.check(some)
        if any(role.startswith(BUT) for role in some):
            runs.roles.check_apart(some)
    return frozenset(
        at_role(node, role)
        for node in (runs.heads if outside == "heads" else runs.nodes)
        for role in rest(roles.get(node, ()))
    )


def in_parts(nodes: Iterable[str], runs: Runs, outside: str) -> frozenset[str]:
    """All heads, or heads and MLPs; those that ``nodes`` has at roles are one part for each role
    and one for the rest."""
    mine = frozenset(nodes)
    every = outside_of(frozenset(), runs, outside)
    return frozenset(x for x in mine if node_of(x) in every) | outside_of(mine, runs, outside)


def _edges(paths: str | Edge | Iterable[Edge]) -> tuple[Edge, ...]:
    if isinstance(paths, str):
        said = circuit(paths, pattern="any")
        edges = said.edges
        ends = {end for edge in edges for end in (edge.source, edge.target)}
        alone = {name for name in said.components if node_of(name) not in ends}
        if alone and edges:
            raise ValueError(
                f"paths must be edges; {', '.join(sorted(alone))} in {paths!r} is none, ablate it "
                "with ablate"
            )
    else:
        edges = (paths,) if isinstance(paths, Edge) else tuple(paths)
    if not edges or not all(isinstance(edge, Edge) for edge in edges):
        raise ValueError(
            f"paths must be edges, such as 'L0H2 -> L1H2.K' or 'L1H2 -> logits'; got {paths!r}"
        )
    return edges


def _named(components: str | Iterable[str]) -> str:
    return components if isinstance(components, str) else ", ".join(components)
