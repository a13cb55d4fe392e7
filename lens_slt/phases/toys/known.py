"""Losses whose learning coefficient is a theorem: normal crossings, deep linear networks.

Every loss maps ``w [chain, parameter]`` to ``[chain]``, is zero at its ``point``, and is the loss
of the population, without an error from a finite sample. Linear networks also draw data, and have
the loss on them.

    >>> import lens_slt as ls
    >>> from lens_slt.phases.toys.known import deep_linear
    >>> toy = deep_linear((5, 3, 4), rank=1, seed=0)
    >>> settings = ls.Settings(n_beta=100, gamma=1, draws=50)
    >>> draws = ls.sample_function(
    ...     toy.row_loss, toy.point, data=toy.draw(256, 0), settings=settings
    ... )
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

Loss = Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class KnownCase:
    """A loss, the point whose neighbourhood is sampled, and its learning coefficient there.

    Attributes:
        name: of the case.
        loss: of the population, ``[chain, parameter]`` to ``[chain]``.
        point: ``[parameter]``.
        llc, multiplicity: λ and m at ``point``.
        draw: so many rows of data from a seed; None where there is no statistical model.
        row_loss: the mean loss on rows, up to what does not depend on the weights.
    """

    name: str
    loss: Loss
    point: Tensor
    llc: float
    multiplicity: int
    draw: Callable[[int, int], Tensor] | None = None
    row_loss: Callable[[Tensor, Tensor], Tensor] | None = None


def normal_crossing(exponents: Sequence[int]) -> KnownCase:
    """K(w) = ∏ w_i^{2k_i} at 0: λ = min 1/(2k_i), attained as often as the multiplicity says."""
    k = torch.tensor(exponents)
    ratios = [1 / (2 * int(x)) for x in exponents]
    return KnownCase(
        f"normal crossing k={tuple(exponents)}",
        lambda w: (w ** (2 * k)).prod(-1),
        torch.zeros(len(exponents)),
        min(ratios),
        ratios.count(min(ratios)),
    )


def deep_linear(widths: Sequence[int], rank: int, seed: int) -> KnownCase:
    """K = ½‖W_M⋯W_1 − truth‖² (inputs N(0, I), unit noise) at its most singular true parameter.

    ``widths`` go from input to output; two layers are reduced-rank regression. At the reference
    point every layer has exactly the rank of the truth, so the local learning coefficient there is
    the global one.
    """
    shapes = list(itertools.pairwise(widths))
    sizes = [rows * columns for rows, columns in shapes]
    generator = torch.Generator().manual_seed(seed)

    def product(w: Tensor) -> Tensor:
        parts = w.split(sizes, dim=-1)
        total = parts[0].unflatten(-1, shapes[0])
        for part, shape in zip(parts[1:], shapes[1:], strict=True):
            total = total @ part.unflatten(-1, shape)
        return total

    layers = []
    for depth, (rows, columns) in enumerate(shapes):
        layer = torch.zeros(rows, columns)
        layer[:rank, :rank] = torch.eye(rank)
        if depth == 0:
            rotation, _ = torch.linalg.qr(torch.randn(rows, rows, generator=generator))
            layer = rotation @ layer  # a truth that is not aligned with the axes
        layers.append(layer.flatten())
    point = torch.cat(layers)
    truth = product(point)
    llc, multiplicity = deep_linear_llc(widths, rank)

    def draw(n: int, seed: int) -> Tensor:
        noise = torch.Generator().manual_seed(seed)
        inputs = torch.randn(n, widths[0], generator=noise)
        outputs = inputs @ truth + torch.randn(n, widths[-1], generator=noise)
        return torch.cat([inputs, outputs], dim=1)

    def row_loss(w: Tensor, rows: Tensor) -> Tensor:
        inputs, outputs = rows.split([widths[0], widths[-1]], dim=1)
        return (outputs - inputs @ product(w)).square().sum(-1).mean(-1) / 2

    kind = "reduced-rank regression" if len(widths) == 3 else "deep linear network"
    return KnownCase(
        f"{kind} {'-'.join(map(str, widths))} rank {rank}",
        lambda w: (product(w) - truth).square().sum((-2, -1)) / 2,
        point,
        llc,
        multiplicity,
        draw,
        row_loss,
    )


def reduced_rank_llc(inputs: int, hidden: int, outputs: int, rank: int) -> float:
    """λ of reduced-rank regression: Aoyagi & Watanabe 2005, Theorem 1 (Neural Networks 18)."""
    m, h, n, r = inputs, hidden, outputs, rank
    if m + h < n + r:
        return (h * m - h * r + n * r) / 2
    if n + h < m + r:
        return (h * n - h * r + m * r) / 2
    if m + n < h + r:
        return m * n / 2
    odd = (m + h + n + r) % 2
    return (-((h + r) ** 2) - m**2 - n**2 + 2 * (h + r) * (m + n) + 2 * m * n + odd) / 8


def deep_linear_llc(widths: Sequence[int], rank: int) -> tuple[float, int]:
    """λ and multiplicity of a deep linear network: Aoyagi 2024 (Neural Networks 172), Theorem 1."""
    excess = [width - rank for width in widths]
    chosen = _aoyagi_subset(excess)
    last = len(chosen) - 1
    base = (rank * (widths[0] + widths[-1]) - rank**2) / 2
    if last == 0:
        return base, 1
    total = sum(chosen)
    a = total - (math.ceil(total / last) - 1) * last
    pairs = sum(x * y for x, y in itertools.combinations(chosen, 2))
    llc = base + a * (last - a) / (4 * last) - (last - 1) * total**2 / (4 * last) + pairs / 2
    return llc, a * (last - a) + 1


def _aoyagi_subset(excess: Sequence[int]) -> list[int]:
    """The layers' excess ranks that decide λ: the smallest ones, as many as the theorem says."""
    ordered = sorted(excess)
    for size in range(len(ordered), 0, -1):
        inside, outside = ordered[:size], ordered[size:]
        last = size - 1
        if outside and not inside[-1] < outside[0]:
            continue
        if sum(inside) >= last * inside[-1] and (not outside or sum(inside) < last * outside[0]):
            return inside
    raise ValueError(f"no subset of {excess} satisfies the theorem")
