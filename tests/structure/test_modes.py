"""Modes against scikit-learn's PCA, planted directions, and messages."""

from __future__ import annotations

import numpy as np
import pytest
import xarray as xr
from sklearn.decomposition import PCA
from sklearn.preprocessing import StandardScaler

import lens_slt as ls
from lens_slt.structure.modes import _verdicts
from lens_slt.structure.standardize import standardized
from tests.made_matrices import planted


def test_equal_to_principal_components():
    matrix, _, _ = planted()
    found = ls.modes(matrix, n_bootstrap=0)
    x = StandardScaler().fit_transform(matrix["llc"].values.T)
    pca = PCA().fit(x)
    np.testing.assert_allclose(found["explained"], pca.explained_variance_ratio_, rtol=1e-10)
    overlap = (found["loading"].values * pca.components_).sum(1)
    np.testing.assert_allclose(np.abs(overlap), 1, atol=1e-8)
    scores = pca.transform(x) / pca.transform(x).std(0) * np.sign(overlap)
    np.testing.assert_allclose(found["score"].values.T, scores, atol=1e-6)


def test_signs_follow_the_largest_loading():
    matrix, _, _ = planted()
    found = ls.modes(matrix, n_bootstrap=0)
    loading = found["loading"].values
    assert (loading[np.arange(len(loading)), np.abs(loading).argmax(1)] > 0).all()


def test_stable_modes_and_noise_are_told_apart():
    matrix, _, _ = planted(sizes=(3.0, 1.5), noise=0.3)
    found = ls.modes(matrix, n_modes=4)
    assert list(found["verdict"].values[:2]) == ["stable"] * 2
    assert (found["angle"].values[:2] < 15).all()
    assert "may be noise" in found["verdict"].values[2:]  # equal sizes: any rotation is as good


def test_modes_of_equal_size_are_a_stable_span():
    assert _verdicts(np.array([2.0, 45.0, 44.0, 60.0]), np.array([2.0, 50.0, 8.0, 70.0])) == [
        "stable", "stable span 2–3", "stable span 2–3", "may be noise",
    ]  # fmt: skip


def test_bootstrap_intervals_hold_the_estimate():
    matrix, _, _ = planted(sizes=(3.0, 1.5), noise=0.3)
    found = ls.modes(matrix, n_modes=4)
    inside = (found["loading_low"] <= found["loading"]) & (
        found["loading"] <= found["loading_high"]
    )
    assert inside.isel(mode=[0, 1]).all()
    assert (found["explained_low"] < found["explained_high"]).all()


def test_intervals_cover():
    """What the loadings are on average over repetitions of the same noise lies inside."""
    clean, _, _ = planted(noise=0.0)
    repeated = []
    for seed in range(30):
        noise = np.random.default_rng(seed).normal(size=clean["blocks"].shape)
        matrix = clean.assign(blocks=clean["blocks"] + 8**0.5 * 0.5 * noise)
        matrix["llc"] = matrix["blocks"].mean("block")
        repeated.append(ls.modes(matrix, n_modes=2, n_bootstrap=60))
    truth = np.mean([found["loading"].values for found in repeated], axis=0)
    inside = [(f["loading_low"].values < truth) & (truth < f["loading_high"]) for f in repeated]
    assert np.mean(inside) > 0.93


def test_whitening_orders_by_signal_to_noise():
    """A loud and noisy direction comes first without, a quiet and clean one with whitening."""
    generator = np.random.default_rng(0)
    matrix, _, _ = planted(n_components=3, sizes=(1.0,), noise=0.0)
    n = matrix.sizes["token"]
    loud, quiet = generator.normal(size=(2, n))
    clean = np.stack([loud, loud + 0.1 * quiet, quiet])
    noise = np.array([3.0, 3.0, 0.1])[None, :, None] * generator.normal(size=(8, 3, n))
    noise[:, 1] = noise[:, 0]
    matrix["blocks"] = (("block", "component", "token"), clean + noise)
    matrix["llc"] = matrix["blocks"].mean("block")
    plain, white = ls.modes(matrix, n_bootstrap=0), ls.modes(matrix, whiten=True, n_bootstrap=0)
    assert abs(np.corrcoef(plain["score"][0], loud)[0, 1]) > 0.6
    difference = clean[1] - clean[0]  # its noise cancels, up to nothing
    assert abs(np.corrcoef(white["score"][0], difference)[0, 1]) > 0.99
    with pytest.raises(ValueError, match="whiten=True needs the noise"):
        ls.modes(matrix.drop_vars("blocks"), whiten=True)


def test_row_centring_removes_what_is_shared():
    matrix, _, _ = planted()
    shared = np.random.default_rng(1).normal(size=matrix.sizes["token"])
    matrix["llc"] = matrix["llc"] + 20 * shared
    x = standardized(matrix, centre_rows=True)
    np.testing.assert_allclose(x.mean(1), 0, atol=1e-12)
    found = ls.modes(matrix, centre_rows=True, n_bootstrap=0)
    assert np.abs(np.corrcoef(found["score"][0], shared)[0, 1]) < 0.2
    assert np.abs(np.corrcoef(ls.modes(matrix, n_bootstrap=0)["score"][0], shared)[0, 1]) > 0.99


def test_reproducible_and_without_blocks():
    matrix, _, _ = planted()
    xr.testing.assert_identical(ls.modes(matrix, seed=3), ls.modes(matrix, seed=3))
    assert "angle" in ls.modes(matrix.drop_vars("blocks"))  # sequences alone are resampled
    assert "angle" not in ls.modes(matrix, n_bootstrap=0)


def _with(matrix: xr.Dataset, value: float, column: int = 1) -> xr.Dataset:
    changed = matrix["llc"].values.copy()
    changed[column] = value
    return matrix.assign(llc=(("component", "token"), changed))


@pytest.mark.parametrize(
    ("break_it", "message"),
    [
        (lambda m: ls.modes(_with(m, np.nan)), "600 values that are not finite, in L0H1"),
        (lambda m: ls.modes(_with(m, 3.0)), "the column of L0H1 is constant over tokens"),
        (lambda m: ls.modes(m.isel(token=slice(4))), "4 tokens for 6 components"),
        (lambda m: ls.modes(m, n_modes=0), "n_modes must be an integer of at least 1; got 0"),
        (lambda m: ls.modes(m, n_bootstrap=-1), "n_bootstrap must be an integer of at least 0"),
    ],
)
def test_messages(break_it, message):
    with pytest.raises(ValueError, match=message):
        break_it(planted()[0])


def test_what_is_no_matrix_is_refused():
    with pytest.raises(TypeError, match=r"Dataset that .*susceptibility\(…\) returns; got DataArr"):
        ls.modes(planted()[0]["llc"])
