"""Jobs and runs on clusters of this machine: Dask's, and Ray where it is installed."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import joblib
import pytest
import torch

import lens_slt as ls
from lens_slt.sampling.folder import SamplingWarning
from lens_slt.sampling.jobs import run_jobs
from tests.made_jobs import Compute, Once
from tests.tiny_models import native

HOW_TO = Path(__file__).parents[2] / "docs" / "how-to" / "cluster.md"
SOME = [Compute(f"job {i}", i) for i in range(4)]
SHORT = ls.Settings(chains=2, draws=4, burn_in=2, batch_size=4, gamma=50.0, step_size=0.01)
TOKENS = torch.randint(50, (8, 12), generator=torch.Generator().manual_seed(0))


@pytest.fixture(scope="module")
def dask() -> Iterator[Any]:
    """A client of two workers on this machine."""
    distributed = pytest.importorskip("distributed", reason="needs lens-slt[dask]")
    with (
        distributed.LocalCluster(
            n_workers=2, threads_per_worker=1, dashboard_address=None, memory_limit=None
        ) as cluster,
        distributed.Client(cluster) as client,
    ):
        yield client


@pytest.fixture(scope="module")
def ray() -> Iterator[Any]:
    module = pytest.importorskip("ray", reason="ray is not installed (extra: ray)")
    module.init(num_cpus=2, include_dashboard=False, configure_logging=False)
    yield module
    module.shutdown()


def block(part: str) -> str:
    """The Python of one part of the how-to page."""
    text = HOW_TO.read_text("utf-8").split(f"\n## {part}")[1].split("\n## ")[0]
    return "\n".join(re.findall(r"```python\n(.*?)```", text, re.DOTALL))


def as_in_the_how_to(part: str, replaced: dict[str, str], path: Path, **more: Any) -> Any:
    """The draws of a page's code, with a tiny model; ``replaced`` has what a test cannot run."""
    code = block(part).replace("/shared/runs/mine", str(path))
    for old, new in replaced.items():
        assert old in code
        code = code.replace(old, new)
    code = code.replace('"heads",', '"heads", settings=SHORT, progress=False,')
    names = {"ls": ls, "model": native(), "tokens": TOKENS, "SHORT": SHORT, **more}
    exec(code, names)
    return names["draws"]


def here() -> Any:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        return ls.sample(native(), TOKENS, "heads", settings=SHORT, progress=False)
    finally:
        torch.set_num_threads(before)


def values(parallel: Any) -> list[Any]:
    return [outcome.value[:2] for outcome in run_jobs(SOME, parallel, progress=False)]


@pytest.mark.slow  # workers start, which takes most of it
def test_slurm_as_in_the_how_to(dask: Any, tmp_path: Path) -> None:
    replaced = {
        "from dask_jobqueue import SLURMCluster\n": "",
        "cluster.scale(jobs=16)\n": "",
    }
    names = {"SLURMCluster": lambda **options: dask.cluster}  # this machine's for the queue's
    draws = as_in_the_how_to("Slurm", replaced, tmp_path / "draws", **names)
    assert here().identical(draws.load())


def test_dask_computes_what_this_process_does(dask: Any) -> None:
    assert values("dask") == values(None)
    with joblib.parallel_config(backend="dask"):
        assert values(None) == values("dask")


def test_dask_survives_a_killed_worker(dask: Any, tmp_path: Path) -> None:
    bad = Once("bad", str(tmp_path), "kill")
    with pytest.warns(SamplingWarning, match=r"run again: bad \(its worker was lost\)"):
        found = run_jobs([SOME[0], bad, SOME[1]], "dask", progress=False)
    assert [outcome.value for outcome in found][1] == 2 and not found[0].repeated


@pytest.mark.slow  # workers start, which takes most of it
def test_ray_as_in_the_how_to(ray: Any, tmp_path: Path) -> None:
    replaced = {'ray.init()  # or ray.init(address="auto") on a running cluster\n': ""}
    assert here().identical(as_in_the_how_to("Ray", replaced, tmp_path / "draws").load())
    assert values("ray") == values(None)
