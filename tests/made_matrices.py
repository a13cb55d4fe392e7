"""Matrices of tokens and components with a planted structure."""

from __future__ import annotations

import numpy as np
import xarray as xr

SEQUENCES, POSITIONS = 30, 20


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
    sequence, position = np.divmod(np.arange(n), POSITIONS)
    matrix = xr.Dataset(
        {
            "llc": (("component", "token"), copies.mean(0)),
            "blocks": (("block", "component", "token"), copies),
        },
        coords={
            "component": [f"L0H{i}" for i in range(n_components)],
            "sequence": ("token", sequence),
            "position": ("token", position),
            "token_id": ("token", generator.integers(0, 50, n)),
            "base_loss": ("token", generator.gamma(2, 1, n)),
        },
        attrs={"quantity": "llc"},
    )
    patterns = xr.DataArray(
        np.stack([first, chance]).reshape(2, SEQUENCES, POSITIONS),
        dims=("pattern", "sequence", "position"),
        coords={"pattern": ["first", "chance"]},
    )
    return matrix, patterns, directions
