"""Matrices of tokens and components with a planted structure."""

from __future__ import annotations

import numpy as np
import xarray as xr

import lens_slt as ls
from lens_slt.schema import stamped
from lens_slt.schemas import SCHEMAS

SEQUENCES, POSITIONS = 30, 20
HELD_STEPS = np.unique(np.geomspace(10, 5000, 24).astype(int)).tolist()


def matrix_of(
    values: np.ndarray, positions: int, quantity: str = "llc", **tokens: np.ndarray
) -> xr.Dataset:
    """A matrix of ``values [component, token]``, ``positions`` in a sequence; the rest is zero.

    ``tokens`` are variables over ``token``.
    """
    name = {"llc": "per_token_llc", "chi": "susceptibility"}[quantity]
    sizes = dict(zip(("component", "token"), values.shape, strict=True))
    sequence, position = np.divmod(np.arange(sizes["token"]), positions)
    tokens = {"token_id": 0 * sequence, "sequence": sequence, "position": position} | tokens
    data = {
        key: (dims, np.zeros([sizes[dim] for dim in dims]))
        for key, dims in SCHEMAS[name].needed.items()
    }
    data |= {key: (("token",), value) for key, value in tokens.items()}
    data[quantity] = (("component", "token"), values)
    matrix = xr.Dataset(
        data,
        coords={"component": [f"L0H{i}" for i in range(len(values))]},
        attrs={"quantity": quantity, "probe": "text"},
    )
    return stamped(matrix.set_coords([*tokens, "base_loss"]), name)


def planted(
    sizes: tuple[float, ...] = (3.0, 1.5),
    n_components: int = 6,
    noise: float = 0.3,
    blocks: int = 8,
    seed: int = 0,
) -> tuple[xr.Dataset, xr.DataArray, np.ndarray]:
    """A matrix, its patterns, and the planted directions ``[mode, component]``.

    Mode 1 has high scores on the pattern ``first``; the pattern ``chance`` has nothing to do with
    it. Blocks are independent noisy copies.
    """
    generator = np.random.default_rng(seed)
    n = SEQUENCES * POSITIONS
    directions = np.linalg.qr(generator.normal(size=(n_components, n_components)))[0][: len(sizes)]
    first, chance = generator.random((2, n)) < 0.2
    scores = generator.normal(size=(len(sizes), n))
    scores[0] += 2 * first
    signal = (np.array(sizes)[:, None] * scores).T @ directions
    copies = signal.T + noise * blocks**0.5 * generator.normal(size=(blocks, n_components, n))
    matrix = matrix_of(
        copies.mean(0), POSITIONS, token_id=generator.integers(0, 50, n),
        base_loss=generator.gamma(2, 1, n),
    )  # fmt: skip
    matrix["blocks"] = (("block", "component", "token"), copies)
    patterns = xr.DataArray(
        np.stack([first, chance]).reshape(2, SEQUENCES, POSITIONS),
        dims=("pattern", "sequence", "position"),
        coords={"pattern": ["first", "chance"]},
    )
    return matrix, patterns, directions


def grown(size: float, seed: int) -> tuple[xr.Dataset, xr.DataArray]:
    """A matrix whose third component holds ``size`` more on the pattern ``first``."""
    matrix, patterns, _ = planted(sizes=(0.1,))
    noise = np.random.default_rng(seed).normal(size=matrix["blocks"].shape)
    first = patterns.values[0].ravel()
    blocks = 5 + 0.3 * noise + size * first * (np.arange(6) == 2)[:, None]
    made = matrix.assign(
        llc=(matrix["llc"].dims, blocks.mean(0)), blocks=(matrix["blocks"].dims, blocks)
    )
    return made, patterns


def held_curves(sizes: np.ndarray) -> xr.Dataset:
    """What components hold on ``first`` and ``chance`` at every step; the third, ``sizes``."""
    pairs = zip(HELD_STEPS, sizes, strict=True)
    return ls.join_checkpoints({step: ls.pattern_llc(*grown(x, step)) for step, x in pairs})
