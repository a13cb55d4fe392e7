"""How much of a behaviour growing circuits recover: MIB's faithfulness curve with CPR and CMD."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import xarray as xr
from numpy.typing import NDArray
from scipy.integrate import trapezoid

from lens_slt.arguments import integer, typed
from lens_slt.arrays import FloatArray
from lens_slt.circuits.interventions import in_parts
from lens_slt.circuits.replacements import Ablation
from lens_slt.circuits.roles import nodes_of
from lens_slt.circuits.runs import Runs
from lens_slt.circuits.statistics import Contrast
from lens_slt.data.patterns import checked_pattern
from lens_slt.models.adapter import adapt
from lens_slt.schema import stamped
from lens_slt.statistics import rank_p
from lens_slt.torch_state import plain_torch

MOST_SIZES = 9  # of circuits along a curve


@typed
@plain_torch
def faithfulness_curve(
    model: Any,
    tokens: Any,
    pattern: Any,
    ranking: Sequence[str],
    *,
    outside: str = "heads",
    roles: Mapping[str, Any] | None = None,
    how: str | Ablation = "auto",
    metric: Any = None,
    n_random: int = 20,
    weights: Any = None,
    mask: Any = None,
    pad_id: int | None = None,
    seed: int = 0,
) -> xr.Dataset:
    """Faithfulness of the first 0, 1, 2, … components of a ranking (Mueller et al. 2504.13151).

    Faithfulness is (L_∅ − L_C) / (L_∅ − L), with L the loss of the pattern's tokens in the whole
    model, L_C with all but the circuit ablated, L_∅ with everything ablated: 1 is the model's loss.
    CPR is the area under the curve over the share of components, CMD the area between it and 1.

    Args:
        model: HookedTransformer or TransformerBridge.
        tokens: ``[sequence, position]``.
        pattern: bool ``[sequence, position - 1]``, true where the predicted token counts.
        ranking: components, the most important first; those not named follow in random order. A
            node that is named at roles counts as one for each and one for the rest.
        outside, roles, how, metric, weights, mask, pad_id: as in :func:`lens_slt.keep_only`.
        n_random: random rankings that the ranking is compared with.
        seed: of the rankings, and of ``how="resample"``.

    Returns:
        Dataset over ``size`` (number of heads and MLPs kept): ``faithfulness``, with ``low`` and
        ``high`` (95 %, over sequences), ``random`` (random_ranking, size); scalars ``cpr``, ``cmd``
        and ``cpr_p``, ``cmd_p``, their ranks among random rankings.

    Raises ValueError where ablating everything does not raise the loss of these tokens, and for
    components of the ranking that are never ablated, such as embeddings, or MLPs without
    ``outside="all"``.

    Example:
        >>> import lens_slt as ls
        >>> model, text = ls.load_model("attn-2l"), ls.load_tokens("mix", n_sequences=16)
        >>> repeats = ls.label_patterns(text).sel(pattern="induction")
        >>> curve = ls.faithfulness_curve(model, text, repeats, ["L1H2", "L0H2"], n_random=2)
        >>> curve["faithfulness"].values[[0, -1]].round(3)  # of no head, of all of them
        array([0., 1.])
    """
    integer("n_random", n_random, at_least=1)
    integer("seed", seed, at_least=0)
    how = Ablation.of(how, seed)
    runs = Runs(
        adapt(model), tokens, how, weights=weights, mask=mask, pad_id=pad_id, metric=metric,
        roles=roles,
    )  # fmt: skip
    chosen = checked_pattern(pattern, runs.real.shape, "pattern")
    contrast = Contrast(runs.base, runs.moved(chosen), weights=runs.weight, seed=seed)
    order: dict[str, None] = {}
    for component in ranking:
        order |= dict.fromkeys(sorted(nodes_of([component], runs.adapted, "ranking")))
    return curve(runs, contrast, list(order), outside, n_random, seed)


def curve(
    runs: Runs, contrast: Contrast, first: list[str], outside: str, n_random: int, seed: int
) -> xr.Dataset:
    """The curve of runs that are there already."""
    universe = sorted(in_parts(first, runs, outside))
    never = sorted(set(first) - set(universe))
    if never:
        raise ValueError(
            f"ranking: with outside={outside!r} these are never ablated, and keeping them is "
            f"nothing: {', '.join(never)}; leave them out, or pass outside='all' for MLPs"
        )
    generator = np.random.default_rng(seed)
    rest = [node for node in universe if node not in first]
    ranking = [*first, *(rest[i] for i in generator.permutation(len(rest)))]
    empty = runs.loss(frozenset(universe))
    whole = empty - runs.base
    if not contrast.on_pattern(whole).low > 0:
        raise ValueError(
            "pattern: ablating everything does not raise the loss of its tokens, so there is "
            "nothing to be faithful to"
        )
    n = len(universe)
    sizes = _sizes(n)

    def recovered(order: list[str], size: int) -> FloatArray:
        return empty - runs.loss(frozenset(universe) - frozenset(order[:size]))

    along = [contrast.share(recovered(ranking, int(size)), whole) for size in sizes]
    values = np.array([found.value for found in along])
    random = []
    for _ in range(n_random):
        order = [universe[i] for i in generator.permutation(n)]
        random.append([contrast.share_value(recovered(order, int(size)), whole) for size in sizes])
    null = np.array(random).reshape(n_random, len(sizes))
    cpr, cmd = _areas(sizes, values)
    null_cpr, null_cmd = _areas(sizes, null)
    found = xr.Dataset(
        {
            "faithfulness": ("size", values),
            "low": ("size", [found.low for found in along]),
            "high": ("size", [found.high for found in along]),
            "random": (("random_ranking", "size"), null),
            "cpr": float(cpr),
            "cmd": float(cmd),
            "cpr_p": rank_p(float(cpr), null_cpr),
            "cmd_p": rank_p(-float(cmd), -null_cmd),
        },
        coords={"size": sizes},
        attrs={"ranking": ", ".join(ranking), "how": runs.how},
    )
    return stamped(found, "faithfulness_curve")


def _sizes(n: int) -> NDArray[np.int_]:
    if n < MOST_SIZES:
        return np.arange(n + 1)
    grown = np.geomspace(1, n, MOST_SIZES - 1).round().astype(int)
    return np.unique(np.concatenate([[0], grown, [n]]))


def _areas(sizes: NDArray[np.int_], values: FloatArray) -> tuple[FloatArray, FloatArray]:
    """Area under a curve, and between it and one, over the share of components."""
    share = sizes / sizes[-1]
    return trapezoid(values, share), trapezoid(np.abs(1 - values), share)
