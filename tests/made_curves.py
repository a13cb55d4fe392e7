"""Curves of heads with known clusters, made without a model."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import xarray as xr

from lens_slt.development.head_curves import HeadCurves
from lens_slt.schema import stamped
from lens_slt.schemas import SCHEMAS

PER_LAYER = 8
SHARED = 0.9  # of the variance of an error, where there are blocks
STEPS = np.unique(np.round(np.geomspace(4, 5000, 20)).astype(int))


def part_of_run(steps: np.ndarray = STEPS) -> np.ndarray:
    """From 0 to 1, even in log(step + 1)."""
    x = np.log1p(steps)
    return np.asarray((x - x[0]) / (x[-1] - x[0]))


def shapes(steps: np.ndarray = STEPS) -> np.ndarray:
    """Four ways to develop: rising evenly, late and at once, with a peak, falling."""
    u = part_of_run(steps)
    late = 5 / (1 + np.exp(-25 * (u - 0.7)))
    return np.stack([5 * u, late, 4 * np.exp(-((u - 0.5) ** 2) / 0.02) + u, 3 - 2 * u])


def curves_of(
    values: np.ndarray,
    noise: float,
    *,
    steps: np.ndarray = STEPS,
    n_blocks: int = 0,
    refinements: Sequence[str] = ("llc",),
    seed: int = 0,
) -> HeadCurves:
    """Curves ``[refinement, head, checkpoint]`` measured with an error.

    With blocks checkpoints share most of it.
    """
    generator = np.random.default_rng(seed)
    heads = tuple(f"L{i // PER_LAYER}H{i % PER_LAYER}" for i in range(values.shape[1]))
    if not n_blocks:
        measured, blocks = values + noise * generator.normal(size=values.shape), None
    else:
        shared = generator.normal(size=(n_blocks, *values.shape[:2], 1))
        own = generator.normal(size=(n_blocks, *values.shape))
        error = np.sqrt(SHARED) * shared + np.sqrt(1 - SHARED) * own
        blocks = values + noise * np.sqrt(n_blocks) * error
        measured = blocks.mean(0)
    se = np.full(values.shape, noise)
    return HeadCurves(steps.astype(float), heads, tuple(refinements), measured, se, blocks)


def planted_clusters(
    noise: float = 0.3, seed: int = 0, n_heads: int = 16
) -> tuple[HeadCurves, np.ndarray]:
    """Curves of four shapes, and the shape of each head."""
    generator = np.random.default_rng(seed + 100)
    kind = np.arange(n_heads) % 4
    values = shapes()[kind] * (1 + 0.1 * generator.normal(size=(n_heads, 1)))
    return curves_of(values[None], noise, seed=seed), kind


def as_result(curves: HeadCurves) -> xr.Dataset:
    """The same as ``ls.join_checkpoints`` returns refined LLCs; refinements after the first are
    probes."""
    dims = ("checkpoint", "component")
    shape = (len(curves.steps), len(curves.heads))
    data = {
        name: (("checkpoint", *own), np.zeros(shape if own else shape[:1]))
        for name, own in SCHEMAS["refined_llc"].needed.items()
    }
    data |= {"llc": (dims, curves.values[0].T), "se": (dims, curves.se[0].T)}
    coords = {"checkpoint": curves.steps.astype(int), "component": list(curves.heads)}
    if len(curves.refinements) > 1:
        coords["probe"] = list(curves.refinements[1:])
        data["probe_llc"] = ((*dims, "probe"), curves.values[1:].transpose(2, 1, 0))
        data["probe_se"] = ((*dims, "probe"), curves.se[1:].transpose(2, 1, 0))
    if curves.blocks is not None:
        blocks = curves.blocks.transpose(3, 0, 2, 1)
        data["blocks"] = (("checkpoint", "block", "component"), blocks[..., 0])
        if len(curves.refinements) > 1:
            data["probe_blocks"] = (("checkpoint", "block", "component", "probe"), blocks[..., 1:])
    return stamped(xr.Dataset(data, coords, {"settings": "{}"}), "refined_llc")
