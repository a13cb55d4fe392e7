"""What torch is set to while lens_slt computes: the same numbers in every context of the caller's.

Inference mode forbids gradients and lends its tensors to nobody, autocast rounds losses to half
precision, and a default device puts helper tensors where generators cannot fill them.
"""

from __future__ import annotations

import functools
import random
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import ParamSpec, TypeVar

import numpy as np
import torch
from threadpoolctl import threadpool_limits

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


@contextmanager
def with_threads(n: int) -> Iterator[None]:
    """Within the block torch and the libraries below compute with so many threads."""
    before = torch.get_num_threads()
    try:
        with threadpool_limits(limits=n):
            torch.set_num_threads(n)
            yield
    finally:
        torch.set_num_threads(before)


@contextmanager
def kept_random_state() -> Iterator[None]:
    """Within the block anything may draw random numbers; on any exit all generators are as they
    were: Python's, NumPy's and torch's."""
    python, numpy = random.getstate(), np.random.get_state()  # noqa: NPY002
    devices = range(torch.cuda.device_count()) if torch.cuda.is_initialized() else ()
    try:
        with torch.random.fork_rng(devices):
            yield
    finally:
        random.setstate(python)
        np.random.set_state(numpy)  # noqa: NPY002
