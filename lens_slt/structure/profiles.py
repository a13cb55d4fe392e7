"""What one measurement says of every component of a model, on one scale for matching."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import xarray as xr

from lens_slt.arrays import BoolArray, FloatArray
from lens_slt.observables.per_token import correlation, of_both_halves
from lens_slt.schema import require
from lens_slt.schemas import MATRICES
from lens_slt.structure.standardize import halves, scaled, values_of

KINDS = (*MATRICES, "attention_patterns", "behaviour_scores", "refined_llc")
SCORES = (
    "previous_token", "current_token", "first_token", "duplicate_token", "prefix_matching",
    "induction", "ngram", "skip_gram", "copying",
)  # fmt: skip
FLOOR = 0.2  # of reliability, below which a column is noise
OPPOSED = 0.2  # of the largest loading: no component has more against a mode that all share


@dataclass(frozen=True)
class Profile:
    """Values of every component, and what they are of.

    Attributes:
        kind: the result that it is of.
        values: ``[sequence, feature, component]``, where sequences may be permuted as wholes; one
            sequence where there is none. Missing ones are 0, in every component alike.
        labels: what has to be the same in both models, by name.
        reliability: ``[component]``, between 0 and 1; 1 where a repetition gives the same.
    """

    kind: str
    names: list[str]
    values: FloatArray
    labels: dict[str, FloatArray]
    reliability: FloatArray

    @property
    def is_noise(self) -> BoolArray:
        """``[component]``."""
        return np.asarray(self.reliability < FLOOR)

    @property
    def has_sequences(self) -> bool:
        return self.values.shape[0] > 1


def profile(result: xr.Dataset, argument: str) -> Profile:
    """Of any of ``KINDS``; raises TypeError for another result."""
    require(result, *KINDS, argument=argument, leading=("checkpoint",))
    kind = str(result.attrs["result"])
    if result.sizes["component"] < 2:
        raise ValueError(
            f"{argument} has one component, of which nothing can be told from what all share: give "
            "at least two"
        )
    made: dict[str, Callable[[xr.Dataset], Profile]] = {
        "attention_patterns": _of_attention, "behaviour_scores": _of_behaviour,
        "refined_llc": _of_trajectory,
    }  # fmt: skip
    return made.get(kind, _of_matrix)(result)


def _of_matrix(matrix: xr.Dataset) -> Profile:
    """Per-token values, less what all components share, on a grid of sequences and positions."""
    names = [str(name) for name in matrix["component"].values]
    weight = np.ones(matrix.sizes["token"])
    x, *parts = (
        scaled(values_of(part), weight, centre_rows=False) for part in (matrix, *halves(matrix))
    )
    shared = _shared_by_all(x)
    x, *parts = (part - np.outer(part @ shared, shared) for part in (x, *parts))
    r = [correlation(one, other) for one, other in zip(*(part.T for part in parts), strict=True)]
    where = [matrix[key].values for key in ("sequence", "position", "token_id")]
    sequences, place = np.unique(where[0], return_inverse=True)
    grid = np.zeros((len(sequences), int(where[1].max()) + 1, len(names)))
    ids = np.full(grid.shape[:2], -1)
    grid[place, where[1]], ids[place, where[1]] = x, where[2]
    reliability = np.clip(np.nan_to_num([of_both_halves(one) for one in r]), 0, 1)
    return Profile(matrix.attrs["result"], names, grid, {"tokens": ids}, reliability)


def _shared_by_all(x: FloatArray) -> FloatArray:
    """Loadings of the leading mode of ``x [token, component]`` if all share it, else zeros.

    Taking away each token's mean instead would give a column of noise the others' signal.
    """
    vector: FloatArray = np.linalg.eigh(x.T @ x)[1][:, -1]
    vector = vector * np.sign(vector.sum())
    return vector if vector.min() > -OPPOSED * vector.max() else np.zeros_like(vector)


def _of_attention(found: xr.Dataset) -> Profile:
    """Attention to every earlier token, less its mean over heads."""
    names = [str(name) for name in found["component"].values]
    attention = found["attention"].transpose("sequence", "query", "key", "component").values
    below = np.tril_indices(attention.shape[1])
    values = np.nan_to_num(attention[:, below[0], below[1]].astype(np.float64))
    values = values - values.mean(-1, keepdims=True)
    ids = found["token_id"].transpose("sequence", "query").values
    return Profile("attention_patterns", names, values, {"tokens": ids}, np.ones(len(names)))


def _of_behaviour(scores: xr.Dataset) -> Profile:
    """Scores that both models have, each on the scale of its spread over heads."""
    names = [str(name) for name in scores["component"].values]
    rows: FloatArray = np.array([scores[name].values for name in SCORES], dtype=np.float64)
    known: BoolArray = np.asarray(np.isfinite(rows).all(1))
    rows = scaled(np.where(known[:, None], rows, 0.0).T, np.ones(len(names)), centre_rows=False).T
    return Profile(
        "behaviour_scores", names, rows[None], {"scores": known[None].astype(float)},
        np.ones(len(names)),
    )  # fmt: skip


def _of_trajectory(curves: xr.Dataset) -> Profile:
    """λ̂ over checkpoints, less the mean of all components; the error gives its reliability."""
    if "checkpoint" not in curves.dims:
        raise ValueError(
            "refined LLCs are matched by their course over checkpoints: pass those of develop, "
            'found["refined_llc"].to_dataset()'
        )
    names = [str(name) for name in curves["component"].values]
    llc, se = (curves[key].transpose("checkpoint", "component").values for key in ("llc", "se"))
    if not np.isfinite(llc).all() or not np.isfinite(se).all():
        raise ValueError("λ̂ over checkpoints has values that are not finite: leave them out")
    x = llc - llc.mean(1, keepdims=True)
    x = x - x.mean(0)  # the course, not the level
    spread = x.var(0)
    share = (se**2).mean(0) / np.where(spread > 0, spread, 1)
    reliability = np.where(spread > 0, np.clip(1 - share, 0, 1), 0.0)
    steps = curves["checkpoint"].values.astype(float)
    return Profile("refined_llc", names, x[None], {"checkpoints": steps[None]}, reliability)
