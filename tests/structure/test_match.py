"""Components of two models that do the same are found, and no others."""

from __future__ import annotations

import numpy as np
import pytest
import xarray as xr

import lens_slt as ls
from lens_slt.structure.match import _allowed, _assigned, _rows
from lens_slt.structure.match_family import _joined
from tests.made_matrices import POSITIONS, SEQUENCES, matrix_of
from tests.tiny_models import native

N = SEQUENCES * POSITIONS
BLOCKS = 8
SHARED = np.random.default_rng(99).normal(size=N)


def model_of(columns: np.ndarray, noise: float, seed: int) -> xr.Dataset:
    """A matrix of ``columns [component, token]`` and what all share, with noisy blocks."""
    made = np.random.default_rng(seed)
    ids = np.random.default_rng(98).integers(0, 50, N)
    copies = columns + SHARED + noise * BLOCKS**0.5 * made.normal(size=(BLOCKS, *columns.shape))
    matrix = matrix_of(copies.mean(0), POSITIONS, token_id=ids)
    return matrix.assign(blocks=(("block", "component", "token"), copies))


def latent(n: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=(n, N))


@pytest.fixture(scope="module")
def found():
    z = latent(6)
    order = [3, 0, 2, 1]
    one = model_of(np.stack([*z[:4], z[4]]), 0.5, 1)
    other = model_of(np.stack([*z[:4][order], z[5]]), 1.0, 2)
    return ls.match(one, other), order


def test_partners_are_found_and_strangers_have_none(found):
    match, order = found
    partners = match["partner"].values.tolist()
    assert partners[:4] == [f"L0H{order.index(i)}" for i in range(4)]
    assert match["verdict"].values.tolist() == ["matched"] * 4 + ["no partner"]
    assert match["other_verdict"].values.tolist() == ["matched"] * 4 + ["no partner"]
    assert float(match["p"][:4].max()) < 0.02
    # Noise of variance 0.25 and 1 on a signal of variance 1 that loses a fifth to the mean: the
    # correlation without noise comes back.
    np.testing.assert_allclose(match["similarity"][:4], 1, atol=0.12)
    assert (match["similarity_low"][:4] <= match["similarity"][:4]).all()
    figure = ls.plot(match)
    assert sum(mark == "●" for row in figure.data[0].text for mark in row) == 4
    untested = match.assign(
        verdict=match["verdict"].where(match["verdict"] != "matched", "untested")
    )
    figure = ls.plot(untested)
    assert sum(mark == "?" for row in figure.data[0].text for mark in row) == 4
    assert figure.layout.title.text.startswith("4 of 5 components have a partner")


def test_what_all_components_share_is_no_match():
    """Only noise and the common part: nothing matches, at the rate that the level says."""
    matched = 0
    for seed in range(20):
        one = model_of(latent(5, 10 + seed), 0.3, 100 + seed)
        other = model_of(latent(5, 200 + seed), 0.3, 300 + seed)
        found = ls.match(one, other, n_null=40, n_bootstrap=20, seed=seed, least=0.0)
        matched += bool(found["verdict"].isin(["matched", "shared"]).any())
    assert matched <= 4  # of 20 families at 0.05: more has probability 0.003


def test_who_is_left_over_shares_the_partner_it_is_like():
    """The other model has one head of a kind of which this one has two."""
    z = latent(5)
    one = model_of(np.stack([z[0], z[1], z[1] + z[4], z[2]]), 0.3, 1)
    other = model_of(np.stack([z[0], z[1], z[2], z[3]]), 0.3, 2)
    found = ls.match(one, other)
    assert found["verdict"].values.tolist() == ["matched", "matched", "shared", "matched"]
    partners = found["partner"].values.tolist()
    assert partners[1] == partners[2] == "L0H1"
    assert float(found["similarity"][1]) > float(found["similarity"][2]) > 0.5
    assert float(found["p"][2]) < 0.02
    assert found["other_verdict"].values.tolist() == ["matched"] * 3 + ["no partner"]
    figure = ls.plot(found)
    assert sum(mark == "◐" for row in figure.data[0].text for mark in row) == 1


def test_nobody_shares_a_partner_with_itself():
    """The second is surely most like the first there, which the assignment gives it unsurely."""
    whole = np.array([[0.40, 0.19, 0.38], [0.36, 0.31, 0.26]])
    rng = np.random.default_rng(0)
    resampled = np.clip(whole + 0.08 * rng.normal(size=(400, 2, 3)), -1, 1)
    best = 0.05 + 0.02 * rng.normal(size=(40, 2))
    allowed = np.ones(whole.shape, bool)
    partner = _assigned(whole, allowed)
    found, chosen = _rows(whole, partner, allowed, best, resampled, 0.3)
    again = [_assigned(one, allowed)[1] == 0 for one in resampled]
    assert chosen.tolist() == partner.tolist() == [2, 0]
    assert "shared" not in found["verdict"].tolist()
    assert found["stability"][1] == pytest.approx(np.mean(again))


