"""Modes of all checkpoints held against those of the last: when each appears.

Modes of two checkpoints are matched by what they load on and which tokens they score: the product
of the cosine of their loadings and the correlation of their scores over tokens, which no choice of
signs changes. Spans of several modes are compared by their largest principal angle.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import xarray as xr
from scipy.optimize import linear_sum_assignment

from lens_slt.arguments import integer, typed
from lens_slt.arrays import BoolArray, FloatArray
from lens_slt.development.cells import FINISHED, MATRIX
from lens_slt.development.curves import CHECKPOINT
from lens_slt.development.develop import open_checkpoint
from lens_slt.development.onsets import first_lasting
from lens_slt.sampling.folder import folder_of
from lens_slt.schema import require, stamped
from lens_slt.schemas import MATRICES
from lens_slt.statistics import CONFIDENCE, ENDS
from lens_slt.structure.modes import NOISE, SPARE, STABLE_ANGLE, Decomposition, span_angle
from lens_slt.structure.standardize import scaled, standardized, values_of

STABLE_CORRELATION = 0.5  # over tokens
APPEARS, FROM_START = "appears", "from the first checkpoint"


@dataclass(frozen=True)
class Matched:
    """Modes of one checkpoint in the order and with the signs of those of the last."""

    loading: FloatArray  # [component, mode]
    angle: FloatArray  # [mode] degrees between loadings
    correlation: FloatArray  # [mode] of scores over tokens, with these signs
    loading_span: FloatArray  # [mode] degrees between the spans of all modes up to it
    token_span: FloatArray
    explained: FloatArray

    @property
    def there(self) -> BoolArray:
        """Whether a mode is the same as the last one's."""
        return (self.angle < STABLE_ANGLE) & (self.correlation > STABLE_CORRELATION)


def match_modes(
    one: Decomposition, last: Decomposition, weight: FloatArray, n_modes: int
) -> Matched:
    """Modes of a checkpoint matched to the first ``n_modes`` of the last, over the same tokens.

    Args:
        one, last: of matrices with the same components and tokens.
        weight: ``[token]``, how often each counts.
        n_modes: of the last; a few more of the other are candidates.
    """
    candidates = one.vectors[:, : n_modes + SPARE]
    vectors = last.vectors[:, :n_modes]
    cosine = vectors.T @ candidates
    weight = weight / weight.sum()
    here, there = (
        scaled(x, weight, centre_rows=False) for x in (one.x @ candidates, last.x @ vectors)
    )
    correlation = (there * weight[:, None]).T @ here
    rows, columns = linear_sum_assignment(-cosine * correlation)
    sign = np.where(cosine[rows, columns] < 0, -1.0, 1.0)
    loading_span, token_span = (
        np.array([span_angle(overlap[:m, :m]) for m in range(1, n_modes + 1)])
        for overlap in (cosine, correlation)
    )
    return Matched(
        candidates[:, columns] * sign,
        np.degrees(np.arccos(np.minimum(np.abs(cosine[rows, columns]), 1))),
        correlation[rows, columns] * sign, loading_span, token_span, one.explained[columns],
    )  # fmt: skip


