"""The stiffest directions of a pattern's loss, by Lanczos iteration on gradient differences."""

from __future__ import annotations

import numpy as np
import torch
from scipy.sparse.linalg import LinearOperator, eigsh
from torch import Tensor

from lens_slt.development.grafts import Grafts, joined, split

STEP = 1e-2  # length of the difference, in weights that together have length 1
TOLERANCE = 1e-2


def leading_curvature(grafts: Grafts, n_directions: int, seed: int) -> Tensor:
    """Orthonormal directions ``[direction, weight]`` of the largest Hessian eigenvalues.

    The Hessian is that of the pattern's mean loss at the weights after, on sequences 0, 2, ….
    Products with it are central differences of gradients.
    """
    rows = range(0, len(grafts.tokens), 2)
    like = grafts.change

    def times(vector: np.ndarray) -> np.ndarray:
        flat = torch.from_numpy(np.asarray(vector, dtype=np.float64).ravel())
        length = float(flat.norm())
        unit = split(flat / length, like)
        ends = [
            joined(grafts.gradient({k: v + way * unit[k].to(v) for k, v in like.items()}, rows))
            for way in (STEP, -STEP)
        ]
        return (ends[0] - ends[1]).double().cpu().numpy() * length / (2 * STEP)

    n = grafts.n_weights
    operator = LinearOperator((n, n), matvec=times, dtype=np.float64)
    start = np.random.default_rng(seed).normal(size=n)
    values, vectors = eigsh(operator, k=n_directions, which="LA", v0=start, tol=TOLERANCE)
    order = np.argsort(values)[::-1]
    first = next(iter(like.values()))
    return torch.from_numpy(vectors.T[order].copy()).to(first)