def test_of_equal_rivals_all_share_and_nobody_is_shared_without_an_owner():
    z = latent(6)
    three = [z[1] + 0.3 * z[3 + i] for i in range(3)]
    found = ls.match(model_of(np.stack([z[0], *three]), 0.3, 1), model_of(z[:3], 0.3, 2))
    verdicts = found["verdict"].values.tolist()
    assert verdicts[0] == "matched" and "shared" in verdicts[1:]
    assert "ambiguous" not in verdicts and "no partner" not in verdicts
    assert set(found["partner"].values[1:].tolist()) == {"L0H1"}
    assert str(found["other_verdict"][1].values) in ("matched", "shared")
    # Alike, but the one it is like is nobody's partner: nothing to share.
    for i in range(found.sizes["component"]):
        owners = found["partner"].values[found["verdict"].values != "no partner"]
        assert verdicts[i] != "shared" or (owners == str(found["partner"][i].values)).sum() > 1


def test_noise_has_no_partner_and_twins_are_ambiguous():
    z = latent(4)
    one = model_of(np.stack([z[0], z[1], z[2], -SHARED]), 0.3, 1)  # nothing but noise is left
    other = model_of(np.stack([z[0], z[1], z[1], z[2]]), 0.3, 2)
    found = ls.match(one, other)
    assert found["verdict"].values[[0, 2]].tolist() == ["matched"] * 2
    assert str(found["verdict"].values[3]) == "too noisy"
    assert float(found["runner_up"][1]) > 0.8 and float(found["stability"][1]) < 0.9
    twin = int(np.flatnonzero(found["other"] == found["partner"].values[1])[0])
    assert str(found["other_verdict"].values[twin]) == str(found["verdict"].values[1])
    with pytest.raises(ValueError, match="b has one component"):
        ls.match(one, other.sel(component=["L0H1"]))


def test_a_noisy_kind_does_not_dilute_the_others():
    z = latent(4)
    one, other = (model_of(z, 0.3, seed) for seed in (1, 2))
    noise = [model_of(0 * z - SHARED, 1.0, seed) for seed in (3, 4)]
    chi = [
        matrix_of(x["llc"].values, POSITIONS, "chi", token_id=x["token_id"].values).assign(
            blocks=x["blocks"]
        )
        for x in noise
    ]
    alone = ls.match(one, other)
    both = ls.match({"llc": one, "chi": chi[0]}, {"llc": other, "chi": chi[1]})
    np.testing.assert_allclose(both["similarity"], alone["similarity"], atol=1e-9)
    assert both["similarities_susceptibility"].isnull().all()


def test_kinds_together_and_layers_apart():
    z = latent(4)
    one, other = model_of(z, 0.5, 1), model_of(z[::-1], 0.5, 2)
    p = ls.plant("induction", seed=3, n_sequences=4)
    model = p.model
    scores = [ls.behaviour_scores(model, n_random=4, length=8, seed=seed) for seed in (0, 1)]
    with pytest.raises(ValueError, match="other components or another order"):
        ls.match({"llc": one, "behaviour": scores[0]}, {"llc": other, "behaviour": scores[1]})
    alone = ls.match(scores[0], scores[1]).sel(component=list(p.truth.components))
    assert (alone["partner"] == alone["component"]).all() and alone["p"].isnull().all()
    assert (alone["verdict"] == "untested").all() and alone["stability"].isnull().all()
    with pytest.raises(ValueError, match="a has two results of one kind"):
        ls.match({"x": one, "y": one}, {"x": other, "y": other})
    seen = ls.attention_patterns(model, p.tokens[:, :12])
    found = ls.match(
        {"where": seen, "what": scores[0]}, {"where": seen, "what": scores[1]}, within_layers=True
    )
    assert (found["partner"] == found["component"]).all()
    assert found.attrs["kinds"] == "attention_patterns behaviour_scores"
    layers = [[name[1] for name in found[dim].values] for dim in ("component", "other")]
    apart = np.array(layers[0])[:, None] != np.array(layers[1])
    assert np.isnan(found["similarities"].values[apart]).all()


