"""A run in parts draws, to the last bit, what a run in one piece does, and survives as it does."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import joblib
import pytest
import torch
import xarray as xr

import lens_slt as ls
from lens_slt.sampling import devices
from lens_slt.sampling.folder import PARTS, SamplingWarning
from lens_slt.sampling.jobs import JobError
from lens_slt.sampling.store import read_state
from tests.made_jobs import BadLuck
from tests.tiny_models import native, randomise, wrapped_gpt2, wrapped_mistral

SHORT = ls.Settings(chains=2, draws=4, burn_in=2, batch_size=4, gamma=50.0, step_size=0.01)
COMPONENTS = ["L1H2", "L0H1", "unembed", "L1H0"]  # three parts


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def tokens_for(n: int = 8, length: int = 12, seed: int = 0) -> torch.Tensor:
    return torch.randint(50, (n, length), generator=torch.Generator().manual_seed(seed))


def run(model: Any = None, **options: Any) -> xr.DataTree:
    model = native() if model is None else model
    options = {"settings": SHORT, "components": COMPONENTS, **options}
    return ls.sample(model, tokens_for(), progress=False, **options)


def rich_probes() -> dict[str, Any]:
    observables = {"right": ls.Accuracy(), "apart": ls.Divergence()}
    tied = wrapped_gpt2()  # its unembedding is transposed in memory
    return {
        "read": ls.Probe(tokens_for(3, seed=1), observables=observables),
        "held_out": ls.Probe(tokens_for(3, seed=2), reference=tied),
    }


@pytest.mark.slow  # workers start, which takes most of it
def test_the_draws_are_those_of_a_run_in_one_piece(tmp_path: Path) -> None:
    model = native()
    whole = run(model, probes=rich_probes())
    there = run(model, probes=rich_probes(), parallel=2, path=tmp_path / "there")
    assert whole.identical(there.load())
    assert whole.identical(ls.open_draws(tmp_path / "there").load())
    assert not (tmp_path / "there" / PARTS).exists()


@pytest.mark.filterwarnings("ignore:model. running its own blocks")
def test_so_are_those_of_a_model_that_only_its_own_blocks_run() -> None:
    model = wrapped_mistral(sliding_window=8)
    options: dict[str, Any] = {"components": COMPONENTS[:2], "probes": rich_probes()}
    assert run(model, **options).identical(run(model, parallel=1, **options))


@pytest.mark.parametrize("given", [None, {"L1H2": 3}])
def test_courses_of_components_are_the_same(given: dict[str, int] | None) -> None:
    settings = ls.Settings(
        chains=2, draws=8, burn_in=2, batch_size=4, gamma=200.0, n_beta=300.0, steps_per_draw=given
    )
    whole = run(settings=settings, components="heads")
    assert whole.identical(run(settings=settings, components="heads", parallel=1))
    assert whole["steps_per_draw"].max() > 1


def test_a_finished_run_is_the_same_however_it_was_sampled(tmp_path: Path) -> None:
    whole, parts = run(path=tmp_path / "whole").load(), run(path=tmp_path / "parts", parallel=1)
    assert run(path=tmp_path / "whole", parallel=2).identical(whole)
    assert run(path=tmp_path / "parts").identical(parts) and whole.identical(parts)
    (about, state), (other, tensors) = (read_state(tmp_path / way) for way in ("whole", "parts"))
    assert about == other
    torch.testing.assert_close(state, tensors, rtol=0, atol=0, equal_nan=True)


@pytest.mark.slow  # workers start, which takes most of it
def test_a_worker_killed_in_the_middle_is_survived(tmp_path: Path) -> None:
    model = native()

    def probes() -> dict[str, Any]:
        luck = BadLuck(str(tmp_path), at=4, pid=os.getpid())
        return {"read": ls.Probe(tokens_for(2, seed=1), observables={"first": luck})}

    whole = run(model, probes=probes())
    with pytest.warns(SamplingWarning, match="run again: .*its worker was lost"):
        found = run(model, probes=probes(), parallel=2)
    assert (tmp_path / "happened").exists() and whole.identical(found)


@pytest.mark.parametrize("parallel", [None, 1])
def test_what_a_failure_left_goes_on_and_damage_is_repaired(
    parallel: int | None, tmp_path: Path
) -> None:
    path, model = tmp_path / "draws", native()

    def probes(at: int) -> dict[str, Any]:
        luck = BadLuck(str(tmp_path), at=at)
        return {"read": ls.Probe(tokens_for(2, seed=1), observables={"first": luck})}

    whole = run(model, probes=probes(-1))
    with pytest.raises(JobError, match="1 of 3 jobs failed, the others are done: L0H1 .*bad luck"):
        run(model, probes=probes(5), path=path, parallel=1)
    with pytest.raises(ValueError, match="has not finished, its parts are not joined"):
        ls.open_draws(path)
    with pytest.raises(ValueError, match="holds the draws of another run .settings: draws 4 there"):
        run(model, probes=probes(-1), path=path, settings=SHORT.but(draws=5), parallel=1)
    parts = sorted(part for part in (path / PARTS).iterdir() if part.name.isdigit())
    assert len(parts) == 3
    (parts[2] / "zarr.json").unlink()
    for file in (parts[1] / "paired_loss" / "c").rglob("*"):
        if file.is_file():
            file.write_bytes(file.read_bytes()[:-4])
    (parts[0] / "state.safetensors").write_bytes(b"half")
    with pytest.warns(SamplingWarning, match="begun anew: L0H1 .*; L1H2, L1H0 .*altered"):
        found = run(model, probes=probes(-1), path=path, parallel=parallel)
    assert whole.identical(found.load())
    shutil.copytree(path, tmp_path / "copy")
    assert run(model, probes=probes(-1), path=tmp_path / "copy").identical(whole)


def test_joining_that_was_interrupted_is_done_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, model = tmp_path / "draws", native()
    whole = run(model)
    with monkeypatch.context() as patch:
        patch.setattr("lens_slt.sampling.run.write_labels", lambda *args: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            run(model, path=path, parallel=1)
    assert (path / "zarr.json").exists() and (path / PARTS).exists()
    assert whole.identical(run(model, path=path).load())


def test_a_run_that_was_begun_in_one_piece_goes_on_in_one(tmp_path: Path) -> None:
    path, model = tmp_path / "draws", native()
    whole = run(model)
    luck = BadLuck(str(tmp_path), at=3)
    probes = {"read": ls.Probe(tokens_for(2, seed=1), observables={"first": luck})}
    with pytest.raises(ValueError, match="bad luck"):
        run(model, path=path, probes=probes)
    luck.at = -1
    found = run(model, path=path, probes=probes, parallel=2)
    assert whole["posterior"].identical(found["posterior"].load())


def test_a_source_is_a_model(tmp_path: Path) -> None:
    whole = run()
    source = ls.model_source(native)
    assert whole.identical(run(source)) and whole.identical(run(source, parallel=1))
    with joblib.parallel_config(backend="threading", n_jobs=2):
        assert whole.identical(run(source))


def test_what_cannot_travel_is_said_before_work_starts() -> None:
    model = native()
    model.blocks[0].hook_out.register_forward_hook(lambda module, args, out: out * 1.5)
    with (
        pytest.warns(SamplingWarning, match="hooks are attached"),
        pytest.raises(ValueError, match="attached at blocks.0.hook_out.*lens_slt.model_source"),
    ):
        run(model, parallel=2)
    generator = (i for i in range(3))
    luck = ls.Probe(tokens_for(2), observables={"odd": lambda z, s: z[:, 0] + 0 * len([generator])})
    with pytest.raises(TypeError, match=r"probes\['read'\].observables\['odd'\].*another process"):
        run(probes={"read": luck}, parallel=2)
    with pytest.raises(ValueError, match="parallel must be an integer of at least 1"):
        run(parallel=0)


def test_a_worker_that_loads_another_model_is_found() -> None:
    seeds = iter(range(9))
    source = ls.model_source(lambda: randomise(native(), next(seeds)))
    with pytest.raises(JobError, match="is not the model that sample was given .model"):
        run(source, parallel=1)


def test_every_worker_takes_a_gpu_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(devices, "usable_device", torch.device)
    monkeypatch.setattr(
        torch.cuda, "get_device_properties", lambda i: type("Gpu", (), {"uuid": f"test-{i}"})
    )
    with devices.one_device("cuda") as first, devices.one_device("cuda") as second:
        assert [first.index, second.index] == [0, 1]
        with devices.one_device("cuda") as shared:
            assert shared.index == os.getpid() % 2
    with devices.one_device("cuda") as again, devices.one_device("cuda:1") as given:
        assert [again.index, given.index] == [0, 1]
    with devices.one_device("cpu") as cpu:
        assert cpu.type == "cpu"
