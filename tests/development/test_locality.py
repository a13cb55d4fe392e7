"""Grafts find the weights that a pattern's gain sits in."""

from __future__ import annotations

import re

import numpy as np
import pytest
import torch

import lens_slt as ls
from benchmarks.locality import before_it_grew
from lens_slt.development.grafts import Grafts
from lens_slt.development.leading_curvature import leading_curvature
from lens_slt.models.adapter import adapt, weights_hash
from tests.tiny_models import TINY_MODELS


@pytest.fixture(scope="module")
def grown():
    """A planted circuit, the model before it was there, and where it sits."""
    p = ls.plant("induction", seed=3, n_sequences=24)
    before, share = before_it_grew(p.model, list(p.truth.components), seed=0, noise=1e-3)
    return p, before, p.patterns.sel(pattern=p.pattern).values, share


def test_the_planted_weights_are_found(grown):
    p, before, pattern, share = grown
    hashes = [weights_hash(adapt(model)) for model in (before, p.model)]
    scores = dict.fromkeys(("L0H0", "L0H1", "L1H0", "L1H1"), 0.0)
    scores |= dict.fromkeys(p.truth.components, 1.0)
    found = ls.locality(before, p.model, p.tokens, pattern, scores=scores, n_null=2, progress=False)
    assert [weights_hash(adapt(model)) for model in (before, p.model)] == hashes
    smallest = found["smallest_share"].to_pandas()
    assert share / 2 < smallest["size"] < share * 1.1
    assert smallest["components"] == pytest.approx(share)
    assert smallest["random"] > 0.5 and float(found["null_kept"]) < 0.05
    low, high = (found[f"smallest_share_{end}"].sel(ranking="size") for end in ("low", "high"))
    assert low <= smallest["size"] <= high
    assert float(found["kept"].sel(ranking="size").isel(share=-1)) == pytest.approx(1)
    names = [trace.name for trace in ls.plot(found).data]
    assert names == ["largest changes first", "null: as many of each matrix, at random",
                     "whole components"]  # fmt: skip


def test_the_change_of_the_planted_heads_is_measured(grown):
    p, before, _, _ = grown
    heads = [*p.truth.components, "L0H1" if "L0H1" not in p.truth.components else "L0H2"]
    found = ls.weight_change(before, p.model, heads)
    adapted = adapt(p.model)
    layer, head = int(heads[0][1]), int(heads[0].split("H")[1])
    leaf = adapted.leaves[f"blocks.{layer}.attn.W_V"]
    values = torch.linalg.svdvals(leaf.view(leaf.parameter.detach())[head].double())
    one = found.sel(component=heads[0], matrix="W_V")
    assert float(one["stable_rank"]) == pytest.approx(
        float((values**2).sum() / values[0] ** 2), rel=0.02
    )
    assert (found["norm"].sel(component=heads[-1]) < 0.02).all()  # noise only
    assert ls.plot(found).data[0].z.shape == (3, 4)


@pytest.mark.parametrize("name", ["wrapped_gpt2", "native_llama_like"])
def test_grafts_of_other_models_end_at_the_model_after(name):
    before, after = TINY_MODELS[name](), TINY_MODELS[name]()
    leaf = adapt(after).leaves["blocks.1.attn.W_V"]
    with torch.no_grad():
        leaf.parameter.mul_(1.5)
    tokens = torch.randint(1, 40, (4, 12), generator=torch.Generator().manual_seed(0))
    grafts = Grafts(before, after, tokens, None)
    with torch.no_grad():
        logits = after(tokens[:, :-1], return_type="logits").log_softmax(-1)
    plain = -logits.gather(-1, tokens[:, 1:, None]).sum((1, 2)).double().numpy()
    assert np.allclose(grafts.losses(grafts.change), plain, atol=1e-4)
    # A directional derivative against finite differences.
    none = {k: torch.zeros_like(v) for k, v in grafts.change.items()}
    slope = grafts.gradient(none, range(4))
    along = sum(float((slope[k] * v).sum()) for k, v in grafts.change.items())
    ends = [
        grafts.losses({k: s * v for k, v in grafts.change.items()}).sum() / grafts.weight.sum()
        for s in (1e-2, -1e-2)
    ]
    assert along == pytest.approx((ends[0] - ends[1]) / 2e-2, rel=0.02, abs=1e-5)


