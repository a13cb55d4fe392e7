"""What a model computes at its hooks, without interventions of ours."""

from __future__ import annotations

from collections.abc import Callable, Iterable
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
    found: list[Tensor] = []

    def stop(value: Tensor, hook: Any) -> None:
        found.append(value.detach())
        raise _Stop

    hooks = [*changes, (name, stop)]
    try:
        if start is None:
            run_with(adapted, tokens, hooks)
        else:
            layer, resid = start
            with torch.no_grad(), adapted.module.hooks(fwd_hooks=hooks):
                model_logits_from(adapted, tokens.to(adapted.device), resid, layer)
    except _Stop:
        return found[0]
    raise ValueError(f"model: {adapted.name} does not call its {name}")
