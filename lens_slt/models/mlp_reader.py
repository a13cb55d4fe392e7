"""What the MLPs of a model are called with."""

from __future__ import annotations

from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from typing import Any

from torch import Tensor, nn

from lens_slt.models.adapter import AdaptedModel
from lens_slt.models.captures import run_with


@dataclass(frozen=True)
class MlpReader:
    """How an MLP reads the residual stream: ``norm`` of what stands at the hook ``place``."""

    module: nn.Module  # the MLP, which is called with what it reads
    norm: nn.Module | None
    place: str

    @property
    def beside_heads(self) -> bool:
        """Whether it reads the stream before the heads of its own layer (GPT-J)."""
        return self.place.endswith("hook_resid_pre")

    def read(self, resid: Tensor) -> Tensor:
        """The MLP's input from a residual stream."""
        return resid if self.norm is None else self.norm(resid)


def mlp_inputs(adapted: AdaptedModel, tokens: Tensor) -> dict[int, list[Tensor]]:
    """What the MLP of every layer is called with in one run, once for each call."""
    seen: dict[int, list[Tensor]] = {}

    def keep(layer: int, module: nn.Module, inputs: tuple[Any, ...]) -> None:
        seen.setdefault(layer, []).extend(x.detach() for x in inputs[:1])

    with ExitStack() as stack:
        for layer, block in enumerate(adapted.module.blocks):
            module = block._modules.get("mlp")
            if module is not None:
                handle = module.register_forward_pre_hook(partial(keep, layer))
                stack.callback(handle.remove)
        run_with(adapted, tokens, [])
    return seen
