"""Shared set-up: shapes in signatures are checked, and nothing needs a network."""

from __future__ import annotations

import os

os.environ.setdefault("HF_HUB_OFFLINE", "1")  # before anything imports huggingface_hub
os.environ.setdefault("HF_DATASETS_OFFLINE", "1")
if "PYTEST_XDIST_WORKER" in os.environ:  # one core a worker, also for what it starts
    os.environ.setdefault("OMP_NUM_THREADS", "1")

from jaxtyping import install_import_hook

from tests import shape_checks  # noqa: F401  (the hook finds it by name)

# Must come before the first import of lens_slt.
install_import_hook("lens_slt", "tests.shape_checks.check_shapes")

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
