"""Sampling along given directions only."""

from __future__ import annotations

from copy import deepcopy

import numpy as np
import pytest
import torch

import lens_slt as ls
from lens_slt.models.adapter import adapt, weights_hash
from tests.tiny_models import native

SHORT = ls.Settings(chains=2, draws=6, burn_in=3, batch_size=4, gamma=50.0)


def tokens_for(n_sequences: int = 6, length: int = 10, seed: int = 0):
    made = torch.Generator().manual_seed(seed)
    return torch.randint(50, (n_sequences, length), generator=made)


def orthonormal(n: int, size: int, seed: int = 0):
    made = torch.Generator().manual_seed(seed)
    return torch.linalg.qr(torch.randn(size, n, generator=made, dtype=torch.float64)).Q.T


def loss_along(model, layer: int, head: int, rows: torch.Tensor, tokens):
    """Mean loss as a function of coordinates along ``rows`` of a head, by the model itself."""
    moved = deepcopy(model)
    leaves = [adapt(moved).leaves[f"blocks.{layer}.attn.W_{m}"] for m in "QKVO"]
    parts = [leaf.view(leaf.parameter.data)[head] for leaf in leaves]
    given = [part.clone() for part in parts]

    def loss(*at: float) -> float:
        change = (torch.tensor(at, dtype=rows.dtype) @ rows).split([part.numel() for part in parts])
        with torch.no_grad():
            for part, was, step in zip(parts, given, change, strict=True):
                part.copy_(was + step.view_as(part))
            return float(moved(tokens, return_type="loss"))

    return loss


def size_of(model) -> int:
    cfg = adapt(model).module.cfg
    return 4 * cfg.d_model * cfg.d_head


@pytest.mark.parametrize("sampler", ["lm", "importance"])
def test_two_directions_give_the_integral_over_them(sampler):
    model, tokens = native(), tokens_for()
    rows = orthonormal(2, size_of(model)).float()
    n_beta, gamma = 300.0, 20.0
    settings = ls.Settings(
        n_beta=n_beta, gamma=gamma, sampler=sampler, draws=250 if sampler == "lm" else 800,
        batch_size=len(tokens),
    )  # fmt: skip
    before = weights_hash(adapt(model))
    draws = ls.sample(
        model, tokens, "L1H2", directions={"L1H2": rows}, settings=settings, progress=False
    )
    assert weights_hash(adapt(model)) == before
    found = ls.refined_llc(draws)
    # The integral by plain forward passes, on a grid as wide as the prior.
    at = np.linspace(-5, 5, 21) / gamma**0.5
    loss_at = loss_along(model, 1, 2, rows, tokens)
    loss = np.array([[loss_at(a, b) for b in at] for a in at]) - loss_at(0, 0)
    log_p = -n_beta * loss - gamma / 2 * (at[:, None] ** 2 + at[None] ** 2)
    p = np.exp(log_p - log_p.max())
    truth = n_beta * float((p * loss).sum() / p.sum())
    llc, se = float(found["llc"][0]), float(found["se"][0])
    assert abs(truth) > 0.2 and se < 0.1 * abs(truth)
    assert llc == pytest.approx(truth, abs=4 * se)
    assert int(found["n_parameters"][0]) == 2
    assert "moves in 2 given directions" in str(draws["note"].values[0])


def test_engines_and_processes_draw_the_same(tmp_path):
    model, tokens = native(), tokens_for()
    rows = {name: orthonormal(5, size_of(model), i) for i, name in enumerate(("L0H1", "L1H2"))}
    options = {"settings": SHORT, "directions": rows, "progress": False}
    runs = {
        engine: ls.sample(model, tokens, list(rows), engine=engine, **options)
        for engine in ("auto", "functional", "modules")
    }
    first = runs["auto"]["posterior"]["paired_loss"].values
    assert np.abs(first).max() > 1e-3
    for run in runs.values():
        np.testing.assert_allclose(run["posterior"]["paired_loss"].values, first, atol=1e-3)
    torch.set_num_threads(1)
    serial = ls.sample(model, tokens, list(rows), path=tmp_path / "serial", **options)
    split = ls.sample(model, tokens, list(rows), path=tmp_path / "split", parallel=1, **options)
    assert np.array_equal(serial["posterior"]["paired_loss"], split["posterior"]["paired_loss"])
    with pytest.raises(ValueError, match="directions"):
        ls.sample(model, tokens, list(rows), path=tmp_path / "serial", settings=SHORT)


def test_moved_directions_hold_the_change():
    before, after = native(), native()
    made = torch.Generator().manual_seed(5)
    leaves = adapt(after).leaves
    with torch.no_grad():
        for matrix in ("W_Q", "W_K", "W_V", "W_O"):
            leaf = leaves[f"blocks.1.attn.{matrix}"]
            value = leaf.view(leaf.parameter.data)
            for head in (1, 2):
                m, n = value[head].shape
                value[head] += torch.randn(m, 2, generator=made) @ torch.randn(2, n, generator=made)
    found = ls.moved_directions(before, after, "L1H1, L1H2", rank=2)
    rows = found["directions"].values
    assert rows.shape == (2, 16, size_of(before))
    products = rows @ rows.transpose(0, 2, 1)
    np.testing.assert_allclose(products, np.stack([np.eye(16)] * 2), atol=1e-9)
    np.testing.assert_allclose(found["captured"], 1, atol=1e-5)
    assert list(ls.plot(found).data[0].y) == ["L1H1", "L1H2"]
    assert 0.2 < float(ls.moved_directions(before, after, "L1H2", rank=1)["captured"][0]) < 0.99
    control = ls.moved_directions(before, after, "L1H1, L1H2", rank=2, random=0)
    assert float(control["captured"].max()) < 0.3
    with pytest.raises(ValueError, match=r"rank must be at most 2 for L1H1"):
        ls.moved_directions(before, after, "L1H1", rank=3)
    with pytest.raises(ValueError, match="did not change"):
        ls.moved_directions(before, after, "L0H1")
    draws = ls.sample(
        after, tokens_for(), "L1H2", directions=found["directions"], settings=SHORT, progress=False
    )
    assert int(draws["n_parameters"][0]) == 16


def test_bad_directions_are_refused():
    model, tokens, size = native(), tokens_for(), size_of(native())
    rows = orthonormal(3, size)

    def refused(directions, match, error=ValueError, components="L1H1, L1H2"):
        with pytest.raises(error, match=match):
            ls.sample(model, tokens, components, directions=directions, settings=SHORT)

    refused({"L1H1": rows}, r"directions has none of 'L1H2'")
    refused({"L1H1": rows[:, 1:], "L1H2": rows}, f"component's {size} parameters")
    refused({"L1H1": rows, "L1H2": rows[:2]}, "has 2 directions, another component 3")
    refused({"L1H1": rows, "L1H2": 2 * rows}, "not orthonormal")
    refused(3, "array of moved_directions", TypeError)
