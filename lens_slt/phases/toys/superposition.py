"""The toy model of superposition: features as directions of a space that is too small for them.

Elhage et al. 2022, Toy Models of Superposition; its phases: Chen et al. 2023, Dynamical versus
Bayesian Phase Transitions in a Toy Model of Superposition (arXiv 2310.06301).
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from lens_slt.arguments import integer, number, typed
from lens_slt.phases.critical_points import CriticalPoint, find_critical_point

DEAD_BIAS = -1.0  # of a feature that is off; any negative number is as good
START_LENGTH, START_BIAS = 1.1, -0.3  # of the features of a polygon, from which it is searched
REPRESENTED = 0.5  # of a feature 1 its reconstruction, from which it counts as represented
REGULAR = 0.05  # relative, of lengths and angles of a polygon


@dataclass(frozen=True)
class Superposition:
    """x̂ = ReLU(WᵀW·x + b) for inputs x = ξ·e_i, ξ uniform in [0, 1], one feature i at a time.

    The loss is E|x − x̂|². Weights are one vector, W [hidden, feature] row by row and then b. Of a
    flat vector w the loss of the whole population is exact: every integral over ξ is one of a
    piecewise quadratic function.

    Attributes:
        n_features, hidden: 6 features and 2 dimensions in the paper.
        probabilities: of the features; equal if none are given.

    Example:
        >>> from lens_slt.phases.toys.superposition import Superposition
        >>> toy = Superposition()
        >>> found = toy.polygon(5)
        >>> round(found.loss, 5), found.rank, toy.describe(found.weights)
        (0.06874, 14, '5')
    """

    n_features: int = 6
    hidden: int = 2
    probabilities: tuple[float, ...] = ()

    def __post_init__(self) -> None:
        integer("n_features", self.n_features, at_least=1)
        integer("hidden", self.hidden, at_least=1)
        for i, value in enumerate(self.probabilities):
            number(f"probabilities[{i}]", value, at_least=0)
        if self.probabilities and (
            len(self.probabilities) != self.n_features
            or not math.isclose(sum(self.probabilities), 1)
        ):
            raise ValueError(
                f"probabilities must be {self.n_features} numbers that add up to 1; got "
                f"{self.probabilities}"
            )

    @property
    def n_parameters(self) -> int:
        return (self.hidden + 1) * self.n_features

    def parts(self, w: Tensor) -> tuple[Tensor, Tensor]:
        """W ``[…, hidden, feature]`` and b ``[…, feature]`` of flat weights."""
        split = self.hidden * self.n_features
        return w[..., :split].unflatten(-1, (self.hidden, self.n_features)), w[..., split:]

    def loss(self, w: Tensor) -> Tensor:
        """E|x − x̂|² ``[chain]`` of weights ``[chain, parameter]``, exact."""
        return (self.feature_losses(w) * self._shares(w)).sum(-1)

    def feature_losses(self, w: Tensor) -> Tensor:
        """E|x − x̂|² of inputs of each feature ``[chain, feature]``: the sublosses."""
        directions, bias = self.parts(w)
        overlap = directions.transpose(-1, -2) @ directions
        squares = _square_integral(overlap, bias[..., None, :].expand_as(overlap)).sum(-1)
        own = torch.diagonal(overlap, dim1=-2, dim2=-1)
        found = 1 / 3 - 2 * _moment_integral(own, bias) + squares
        return torch.where(w.isfinite().all(-1, keepdim=True), found, torch.nan)

    def row_loss(self, w: Tensor, rows: Tensor) -> Tensor:
        """Mean |x − x̂|² ``[chain]`` over rows ``[row, feature]``, for ``sample_function``."""
        directions, bias = self.parts(w)
        written = rows @ directions.transpose(-1, -2)
        return (
            (rows - torch.relu(written @ directions + bias[..., None, :])).square().sum(-1).mean(-1)
        )

    def draw(self, n: int, seed: int) -> Tensor:
        """Inputs ``[row, feature]``."""
        generator = torch.Generator().manual_seed(seed)
        shares = self._shares(torch.zeros(1, dtype=torch.float64))
        feature = torch.multinomial(shares, n, replacement=True, generator=generator)
        size = torch.rand(n, generator=generator, dtype=torch.float64)
        return torch.nn.functional.one_hot(feature, self.n_features) * size[:, None]

    def polygon(self, corners: int, positive: int = 0, *, minimum: bool = False) -> CriticalPoint:
        """The critical point with features at the corners of a regular polygon, searched from one.

        Vestigial features have no direction: the first ``positive`` of them the bias that is best
        without one, 1/12 for six features, the others a negative bias.
        """
        integer("corners", corners, at_least=1, at_most=self.n_features)
        integer("positive", positive, at_least=0, at_most=self.n_features - corners)
        if self.hidden != 2:
            raise ValueError(f"polygons lie in hidden=2 dimensions; got {self.hidden}")
        angle = torch.arange(corners, dtype=torch.float64) * (2 * math.pi / corners)
        square = corners == 4  # orthogonal features need no bias
        directions = torch.zeros(2, self.n_features, dtype=torch.float64)
        corner = torch.stack([angle.cos(), angle.sin()])
        directions[:, :corners] = corner * (1.0 if square else START_LENGTH)
        bias = torch.full((self.n_features,), DEAD_BIAS, dtype=torch.float64)
        bias[:corners] = 0.0 if square else START_BIAS
        mean = self._shares(bias) / 2
        bias[corners : corners + positive] = mean[corners : corners + positive]
        return find_critical_point(
            self.loss, torch.cat([directions.flatten(), bias]), minimum=minimum
        )

    @typed
    def describe(self, w: Tensor) -> str:
        """The name of a critical point: corners of its polygon and a + per positive vestige.

        A feature is represented if x = e_i gives x̂_i above ½; the others are vestigial. What is no
        regular polygon is called irregular.
        """
        directions, bias = self.parts(w.detach())
        length = directions.norm(dim=0)
        real = length.square() + bias > REPRESENTED
        corners, signs = int(real.sum()), "+" * int((bias[~real] > 0).sum())
        return f"{corners}{signs}{'' if _is_regular(directions[:, real]) else ' irregular'}"

    def prior_constant(self, w: Tensor) -> float:
        """½|w|² where features that are off count as zero: −log φ(w*) of a standard normal prior.

        A feature that is off has a family of weights with one loss; this is the family's best.
        """
        directions, bias = self.parts(w.detach())
        off = (directions.norm(dim=0).square() + bias <= REPRESENTED) & (bias <= 0)
        return float(directions[:, ~off].square().sum() + bias[~off].square().sum()) / 2

    def _shares(self, like: Tensor) -> Tensor:
        equal = (1 / self.n_features,) * self.n_features
        return torch.tensor(self.probabilities or equal, dtype=like.dtype, device=like.device)


def _is_regular(corners: Tensor) -> bool:
    """Whether directions ``[2, corner]`` are a regular polygon."""
    n = corners.shape[1]
    if n < 2 or corners.shape[0] != 2:
        return False
    length = corners.norm(dim=0)
    angle = np.sort(torch.atan2(corners[1], corners[0]).numpy())
    gaps = np.diff([*angle, angle[0] + 2 * math.pi])
    even = np.abs(gaps * n / (2 * math.pi) - 1).max() < REGULAR
    return bool(even and float((length / length.mean() - 1).abs().max()) < REGULAR)


def _square_integral(slope: Tensor, start: Tensor) -> Tensor:
    """∫₀¹ ReLU(slope·ξ + start)² dξ."""
    end = slope + start
    low, high = torch.relu(start), torch.relu(end)
    both, one = (start > 0) & (end > 0), (start > 0) ^ (end > 0)
    part = torch.maximum(low, high) ** 3 / torch.where(one, slope.abs(), 1.0)
    whole = low.square() + low * high + high.square()
    return torch.where(both, whole, torch.where(one, part, 0.0)) / 3


def _moment_integral(slope: Tensor, start: Tensor) -> Tensor:
    """∫₀¹ ξ·ReLU(slope·ξ + start) dξ for slopes ≥ 0."""
    end = slope + start
    both, one = (start > 0) & (end > 0), (start <= 0) & (end > 0)
    active = end / torch.where(one, slope, 1.0)  # length of the interval that is above zero
    part = end * active * (0.5 - active / 6)
    return torch.where(both, slope / 3 + start / 2, torch.where(one, part, 0.0))
