r"""What composition scores are by chance: against random rotations, and against random weights.

With p and q the shares of the squared singular values, and R a rotation, the squared score is
tr(diag(p)·R·diag(q)·Rᵀ). For a uniformly random R its moments follow from zonal polynomials (James
1964, Distributions of matrix variates and latent roots): E[score²ᵏ] = Σ_κ C_κ(p)·C_κ(q)/C_κ(1) over
the partitions κ of k. The tail is that of the shifted gamma distribution with the first three of
them (Imhof 1961, Computing the distribution of quadratic forms in normal variables).
"""

from __future__ import annotations

import numpy as np
from scipy import stats

from lens_slt.arrays import FloatArray

PARTITIONS = ((2,), (1, 1), (3,), (2, 1), (1, 1, 1))  # of which there are zonal polynomials


def power_sums(shares: FloatArray) -> FloatArray:
    """Sums of the first three powers of shares ``[…, direction]``, in front."""
    return np.stack([shares.sum(-1), (shares**2).sum(-1), (shares**3).sum(-1)])


def zonal(sums: FloatArray) -> FloatArray:
    """Zonal polynomials, ``[partition, …]``, from power sums ``[3, …]``."""
    one, two, three = sums
    return np.stack(
        [
            (one**2 + 2 * two) / 3,
            (one**2 - two) * 2 / 3,
            (one**3 + 6 * one * two + 8 * three) / 15,
            (one**3 + one * two - 2 * three) * 3 / 5,
            (one**3 - 3 * one * two + 2 * three) / 3,
        ]
    )


def of_identity(d_model: int) -> FloatArray:
    """Zonal polynomials ``[partition]`` of d_model ones."""
    return zonal(np.full(3, float(d_model)))


def random_heads(d_model: int, d_head: int, n: int, seed: int) -> tuple[FloatArray, FloatArray]:
    """Mean zonal polynomials of the shares of heads of normal random weights: source, target.

    Their singular vectors are uniform whatever their singular values, so that the moments are those
    of the rotation null averaged over spectra; those of source and target are independent.
    """
    generator = np.random.default_rng(seed)
    spectra = np.empty((2, n, d_head))
    for row in spectra.reshape(-1, d_head):
        a, b = (generator.normal(size=(d_model, d_head)) for _ in range(2))
        row[:] = np.maximum(np.linalg.eigvals((a.T @ a) @ (b.T @ b)).real, 0)
    spectra /= spectra.sum(-1, keepdims=True)
    source, target = (zonal(power_sums(part)).mean(-1) for part in spectra)
    return source, target


def random_matrix(d_model: int, width: int) -> FloatArray:
    """Mean zonal polynomials of the shares of one d_model × width matrix of normal numbers.

    In closed form: E[C_κ(W·Wᵀ)] = 2ᵏ·(width/2)_κ·C_κ(1) (Constantine 1963, Some non-central
    distribution problems in multivariate analysis), and the shares do not depend on the trace.
    """
    trace = d_model * width / 2
    moments = [
        np.prod([_rising(width / 2 - i / 2, k) for i, k in enumerate(partition)])
        / _rising(trace, sum(partition))
        for partition in PARTITIONS
    ]
    return np.array(moments) * of_identity(d_model)


def cumulants(
    source: FloatArray, target: FloatArray, d_model: int
) -> tuple[float, FloatArray, FloatArray]:
    """Mean, variance and third cumulant of squared scores under a null.

    ``source`` and ``target`` are zonal polynomials of shares, ``[partition, …]``; they broadcast.
    """
    numerators = source * target
    identity = np.maximum(of_identity(d_model), 1e-300)
    parts = numerators / identity.reshape(-1, *[1] * (numerators.ndim - 1))
    mean, second, third = 1 / d_model, parts[:2].sum(0), parts[2:].sum(0)
    return mean, second - mean**2, third - 3 * mean * second + 2 * mean**3


def against(
    squared: FloatArray, null: tuple[float, FloatArray, FloatArray]
) -> tuple[FloatArray, FloatArray]:
    """Standard deviations over the null's mean, and the chance of more."""
    mean, variance, third = null
    with np.errstate(invalid="ignore", divide="ignore"):
        z = (squared - mean) / np.sqrt(np.where(variance > 0, variance, np.nan))
        # A gamma distribution is never skewed to the left; with no skew left it is a normal one.
        skew = np.maximum(third / np.abs(variance) ** 1.5, 1e-3)
    return z, stats.pearson3.sf(z, np.broadcast_to(skew, z.shape))


def _rising(x: float, k: int) -> float:
    """x·(x + 1)···(x + k − 1)."""
    return float(np.prod(x + np.arange(k)))
