"""Which phase has the lowest free energy, over n and over the share of a pattern."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import xarray as xr

from lens_slt.arguments import integer, numbers, typed
from lens_slt.arrays import FloatArray
from lens_slt.phases.losses import check_pattern, losses_of
from lens_slt.phases.phase import Phase, check_phases
from lens_slt.schema import stamped

GUESSES = 2000  # of losses and λ within their errors
JITTER = 1e-30  # of a covariance whose smallest eigenvalue is rounded below zero


@typed
def phase_diagram(
    phases: Sequence[Phase],
    n: Sequence[float],
    *,
    pattern: str | None = None,
    shares: Sequence[float] = (),
    trust: bool = False,
    seed: int = 0,
) -> xr.Dataset:
    """The phase of lowest free energy over the number of data and the share of a pattern.

    F = n·L + λ·log n − (m − 1)·log log n + c of every phase (Watanabe 2009; Chen et al. 2023,
    arXiv 2310.06301). Over the share of a pattern the loss is mixed from the losses on the pattern
    and on the rest at the phase's own weights; to first order that is right also where the critical
    point moves with the data. λ is taken not to change.

    Args:
        phases: at least two, of the same data and architecture.
        n: numbers of data, above e.
        pattern: a subloss that all phases have.
        shares: of the pattern, 0 to 1; without, the data as they are.
        trust: use λ̂ that is not certified.
        seed: of the guesses behind ``probability``.

    Returns:
        Dataset over (share, n): ``lowest``, the phase's name, and (share, n, phase):
        ``free_energy`` above the lowest, and ``probability`` of being the lowest under the normal
        errors of losses and λ̂. Without a pattern ``share`` is one NaN. Attribute ``notes``.

    Raises:
        ValueError: as :func:`lens_slt.crossing`; shares without a pattern.

    Example:
        >>> import lens_slt as ls
        >>> five = ls.Phase("5", loss=0.06874, llc=7, constant=3.62417)
        >>> six = ls.Phase("6", loss=0.04819, llc=8.5, constant=6.37767)
        >>> ls.phase_diagram([five, six], [500, 700])["lowest"].values
        array([['5', '6']], dtype='<U1')
    """
    integer("seed", seed, at_least=0)
    at: FloatArray = np.array(numbers("n", n, above=math.e))
    notes = check_phases(phases, trust)
    if pattern is None and shares:
        raise ValueError(f"shares={list(shares)} of which pattern? Give pattern=")
    if pattern is not None and not shares:
        raise ValueError("shares are missing: those of the pattern, such as [0.1, 0.5, 0.9]")
    for share in shares:
        check_pattern(phases, str(pattern), share)
    if pattern is not None:
        notes.append("losses at other shares are those of the same weights; λ is taken as fixed")
    mixes = [losses_of(phases, pattern, share) for share in shares] or [losses_of(phases)]
    values = np.array([[p.free_energy(at, loss) for p, loss in zip(phases, losses, strict=True)]
                       for losses, _ in mixes]).transpose(0, 2, 1)  # fmt: skip
    rng = np.random.default_rng(seed)
    llc_errors = rng.standard_normal((GUESSES, len(phases))) * [p.llc_se for p in phases]
    standard = rng.standard_normal((GUESSES, len(phases)))
    chances = [
        _chances(value, at, standard @ _root(covariance), llc_errors)
        for value, (_, covariance) in zip(values, mixes, strict=True)
    ]
    names = np.array([one.name for one in phases])
    dims = ("share", "n", "phase")
    found = xr.Dataset(
        {
            "lowest": (dims[:2], names[values.argmin(-1)]),
            "free_energy": (dims, values - values.min(-1, keepdims=True)),
            "probability": (dims, np.array(chances)),
        },
        coords={"share": list(shares) or [np.nan], "n": at, "phase": names},
        attrs={"pattern": pattern or "", "notes": "; ".join(notes)},
    )
    return stamped(found, "phase_diagram")


def _root(covariance: FloatArray) -> FloatArray:
    """A square root of a covariance, which may be singular."""
    values, vectors = np.linalg.eigh(covariance + JITTER * np.eye(len(covariance)))
    return np.sqrt(np.maximum(values, 0.0))[:, None] * vectors.T


def _chances(
    value: FloatArray, n: FloatArray, loss_errors: FloatArray, llc_errors: FloatArray
) -> FloatArray:
    """How often each phase is the lowest ``[n, phase]`` within the errors ``[guess, phase]``."""
    rows = []
    for one, at in zip(value, n, strict=True):
        lowest = (one + at * loss_errors + np.log(at) * llc_errors).argmin(-1)
        rows.append(np.bincount(lowest, minlength=len(one)) / len(lowest))
    return np.array(rows)