@typed
def mode_development(
    matrices: Mapping[int, xr.Dataset] | str | Path,
    probe: str | None = None,
    *,
    n_modes: int = 4,
    centre_rows: bool = False,
    n_bootstrap: int = 50,
    seed: int = 0,
) -> xr.Dataset:
    """The modes of the last checkpoint at all others, and when each appears.

    A mode is there where its matched mode's loadings are within 30 degrees and its scores over
    tokens correlate by more than 0.5. It appears at the first checkpoint from which it is there at
    all later ones. The bootstrap resamples blocks of draws and whole sequences, the same at every
    checkpoint, and holds each against the last checkpoint as it was measured.

    Args:
        matrices: by training step, from :func:`lens_slt.per_token_llc` or
            :func:`lens_slt.susceptibility` with the same components and tokens; or the ``path`` of
            :func:`lens_slt.develop`, of which one checkpoint is in memory at a time.
        probe: of a path, where there are several.
        n_modes: of the last checkpoint; at most the number of components.
        centre_rows: as for :func:`lens_slt.modes`.
        n_bootstrap: resamples; 0 for none.
        seed: of the bootstrap.

    Returns:
        Dataset. Over mode: ``step`` of the first checkpoint from which it is there, NaN for a mode
        that may be noise; ``step_low`` and ``step_high`` (95 %; the low one is the checkpoint
        before, since which it may have come); ``support``, the share of resamples in which it is
        there at the last checkpoint; ``verdict``: ``appears``, ``from the first checkpoint``, or
        ``may be noise``, where that share is under 95 %. By checkpoint: ``angle`` between loadings
        in degrees, ``correlation`` of scores, each with ``_low`` and ``_high``; ``explained``;
        ``loading_span_angle`` and ``token_span_angle``, the largest principal angles between the
        spans of all modes up to this one, which tell modes that mix from modes that are not there;
        ``loading``, matched and with the last one's sign. ``score`` of the last checkpoint.

    Raises:
        TypeError, ValueError: fewer than two checkpoints, other components or tokens, columns that
            are not finite or constant (the step is named), no such probe.
        OSError: the folder cannot be read.

    Example:
        >>> import lens_slt as ls
        >>> run, tokens = ls.checkpoints("attn-2l"), ls.load_tokens("mix", n_sequences=8, length=16)
        >>> few = ls.Settings(draws=12, chains=2, burn_in=4, steps_per_draw=1)
        >>> sampled = {
        ...     step: ls.sample(
        ...         run.load(step),
        ...         tokens,
        ...         "L1H*",
        ...         settings=few,
        ...         probes={"mix": tokens},
        ...         progress=False,
        ...     )
        ...     for step in (1000, 2900)
        ... }
        >>> matrices = {step: ls.per_token_llc(draws) for step, draws in sampled.items()}
        >>> ls.mode_development(matrices, n_bootstrap=5)["angle"].dims
        ('checkpoint', 'mode')
    """
    integer("n_modes", n_modes, at_least=1)
    integer("n_bootstrap", n_bootstrap, at_least=0)
    integer("seed", seed, at_least=0)
    series = _Series.of(matrices, probe)
    last = series.matrix(series.steps[-1])
    k = min(n_modes, last.sizes["component"])
    resampled = _Resampling.of(last, n_bootstrap, seed, centre_rows)
    reference = resampled.measured(last)
    rows = []
    for step in series.steps:
        matrix = series.matrix(step, like=last)
        try:
            standardized(matrix, centre_rows=centre_rows)
        except ValueError as error:
            raise ValueError(f"at step {step}: {error}") from None
        rows.append(
            [match_modes(one, reference, w, k) for one, w in resampled.decompositions(matrix)]
        )
    return _result(series.steps, rows, reference, last, k, centre_rows)


@dataclass(frozen=True)
class _Series:
    """Matrices by step, in memory or in the folder of a sweep."""

    steps: tuple[int, ...]
    load: Callable[[int], xr.Dataset]

    @classmethod
    def of(cls, matrices: Any, probe: str | None) -> _Series:
        if not isinstance(matrices, Mapping):
            series = cls._of_folder(folder_of(matrices), probe)
        elif probe is not None:
            raise ValueError("probe is for a path; the matrices given are of one each")
        else:
            series = cls(tuple(sorted(matrices)), matrices.__getitem__)
        if len(series.steps) < 2:
            raise ValueError(
                f"matrices must be of at least two checkpoints; got {len(series.steps)}"
            )
        return series

    @classmethod
    def _of_folder(cls, folder: Path, probe: str | None) -> _Series:
        places = [file.parent for file in sorted(folder.glob(f"step-*/{FINISHED}"))]
        files = [file for place in places for file in place.glob(f"{MATRIX}-*.zarr")]
        names = sorted({file.stem.removeprefix(f"{MATRIX}-") for file in files})
        if probe is None and len(names) == 1:
            probe = names[0]
        if probe not in names:
            raise ValueError(
                f"probe must be one whose per-token rLLCs are in {str(folder)!r} "
                f"({', '.join(names) or 'none'}); got {probe!r}"
            )
        node = f"{MATRIX}/{probe}"
        steps = tuple(int(place.name.removeprefix("step-")) for place in places)
        return cls(steps, lambda step: open_checkpoint(folder, step)[node].load())

    def matrix(self, step: int, like: xr.Dataset | None = None) -> xr.Dataset:
        found = require(self.load(step), *MATRICES, argument=f"matrices[{step}]")
        for key in ("component", "sequence", "position", "token_id"):
            if like is not None and not np.array_equal(found[key].values, like[key].values):
                raise ValueError(
                    f"matrices[{step}] has other {key}s than the last checkpoint: measure all with "
                    "the same components and probe"
                )
        return found