def test_courses_over_checkpoints_are_matched():
    steps = np.geomspace(1, 1000, 12)
    shape = np.stack([np.tanh(np.log(steps) - c) for c in (1, 3, 5)], 1)

    def curves(order: list[int], seed: int) -> xr.Dataset:
        values = shape[:, order] + 0.02 * np.random.default_rng(seed).normal(size=shape.shape)
        names = [f"L0H{i}" for i in range(3)]
        return xr.Dataset(
            {"llc": (("checkpoint", "component"), values),
             "se": (("checkpoint", "component"), 0.02 + 0 * values)},
            coords={"checkpoint": steps, "component": names},
        )  # fmt: skip

    from lens_slt.structure.profiles import _of_trajectory

    here, there = _of_trajectory(curves([0, 1, 2], 0)), _of_trajectory(curves([2, 0, 1], 1))
    product = np.corrcoef(here.values[0].T, there.values[0].T)[:3, 3:]
    assert product.argmax(1).tolist() == [1, 2, 0] and here.reliability.min() > 0.95
    levels = curves([0, 0, 0], 2) + np.arange(3) * 10  # no course of their own
    assert _of_trajectory(levels).reliability.max() < 0.2
    np.testing.assert_allclose(_of_trajectory(levels).values[0].mean(0), 0, atol=1e-9)


def test_other_tokens_and_shared_noise_are_refused():
    z = latent(4)
    one, other = model_of(z, 0.5, 1), model_of(z, 0.5, 2)
    with pytest.raises(ValueError, match="of other tokens; needed are the same token ids"):
        ls.match(one, other.assign_coords(token_id=other["token_id"] + 1))
    with pytest.raises(ValueError, match="results of the same kinds"):
        ls.match(one, ls.behaviour_scores(native(), n_random=2, length=8))
    same = {"settings": '{"seed": 0}'}
    with pytest.raises(ValueError, match=r"sampled with the same seed \(0\)"):
        ls.match(one.assign_attrs(same, model_hash="a"), other.assign_attrs(same, model_hash="b"))
    with pytest.raises(TypeError, match="a must come from"):
        ls.match(3, other)


def test_a_family_has_what_all_have_and_what_some_have():
    """Three models with two components in common, in other places; one more that two share."""
    z = latent(6)
    parts = [[z[0], z[1], z[2], z[3]], [z[1], z[0], z[4], z[2]], [z[5], z[1], z[0], z[4]]]
    models = {f"m{i}": model_of(np.stack(rows), 0.3, i) for i, rows in enumerate(parts)}
    found = ls.match_family(models, n_null=40, n_bootstrap=20)
    assert found["n_models"].values.tolist() == [3, 3, 2, 2, 1, 1]
    members = {tuple(column) for column in found["member"].values[:4].tolist()}
    assert members == {
        ("L0H0", "L0H1", "L0H2"), ("L0H1", "L0H0", "L0H1"), ("L0H2", "L0H3", ""),
        ("", "L0H2", "L0H3"),
    }  # fmt: skip
    assert found["agreement"].values[:2].tolist() == [1, 1] and found.attrs["conflicts"] == 0
    assert ls.plot(found).data[0].z.shape == (4, 3)
    with pytest.raises(ValueError, match="at least two; got one"):
        ls.match_family({"one": models["m0"]})


def test_a_link_that_joins_two_components_of_a_model_is_left_out():
    members = [("a", "x"), ("b", "x"), ("c", "x"), ("b", "y")]
    links = {
        (("a", "x"), ("b", "x")): 0.9, (("b", "x"), ("c", "x")): 0.8, (("a", "x"), ("b", "y")): 0.4
    }  # fmt: skip
    groups, conflicts = _joined(members, links)
    assert conflicts == 1 and {frozenset(g) for g in groups} == {
        frozenset(members[:3]), frozenset(members[3:])
    }  # fmt: skip


def test_nobody_has_to_have_a_partner():
    """Neither an unlike pair nor a forbidden one takes a good partner away."""
    everything = np.ones((2, 2), dtype=bool)
    assert _assigned(np.array([[0.6, 0.05], [0.05, -0.6]]), everything).tolist() == [0, -1]
    allowed = np.array([[True, True], [True, False]])
    assert _assigned(np.array([[0.95, -0.3], [0.0, 0.0]]), allowed).tolist() == [0, -1]
    names = ["L0H1", "L0MLP", "embed", "L0H0+L0H1"]
    fit = _allowed(names, ["L0H0", "L1MLP", "unembed", "embed", "L0H0+L0H1"], False)
    assert [np.flatnonzero(row).tolist() for row in fit] == [[0], [1], [3], [4]]
