"""Does data chosen for a wish bring the wish about? Predicted against realised change."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
import xarray as xr
from scipy import stats
from torch import Tensor

from lens_slt.arguments import number, typed
from lens_slt.arrays import FloatArray
from lens_slt.data.columns import moved_back
from lens_slt.data.weights import weighted_tokens
from lens_slt.models.adapter import adapt
from lens_slt.schema import require, stamped
from lens_slt.statistics import ENDS, error_of_mean, holm
from lens_slt.torch_state import plain_torch
from lens_slt.training.patterning import patterning
from lens_slt.training.retrainings import Measure, check_measured, later, reached, run_schedules

WISH, SHUFFLED, SURFACE = KINDS = ("wish", "shuffled", "surface")
USUAL = "usual"
TOGETHER = 8  # sequences with the same surface, among which weights are exchanged
STRENGTHS = (-1.0, -0.5, 0.5, 1.0)


@typed
@plain_torch
def verify_patterning(
    model: Any,
    tokens: Any,
    response: xr.Dataset,
    wish: Mapping[str, float],
    measure: Measure | Mapping[str, Any],
    *,
    steps: int,
    path: str | Path,
    like: Any = None,
    strengths: Sequence[float] = STRENGTHS,
    controls: Sequence[str] = (SHUFFLED, SURFACE),
    levels: Mapping[str, float] | None = None,
    hold_others: bool = False,
    seeds: Sequence[int] = (0, 1, 2),
    pad_id: int | None = None,
    parallel: Any = None,
    progress: bool = True,
    **options: Any,
) -> xr.Dataset:
    """Retrain on data chosen for a wish, over a ladder of strengths, with controls beside it.

    Changes are those against a run with the data as they are, of the same seed: so what all runs
    learn in the meantime, and the order of the data, are in neither. Controls are retrained at the
    lowest and the highest strength: ``shuffled`` weights, given to other sequences at random;
    ``surface``, exchanged among sequences of the same length and frequency of tokens only.

    The prediction is of a local posterior, to first order. A training run moves further, through
    other terrain, so that the slope of realised over predicted change need not be 1; what has to
    hold is its sign, and that the wish beats its controls in both directions.

    Args:
        model: the checkpoint that the response was sampled at.
        tokens: the candidates of the response, in its order; with ``like`` any data.
        response: from :func:`lens_slt.data_response`.
        wish: as for :func:`lens_slt.patterning`.
        measure: of a model, values of the response's observables by their names, and of whatever
            else; or probes by name, as for :func:`lens_slt.retrainings`.
        steps: updates of each retraining.
        path: folder of the retrainings; finished ones are not repeated.
        like: of a larger corpus than was sampled on, ints ``[sequence]``: the candidate whose
            weight each sequence of ``tokens`` gets, such as one of the same group (see ``groups``
            of :func:`lens_slt.data_response`). Few sequences are memorised in a few epochs, which
            no response foresees.
        strengths: of the change of weights; both signs show whether it works both ways. The
            strongest, of two the last, is the one that was wished for: the attribute ``strength``.
        controls: of ``shuffled`` and ``surface``.
        levels: by observable, a value whose reaching is a transition: how much earlier or later
            runs come beyond it.
        hold_others: as for :func:`lens_slt.patterning`.
        seeds: of the batches and of the controls; at least two.
        pad_id: the padding token.
        parallel, progress: as for :func:`lens_slt.retrainings`.
        **options: of :func:`lens_slt.retrain`.

    Returns:
        Dataset. Over (checkpoint, kind, strength, seed, observable): ``change`` against the usual
        run, NaN where there was none, with ``usual (checkpoint, seed, observable)``. At the last
        checkpoint: over (strength, observable) ``predicted`` and ``predicted_se``, for observables
        of the response, ``realised``, the mean of the wish's runs over seeds, and ``realised_se``;
        over observable ``slope``, realised over predicted through the origin, with its 95 %
        interval over seeds ``slope_low``, ``slope_high``, where a wish was made. Over (kind,
        strength): ``share``, the mean part of the wish (times the strength) that came true, and
        its ``share_se``; ``excess``, by how much the wish's share is above the control's,
        ``excess_se`` over seeds, ``z``, their ratio, ``p`` (one-sided t-test over seeds) and
        ``corrected_p`` (Holm, over all of them), NaN for the wish itself. Over (level, kind,
        strength, seed): ``sooner``, steps by which a level is reached before the usual run,
        negative if later; infinite where only one of the two reaches it, NaN where neither does.
        Over strength: ``clipped`` and ``effective_sequences``, as of :func:`lens_slt.patterning`.

    Raises:
        ValueError: other tokens than the response's, observables that are not measured, what
            :func:`lens_slt.patterning` and :func:`lens_slt.retrainings` refuse.

    Example:
        >>> import lens_slt as ls, tempfile
        >>> model, text = ls.load_model("attn-1l"), ls.load_tokens("mix", n_sequences=8, length=16)
        >>> how = dict(settings=ls.Settings(draws=20, chains=2, steps_per_draw=1), progress=False)
        >>> draws = ls.sample(model, text, "L0H0", probes={"mix": text}, **how)
        >>> response = ls.data_response(draws, "mix", {"mix": "mix"})
        >>> where = dict(steps=1, path=tempfile.mkdtemp(), seeds=[0, 1], progress=False)
        >>> goal = (response, {"mix": -0.01}, {"mix": ls.Probe(text)})  # wish, measure
        >>> found = ls.verify_patterning(model, text, *goal, strengths=[1], **where)
        >>> found["share"].dims
        ('kind', 'strength')
    """
    response = require(response, "data_response", argument="response")
    ladder = _checked(strengths, controls, seeds)
    ids, real, place = _candidates(model, tokens, response, like, pad_id)
    check_measured(model, measure, wish=wish, levels=levels or {})
    chosen = {
        s: patterning(response, wish, strength=s, hold_others=hold_others) for s in ladder
    }  # fmt: skip
    weights = {s: one["weight"].values[place] for s, one in chosen.items()}
    runs: dict[str, dict[int, Any]] = {USUAL: dict.fromkeys(seeds)}
    runs |= {_name(WISH, s): dict.fromkeys(seeds, weights[s]) for s in ladder}
    runs |= {
        _name(kind, s): {seed: exchanged(weights[s], ids, real, kind, seed) for seed in seeds}
        for kind in controls for s in sorted({ladder[0], ladder[-1]})
    }  # fmt: skip
    whole = run_schedules(
        model, tokens, runs, measure, steps=steps, path=path, pad_id=pad_id, parallel=parallel,
        progress=progress, **options,
    )  # fmt: skip
    asked = max(reversed(strengths), key=abs)  # of two as strong the last
    found = _summary(whole, chosen, wish, controls, levels or {}).assign_attrs(strength=asked)
    return stamped(found, "patterning_check")


def exchanged(weight: FloatArray, ids: Tensor, real: Tensor, kind: str, seed: int) -> FloatArray:
    """The weights of other sequences: any, or one of the same length and frequency of tokens.

    Of ``surface``, sequences are ordered by length and then by the mean log frequency of their
    tokens, and weights are shuffled among eight neighbours. Tokens that are not ``real [sequence,
    position]`` are in neither.
    """
    generator = np.random.default_rng([seed, KINDS.index(kind)])
    if kind == SHUFFLED:
        return generator.permutation(weight)
    rows, there = ids.numpy(), real.numpy()
    frequency = np.log(np.bincount(rows[there], minlength=int(rows.max()) + 1).clip(1))
    length = there.sum(1)
    mean = (frequency[rows] * there).sum(1) / length.clip(1)
    order = np.lexsort((mean, length))
    made = np.empty_like(weight)
    for first in range(0, len(order), TOGETHER):
        group = order[first : first + TOGETHER]
        made[group] = weight[generator.permutation(group)]
    return made


def _name(kind: str, strength: float) -> str:
    return f"{kind} {strength:+g}"


def _checked(
    strengths: Sequence[float], controls: Sequence[str], seeds: Sequence[int]
) -> list[float]:
    for i, s in enumerate(strengths):
        number(f"strengths[{i}]", s)
        if s == 0 or strengths.count(s) > 1:
            raise ValueError(f"strengths must be other than 0, each once; got {s:g}")
    if not strengths:
        raise ValueError("strengths must hold at least one; got none")
    wrong = [c for c in controls if c not in KINDS[1:]]
    if wrong:
        raise ValueError(f"controls must be among {', '.join(KINDS[1:])}; got {wrong[0]!r}")
    if len(seeds) < 2:
        raise ValueError(f"seeds must be at least two, for intervals; got {len(seeds)}")
    return sorted(strengths)


def _candidates(
    model: Any, tokens: Any, response: xr.Dataset, like: Any, pad_id: int | None
) -> tuple[Tensor, Tensor, np.ndarray]:
    """Tokens, which of them are text, and the candidate that each sequence is weighted as."""
    adapted = adapt(model)
    ids, weight, shift = weighted_tokens(
        tokens, d_vocab=adapted.d_vocab, d_vocab_out=adapted.d_vocab_out, n_ctx=adapted.n_ctx,
        model=model, pad_id=pad_id,
    )  # fmt: skip
    counts = weight > 0
    # The first token of a sequence is read, though nothing predicts it.
    real = torch.cat([counts.any(1, keepdim=True), counts], 1)
    n = response.sizes["sequence"]
    if like is not None:
        place = np.asarray(like)
        if place.shape != (len(ids),) or place.dtype.kind not in "iu" or not (
            (place >= 0) & (place < n)
        ).all():  # fmt: skip
            raise ValueError(
                f"like must be ints from 0 to {n - 1}, one for each of the {len(ids)} sequences of "
                f"tokens; got {place.dtype} of shape {place.shape}"
            )
        return ids, real, place
    predicted = moved_back(torch.where(counts, ids[:, 1:], 0), shift).numpy()
    there = response["tokens"].values
    if predicted.shape != there.shape or (predicted != there).any():
        raise ValueError(
            "tokens must be the candidates that response is of, in its order; got "
            f"{len(ids)} sequences of {ids.shape[1]} tokens"
            + ("" if predicted.shape != there.shape else " that are others")
        )
    return ids, real, np.arange(n)


def _summary(
    whole: xr.Dataset,
    chosen: Mapping[float, xr.Dataset],
    wish: Mapping[str, float],
    controls: Sequence[str],
    levels: Mapping[str, float],
) -> xr.Dataset:
    strengths, kinds = list(chosen), [WISH, *controls]
    there = [str(run) for run in whole["run"].values]
    usual = whole["value"].sel(run=USUAL)
    steps = reached(whole, levels)["step"].values  # [level, run, seed]
    n_steps, *rest = usual.shape
    change = np.full((n_steps, len(kinds), len(strengths), *rest), np.nan)
    sooner = np.full((len(levels), len(kinds), len(strengths), usual.sizes["seed"]), np.nan)
    for i, kind in enumerate(kinds):
        for j, s in enumerate(strengths):
            if _name(kind, s) in there:
                place = there.index(_name(kind, s))
                change[:, i, j] = (whole["value"].isel(run=place) - usual).values
                sooner[:, i, j] = -later(steps[:, place], steps[:, there.index(USUAL)])
    names = [str(name) for name in whole["observable"].values]
    predicted, errors = (_of_response(chosen, key, names) for key in ("predicted", "predicted_se"))
    last = change[-1]  # [kind, strength, seed, observable]
    wished = np.array([wish.get(name, 0.0) for name in names])
    inside = wished != 0
    part = last[..., inside] @ wished[inside] / (wished @ wished)  # [kind, strength, seed]
    part = part / np.array(strengths)[:, None]
    excess = part[:1] - part
    excess[0] = np.nan
    columns: dict[str, Any] = {
        "change": (("checkpoint", "kind", "strength", "seed", "observable"), change),
        "usual": (("checkpoint", "seed", "observable"), usual.values),
        "predicted": (("strength", "observable"), predicted),
        "predicted_se": (("strength", "observable"), errors),
        "sooner": (("level", "kind", "strength", "seed"), sooner),
    }
    realised = last[0]
    over = ("strength", "observable")
    columns["realised"] = over, realised.mean(1)
    columns["realised_se"] = over, error_of_mean(realised, 1)
    for key, values in _slopes(predicted, realised, wished != 0).items():
        columns[key] = ("observable", values)
    columns |= _shares(part, excess)
    for key in ("clipped", "effective_sequences"):
        columns[key] = ("strength", [one.attrs[key] for one in chosen.values()])
    coords = {
        "kind": kinds, "strength": strengths, "seed": whole["seed"].values, "observable": names,
        "checkpoint": whole["checkpoint"].values, "level": list(levels),
        "wish": ("observable", [wish.get(name, np.nan) for name in names]),
    }  # fmt: skip
    about = {"steps": int(whole["checkpoint"][-1] - whole["checkpoint"][0])}
    return xr.Dataset(columns, coords, about | {"path": whole.attrs["path"]})


def _shares(part: FloatArray, excess: FloatArray) -> dict[str, Any]:
    """Of the wish that came true, and above the controls: ``[kind, strength, seed]`` over seeds."""
    over = ("kind", "strength")
    se = error_of_mean(excess, -1)
    with np.errstate(divide="ignore", invalid="ignore"):
        z = excess.mean(-1) / se
    p = stats.t.sf(z, part.shape[-1] - 1)
    return {
        "share": (over, part.mean(-1)), "share_se": (over, error_of_mean(part, -1)),
        "excess": (over, excess.mean(-1)), "excess_se": (over, se), "z": (over, z),
        "p": (over, p), "corrected_p": (over, holm(p.ravel()).reshape(p.shape)),
    }  # fmt: skip


def _of_response(chosen: Mapping[float, xr.Dataset], key: str, names: Sequence[str]) -> FloatArray:
    """``[strength, observable]``, NaN for what the response has not."""
    return np.array([one[key].reindex(observable=list(names)).values for one in chosen.values()])


def _slopes(
    predicted: FloatArray, realised: FloatArray, wished: np.ndarray
) -> dict[str, FloatArray]:
    """Through the origin, of every seed; their mean and its interval."""
    with np.errstate(divide="ignore", invalid="ignore"):
        each = (predicted[:, None] * realised).sum(0) / (predicted**2).sum(0)  # [seed, observable]
    each = np.where(wished, each, np.nan)
    n = len(each)
    half = stats.t.ppf(ENDS[1], n - 1) * error_of_mean(each, 0)
    mean = each.mean(0)
    return {"slope": mean, "slope_low": mean - half, "slope_high": mean + half}
