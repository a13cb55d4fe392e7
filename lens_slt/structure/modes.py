"""Modes: patterns over tokens that go with patterns over components.

The singular value decomposition of a matrix with standardised columns. What is stable is told from
what is noise by a bootstrap that resamples the blocks of draws (all chains together, because they
share minibatches) and whole sequences of tokens.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import xarray as xr
from scipy.optimize import linear_sum_assignment

from lens_slt.arguments import integer, typed
from lens_slt.arrays import FloatArray
from lens_slt.schema import stamped
from lens_slt.statistics import CONFIDENCE, ENDS
from lens_slt.structure.standardize import scaled, standardized, values_of

NOISE = "may be noise"  # the verdict of a mode that does not come back
STABLE_ANGLE = 30.0  # degrees
LARGEST_SPAN = 3  # modes
SPARE = 2  # modes after the last one that a bootstrapped mode may be matched with


@typed
def modes(
    matrix: xr.Dataset,
    *,
    n_modes: int = 8,
    centre_rows: bool = False,
    whiten: bool = False,
    n_bootstrap: int = 200,
    seed: int = 0,
) -> xr.Dataset:
    """Singular vectors of a matrix of tokens × components with standardised columns.

    Sampling noise attenuates the correlations between columns and with them small loadings; the
    intervals tell how far a loading may be off through noise, not this: look at the reliability of
    the columns.

    Signs: the loading of largest magnitude is positive. On susceptibilities negative values are
    expression, positive ones suppression; on per-token rLLCs high values are what is learned.

    Args:
        matrix: from :func:`lens_slt.susceptibility` or :func:`lens_slt.per_token_llc`.
        n_modes: how many; at most the number of components.
        centre_rows: take away each token's mean over components first.
        whiten: measure components in units of their sampling noise, decorrelated, instead of their
            spread over tokens: modes are then ordered by signal to noise. Needs ``blocks``.
        n_bootstrap: resamples of blocks of draws and of sequences; 0 for none.
        seed: of the bootstrap.

    Returns:
        Dataset over (mode, token) and (mode, component): ``score``, of variance 1 over tokens;
        ``loading``, of length 1, with ``loading_low`` and ``loading_high`` (95 %); per mode
        ``explained``, its share of the variance, with interval; ``angle``, the 95th percentile of
        the angle to its bootstrapped self in degrees; ``subspace_angle``, that of the largest
        principal angle between the span of all modes up to it and the bootstrapped span;
        ``verdict``: ``stable`` where the angle is under 30 degrees; ``stable span 2–3`` where modes
        of nearly the same size mix but what they span together is within 30 degrees; else ``may be
        noise``.

    Raises:
        ValueError: NaN, constant columns, fewer tokens than components, bad arguments.

    Example:
        >>> import lens_slt as ls
        >>> model, text = ls.load_model("attn-1l"), ls.load_tokens("mix", n_sequences=8, length=16)
        >>> how = dict(settings=ls.Settings(draws=20, chains=2, steps_per_draw=1), progress=False)
        >>> draws = ls.sample(model, text, "L0H0, L0H1, L0H2", probes={"mix": text}, **how)
        >>> found = ls.modes(ls.per_token_llc(draws), n_modes=3, n_bootstrap=20)
        >>> found["loading"].dims, found["score"].dims
        (('mode', 'component'), ('mode', 'token'))
    """
    integer("n_modes", n_modes, at_least=1)
    integer("n_bootstrap", n_bootstrap, at_least=0)
    integer("seed", seed, at_least=0)
    x = standardized(matrix, centre_rows=centre_rows)
    n_components = x.shape[1]
    if whiten and "blocks" not in matrix:
        raise ValueError("whiten=True needs the noise: make the matrix with keep_blocks=True")
    k = min(n_modes, n_components)
    whitening = _noise_whitening(matrix, centre_rows) if whiten else None
    whole = Decomposition.of(x, np.ones(len(x)), whitening)
    vectors = whole.vectors[:, :k]
    score = whole.x @ vectors
    score /= np.where(score.std(0) > 0, score.std(0), 1)
    names = list(matrix["component"].values)
    found = xr.Dataset(
        {
            "score": (("mode", "token"), score.T),
            "loading": (("mode", "component"), vectors.T),
            "explained": ("mode", whole.explained[:k]),
        },
        coords={
            "mode": np.arange(1, k + 1),
            "component": names,
            **{c: matrix[c] for c in ("sequence", "position", "token_id", "base_loss")},
        },
        attrs={
            **matrix.attrs,
            "centre_rows": int(centre_rows),
            "whiten": int(whiten),
        },
    )
    if n_bootstrap:
        found = found.assign(
            _bootstrap(matrix, whole, k, n_bootstrap, seed, centre_rows, whitening)
        )
    return stamped(found, "modes")


@dataclass(frozen=True)
class Decomposition:
    """Eigenvectors of the weighted second moments of the columns."""

    x: FloatArray  # [token, component], centred and scaled
    vectors: FloatArray  # [component, mode]
    explained: FloatArray  # [mode]

    @classmethod
    def of(
        cls, values: FloatArray, weight: FloatArray, whitening: FloatArray | None
    ) -> Decomposition:
        """Of standardised or bare columns; ``weight`` counts how often each token is there."""
        weight = weight / weight.sum()
        x = values if whitening is None else values @ whitening
        x = x - weight @ x
        size, vectors = np.linalg.eigh((x * weight[:, None]).T @ x)
        size, vectors = np.maximum(size[::-1], 0), vectors[:, ::-1]
        largest = vectors[np.abs(vectors).argmax(0), np.arange(vectors.shape[1])]
        return cls(x, vectors * np.sign(largest), size / size.sum())


def _noise_whitening(matrix: xr.Dataset, centre_rows: bool) -> FloatArray:
    """Inverse square root of the covariance of the sampling noise between standardised columns."""
    values = values_of(matrix)
    blocks = matrix["blocks"].values.astype(np.float64)
    noise = (blocks - blocks.mean(0)) / values.std(0)[None, :, None]
    noise -= noise.mean(2, keepdims=True)  # what is constant over tokens is no noise here
    if centre_rows:
        noise -= noise.mean(1, keepdims=True)
    flat = noise.transpose(1, 0, 2).reshape(noise.shape[1], -1)
    value, vector = np.linalg.eigh(flat @ flat.T / flat.shape[1])
    keep = value > 1e-10 * value.max()  # row centring removes a direction for good
    return (vector[:, keep] / np.sqrt(value[keep])) @ vector[:, keep].T


def _bootstrap(
    matrix: xr.Dataset,
    whole: Decomposition,
    k: int,
    n_bootstrap: int,
    seed: int,
    centre_rows: bool,
    whitening: FloatArray | None,
) -> dict[str, tuple[str | tuple[str, ...], FloatArray]]:
    generator = np.random.default_rng(seed)
    blocks = matrix["blocks"].values if "blocks" in matrix else None
    values = values_of(matrix)
    _, sequence = np.unique(matrix["sequence"].values, return_inverse=True)
    n_sequences = int(sequence.max()) + 1
    loadings, explained, angles, subspaces = [], [], [], []
    for _ in range(n_bootstrap):
        if blocks is not None:
            share = generator.multinomial(len(blocks), np.full(len(blocks), 1 / len(blocks)))
            values = np.tensordot(share / len(blocks), blocks, 1).T.astype(np.float64)
        weight = np.ones(len(values))
        if n_sequences > 1:
            counts = generator.multinomial(n_sequences, np.full(n_sequences, 1 / n_sequences))
            weight = counts[sequence].astype(np.float64)
        again = Decomposition.of(scaled(values, weight, centre_rows), weight, whitening)
        vectors, shares = _matched(whole.vectors[:, :k], again)
        loadings.append(vectors.T)
        explained.append(shares)
        overlap = np.abs((whole.vectors[:, :k] * vectors).sum(0))
        angles.append(np.degrees(np.arccos(np.minimum(overlap, 1))))
        subspaces.append(_subspace_angles(whole.vectors, again.vectors, k))
    low, high = ENDS
    angle = np.quantile(angles, CONFIDENCE, axis=0)
    subspace = np.quantile(subspaces, CONFIDENCE, axis=0)
    return {
        "loading_low": (("mode", "component"), np.quantile(loadings, low, axis=0)),
        "loading_high": (("mode", "component"), np.quantile(loadings, high, axis=0)),
        "explained_low": ("mode", np.quantile(explained, low, axis=0)),
        "explained_high": ("mode", np.quantile(explained, high, axis=0)),
        "angle": ("mode", angle),
        "subspace_angle": ("mode", subspace),
        "verdict": ("mode", np.array(_verdicts(angle, subspace))),
    }


def _verdicts(angle: FloatArray, subspace: FloatArray) -> list[str]:
    """A mode lies in a stable span if the spans of all modes before it and up to its end are."""
    ends = [0, *(i + 1 for i in range(len(angle)) if subspace[i] < STABLE_ANGLE)]
    words = []
    for mode in range(1, len(angle) + 1):
        first = max(end for end in ends if end < mode) + 1
        last = min((end for end in ends if end >= mode), default=0)
        if angle[mode - 1] < STABLE_ANGLE:
            words.append("stable")
        elif 0 < last - first < LARGEST_SPAN:
            words.append(f"stable span {first}–{last}")
        else:
            words.append(NOISE)
    return words


def _matched(original: FloatArray, again: Decomposition) -> tuple[FloatArray, FloatArray]:
    """The bootstrapped modes in the order and with the signs of the original ones."""
    k = original.shape[1]
    candidates = again.vectors[:, : k + SPARE]
    overlap = original.T @ candidates
    rows, columns = linear_sum_assignment(-np.abs(overlap))
    vectors = candidates[:, columns] * np.sign(overlap[rows, columns])
    return vectors, again.explained[columns]


def _subspace_angles(a: FloatArray, b: FloatArray, k: int) -> list[float]:
    """Largest principal angle in degrees between the first 1, 2, …, k columns of each."""
    overlap = a[:, :k].T @ b[:, :k]
    return [span_angle(overlap[:n, :n]) for n in range(1, k + 1)]


def span_angle(overlap: FloatArray) -> float:
    """The largest principal angle in degrees between the spans of orthonormal columns."""
    smallest = np.linalg.svd(overlap, compute_uv=False).min()
    return float(np.degrees(np.arccos(min(1.0, smallest))))
