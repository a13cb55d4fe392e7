"""Distances between curves of several channels, many sets of curves at a time."""

from __future__ import annotations

import numpy as np

from lens_slt.arrays import FloatArray

SCALINGS = ("none", "standardised", "min-max")
BAND = 0.2  # of the length: how far warping may shift
AT_ONCE = 2**17  # pairs whose paths are computed together
TINY = 1e-12


def on_even_grid(x: FloatArray, values: FloatArray, n: int) -> FloatArray:
    """``values [..., checkpoint]`` at ``n`` places even in ``x``, on straight lines."""
    grid = np.linspace(x[0], x[-1], n)
    right = np.clip(np.searchsorted(x, grid), 1, len(x) - 1)
    share = (grid - x[right - 1]) / (x[right] - x[right - 1])
    return values[..., right - 1] * (1 - share) + values[..., right] * share


def scaled_curves(values: FloatArray, scaling: str) -> FloatArray:
    """Curves ``[..., channel, head, place]`` on one of three scales.

    ``standardised`` and ``min-max`` take level and size away from every curve; ``none`` keeps
    both, and only measures every channel in units of its own spread over heads and places. A curve
    without any change becomes zero.
    """
    if scaling == "none":
        centred = values - values.mean((-1, -2), keepdims=True)
        return centred / np.maximum(values.std((-1, -2), keepdims=True), TINY)
    if scaling == "standardised":
        centred = values - values.mean(-1, keepdims=True)
        return centred / np.maximum(values.std(-1, keepdims=True), TINY)
    low = values.min(-1, keepdims=True)
    return (values - low) / np.maximum(values.max(-1, keepdims=True) - low, TINY)


def distances(curves: FloatArray, kind: str) -> FloatArray:
    """Distances ``[set, head, head]`` between curves ``[set, channel, head, place]``.

    ``euclidean``: over all channels and places. ``warped``: dynamic time warping, one path for all
    channels, that shifts by a fifth of the length at most. ``shape``: 1 − the largest normalised
    cross-correlation over shifts, one shift for all channels (Paparrizos & Gravano 2015, k-Shape).
    """
    n_sets, _, n_heads, _ = curves.shape
    first, second = np.triu_indices(n_heads, 1)
    measure = {"euclidean": _euclidean, "warped": warped, "shape": _shape}[kind]
    found = np.zeros((n_sets, n_heads, n_heads))
    by_place = np.moveaxis(curves, -1, 1)  # [set, place, channel, head]
    step = max(1, AT_ONCE // max(1, len(first)))
    for start in range(0, n_sets, step):
        some = slice(start, start + step)
        pairs = measure(by_place[some][..., first], by_place[some][..., second])
        found[some, first, second] = found[some, second, first] = pairs
    return found


def _euclidean(a: FloatArray, b: FloatArray) -> FloatArray:
    return np.asarray(np.sqrt(((a - b) ** 2).sum((1, 2))))


def warped(a: FloatArray, b: FloatArray) -> FloatArray:
    """Dynamic time warping ``[set, pair]`` of ``[set, place, channel, pair]``: the root of the
    smallest sum of squared differences along a path."""
    n = a.shape[1]
    width = max(1, int(np.ceil(BAND * n)))
    nowhere = np.full((a.shape[0], a.shape[3]), np.inf)
    above = [np.zeros_like(nowhere)] + [nowhere] * n  # costs of the row before, one place shifted
    for i in range(n):
        here = [nowhere] * (n + 1)
        for j in range(max(0, i - width), min(n, i + width + 1)):
            best = np.minimum(np.minimum(above[j], above[j + 1]), here[j])
            here[j + 1] = best + ((a[:, i] - b[:, j]) ** 2).sum(1)
        above = here
    return np.asarray(np.sqrt(above[n]))


def _shape(a: FloatArray, b: FloatArray) -> FloatArray:
    n = a.shape[1]
    size = np.sqrt((a**2).sum((1, 2)) * (b**2).sum((1, 2)))
    best = np.full(size.shape, -np.inf)
    for shift in range(1 - n, n):
        left, right = (
            slice(max(0, shift), n + min(0, shift)),
            slice(max(0, -shift), n - max(0, shift)),
        )
        best = np.maximum(best, (a[:, left] * b[:, right]).sum((1, 2)))
    return 1 - np.divide(best, size, out=np.zeros_like(best), where=size > TINY)
