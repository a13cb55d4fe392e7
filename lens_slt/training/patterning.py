"""Which weights of the data would bring about a wished change of observables."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import xarray as xr

from lens_slt.arguments import number, typed
from lens_slt.arrays import FloatArray
from lens_slt.schema import require, stamped
from lens_slt.statistics import error_of_mean


@typed
def patterning(
    response: xr.Dataset,
    wish: Mapping[str, float],
    *,
    strength: float = 1.0,
    hold_others: bool = False,
) -> xr.Dataset:
    r"""Weights of the data from a wish, by noise-aware inversion of its response.

    With the response R and its standard errors s, the change h of the weights minimises the
    expected square of what is missed, over the noise of R:

    .. math:: ‖R·h − Δ‖² + λ·Σ_j n_j h_j², \quad λ = Σ_o mean_j s_{oj}²

    (n_j: how many share one value and error, see ``groups`` of :func:`lens_slt.data_response`)
    over the observables that are wished for (and with ``hold_others`` all others, with Δ = 0). So
    directions of the data in which R is mostly noise are not used, and the change that is
    predicted is smaller than the wish. Weights 1 + strength·h are cut off at 0.

    The prediction is cross-fitted: h from one half of the draws, R from the other, so that it does
    not profit from the noise that h was fitted to. It is first order: how far it holds shows only
    by training (:func:`lens_slt.retrain`) over a ladder of strengths, with shuffled weights beside.

    Patterning (arXiv 2601.13548).

    Args:
        response: from :func:`lens_slt.data_response`.
        wish: change of observables, by name, in their units.
        strength: of the change of weights; −1 is its opposite.
        hold_others: whether observables that are not wished for are to stay.

    Returns:
        Dataset. Over sequence: ``weight``, with mean 1, and ``change`` h. Over observable: ``wish``
        (NaN for none); ``predicted``, cross-fitted, the mean of both ways, whose larger noise makes
        it a little less than these weights bring about; its standard error ``predicted_se``;
        ``side_effect``: not wished for, and beyond two standard errors. Attributes
        ``condition_number`` of the rows that are inverted; ``clipped``, the share of the weight
        that the cut took away; ``effective_sequences``, (Σρ)²/Σρ²; ``duplicates``, candidates whose
        predicted tokens are those of an earlier one, whose weight is spread over all of them;
        ``shrinkage``, the predicted part of the wish.

    Raises:
        ValueError: a wish for what is no observable, or for no change; a response that is zero.

    Example:
        >>> import lens_slt as ls
        >>> model, text = ls.load_model("attn-1l"), ls.load_tokens("mix", n_sequences=8, length=16)
        >>> how = dict(settings=ls.Settings(draws=20, chains=2, steps_per_draw=1), progress=False)
        >>> probes = {"mix": text, "code": ls.load_tokens("code", n_sequences=4, length=16)}
        >>> draws = ls.sample(model, text, "L0H0", probes=probes, **how)
        >>> response = ls.data_response(draws, "mix", {"code": "code"})
        >>> round(ls.patterning(response, {"code": -0.01})["weight"].mean().item(), 3)
        1.0
    """
    response = require(response, "data_response", argument="response")
    number("strength", strength)
    if strength == 0:
        raise ValueError("strength must not be 0: nothing would change; got 0")
    names = [str(name) for name in response["observable"].values]
    _check_wish(wish, names)
    chosen = [i for i, name in enumerate(names) if hold_others or name in wish]
    target = np.array([wish.get(names[i], 0.0) for i in chosen])
    r, se = (response[key].values.astype(np.float64) for key in ("response", "se"))
    blocks = response["blocks"].values.astype(np.float64)
    sizes = response["group_size"].values
    h = _inverted(r[chosen], se[chosen], sizes, target)
    if not np.any(h):
        raise ValueError("response is zero for all that is wished: no data move it")
    rho, clipped = _weights(strength * h)
    half = len(blocks) // 2
    predicted, variance = np.zeros(len(names)), np.zeros(len(names))
    for fitted, seen in ((blocks[:half], blocks[half:]), (blocks[half:], blocks[:half])):
        error = error_of_mean(fitted)
        own = _inverted(fitted.mean(0)[chosen], error[chosen], sizes, target)
        change = _weights(strength * own)[0] - 1
        effects = seen @ change  # [block, observable]
        predicted += effects.mean(0) / 2
        variance += effects.var(0, ddof=1) / len(seen) / 4
    errors = np.sqrt(variance)
    wished = np.array([wish.get(name, np.nan) for name in names])
    values = np.linalg.svd(r[chosen], compute_uv=False)
    inside = [i for i, name in enumerate(names) if name in wish]
    aim = strength * wished[inside]
    data = xr.Dataset(
        {
            "weight": ("sequence", rho), "change": ("sequence", h),
            "wish": ("observable", wished), "predicted": ("observable", predicted),
            "predicted_se": ("observable", errors),
            "side_effect": (
                "observable", np.isnan(wished) & (np.abs(predicted) > 2 * errors)
            ),
        },
        coords={"sequence": response["sequence"].values, "observable": names},
        attrs={
            "strength": strength, "condition_number": float(values[0] / values[-1]),
            "clipped": clipped, "effective_sequences": float(rho.sum() ** 2 / (rho**2).sum()),
            "duplicates": _duplicates(response["tokens"].values),
            "shrinkage": float(predicted[inside] @ aim / (aim @ aim)),
            "component": response.attrs["component"],
            "certificate": response.attrs["certificate"],
        },
    )  # fmt: skip
    return stamped(data, "patterning")


def _check_wish(wish: Mapping[str, float], names: list[str]) -> None:
    for name, value in wish.items():
        if name not in names:
            raise ValueError(f"wish: {name!r} is no observable of the response: {', '.join(names)}")
        number(f"wish[{name!r}]", value)
    if not any(wish.values()):
        raise ValueError("wish must ask for a change: at least one number that is not 0")


def _inverted(r: FloatArray, se: FloatArray, sizes: FloatArray, target: FloatArray) -> FloatArray:
    """The change of weights ``[sequence]`` that misses the target least over the noise of r.

    All of a group have one error, so that theirs add up: each costs as much as its group.
    """
    ridge = float((se**2).mean(1).sum())
    cheap = r / sizes
    gram = cheap @ r.T + ridge * np.eye(len(r))
    return np.asarray(cheap.T @ np.linalg.lstsq(gram, target, rcond=None)[0])


def _weights(change: FloatArray) -> tuple[FloatArray, float]:
    """Weights with mean 1, and the share of the weight that the cut at 0 took away."""
    raw = 1 + change - change.mean()
    cut = np.maximum(raw, 0)
    return cut / cut.mean(), float((cut - raw).sum() / len(raw))


def _duplicates(tokens: np.ndarray) -> str:
    """Candidates that are the same as an earlier one: "7 is 2, …"."""
    first: dict[bytes, int] = {}
    found = []
    for i, row in enumerate(np.ascontiguousarray(tokens)):
        earlier = first.setdefault(row.tobytes(), i)
        if earlier != i:
            found.append(f"{i} is {earlier}")
    return ", ".join(found)
