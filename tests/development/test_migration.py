"""Migration: planted in curves, and in two models whose multigrams are known by one head."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
import xarray as xr

import lens_slt as ls
from lens_slt.development.head_curves import HeadCurves
from lens_slt.development.migration import (
    BOTH,
    BY_ABLATION,
    BY_LLC,
    FALLS,
    NONE,
    RISES,
    UNCONFIRMED,
    UNSHOWN,
    find_migration,
)
from lens_slt.development.multigram_effects import multigram_patterns
from lens_slt.models.checkpoints import Checkpoints
from lens_slt.models.shipped import build_bridge, build_hooked, has_hooked_transformer
from lens_slt.models.source import CalledModel
from tests.made_curves import PER_LAYER, STEPS, as_result, curves_of, part_of_run

U = part_of_run()
PEAK = 11
VOCABULARY, LENGTH, SEQUENCES = 60, 12, 96
FOLLOWS = torch.randperm(VOCABULARY, generator=torch.Generator().manual_seed(1))


def planted(moves: bool = True, noise: float = 0.1, n_blocks: int = 0, seed: int = 0) -> HeadCurves:
    """Heads of layer 0 rise to a peak, and four fall after it, when two of layer 1 rise."""
    after = np.clip(np.arange(len(STEPS)) - PEAK, 0, None) / 4
    before = np.clip(np.arange(len(STEPS)) / PEAK, None, 1)
    values = np.zeros((1, 2 * PER_LAYER, len(STEPS)))
    values[0, :PER_LAYER] = 5 * before
    if moves:
        values[0, :4] -= 2 * after
        values[0, PER_LAYER : PER_LAYER + 2] += after
    return curves_of(values, noise, refinements=("1l",), n_blocks=n_blocks, seed=seed)


def as_curves(curves: HeadCurves) -> xr.Dataset:
    """A result in which the curves are those of a probe."""
    both = np.concatenate([np.zeros_like(curves.values), curves.values])
    errors = np.repeat(curves.se, 2, 0)
    return as_result(HeadCurves(curves.steps, curves.heads, ("llc", "1l"), both, errors))


def knowing(step: int, *, layer_after: int = 1) -> Any:
    """A model in which one head tells the next token from the last: first one of layer 0."""
    layer, head = (0, 1) if step < 700 else (layer_after, 2)
    config: dict[str, Any] = dict(
        n_layers=2, d_model=VOCABULARY, n_heads=8, d_head=VOCABULARY, n_ctx=LENGTH,
        d_vocab=VOCABULARY, attn_only=True, normalization_type=None, seed=0, device="cpu",
    )  # fmt: skip
    eye = torch.eye(VOCABULARY)
    weights = {"embed.W_E": 0.1 * eye, "unembed.W_U": eye}
    for where in range(2):
        for name in "QKVO":
            weights[f"blocks.{where}.attn.W_{name}"] = torch.zeros(8, VOCABULARY, VOCABULARY)
    own = f"blocks.{layer}.attn.W_"
    weights[f"{own}Q"][head] = weights[f"{own}K"][head] = 300 * eye
    weights[f"{own}V"][head] = 40 * eye
    weights[f"{own}O"][head] = eye[FOLLOWS]
    if has_hooked_transformer():
        return build_hooked(config, weights).eval()
    return build_bridge(config, weights).eval()


def run() -> Checkpoints:
    sources = tuple(CalledModel(knowing, int(step)) for step in STEPS)
    return Checkpoints("made", tuple(map(int, STEPS)), sources)


def text() -> torch.Tensor:
    """Each token is followed by its own, but one in seven times by any."""
    generator = torch.Generator().manual_seed(0)
    rows = [torch.randint(VOCABULARY, (SEQUENCES,), generator=generator)]
    for _ in range(LENGTH - 1):
        other = torch.randint(VOCABULARY, (SEQUENCES,), generator=generator)
        known = torch.rand(SEQUENCES, generator=generator) < 6 / 7
        rows.append(torch.where(known, FOLLOWS[rows[-1]], other))
    return torch.stack(rows, 1)


@pytest.mark.parametrize("n_blocks", [0, 12])
def test_a_planted_migration_is_found(n_blocks: int) -> None:
    curves = planted(n_blocks=n_blocks)
    found = find_migration(curves)
    assert found.migrates
    assert abs(found.peak - PEAK) <= 1
    assert found.peak_low <= PEAK <= found.peak_high
    words = dict(zip(found.curves.heads, found.after_peak.words, strict=True))
    assert [words[f"L0H{i}"] for i in range(8)] == [FALLS] * 4 + [UNSHOWN] * 4
    assert [words[f"L1H{i}"] for i in range(8)] == [RISES] * 2 + [UNSHOWN] * 6
    assert (words["L0H*"], words["L1H*"]) == (FALLS, RISES)
    layer = found.curves.values[0, -2]
    assert np.allclose(layer, curves.values[0, :8].mean(0))


def test_the_intervals_hold_the_true_changes_together() -> None:
    held = 0
    for seed in range(20):
        found = find_migration(planted(seed=seed, noise=0.3), before=PEAK, n_bootstrap=100)
        truth = planted(noise=0.0).values[0]
        change = truth[:, -1] - truth[:, PEAK]
        own = found.after_peak
        held += bool(((own.low[:16] <= change) & (change <= own.high[:16])).all())
    assert held >= 17


def test_what_only_peaks_by_noise_does_not_migrate() -> None:
    said = wrong = 0
    for seed in range(20):
        found = find_migration(planted(moves=False, noise=0.3, seed=seed), n_bootstrap=100)
        said += found.migrates
        wrong += bool((found.after_peak.words != UNSHOWN).any())
    assert said == 0
    assert wrong <= 3


def test_padding_is_in_no_pattern() -> None:
    padded = torch.cat([text() % (VOCABULARY - 1), torch.full((SEQUENCES, 3), VOCABULARY - 1)], 1)
    model = run().load(526)
    real = padded != VOCABULARY - 1
    found = multigram_patterns(padded, model, None, VOCABULARY - 1)
    assert found.any() and not found.values[:, ~real[:, 1:]].any()
    xr.testing.assert_equal(found, multigram_patterns(padded, model, real))


def test_curves_without_models_are_not_confirmed() -> None:
    assert ls.migration(as_curves(planted())).attrs["verdict"] == UNCONFIRMED
    found = ls.migration(as_curves(planted(moves=False)), before=int(STEPS[PEAK]))
    assert found.attrs["verdict"] == NONE
    assert "effect" not in found


@pytest.fixture(scope="module")
def migrated() -> xr.Dataset:
    return ls.migration(as_curves(planted()), run(), text())


def test_ablation_tells_where_multigrams_are(migrated: xr.Dataset) -> None:
    found = migrated
    assert found.attrs["verdict"] == BOTH
    assert (found.attrs["before_step"] < 700) and found.attrs["after_step"] == STEPS[-1]
    effect = found["effect"].sel(pattern="multigram")
    before, after = effect.sel(when="before"), effect.sel(when="after")
    assert before.drop_sel(component="L0H*").idxmax() == "L0H1"
    assert after.drop_sel(component="L1H*").idxmax() == "L1H2"
    assert before.sel(component="L0H*").item() == pytest.approx(before.sel(component="L0H1") / 8)
    words = found["effect_word"].sel(pattern="multigram").to_series()
    assert (words["L0H1"], words["L1H2"]) == (FALLS, RISES)
    assert (words.drop(["L0H1", "L1H2", "L0H*", "L1H*"]) == UNSHOWN).all()
    share = found["affected_share"].sel(when="after", component="L1H2", pattern="multigram")
    assert share > found["token_share"].sel(pattern="multigram")
    assert found["token_share"].sum() == pytest.approx(1)


def test_the_effects_are_those_of_ablate(migrated: xr.Dataset) -> None:
    tokens = text()
    again = ls.label_patterns(tokens, Ids()).sel(pattern="induction").values
    effect = ls.ablate(knowing(5000), tokens, "L1H2")["effect"].values[again].mean()
    own = migrated["effect"].sel(when="after", component="L1H2", pattern="induction")
    assert own.item() == pytest.approx(effect, rel=1e-5)


class Ids:
    vocab_size = VOCABULARY

    def decode(self, ids: list[int]) -> str:
        return "?"


def test_either_look_alone_is_said() -> None:
    steps = run().steps
    stay = Checkpoints("made", steps, (CalledModel(knowing, int(steps[-1])),) * len(steps))
    assert ls.migration(as_curves(planted()), stay, text()).attrs["verdict"] == BY_LLC
    still = ls.migration(
        as_curves(planted(moves=False)), run(), text(), before=int(STEPS[PEAK - 2])
    )
    assert still.attrs["verdict"] == BY_ABLATION


def test_bad_arguments() -> None:
    result = as_curves(planted())
    with pytest.raises(ValueError, match="heads of two layers"):
        ls.migration(result.isel(component=slice(8)))
    with pytest.raises(ValueError, match="tokens are missing"):
        ls.migration(result, run())
    with pytest.raises(ValueError, match="before: there is no checkpoint 7;"):
        ls.migration(result, before=7)
    with pytest.raises(ValueError, match="later checkpoint than before"):
        ls.migration(result, before=5000)
    with pytest.raises(ValueError, match="probe, the one whose reference"):
        ls.migration(as_result(planted()))
    with pytest.raises(ValueError, match="patterns must have ngram"):
        ls.migration(result, run(), text(), patterns=ls.label_patterns(text(), Ids()))