@dataclass(frozen=True)
class _Resampling:
    """Blocks of draws and sequences that are drawn again, alike for all checkpoints."""

    blocks: FloatArray | None  # [resample, block] shares
    weights: FloatArray  # [resample, token] counts
    centre_rows: bool

    @classmethod
    def of(cls, matrix: xr.Dataset, n: int, seed: int, centre_rows: bool) -> _Resampling:
        generator = np.random.default_rng(seed)
        blocks = None
        if "blocks" in matrix:
            b = matrix.sizes["block"]
            blocks = generator.multinomial(b, np.full(b, 1 / b), size=n) / b
        _, sequence = np.unique(matrix["sequence"].values, return_inverse=True)
        s = int(sequence.max()) + 1
        counts = generator.multinomial(s, np.full(s, 1 / s), size=n) if s > 1 else np.ones((n, 1))
        return cls(blocks, counts[:, sequence].astype(float), centre_rows)

    def measured(self, matrix: xr.Dataset) -> Decomposition:
        values = values_of(matrix)
        weight = np.ones(len(values))
        return Decomposition.of(scaled(values, weight, self.centre_rows), weight, None)

    def decompositions(self, matrix: xr.Dataset) -> Any:
        """Of the matrix as it is, then of every resample; with the weights of tokens."""
        values = values_of(matrix)
        yield self.measured(matrix), np.ones(len(values))
        blocks = matrix["blocks"].values.astype(float) if self.blocks is not None else None
        for i, weight in enumerate(self.weights):
            if blocks is not None and self.blocks is not None:
                values = np.tensordot(self.blocks[i], blocks, 1).T
            yield Decomposition.of(scaled(values, weight, self.centre_rows), weight, None), weight


def _result(
    steps: tuple[int, ...],
    rows: list[list[Matched]],
    reference: Decomposition,
    last: xr.Dataset,
    k: int,
    centre_rows: bool,
) -> xr.Dataset:
    whole = [row[0] for row in rows]
    by_mode, names = (CHECKPOINT, "mode"), ("angle", "correlation")
    data: dict[str, Any] = {
        "angle": (by_mode, [m.angle for m in whole]),
        "correlation": (by_mode, [m.correlation for m in whole]),
        "loading_span_angle": (by_mode, [m.loading_span for m in whole]),
        "token_span_angle": (by_mode, [m.token_span for m in whole]),
        "explained": (by_mode, [m.explained for m in whole]),
        "loading": ((*by_mode, "component"), [m.loading.T for m in whole]),
    }  # fmt: skip
    there = np.array([[m.there for m in row] for row in rows]).transpose(1, 2, 0)
    onset = first_lasting(there)  # [1 + resample, mode]
    first, again, support = onset[0], onset[1:], np.ones(k)
    low = high = first
    if len(again):
        for name in names:
            drawn = np.array([[getattr(m, name) for m in row[1:]] for row in rows])
            ends = np.quantile(drawn, ENDS, axis=1)
            data |= {
                f"{name}_{e}": (by_mode, v) for e, v in zip(("low", "high"), ends, strict=True)
            }
        support = there[1:, :, -1].mean(0)
        known = np.where(again < 0, len(steps) - 1, again)  # there at the last one at the latest
        low, high = np.quantile(known, ENDS, axis=0, method="inverted_cdf").astype(int)
        low, high = np.minimum(low, first), np.maximum(high, first)
    sure = support >= CONFIDENCE
    at = np.array(steps, dtype=float)
    alike = np.ones(len(reference.x))
    score = scaled(reference.x @ reference.vectors[:, :k], alike, centre_rows=False)
    data |= {
        "step": ("mode", np.where(sure, at[first], np.nan)),
        "step_low": ("mode", np.where(sure, at[np.maximum(low - 1, 0)], np.nan)),
        "step_high": ("mode", np.where(sure, at[high], np.nan)),
        "support": ("mode", support),
        "verdict": ("mode", np.where(~sure, NOISE, np.where(first == 0, FROM_START, APPEARS))),
        "score": (("mode", "token"), score.T),
    }  # fmt: skip
    coords = {
        CHECKPOINT: list(steps), "mode": np.arange(1, k + 1),
        "component": last["component"].values,
        **{c: last[c] for c in ("sequence", "position", "token_id", "base_loss")},
    }  # fmt: skip
    attrs = {"quantity": last.attrs["quantity"], "centre_rows": int(centre_rows)}
    return stamped(xr.Dataset(data, coords, attrs), "mode_development")
