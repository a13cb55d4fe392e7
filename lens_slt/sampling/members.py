"""What chains explore: groups of components whose losses are evaluated together."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from torch import Tensor


@dataclass(frozen=True)
class Members:
    """Components that are evaluated together."""

    names: list[str]
    star: Tensor  # the given weights, [component, parameter]


Part = tuple[int, tuple[int, ...]]  # a group, and some of its members


class Evaluate(Protocol):
    """Paired losses on one set of sequences."""

    def __call__(self, part: Part, u: Tensor, *, gradient: bool) -> tuple[Tensor, Tensor | None]:
        """Losses ``[component, chain]``, and gradients, at weights star + u."""
        ...


class Target(Protocol):
    """A loss that chains explore."""

    @property
    def groups(self) -> list[Members]: ...

    def minibatch(self, key: int | str, parts: list[Part]) -> Evaluate:
        """The loss on a minibatch that depends on nothing but ``key``."""
        ...

    def everything(self) -> Evaluate:
        """The loss on the whole set."""
        ...

    def probe_values(self, part: Part, u: Tensor) -> dict[str, Tensor]:
        """What is recorded of every probe, by array: :func:`probe_array`.

        Paired per-token losses ``[component, chain, sequence, position]``, and observables
        ``[component, chain, sequence]``.
        """
        ...


def probe_array(name: str, observable: str = "paired_loss") -> str:
    """Where what is recorded of a probe is stored."""
    return f"probes/{name}/{observable}"
