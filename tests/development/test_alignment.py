"""Modes over checkpoints: planted times and mixtures; principal angles against scipy's."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import xarray as xr
from scipy.linalg import hadamard, subspace_angles

import lens_slt as ls
from lens_slt.arrays import write_zarr
from lens_slt.development.alignment import APPEARS, FROM_START, NOISE, match_modes
from lens_slt.development.cells import FINISHED
from lens_slt.development.folder import step_folder
from lens_slt.development.onsets import first_lasting
from lens_slt.schema import name_of
from lens_slt.structure.modes import Decomposition
from tests.made_matrices import POSITIONS, SEQUENCES, matrix_of

STEPS = (0, 10, 100, 1000, 3000, 9000)
COMPONENTS, TOKENS, BLOCKS = 8, SEQUENCES * POSITIONS, 8


def planted(sizes: np.ndarray, noise: float = 0.3, seed: int = 0) -> dict[int, xr.Dataset]:
    """Matrices with the same modes at ``sizes [checkpoint, mode]``; all columns are alike in size,
    so that standardising them turns nothing."""
    generator = np.random.default_rng(seed)
    directions = hadamard(COMPONENTS)[1 : 1 + sizes.shape[1]] / COMPONENTS**0.5
    scores = generator.normal(size=(TOKENS, sizes.shape[1]))
    found = {}
    for step, size in zip(STEPS, sizes, strict=True):
        signal = ((scores * size) @ directions).T
        error = generator.normal(size=(BLOCKS, COMPONENTS, TOKENS))
        copies = signal + noise * BLOCKS**0.5 * error
        matrix = matrix_of(copies.mean(0), POSITIONS)
        matrix["blocks"] = (("block", "component", "token"), copies)
        found[step] = matrix
    return found


SIZES = np.array([[3, 0], [3, 0], [3, 0], [3, 1.5], [3, 1.5], [3, 1.5]])


def test_planted_modes_appear_when_they_do() -> None:
    found = ls.mode_development(planted(SIZES), n_modes=3, n_bootstrap=20)
    assert found["verdict"].values.tolist() == [FROM_START, APPEARS, NOISE]
    assert found["step"].values[:2].tolist() == [0, 1000]
    assert found["step_low"].values[1] == 100
    assert found["step_high"].values[1] == 1000
    assert np.isnan(found["step"].values[2])
    second = found["correlation"].sel(mode=2)
    assert (second[3:] > 0.9).all()
    assert (np.abs(second[:3]) < 0.5).all()
    assert name_of(found) == "mode_development"
    last = found.isel(checkpoint=-1)
    assert np.allclose(last["angle"], 0, atol=1e-4)
    assert np.allclose(last["correlation"], 1)
    assert (found["angle_low"] <= found["angle_high"]).all()


def test_signs_are_those_of_the_last() -> None:
    matrices = planted(SIZES)
    found = ls.mode_development(matrices, n_modes=1, n_bootstrap=0)
    loading = found["loading"].sel(mode=1).values
    assert (loading @ loading[-1] > 0.9).all()
    assert (found["correlation"] > 0.9).all()


def test_modes_that_change_places_are_matched() -> None:
    sizes = np.array([[1.5, 3]] * 3 + [[3, 1.5]] * 3)
    found = ls.mode_development(planted(sizes), n_modes=2, n_bootstrap=10)
    assert (found["verdict"] == FROM_START).all()
    share = found["explained"].values
    assert (share[:3, 0] < share[:3, 1]).all()
    assert (share[3:, 0] > share[3:, 1]).all()
    assert (found["loading_span_angle"].sel(mode=1)[:3] > 60).all()
    assert (found["loading_span_angle"].sel(mode=2) < 20).all()


def test_without_structure_nothing_appears() -> None:
    found = ls.mode_development(planted(np.zeros((6, 1)), noise=1.0), n_modes=3, n_bootstrap=20)
    assert (found["verdict"] == NOISE).all()
    assert np.isnan(found["step"]).all()


def test_span_angles_are_scipys() -> None:
    generator = np.random.default_rng(0)
    weight = generator.integers(1, 4, 50).astype(float)
    one, last = (Decomposition.of(generator.normal(size=(50, 5)), weight, None) for _ in range(2))
    found = match_modes(one, last, weight, 3)
    root = np.sqrt(weight)[:, None]
    for m in (1, 2, 3):
        a, b = one.vectors[:, :m], last.vectors[:, :m]
        assert found.loading_span[m - 1] == pytest.approx(np.degrees(subspace_angles(a, b)[0]))
        tokens = [root * d.x @ v for d, v in ((one, a), (last, b))]
        own = np.degrees(subspace_angles(*tokens)[0])
        assert found.token_span[m - 1] == pytest.approx(own)


def test_the_first_of_what_lasts() -> None:
    there = np.array([[1, 0, 1, 1], [1, 1, 1, 0], [1, 1, 1, 1]], dtype=bool)
    assert first_lasting(there).tolist() == [2, -1, 0]


def test_a_folder_of_a_sweep_is_read(tmp_path: Path) -> None:
    matrices = planted(SIZES)
    for step, matrix in matrices.items():
        folder = step_folder(tmp_path, step)
        folder.mkdir()
        write_zarr(matrix, folder / "per_token_llc-text.zarr")
        (folder / FINISHED).write_text("{}")
    found = ls.mode_development(tmp_path, n_modes=2, n_bootstrap=5)
    xr.testing.assert_allclose(found, ls.mode_development(matrices, n_modes=2, n_bootstrap=5))
    with pytest.raises(ValueError, match="probe must be one.*text"):
        ls.mode_development(tmp_path, "code")


def test_bad_matrices() -> None:
    matrices = planted(SIZES)
    with pytest.raises(ValueError, match="at least two checkpoints"):
        ls.mode_development({0: matrices[0]})
    other = {**matrices, 10: matrices[10].isel(token=slice(200, 400))}
    with pytest.raises(ValueError, match=r"matrices\[10\] has other sequences"):
        ls.mode_development(other)
    constant = matrices[100].copy(deep=True)
    constant["llc"][2] = 1.0
    with pytest.raises(ValueError, match="at step 100: matrix: the column of L0H2"):
        ls.mode_development({**matrices, 100: constant})
    with pytest.raises(ValueError, match="probe is for a path"):
        ls.mode_development(matrices, "text")
