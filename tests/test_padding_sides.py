"""The same rows padded on the left and on the right give the same numbers, each in its columns."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest
import torch
import xarray as xr

import lens_slt as ls
from lens_slt.circuits.attribution import edge_attribution
from lens_slt.data.columns import moved, moved_back

PAD = 0
LENGTHS = [24, 9, 17, 24, 12, 20, 13, 11]
SHIFT = 24 - torch.tensor(LENGTHS)
TEXT = ls.load_tokens("code", n_sequences=8, length=24)
RIGHT = TEXT.clone()
for row, n in enumerate(LENGTHS):
    RIGHT[row, n:] = PAD
LEFT = moved_back(RIGHT, SHIFT)
REAL = torch.arange(24) >= SHIFT[:, None]
TRUE = torch.arange(24) < torch.tensor(LENGTHS)[:, None]
BATCH = {"input_ids": LEFT, "attention_mask": REAL.long()}
WEIGHTS = torch.rand(8, 23, generator=torch.Generator().manual_seed(0))
HEADS = ["L0H2", "L1H2"]


@pytest.fixture(scope="module")
def model() -> Any:
    return ls.load_model("attn-2l")


def same_columns(right: Any, left: Any, atol: float = 1e-5) -> None:
    """Values ``[…, sequence, position]`` of both, the left ones moved, NaN at padding alike."""
    found = moved(np.asarray(left), SHIFT)
    assert np.isfinite(found).any()
    np.testing.assert_allclose(found, np.asarray(right), rtol=1e-4, atol=atol)


@pytest.mark.parametrize("how", ["mean", "mean_position", "resample", "zero"])
@pytest.mark.parametrize("given", ["attention_mask", "mask", "pad_id"])
def test_ablation(model: Any, how: str, given: str) -> None:
    # The shipped models' BOS has the id of the padding, and stays.
    tokens, more = {
        "attention_mask": (BATCH, {}), "mask": (LEFT, {"mask": REAL}),
        "pad_id": (LEFT, {"pad_id": PAD}),
    }[given]  # fmt: skip
    right = ls.ablate(model, RIGHT, HEADS, how=how, mask=TRUE, weights=WEIGHTS)
    left = ls.ablate(model, tokens, HEADS, how=how, weights=moved_back(WEIGHTS, SHIFT), **more)
    for name in ("base_loss", "loss", "effect"):
        same_columns(right[name], left[name])
    np.testing.assert_array_equal(left["token_id"], LEFT[:, 1:])
    assert np.isnan(left["loss"].values[~REAL[:, :-1].numpy()]).all()


def test_what_is_passed_by_position(model: Any) -> None:
    pattern = torch.rand(8, 23, generator=torch.Generator().manual_seed(1)) > 0.5
    places = torch.tensor(LENGTHS) - 2  # the last token that predicts one
    right_reference = {"input_ids": RIGHT.flip(0), "attention_mask": TRUE.flip(0)}
    left_reference = {"input_ids": LEFT.flip(0), "attention_mask": REAL.flip(0)}
    ends = places + SHIFT
    cases = [
        (ls.Ablation(positions=places), ls.Ablation(positions=ends)),
        (
            ls.Ablation(positions=pattern.numpy()),
            ls.Ablation(positions=moved_back(pattern, SHIFT).numpy()),
        ),
        (
            ls.Ablation("mean_pattern", pattern=pattern),
            ls.Ablation("mean_pattern", pattern=moved_back(pattern, SHIFT)),
        ),
        (
            ls.Ablation("interchange", right_reference, None, places, places.flip(0)),
            ls.Ablation("interchange", left_reference, None, ends, ends.flip(0)),
        ),
    ]
    batch = {"input_ids": RIGHT, "attention_mask": TRUE}
    for there, here in cases:
        right = ls.ablate(model, batch, HEADS, how=there)
        left = ls.ablate(model, BATCH, HEADS, how=here)
        same_columns(right["effect"], left["effect"])
        assert float(abs(right["effect"]).max()) > 0.01
    with pytest.raises(ValueError, match=r"positions\[1\] is 3, which is padding on the left of"):
        ls.ablate(
            model, BATCH, HEADS, how=ls.Ablation(positions=np.where(np.arange(8) == 1, 3, 22))
        )


def test_sites_are_in_the_callers_columns(model: Any) -> None:
    """A metric of one's own sees the positions that were passed."""

    def place(logits: torch.Tensor, sites: ls.Sites) -> torch.Tensor:
        return sites.position.to(logits)

    found = ls.ablate(model, BATCH, HEADS, metric=place)["place"]
    same = np.where(REAL[:, :-1].numpy(), np.arange(23.0), np.nan)
    np.testing.assert_array_equal(found, same)


