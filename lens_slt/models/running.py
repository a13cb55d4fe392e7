"""Run part of a TransformerBridge: up to a block, or from a block on.

A bridge delegates to the wrapped model's own forward, which prepares masks and rotary angles, and
its ``start_at_layer`` (4.x only) still computes the skipped blocks. Here the wrapped forward runs
with the ``forward`` of the skipped blocks replaced on the instance, in a ``finally``-guarded
block: skipped blocks hand their input on, block ``layer`` receives the given residual stream. It
runs on the real tokens, because masks, positions and the inputs of later blocks (Gemma 4) may be
derived from them.
"""

from __future__ import annotations

import enum
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

INPUT_NAMES = ("hidden_states", "x", "input")


class OutputForm(enum.Enum):
    """What a block returns: the residual stream, or a tuple that begins with it."""

    TENSOR = "tensor"
    TUPLE = "tuple"


class _Reached(Exception):
    """Carries the residual stream out of the forward pass."""

    def __init__(self, resid: Tensor) -> None:
        super().__init__("reached the block")
        self.resid = resid


def block_output_form(bridge: Any, tokens: Tensor) -> OutputForm:
    """Find out what the blocks of this model return inside its own forward pass."""
    forms: list[OutputForm] = []
    first = bridge.blocks[0]
    original = first.forward

    def watch(*args: Any, **kwargs: Any) -> Any:
        output = original(*args, **kwargs)
        forms.append(OutputForm.TUPLE if isinstance(output, tuple) else OutputForm.TENSOR)
        return output

    with torch.no_grad(), _replaced({first: watch}):
        bridge(tokens[:1, :2], return_type="logits")
    return forms[0]


def resid_pre(bridge: Any, tokens: Tensor, layer: int) -> Tensor:
    """Residual stream before block ``layer``."""

    def stop(*args: Any, **kwargs: Any) -> Any:
        raise _Reached(args[0] if args else kwargs[_input_name(kwargs)])

    try:
        with _replaced({bridge.blocks[layer]: stop}):
            bridge(tokens, return_type="logits")
    except _Reached as reached:
        return reached.resid
    raise RuntimeError(f"block {layer} did not run in the model's own forward pass")


def run_blocks_from(
    bridge: Any, tokens: Tensor, resid: Tensor, layer: int, form: OutputForm
) -> Tensor:
    """Logits from the residual stream before block ``layer``; earlier blocks do not run."""

    def skip(*args: Any, **kwargs: Any) -> Any:
        passed = args[0] if args else kwargs[_input_name(kwargs)]
        return (passed,) if form is OutputForm.TUPLE else passed

    enter = bridge.blocks[layer]
    original = enter.forward

    def start(*args: Any, **kwargs: Any) -> Any:
        if args:
            return original(resid, *args[1:], **kwargs)
        return original(**{**kwargs, _input_name(kwargs): resid})

    changes: dict[nn.Module, Callable] = dict.fromkeys(bridge.blocks[:layer], skip)
    changes[enter] = start
    with _replaced(changes):
        return bridge(tokens, return_type="logits")


def _input_name(kwargs: dict[str, Any]) -> str:
    return next(name for name in INPUT_NAMES if isinstance(kwargs.get(name), Tensor))


@contextmanager
def _replaced(forwards: dict[nn.Module, Callable]) -> Iterator[None]:
    """Replace ``forward`` of some blocks on the instances, bypassing the bridge's __setattr__."""
    before: dict[Any, Any] = {module: module.__dict__.get("forward") for module in forwards}
    try:
        for module, function in forwards.items():
            module.__dict__["forward"] = function
        yield
    finally:
        for module, function in before.items():
            if function is None:
                module.__dict__.pop("forward", None)
            else:
                module.__dict__["forward"] = function
