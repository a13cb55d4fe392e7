"""What is measured before the first step: curvature at the given weights, and the prior's loss."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from lens_slt.sampling.members import Members, Part, Target
from lens_slt.sampling.metric import Metric, identity, leading_curvature, metric_at_star
from lens_slt.sampling.randomness import chain_noise, derived_generator
from lens_slt.sampling.settings import Settings

CURVATURE_BATCHES = 2  # minibatches on which curvature is measured
PRIOR_BATCHES = 8  # minibatches, each with a fresh prior draw per chain
PILOT = "pilot "  # begins the names of its tensors in a file


@dataclass(frozen=True)
class Pilot:
    """Per group of components.

    Attributes:
        metrics: the preconditioner.
        curvature: the leading nβ·h at the given weights, ``[component]``; NaN if not measured.
        prior: paired losses of prior draws ``[component, draw]``, antithetic pairs averaged.
    """

    metrics: list[Metric]
    curvature: list[Tensor]
    prior: list[Tensor]

    def tensors(self) -> dict[str, Tensor]:
        """For a file, by the number of the group."""
        found: dict[str, Tensor] = {}
        for g, metric in enumerate(self.metrics):
            found |= {
                f"{PILOT}{g}|scale": metric.scale.cpu(),
                f"{PILOT}{g}|vectors": metric.vectors.cpu(),
                f"{PILOT}{g}|curvature": self.curvature[g].cpu(),
                f"{PILOT}{g}|prior": self.prior[g].cpu(),
            }
        return found

    @classmethod
    def of(cls, kept: dict[str, Tensor], groups: list[Members]) -> Pilot:
        """What :meth:`tensors` gave."""

        def part(g: int, key: str) -> Tensor:
            return kept[f"{PILOT}{g}|{key}"].to(groups[g].star.device)

        n = range(len(groups))
        metrics = [Metric(part(g, "scale"), part(g, "vectors")) for g in n]
        return cls(metrics, [part(g, "curvature") for g in n], [part(g, "prior") for g in n])


def pilot(target: Target, settings: Settings) -> Pilot:
    """Measure what a run needs to know before it starts."""
    metrics, curvature, prior = [], [], []
    for g, members in enumerate(target.groups):
        part = (g, tuple(range(len(members.names))))
        metric = identity(members.star)
        leading = members.star.new_full((len(members.names),), float("nan"))
        if settings.measures_curvature:
            values, vectors = _curvature(target, settings, part)
            metric, leading = metric_at_star((values, vectors), settings.gamma), values[:, 0]
        metrics.append(metric)
        curvature.append(leading)
        prior.append(_prior_losses(target, settings, part))
    return Pilot(metrics, curvature, prior)


def _curvature(target: Target, settings: Settings, part: Part) -> tuple[Tensor, Tensor]:
    batches = [target.minibatch(f"curvature {i}", [part]) for i in range(CURVATURE_BATCHES)]
    members = target.groups[part[0]]

    def gradient(u: Tensor) -> Tensor:
        found = [batch(part, u, gradient=True)[1] for batch in batches]
        return sum(grad for grad in found if grad is not None) / len(batches)  # type: ignore[return-value]

    start = torch.stack(
        [
            torch.randn(
                members.star.shape[1], device=members.star.device, dtype=members.star.dtype,
                generator=derived_generator(members.star.device, settings.seed, name, "curvature"),
            )
            for name in members.names
        ]
    )  # fmt: skip
    at = torch.zeros_like(members.star)
    return leading_curvature(gradient, at, start, settings.gamma, settings.n_beta)


def _prior_losses(target: Target, settings: Settings, part: Part) -> Tensor:
    members, s = target.groups[part[0]], settings
    like = members.star[:, None].expand(-1, s.chains, -1)
    rows = []
    for i in range(PRIOR_BATCHES):
        noise = chain_noise(like, members.names, s.seed, f"prior {i}", s.antithetic)
        evaluate = target.minibatch(f"prior {i}", [part])
        loss, _ = evaluate(part, noise / s.gamma**0.5, gradient=False)
        rows.append(loss.unflatten(1, (-1, 2)).mean(-1) if s.antithetic else loss)
    return torch.cat(rows, dim=1)