@pytest.fixture(scope="module")
def both(model: Any) -> tuple[xr.DataTree, xr.DataTree]:
    settings = ls.Settings(draws=6, chains=2, burn_in=2, thin=1, batch_size=4)
    runs = []
    for tokens, weights in ((RIGHT, WEIGHTS), (LEFT, moved_back(WEIGHTS, SHIFT))):
        batch = {"input_ids": tokens, "attention_mask": TRUE if tokens is RIGHT else REAL}
        probe = ls.Probe(batch, observables=ls.Probability())
        runs.append(
            ls.sample(
                model, batch, HEADS, settings=settings, weights=weights, probes={"text": probe},
                progress=False,
            )
        )  # fmt: skip
    return runs[0], runs[1]


def test_sampling(both: tuple[xr.DataTree, xr.DataTree]) -> None:
    right, left = both
    table, other = ls.refined_llc(right), ls.refined_llc(left)
    for name in ("llc", "se", "probe_llc"):
        np.testing.assert_allclose(other[name], table[name], rtol=1e-4)
    there, here = (run["probes/text"].to_dataset() for run in both)
    for name in ("paired_loss", "base_loss"):
        same_columns(there[name], here[name])
    np.testing.assert_allclose(here["probability"], there["probability"], rtol=1e-4)
    np.testing.assert_array_equal(moved(here["weight"].values, SHIFT), there["weight"])


def test_per_token_values_stand_where_the_tokens_do(both: tuple[xr.DataTree, xr.DataTree]) -> None:
    right, left = (ls.per_token_llc(run) for run in both)
    shift = SHIFT.numpy()[left["sequence"].values]
    np.testing.assert_array_equal(left["position"].values - shift, right["position"].values)
    np.testing.assert_array_equal(left["token_id"], right["token_id"])
    np.testing.assert_allclose(left["llc"], right["llc"], rtol=1e-3, atol=1e-3)
    patterns = ls.label_patterns(BATCH)
    slt = ls.SltEvidence(left, patterns)
    found = slt.labels["word_start"]
    assert found.any()
    there = ls.label_patterns({"input_ids": RIGHT, "attention_mask": TRUE})
    np.testing.assert_array_equal(found, ls.SltEvidence(right, there).labels["word_start"])


def test_patterns() -> None:
    counts = ls.ngram_counts(BATCH)
    right = ls.label_patterns(RIGHT, mask=TRUE, counts=counts)
    for tokens, mask in ((LEFT, REAL), (BATCH, None)):
        left = ls.label_patterns(tokens, mask=mask, counts=counts)
        np.testing.assert_array_equal(moved(left.values, SHIFT), right.values)
        np.testing.assert_array_equal(left["token_id"], LEFT[:, 1:])
    depth = ls.bracket_depth(RIGHT, mask=TRUE)
    np.testing.assert_array_equal(moved(ls.bracket_depth(BATCH), SHIFT), depth)


def test_attribution_and_behaviour(model: Any) -> None:
    batch = {"input_ids": RIGHT, "attention_mask": TRUE}
    pattern = torch.rand(8, 23, generator=torch.Generator().manual_seed(1)) > 0.5
    right = edge_attribution(model, batch, pattern, steps=2)
    left = edge_attribution(model, BATCH, moved_back(pattern, SHIFT), steps=2)
    np.testing.assert_allclose(left["effect"], right["effect"], rtol=1e-3, atol=1e-6)
    right, left = (ls.behaviour_scores(model, tokens) for tokens in (batch, BATCH))
    for name in ("previous_token", "first_token", "current_token"):
        np.testing.assert_allclose(left[name], right[name], rtol=1e-4, atol=1e-6)


def test_attention_pictures(model: Any) -> None:
    right, left = (
        shown(ls.show_attention(model, tokens, "L1H2", sequence=1))
        for tokens in ({"input_ids": RIGHT, "attention_mask": TRUE}, BATCH)
    )
    assert len(left["tokens"]) == LENGTHS[1]
    assert left["tokens"] == right["tokens"]
    np.testing.assert_allclose(left["attention"], right["attention"], atol=1e-4)


def shown(page: Any) -> dict[str, Any]:
    """The data of a picture of attention."""
    start = str(page).index('{"attention"')
    return json.JSONDecoder().raw_decode(str(page)[start:])[0]


def test_trials_and_curves(model: Any) -> None:
    """Masks of patterns are in the caller's columns."""
    generator = torch.Generator().manual_seed(3)
    pattern = torch.rand(8, 23, generator=generator) > 0.5
    found, effects = [], []
    guess = ls.circuit("L0H2 -> L1H2.K", pattern="mine")
    for tokens, labels, pad in ((RIGHT, pattern, TRUE), (LEFT, moved_back(pattern, SHIFT), REAL)):
        batch = {"input_ids": tokens, "attention_mask": pad}
        curve = ls.faithfulness_curve(model, batch, labels.numpy(), HEADS, n_random=1)
        found.append(curve["faithfulness"].values)
        trial = ls.cross_check(
            model, batch, guess, patterns=labels.numpy(), n_null=2, n_bootstrap=100, progress=False
        )
        effects.append(trial.table()["effect"].dropna().values)
    np.testing.assert_allclose(effects[1], effects[0], rtol=1e-3, atol=1e-5)
    np.testing.assert_allclose(found[1], found[0], rtol=1e-3)
