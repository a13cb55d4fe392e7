"""What torch is set to while lens_slt computes: the same numbers in every context of the caller's.

Inference mode forbids gradients and lends its tensors to nobody, autocast rounds losses to half
precision, and a default device puts helper tensors where generators cannot fill them.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from contextlib import ExitStack
from typing import ParamSpec, TypeVar

import torch

P = ParamSpec("P")
R = TypeVar("R")

AUTOCAST_DEVICES = ("cpu", "cuda", "mps", "xpu")


def plain_torch(function: Callable[P, R]) -> Callable[P, R]:
    """Run a public function outside inference mode and autocast, with the CPU as default device."""

    @functools.wraps(function)
    def inside(*args: P.args, **kwargs: P.kwargs) -> R:
        with ExitStack() as stack:
            if torch.is_inference_mode_enabled():
                stack.enter_context(torch.inference_mode(False))
            for device in AUTOCAST_DEVICES:
                if torch.is_autocast_enabled(device):
                    stack.enter_context(torch.autocast(device, enabled=False))
            if torch.get_default_device().type != "cpu":
                stack.enter_context(torch.device("cpu"))
            return function(*args, **kwargs)

    return inside
