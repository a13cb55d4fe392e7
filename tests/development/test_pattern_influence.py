"""Influence between patterns over checkpoints: planted signs and sizes, noise without any."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import xarray as xr

import lens_slt as ls
from lens_slt.development.pattern_influence import HELPS, HURTS, UNCLEAR, turns
from lens_slt.schema import stamped
from tests.development.test_develop import NAMES, PROBE, TOKENS, developed, model_at
from tests.development.test_develop import SETTINGS as SWEPT
from tests.made_draws import SETTINGS, labelled

STEPS = (0, 100, 1000, 3000)
COUPLING = (-0.5, -3.0, 0.0, 0.8)  # of second and first, in units of the first's spread
SEQUENCES, POSITIONS = 4, 20
DRAWS = SETTINGS.least_draws


def patterns() -> xr.DataArray:
    """The first half of every sequence, the second, and three tokens."""
    first = np.zeros((SEQUENCES, POSITIONS), bool)
    first[:, : POSITIONS // 2] = True
    few = np.zeros_like(first)
    few[0, :3] = True
    made = xr.DataArray(
        np.stack([first, ~first, few]),
        dims=("pattern", "sequence", "position"),
        coords={"pattern": ["first", "second", "few"]},
        name="patterns",
    )
    return stamped(made, "patterns")


def run(coupling: tuple[float, ...] = COUPLING, seed: int = 0) -> dict[int, xr.DataTree]:
    """Draws in which the loss of one half goes with that of the other, or against it."""
    found = {}
    for i, (step, share) in enumerate(zip(STEPS, coupling, strict=True)):
        generator = np.random.default_rng(seed + i)
        shape = (1, SETTINGS.chains, DRAWS)
        one, own = 0.1 * generator.normal(size=(2, *shape))
        other = share * one + own
        half = POSITIONS // 2
        loss = np.concatenate(
            [np.repeat(v[..., None, None], half, -1) for v in (one, other)], -1
        ).repeat(SEQUENCES, -2)
        tokens = np.zeros((SEQUENCES, POSITIONS))
        fixed = {"base_loss": tokens, "tokens": tokens, "weight": tokens + 1}
        found[step] = labelled(
            0.3 + one, ["L0H0"], SETTINGS, per_token={"text": loss}, fixed={"text": fixed}
        )
    return found


def test_planted_signs_and_sizes() -> None:
    draws = run()
    found = ls.pattern_influence(draws, patterns())
    assert found["query"].values.tolist() == ["first", "second"]
    pair = found.sel(query="second", source="first")
    assert pair["effect"].values.tolist() == [HURTS, HURTS, UNCLEAR, HELPS]
    assert pair["flips"] == 1
    assert pair["peak"] == 100
    assert pair["peak_low"] == pair["peak_high"] == 100
    assert pair["peak_ratio"] > 3
    expected = -0.01 * np.array(COUPLING)
    assert (np.abs(pair["influence"] - expected) < 4 * pair["se"] + 1e-12).all()
    drawn = draws[100]["probes/text"]["paired_loss"].values[0, :, :, 0]
    direct = -np.cov(drawn[..., 0].ravel(), drawn[..., -1].ravel(), bias=True)[0, 1]
    assert pair["influence"][1].item() == pytest.approx(direct)
    own = found.sel(query="first", source="first")
    assert (own["effect"] == HELPS).all()
    assert np.allclose(own["correlation"], -1)


def test_unrelated_losses_have_no_sign() -> None:
    said = 0
    for seed in range(10):
        pair = ls.pattern_influence(run((0.0,) * 4, 10 * seed), patterns(), n_bootstrap=20)
        said += bool((pair["effect"].sel(query="second", source="first") != UNCLEAR).any())
    assert said <= 2


def test_it_is_the_influence_of_sequences_that_are_patterns() -> None:
    draws = run()[100]
    by_sequence = np.zeros((SEQUENCES, SEQUENCES, POSITIONS), bool)
    by_sequence[np.arange(SEQUENCES), np.arange(SEQUENCES)] = True
    labels = patterns().isel(pattern=[0] * SEQUENCES).copy(data=by_sequence)
    labels = labels.assign_coords(pattern=[str(i) for i in range(SEQUENCES)])
    found = ls.pattern_influence({0: draws, 1: draws}, labels)
    theirs = ls.influence(draws)
    assert np.allclose(found["influence"][0], theirs["influence"])
    assert np.allclose(found["se"][0], theirs["se"])


def test_only_clear_signs_turn() -> None:
    assert turns(np.array([1, 0, -1, -1, 0, 1, 0])[:, None]).tolist() == [2]


def test_bad_arguments() -> None:
    draws = run()
    with pytest.raises(ValueError, match="at least two checkpoints"):
        ls.pattern_influence({0: draws[0]}, patterns())
    with pytest.raises(ValueError, match="patterns are of other tokens"):
        ls.pattern_influence(draws, patterns().isel(position=slice(5)))
    with pytest.raises(ValueError, match="no pattern has 20 tokens"):
        ls.pattern_influence(draws, patterns().sel(pattern=["few"]))
    with pytest.raises(ValueError, match="component must be one of L0H0"):
        ls.pattern_influence(draws, patterns(), "L9H9")


def test_a_sweep_that_kept_its_draws_needs_no_pieces(tmp_path: Path) -> None:
    half = np.zeros((6, 8), bool)
    half[:, :4] = True
    labels = patterns().isel(pattern=slice(2), sequence=[0] * 6, position=slice(8))
    labels = labels.copy(data=np.stack([half, ~half]))
    swept = developed([0, 20], tmp_path / "run", keep_draws=True, patterns={"text": labels})
    found = ls.pattern_influence(swept, component="L1H0")
    draws = {
        step: ls.sample(
            model_at(step), TOKENS, NAMES, settings=SWEPT, probes={"text": PROBE}, progress=False
        )
        for step in (0, 20)
    }
    alone = ls.pattern_influence(draws, labels, "L1H0")
    for name in ("influence", "se", "correlation"):
        np.testing.assert_allclose(found[name], alone[name], rtol=1e-2, atol=1e-6)
    xr.testing.assert_identical(found, ls.pattern_influence(tmp_path / "run", component="L1H0"))
    with pytest.raises(ValueError, match=r"component must be one of L0H1, L1H0, L1H2"):
        ls.pattern_influence(tmp_path / "run")
    with pytest.raises(ValueError, match="probe must be one of text"):
        ls.pattern_influence(swept, component="L1H0", probe="other")

    for file in (tmp_path / "run").glob("step-*/draws.json"):
        file.unlink()
    with pytest.raises(ValueError, match="no draws are kept"):
        ls.pattern_influence(swept, component="L1H0")
    swept.encoding.clear()
    with pytest.raises(ValueError, match="of no folder"):
        ls.pattern_influence(swept, component="L1H0")