def test_leading_directions_are_eigenvectors(grown):
    """Against the Hessian's product by double backward through the model's own modules."""
    p, before, pattern, _ = grown
    grafts = Grafts(before, p.model, p.tokens[:8], pattern[:8])
    directions = leading_curvature(grafts, 2, seed=0).double()
    gram = directions @ directions.T
    assert torch.allclose(gram, torch.eye(2, dtype=gram.dtype), atol=1e-4)
    step, parts = 1e-3, []
    flat = torch.cat([v.flatten() for v in grafts.change.values()])
    for sign in (1, -1):
        moved = (flat + sign * step * directions[0].float()).split(
            [v.numel() for v in grafts.change.values()]
        )
        changed = {
            k: part.view(v.shape) for (k, v), part in zip(grafts.change.items(), moved, strict=True)
        }
        slope = grafts.gradient(changed, range(0, 8, 2))
        parts.append(torch.cat([v.flatten() for v in slope.values()]).double())
    product = (parts[0] - parts[1]) / (2 * step)
    value = float(product @ directions[0])
    assert value > 0 and float((product - value * directions[0]).norm()) < 0.1 * value


def test_bad_input(grown):
    p, before, pattern, _ = grown
    other = ls.plant("induction", seed=0, n_sequences=8, n_layers=3).model
    with pytest.raises(ValueError, match="no change"):
        ls.locality(p.model, p.model, p.tokens, pattern, progress=False)
    with pytest.raises(ValueError, match="models of other shapes: blocks"):
        ls.locality(other, p.model, p.tokens, pattern, progress=False)
    with pytest.raises(ValueError, match="no clear gain"):
        ls.locality(p.model, before, p.tokens, pattern, progress=False)
    with pytest.raises(ValueError, match="at least 8"):
        ls.locality(before, p.model, p.tokens[:6], pattern[:6], progress=False)
    with pytest.raises(ValueError, match="pattern must be bool"):
        ls.locality(before, p.model, p.tokens, pattern[:, :3], progress=False)
    for twice in ({"L0H*": 1.0, "L0H1": 2.0}, {"heads": 1.0, "L1H*": 2.0}):
        with pytest.raises(ValueError, match=r"^scores: 'L\dH\d' is named twice"):
            ls.locality(before, p.model, p.tokens, pattern, scores=twice, progress=False)
    with pytest.raises(ValueError, match="scores name no component"):
        ls.locality(before, p.model, p.tokens, pattern, scores={}, progress=False)
    for score in (float("nan"), "most"):
        with pytest.raises(ValueError, match=r"scores\['L0H0'\] must be a finite number"):
            ls.locality(before, p.model, p.tokens, pattern, scores={"L0H0": score}, progress=False)
    for name, word in (("L0H0+L1H1", "2 matrices W_Q"), ("full", r"\d matrices W_Q")):
        with pytest.raises(ValueError, match=f"components: '{re.escape(name)}' has {word}"):
            ls.weight_change(before, p.model, name)


def test_whole_numbers_are_scores_and_one_of_two_heads_is_itself(grown):
    p, before, pattern, _ = grown
    first, second = p.truth.components[:2]
    found = ls.locality(
        before, p.model, p.tokens[:8], pattern[:8], scores={first: 2, second: 1}, n_null=1,
        progress=False,
    )  # fmt: skip
    assert "components" in found["ranking"].values
    both, one = (ls.weight_change(before, p.model, names) for names in ([first, second], first))
    assert (both.sel(component=first)["norm"] == one.sel(component=first)["norm"]).all()
