"""Critical points of a loss: found, and checked to be one."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from scipy.optimize import least_squares, minimize
from torch import Tensor

from lens_slt.arguments import number, typed
from lens_slt.arrays import FloatArray

Loss = Callable[[Tensor], Tensor]

TOLERANCE = 1e-8  # of a gradient's norm
FLAT = 1e-7  # of the largest eigenvalue: what counts as zero
MOST_STEPS = 5000
POLISH = 10  # Newton steps at the end


@dataclass(frozen=True)
class CriticalPoint:
    """A point and what is known of the loss around it.

    Attributes:
        weights: ``[parameter]``, in double precision.
        loss: there.
        gradient: norm of the gradient.
        distance: length of the Newton step that would be left, |H⁺g|.
        drop: how far that step would lower the loss to second order, ½·gᵀH⁺g.
        eigenvalues: of the Hessian, rising.
    """

    weights: Tensor
    loss: float
    gradient: float
    distance: float
    drop: float
    eigenvalues: FloatArray

    @property
    def rank(self) -> int:
        """Directions that are not flat: at a minimum with a manifold of minima λ = rank/2."""
        return int((np.abs(self.eigenvalues) > FLAT * np.abs(self.eigenvalues).max()).sum())

    @property
    def downhill(self) -> int:
        """Directions in which the loss falls: 0 at a minimum."""
        return int((self.eigenvalues < -FLAT * np.abs(self.eigenvalues).max()).sum())


@typed
def find_critical_point(
    loss: Loss, start: Tensor, *, minimum: bool = True, tolerance: float = TOLERANCE
) -> CriticalPoint:
    """A critical point near ``start``: by a trust region, and Newton's method at the end.

    Args:
        loss: maps ``[chain, parameter]`` to ``[chain]``, twice differentiable by torch.
        start: ``[parameter]``.
        minimum: minimise the loss; otherwise the squared gradient, whose zeros are saddles too.
        tolerance: of the gradient's norm.

    Raises:
        ValueError: none is reached; says how far the end is from one.

    Example:
        >>> import torch
        >>> from lens_slt.phases.critical_points import find_critical_point
        >>> found = find_critical_point(lambda w: (w**2 - 1).square().sum(-1), torch.tensor([0.8]))
        >>> round(float(found.weights), 6), found.downhill
        (1.0, 0)
    """
    number("tolerance", tolerance, above=0)
    value, slope, bend = _derivatives(loss)
    x = _flat("start", start)
    if minimum:
        options = {"maxiter": MOST_STEPS, "gtol": tolerance / 10}
        x = minimize(value, x, jac=slope, hess=bend, method="trust-exact", options=options).x
    else:
        x = least_squares(slope, x, jac=bend, xtol=1e-15, ftol=1e-15, gtol=1e-15).x
    for _ in range(POLISH):
        step = x - np.linalg.pinv(bend(x), rcond=FLAT, hermitian=True) @ slope(x)
        if np.linalg.norm(slope(step)) >= np.linalg.norm(slope(x)):
            break
        x = step
    return check_critical_point(loss, torch.from_numpy(x), tolerance=tolerance)


@typed
def check_critical_point(
    loss: Loss, weights: Tensor, *, tolerance: float = TOLERANCE
) -> CriticalPoint:
    """What the loss is like around a point, which must be critical.

    Args:
        loss, tolerance: as for :func:`find_critical_point`.
        weights: ``[parameter]``.

    Raises:
        ValueError: the gradient is not zero; says its norm, how long the Newton step is and by how
            much it would change the loss. Weights of another shape; no finite derivatives.

    Example:
        >>> import torch
        >>> from lens_slt.phases.critical_points import check_critical_point
        >>> check_critical_point(lambda w: w.square().sum(-1), torch.zeros(3)).rank
        3
    """
    number("tolerance", tolerance, above=0)
    value, slope, bend = _derivatives(loss)
    x = _flat("weights", weights)
    gradient, hessian = slope(x), bend(x)
    if not (np.isfinite(value(x)) and np.isfinite(gradient).all() and np.isfinite(hessian).all()):
        raise ValueError(
            "weights are no critical point: the loss or its first two derivatives are not finite "
            "there"
        )
    step = np.linalg.pinv(hessian, rcond=FLAT, hermitian=True) @ gradient
    found = CriticalPoint(
        torch.from_numpy(x.copy()), value(x), float(np.linalg.norm(gradient)),
        float(np.linalg.norm(step)), float(gradient @ step) / 2, np.linalg.eigvalsh(hessian),
    )  # fmt: skip
    if not found.gradient <= tolerance:
        raise ValueError(
            f"weights are no critical point: the gradient's norm is {found.gradient:.2g}, above "
            f"{tolerance:.2g}; the nearest by Newton's step is {found.distance:.2g} away, where "
            f"the loss would be {abs(found.drop):.2g} {'lower' if found.drop >= 0 else 'higher'}: "
            "start find_critical_point there"
        )
    return found


def _flat(argument: str, weights: Tensor) -> FloatArray:
    if weights.ndim != 1 or not weights.isfinite().all():
        raise ValueError(
            f"{argument} must be finite numbers [parameter]; got shape {tuple(weights.shape)}"
        )
    return np.asarray(weights.detach().double().numpy())


def _derivatives(
    loss: Loss,
) -> tuple[
    Callable[[FloatArray], float],
    Callable[[FloatArray], FloatArray],
    Callable[[FloatArray], FloatArray],
]:
    """Value, gradient and Hessian as functions of an array."""

    def at(v: Tensor) -> Tensor:
        return loss(v[None])[0]

    gradient, hessian = torch.func.grad(at), torch.func.hessian(at)

    def value(x: FloatArray) -> float:
        return float(at(torch.as_tensor(x)))

    def slope(x: FloatArray) -> FloatArray:
        return np.asarray(gradient(torch.as_tensor(x)))

    def bend(x: FloatArray) -> FloatArray:
        return np.asarray(hessian(torch.as_tensor(x)))

    return value, slope, bend
