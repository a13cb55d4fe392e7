"""What a model computes at its hooks, without interventions of ours."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from typing import Any

import torch
from torch import Tensor

from lens_slt.models.adapter import AdaptedModel, model_logits_from

Hook = tuple[str, Callable[[Tensor, Any], Tensor | None]]


class _Stop(Exception):
    """Ends a forward pass when all that is wanted has been seen."""


def run_with(adapted: AdaptedModel, tokens: Tensor, hooks: Iterable[Hook]) -> Tensor:
    """Logits of ``tokens [sequence, position]`` under some hooks; without gradients."""
    with torch.no_grad():
        return adapted.module.run_with_hooks(
            tokens.to(adapted.device), return_type="logits", fwd_hooks=list(hooks)
        )


def keep_in(kept: dict[str, Tensor], name: str) -> Hook:
    """A hook that keeps its value."""

    def hook(value: Tensor, hook: Any) -> None:
        kept[name] = value.detach()

    return name, hook


def captured(
    adapted: AdaptedModel, tokens: Tensor, names: Iterable[str], changes: Iterable[Hook] = ()
) -> dict[str, Tensor]:
    """Values at hooks; those that this model does not have, or does not call, are left out."""
    kept: dict[str, Tensor] = {}
    known = adapted.module.hook_dict
    there = [name for name in names if name in known]
    run_with(adapted, tokens, [*changes, *(keep_in(kept, name) for name in there)])
    return kept


def captured_until(
    adapted: AdaptedModel,
    tokens: Tensor,
    name: str,
    changes: Iterable[Hook],
    start: tuple[int, Tensor] | None = None,
) -> Tensor:
    """Value at one hook of a pass under changes that ends there.

    With ``start``, a block and the stream before it, the pass begins there.
    """
    if start is not None:
        with torch.no_grad():
            return traced(adapted, tokens, name, changes, start).detach()
    found: list[Tensor] = []
    with _ending_at(name, found) as stop:
        run_with(adapted, tokens, [*changes, stop])
    return _one(found, adapted, name).detach()


def traced(
    adapted: AdaptedModel,
    tokens: Tensor,
    name: str,
    changes: Iterable[Hook],
    start: tuple[int, Tensor],
) -> Tensor:
    """The same from a block and the stream before it; differentiable in what the changes add."""
    layer, resid = start
    found: list[Tensor] = []
    with _ending_at(name, found) as stop, adapted.module.hooks(fwd_hooks=[*changes, stop]):
        model_logits_from(adapted, tokens.to(adapted.device), resid, layer)
    return _one(found, adapted, name)


@contextmanager
def _ending_at(name: str, found: list[Tensor]) -> Iterator[Hook]:
    """A hook that ends a pass within this context, and puts its value into ``found``."""

    def stop(value: Tensor, hook: Any) -> None:
        found.append(value)
        raise _Stop

    with suppress(_Stop):
        yield name, stop


def _one(found: list[Tensor], adapted: AdaptedModel, name: str) -> Tensor:
    if not found:
        raise ValueError(f"model: {adapted.name} does not call its {name}")
    return found[0]
