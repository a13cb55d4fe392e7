"""Does a circuit of one model work in another, where a match says that it is?"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import islice, permutations, product
from math import perm, prod
from typing import Any

import numpy as np
import xarray as xr

from lens_slt.arguments import integer, typed
from lens_slt.circuits.hypothesis import LOGITS, CircuitHypothesis
from lens_slt.circuits.roles import at_role, node_of, split_role
from lens_slt.circuits.trial import Trial, cross_check
from lens_slt.models.adapter import adapt
from lens_slt.models.components import node_names
from lens_slt.models.names import EMBEDDINGS, is_head, is_mlp, layer_of
from lens_slt.schema import require, stamped
from lens_slt.structure.match import PARTNERED

MOST_MAPS = 256
NO_MAP = "no map"
SUPPORTED = "supported"


@dataclass(frozen=True)
class Transfer:
    """Circuits of one model on trial in another.

    Attributes:
        summary: Dataset over (circuit, map), see :func:`transfer`.
        trials: of the mapped circuits, each with all its evidence; None where there is no map.

    Example:
        >>> import lens_slt as ls
        >>> one, other = ls.load_model("attn-2l"), ls.load_model("attn-2l-seed1")
        >>> text = ls.load_tokens("mix", n_sequences=16, length=64)
        >>> found = ls.match(*(ls.attention_patterns(m, text) for m in (one, other)), n_null=20)
        >>> mine, few = ls.circuit("L0H2 -> L1H2.K", "induction"), dict(most_maps=1, n_null=2)
        >>> moved = ls.transfer(
        ...     [mine], found, other, text, **few, verdict_only=True, progress=False
        ... )
        >>> len(moved.trials), dict(moved.summary.sizes)
        (1, {'circuit': 1, 'map': 1})
    """

    summary: xr.Dataset
    trials: tuple[Trial | None, ...]

    def __str__(self) -> str:
        keys = ("original", "mapped", "verdict", "reason")
        lines = [
            f"{original} ⇒ {mapped or 'nothing'}: {verdict}" + (f" ({reason})" if reason else "")
            for original, mapped, verdict, reason in zip(
                *(self.summary[key].values for key in keys), strict=True
            )
        ]
        rate, chance = (self.summary.attrs[key] for key in ("transfer_rate", "chance_rate"))
        return "\n".join([*lines, f"{rate:.0%} carried over, {chance:.0%} by chance"])


@typed
def transfer(
    hypotheses: Sequence[CircuitHypothesis],
    result: xr.Dataset,
    model: Any,
    tokens: Any,
    *,
    most_maps: int = MOST_MAPS,
    seed: int = 0,
    progress: bool = True,
    **options: Any,
) -> Transfer:
    """Put circuits of model A on trial in model B, with every component replaced by its partner.

    A match of values may be one of things that covary. Here it counts if it carries a circuit over.
    Beside the match stands chance: each circuit under every map that sends its components to
    components of the same kind and layers as the match does (heads of a layer to its heads, one to
    one), or ``most_maps`` random ones of them where there are more. Maps that make the same circuit
    count as often as they are.

    Args:
        hypotheses: circuits of A, best those that were supported in A.
        result: from :func:`lens_slt.match`, A first.
        model: B; it comes back as it was.
        tokens: ``[sequence, position]`` for the trials in B; best not those of the match.
        most_maps: maps to compare with.
        seed: of random maps, and of the trials.
        progress: show a bar with the time left.
        **options: of :func:`lens_slt.cross_check`, such as ``how``, ``patterns`` or ``weights``.

    Returns:
        A :class:`Transfer`. Its ``summary`` has over circuit: ``original`` and ``mapped``, as text;
        ``verdict``, of the trial, or ``no map`` where a component has no partner, two share one, or
        the partners stand in another order; ``reason`` of either; ``chance``, the share of maps
        whose circuit is
        supported in B, the match's own map among them; ``n_maps`` that were tried, of
        ``n_possible``. Over (circuit, map): ``map_circuit`` and ``map_verdict``, "" past the last
        one, where a map that makes an edge run backwards is ``no map``. Attributes:
        ``transfer_rate``, the share of circuits that are supported by the match's map;
        ``chance_rate``, that of random maps; ``p``, which the probability that a random map
        carries over at least as many does not exceed, however much the circuits have in common
        (Markov's inequality: the expected number over the number; of one circuit its chance).

    Raises:
        ValueError: no circuit; components of a circuit that are no heads, MLPs or embeddings; what
            :func:`lens_slt.cross_check` refuses.

    Example:
        >>> import lens_slt as ls
        >>> one, other = ls.load_model("attn-2l"), ls.load_model("attn-2l-seed1")
        >>> text = ls.load_tokens("mix", n_sequences=16, length=64)
        >>> found = ls.match(*(ls.attention_patterns(m, text) for m in (one, other)), n_null=20)
        >>> mine, few = ls.circuit("L0H2 -> L1H2.K", "induction"), dict(most_maps=1, n_null=2)
        >>> moved = ls.transfer(
        ...     [mine], found, other, text, **few, verdict_only=True, progress=False
        ... )
        >>> moved.summary.attrs["n_circuits"]
        1
    """
    result = require(result, "match", argument="result")
    integer("most_maps", most_maps, at_least=1)
    integer("seed", seed, at_least=0)
    if not hypotheses:
        raise ValueError("hypotheses must hold at least one circuit; got none")
    partners = {
        str(name): str(other)
        for name, other, verdict in zip(
            result["component"].values,
            result["partner"].values,
            result["verdict"].values,
            strict=True,
        )
        if verdict in PARTNERED
    }
    pools = _pools(model)
    plans = [_plan(one, partners, pools, most_maps, seed) for one in hypotheses]
    mapped = list(dict.fromkeys(p.mapped for p in plans if p.mapped is not None))
    named = dict.fromkeys(one for p in plans for one in p.others if one is not None)
    others = [one for one in named if one not in mapped]
    options = {"seed": seed, "progress": progress} | options
    # What is refused is refused before the long part: trials of the match's own maps come first.
    full = dict(zip(mapped, _trials(model, tokens, mapped, **options), strict=True))
    quick = _trials(model, tokens, others, **{**options, "verdict_only": True})
    verdicts = {one: trial.verdict for one, trial in full.items()}
    verdicts |= {one: trial.verdict for one, trial in zip(others, quick, strict=True)}
    trials = (None if p.mapped is None else full[p.mapped] for p in plans)
    reasons = {one: "; ".join(trial.reasons) for one, trial in full.items()}
    return Transfer(_summary(plans, verdicts, reasons), tuple(trials))


def _trials(model: Any, tokens: Any, circuits: list[CircuitHypothesis], **options: Any) -> Any:
    return cross_check(model, tokens, circuits, **options) if circuits else []


@dataclass(frozen=True)
class _Plan:
    """A circuit, what the match makes of it, and what other maps do; None for what cannot be."""

    original: CircuitHypothesis
    mapped: CircuitHypothesis | None
    reason: str
    others: list[CircuitHypothesis | None]
    n_possible: int


def _pools(model: Any) -> dict[tuple[int, bool], list[str]]:
    """Heads and MLPs of every layer."""
    pools: dict[tuple[int, bool], list[str]] = defaultdict(list)
    for name in node_names(adapt(model)):
        pools[_place(name)].append(name)
    return pools


def _place(name: str) -> tuple[int, bool]:
    """Layer, and whether it is the MLP there."""
    return layer_of(name), is_mlp(name)


def _plan(
    original: CircuitHypothesis,
    partners: Mapping[str, str],
    pools: Mapping[tuple[int, bool], list[str]],
    most_maps: int,
    seed: int,
) -> _Plan:
    nodes = _nodes(original)
    lonely = [name for name in nodes if name not in partners]
    if lonely:
        return _Plan(original, None, f"no partner of {', '.join(lonely)}", [], 0)
    partners = {name: partners[name] for name in nodes}  # embeddings stay what they are
    for other in partners.values():
        shared = [one for one in nodes if partners[one] == other]
        if len(shared) > 1:
            return _Plan(original, None, f"{' and '.join(shared)} share {other}", [], 0)
    mapped, reason = _renamed(original, partners)
    # Sources of one layer of A may have partners in several of B: each map keeps their layers.
    places: dict[tuple[int, bool], list[str]] = defaultdict(list)
    for name in nodes:
        places[_place(partners[name])].append(name)
    maps = (
        {name: other for key, chosen in zip(places, one, strict=True)
         for name, other in zip(places[key], chosen, strict=True)}
        for one in _assignments([(pools[key], len(names)) for key, names in places.items()],
                                most_maps, seed)
    )  # fmt: skip
    n_possible = prod(perm(len(pools[key]), len(names)) for key, names in places.items())
    return _Plan(original, mapped, reason, [_renamed(original, one)[0] for one in maps], n_possible)


def _nodes(hypothesis: CircuitHypothesis) -> list[str]:
    """The heads and MLPs that have to be mapped."""
    names = [node_of(name) for name in hypothesis.components]
    names += [end for edge in hypothesis.edges for end in (edge.source, edge.target)]
    names = [name for name in dict.fromkeys(names) if name not in (*EMBEDDINGS, LOGITS)]
    for name in names:
        if not is_head(name) and not is_mlp(name):
            raise ValueError(
                f"hypotheses: {name!r} of {str(hypothesis)!r} is neither a head nor an MLP; only "
                "these are mapped"
            )
    return names


def _renamed(
    original: CircuitHypothesis, names: Mapping[str, str]
) -> tuple[CircuitHypothesis | None, str]:
    """The same circuit of other components; None and why where there is none."""

    def renamed(name: str) -> str:
        node, role = split_role(name)
        return at_role(names.get(node, node), role)

    try:
        made = replace(
            original, components=tuple(map(renamed, original.components)), model="",
            edges=tuple(
                replace(edge, source=renamed(edge.source), target=renamed(edge.target))
                for edge in original.edges
            ),
        )  # fmt: skip
    except ValueError as error:
        return None, str(error)
    # One circuit, whatever order its parts are named in.
    return replace(
        made, components=tuple(sorted(made.components)), edges=tuple(sorted(made.edges))
    ), ""


def _assignments(
    pools: list[tuple[list[str], int]], most: int, seed: int
) -> Iterator[list[tuple[str, ...]]]:
    """Every choice of k members in order from each pool, or random ones, without repetition."""
    if prod(perm(len(pool), k) for pool, k in pools) <= most:
        yield from map(list, product(*(permutations(pool, k) for pool, k in pools)))
        return
    generator = np.random.default_rng(seed)

    def drawn() -> Iterator[tuple[tuple[str, ...], ...]]:
        while True:
            yield tuple(
                tuple(pool[i] for i in generator.permutation(len(pool))[:k]) for pool, k in pools
            )

    yield from map(list, islice(_each_once(drawn()), most))


def _each_once(drawn: Iterator[Any]) -> Iterator[Any]:
    seen = set()
    for one in drawn:
        if one not in seen:
            seen.add(one)
            yield one


def _summary(
    plans: list[_Plan],
    verdicts: Mapping[CircuitHypothesis, str],
    reasons: Mapping[CircuitHypothesis, str],
) -> xr.Dataset:
    width = max(1, *(len(plan.others) for plan in plans))
    circuits, words = (np.full((len(plans), width), "", dtype=object) for _ in range(2))
    rows: dict[str, list[Any]] = {
        key: [] for key in ("original", "mapped", "verdict", "reason", "chance", "n_maps")
    }
    for i, plan in enumerate(plans):
        for j, one in enumerate(plan.others):
            circuits[i, j] = "" if one is None else str(one)
            words[i, j] = NO_MAP if one is None else verdicts[one]
        n = len(plan.others)
        rows["original"].append(str(plan.original))
        rows["mapped"].append("" if plan.mapped is None else str(plan.mapped))
        rows["verdict"].append(NO_MAP if plan.mapped is None else verdicts[plan.mapped])
        rows["reason"].append(plan.reason if plan.mapped is None else reasons[plan.mapped])
        rows["chance"].append(_chance(plan, words[i, :n]))
        rows["n_maps"].append(n)
    carried = sum(verdict == SUPPORTED for verdict in rows["verdict"])
    data = xr.Dataset(
        {key: ("circuit", np.array(values)) for key, values in rows.items()}
        | {"n_possible": ("circuit", np.array([float(p.n_possible) for p in plans]))}
        | {"map_circuit": (("circuit", "map"), circuits.astype(str))}
        | {"map_verdict": (("circuit", "map"), words.astype(str))},
        attrs={
            "n_circuits": len(plans), "transfer_rate": carried / len(plans),
            "chance_rate": float(np.mean(rows["chance"])),
            "p": min(1.0, sum(rows["chance"]) / carried) if carried else 1.0,
        },
    )  # fmt: skip
    return stamped(data, "transfer")


def _chance(plan: _Plan, verdicts: Any) -> float:
    """The share of maps that are supported; of a sample of maps with the match's own beside it."""
    if not len(verdicts):
        return 0.0
    supported = int((verdicts == SUPPORTED).sum())
    if len(verdicts) == plan.n_possible:
        return supported / len(verdicts)
    return (1 + supported) / (1 + len(verdicts))
