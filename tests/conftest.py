"""Shared set-up: shapes in signatures are checked, and nothing needs a network."""

from __future__ import annotations

import os

os.environ.setdefault("HF_HUB_OFFLINE", "1")  # before anything imports huggingface_hub
os.environ.setdefault("HF_DATASETS_OFFLINE", "1")
os.environ.setdefault("LOKY_MAX_CPU_COUNT", "1")  # commands start no processes of themselves
if "PYTEST_XDIST_WORKER" in os.environ:  # one core a worker, also for what it starts
    os.environ.setdefault("OMP_NUM_THREADS", "1")

from tests.shape_checks import check_shapes_of

check_shapes_of("lens_slt")  # must come before its first import

import pytest  # noqa: E402
import torch  # noqa: E402


@pytest.hookimpl(tryfirst=True)
def pytest_cmdline_main(config: pytest.Config) -> None:
    """Workers that have run out of tests take some of another's, unless told otherwise."""
    if getattr(config.option, "numprocesses", None) and config.option.dist == "no":
        config.option.dist = "worksteal"


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Slow tests first, so that no worker ends alone with them; ``gpu`` where there is one."""
    items.sort(key=lambda item: item.get_closest_marker("slow") is None)
    if torch.cuda.is_available():
        return
    for item in items:
        if item.get_closest_marker("gpu"):
            item.add_marker(pytest.mark.skip(reason="needs a CUDA device"))
