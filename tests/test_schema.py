"""Every result follows its schema, and what does not is refused in words."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
import xarray as xr

import lens_slt as ls
from lens_slt import schema
from lens_slt.arrays import read_zarr, write_zarr
from lens_slt.data.tokenizer import shipped_tokenizer
from lens_slt.sampling.folder import read_description, write_description
from lens_slt.schema import name_of, require, stamped
from lens_slt.schemas import MATRICES, SCHEMAS, Schema
from tests.development.made_runs import formed
from tests.development.made_runs import planted as planted_circuit
from tests.development.test_alignment import SIZES
from tests.development.test_alignment import planted as appearing
from tests.development.test_migration import as_curves
from tests.development.test_migration import planted as migrating
from tests.development.test_pattern_influence import patterns as of_halves
from tests.development.test_pattern_influence import run as influenced
from tests.made_curves import as_result, planted_clusters
from tests.made_draws import made_draws
from tests.made_matrices import planted
from tests.made_probes import per_token_draws
from tests.phases import made_phases, made_spectrum


def over_checkpoints() -> dict[str, xr.Dataset]:
    """Results of curves."""
    steps = np.arange(24)
    line = xr.DataArray(
        np.sin(steps) + steps, coords={"checkpoint": steps}, dims="checkpoint", name="loss"
    )
    curve = xr.Dataset({"llc": line, "se": 1 + 0 * line})
    return {
        "stages": ls.stages(curve, loss=line, sublosses=line.expand_dims(pattern=["a"])),
        "transitions": ls.transitions(line),
        "critical_checkpoints": ls.critical_checkpoints(line),
    }


def of_a_run(results: dict[str, xr.Dataset | xr.DataArray | xr.DataTree]) -> dict[str, Any]:
    """Results of a whole training run, and what compares two results."""
    curves = as_result(planted_clusters()[0])
    llc = results["refined_llc"]
    tokens = torch.randint(16, (8, 12), generator=torch.Generator().manual_seed(0))
    run = ls.checkpoints(formed, steps=[0, 10000])
    swept = ls.develop(
        run, tokens, "L0H0, L1H0", probes={"text": tokens}, progress=False,
        settings=ls.Settings(draws=8, burn_in=2, chains=2, batch_size=4, steps_per_draw=1),
    )  # fmt: skip
    grown = planted_circuit()
    at_end = swept["sublosses"].to_dataset().isel(checkpoint=-1)
    return {
        "development": swept,
        "sublosses": at_end,
        "differences": ls.compare(llc, llc),
        "locality": ls.locality(
            run.load(0), run.load(10000), grown.tokens[:32],
            grown.patterns.sel(pattern=grown.pattern).values[:32], n_null=1, progress=False,
        ),
        "moved_directions": ls.moved_directions(
            run.load(0), run.load(10000), grown.truth.components[0], rank=1
        ),
        "weight_change": ls.weight_change(run.load(0), run.load(10000)),
        "head_trajectories": ls.head_trajectories(curves, n_bootstrap=3),
        "differentiation": ls.differentiation(curves, n_bootstrap=20),
        "migration": ls.migration(as_curves(migrating())),
        "mode_development": ls.mode_development(appearing(SIZES), n_modes=2, n_bootstrap=3),
        "pattern_influence": ls.pattern_influence(influenced(), of_halves(), n_bootstrap=20),
        "construction": ls.construction(
            run, tokens, grown.truth, patterns=tokens[:, 1:] > 7, trials="none",
            n_bootstrap=100, progress=False,
        ),
    }  # fmt: skip


def of_retrainings(model: Any, tokens: Any, response: xr.Dataset, path: Path) -> dict[str, Any]:
    """Of runs of one update."""
    given: dict[str, Any] = dict(steps=1, seeds=(0, 1), progress=False)
    probes = {"all": ls.Probe(tokens)}
    return {
        "retrainings": ls.retrainings(model, tokens, {"a": None}, probes, path=path, **given),
        "developmental_ablation": ls.developmental_ablation(
            model, tokens, [True] + 7 * [False], probes, {}, [(0, 1)], path=path, **given
        ),
        "patterning_check": ls.verify_patterning(
            model, tokens, response, {"all": 0.1}, probes, path=path, strengths=[1], controls=[],
            **given,
        ),
    }  # fmt: skip


@pytest.fixture(scope="module")
def made(
    tmp_path_factory: pytest.TempPathFactory,
) -> dict[str, xr.Dataset | xr.DataArray | xr.DataTree]:
    """A result of every kind as its function returns it, of tiny inputs."""
    draws = per_token_draws()
    matrix, labels, _ = planted()
    tokens = ls.load_tokens("code", n_sequences=8, length=16)
    pattern = (torch.arange(15) % 2 == 0).expand(8, 15)
    model = ls.load_model("attn-2l")
    found = ls.clusters(matrix, method="hdbscan", n_neighbors=10, min_size=10)
    token_map = ls.token_map(matrix.isel(token=slice(80)), n_neighbors=5)
    observed = ls.sample(
        model, tokens, "L0H0", progress=False,
        settings=ls.Settings(draws=8, burn_in=2, batch_size=4, full_loss=True),
        probes={"code": ls.Probe(tokens, observables=ls.Accuracy())},
    )  # fmt: skip
    losses = np.random.default_rng(0).normal(size=(2, 8, 4))
    seen = ls.attention_patterns(model, tokens, "L0H0, L1H2")
    answer = ls.data_response(observed, "code", {"all": ls.Shift("code", [1.0] + [0.0] * 7)})
    results = {
        "log_likelihood": ls.log_likelihood(observed, "code"),
        "generalisation": ls.generalisation(losses, n_beta=4),
        "wbic": ls.wbic(losses, n_beta=4 / np.log(4)),
        "draws": draws,
        "refined_observable": ls.refined_observable(observed),
        "response": ls.response(observed, "code"),
        "refined_llc": ls.refined_llc(draws),
        "per_token_llc": ls.per_token_llc(draws),
        "susceptibility": ls.susceptibility(draws),
        "modes": ls.modes(matrix, n_bootstrap=5),
        "patterns": ls.label_patterns(tokens, shipped_tokenizer()),
        "enrichment": ls.enrichment(matrix, labels),
        "pattern_llc": ls.pattern_llc(matrix, labels),
        "token_map": token_map,
        "map_stability": ls.map_stability(token_map, token_map),
        "clusters": found,
        "cluster_summary": ls.cluster_summary(found, labels, matrix, permutations=5),
        "cluster_stability": ls.cluster_stability(found, found),
        "influence": ls.influence(draws, "L0H0", unit="token"),
        "effects": ls.ablate(model, tokens, "L1H0"),
        "composition_scores": ls.composition_scores(model, n_null=2),
        "composition_by_component": ls.composition_by_component(model, "L0H2", "L1H2", "K"),
        "behaviour_scores": ls.behaviour_scores(model, n_random=2),
        "attention_patterns": seen,
        "data_response": answer,
        "patterning": ls.patterning(answer, {"all": 0.1}),
        "match": ls.match(seen, seen, n_null=20, n_bootstrap=20),
        "match_family": ls.match_family({"a": seen, "b": seen}, n_null=20, n_bootstrap=20),
        "composition_on_tokens": ls.composition_on_tokens(model, tokens),
        "edge_attribution": ls.edge_attribution(model, tokens, pattern, steps=1),
        "faithfulness_curve": ls.faithfulness_curve(
            model, tokens, pattern.numpy(), ["L0H2"], n_random=1
        ),
    }
    results["transfer"] = ls.transfer(
        [ls.circuit("L0H0", "all")], results["match"], model, tokens, most_maps=1, n_null=1,
        verdict_only=True, progress=False,
    ).summary  # fmt: skip
    results |= of_retrainings(model, tokens, answer, tmp_path_factory.mktemp("retrainings"))
    results |= (
        over_checkpoints() | of_a_run(results) | made_phases.results() | made_spectrum.results()
    )
    assert set(results) == set(SCHEMAS)
    return results


@pytest.mark.parametrize("name", SCHEMAS)
def test_what_a_function_returns_follows_its_schema(made, name):
    result = made[name]
    assert result.attrs["result"] == name
    assert result.attrs["schema"] == SCHEMAS[name].version
    assert name_of(result) == name
    assert require(result, name, argument="x") is result


def test_results_made_in_other_ways_follow_it_too(made):
    draws = made_draws(probes=True)
    for result in (
        draws, draws.sel(component=["L0H0"]), draws.drop_nodes("probes"), ls.refined_llc(draws),
        ls.per_token_llc(per_token_draws(), keep_blocks=False),
        ls.susceptibility(per_token_draws(), estimator="restricted"),
        ls.modes(planted()[0], n_bootstrap=0), ls.enrichment(made["modes"], planted()[1]),
        ls.influence(per_token_draws(), "L1H0"),
    ):  # fmt: skip
        assert name_of(result) == result.attrs["result"]


@pytest.mark.parametrize(
    "name", [name for name, one in SCHEMAS.items() if one.kind != xr.DataTree and not one.of_a_run]
)
def test_any_result_may_have_checkpoints_in_front(made, name):
    steps = pd.Index([0, 1000], name="checkpoint")
    both = xr.concat([made[name], made[name]], steps)
    assert require(both, name, argument="x", leading=("checkpoint",)) is both
    assert stamped(both, name) is both
    assert name_of(both) == ""
    with pytest.raises(ValueError, match=r"x has the dimension 'checkpoint': choose one, x\.sel\("):
        require(both, name, argument="x")
    models = both.expand_dims(model=["a"])
    assert require(models, name, argument="x", leading=schema.LEADING)["model"].size == 1
    assert name_of(both.sel(checkpoint=1000)) == name


def test_draws_may_have_checkpoints_in_front(made):
    both = made["draws"].map_over_datasets(lambda one: one.expand_dims(checkpoint=[0, 1000]))
    both.attrs.update(made["draws"].attrs)
    assert require(both, "draws", argument="x", leading=("checkpoint",)) is both
    with pytest.raises(ValueError, match="draws has the dimension 'checkpoint'"):
        ls.refined_llc(both)


def test_dimensions_come_back_in_order(made):
    turned = made["modes"].transpose("token", "component", "mode")
    back = require(turned, "modes", argument="found")
    assert back["score"].dims == ("mode", "token") and back["loading"].dims == ("mode", "component")
    xr.testing.assert_identical(back, made["modes"])
    labels = made["patterns"].transpose("position", "pattern", "sequence")
    xr.testing.assert_identical(require(labels, "patterns", argument="x"), made["patterns"])
    with pytest.raises(RuntimeError, match=r"modes\(…\) does not follow its schema: score \(token"):
        stamped(turned, "modes")


@pytest.mark.parametrize(
    ("break_it", "error", "message"),
    [
        (lambda m: [1], TypeError, r"found must come from modes\(…\); got list"),
        (
            lambda m: planted()[0], TypeError,
            r"found must come from modes\(…\); got what per_token_llc\(…\) returns",
        ),
        (
            lambda m: m["score"], TypeError,
            r"found must be the Dataset that modes\(…\) returns; got DataArray",
        ),
        (
            lambda m: m.drop_vars("loading"), ValueError,
            r"found must come from modes\(…\), whole; it has no loading \(mode, component\): pass "
            r"what modes\(…\) returned",
        ),
        (
            lambda m: m.isel(mode=0), ValueError,
            r"it has score \(token\) instead of score \(mode, token\); .*; and \d+ more: a "
            r"selection must keep its dimension, as found\.isel\(mode=\[0\]\) does",
        ),
        (
            lambda m: m.assign_attrs(schema=0), ValueError,
            r"found: an older version of lens_slt made this result \(modes, schema 0; this version "
            r"reads schema 1\): make it again with modes\(…\)",
        ),
        (
            lambda m: m.assign_attrs(schema=99), ValueError,
            r"found: a newer version of lens_slt .* install that one",
        ),
        (
            lambda m: m.drop_attrs().assign_attrs(result="modes", quantity="llc"), ValueError,
            r"found: an older version",
        ),
        (lambda m: m.drop_attrs(), ValueError, "found .* it has no attribute 'quantity'"),
    ],
)  # fmt: skip
def test_messages(made, break_it, error, message):
    with pytest.raises(error, match=message):
        require(break_it(made["modes"]), "modes", argument="found")


def test_arrays_without_a_name_are_judged_by_what_they_hold(made):
    bare = made["susceptibility"].copy()
    bare.attrs = {"quantity": "chi", "probe": "text"}
    assert require(bare, *MATRICES, argument="matrix") is bare
    assert name_of(bare) == ""
    mine = xr.DataArray(
        np.zeros((1, 2, 3), bool), dims=("pattern", "sequence", "position"),
        coords={"pattern": ["mine"]},
    )  # fmt: skip
    assert require(mine, "patterns", argument="patterns") is mine


@pytest.mark.parametrize(
    ("use", "argument"),
    [
        (lambda wrong: ls.refined_llc(wrong), "draws"),
        (lambda wrong: ls.per_token_llc(wrong), "draws"),
        (lambda wrong: ls.influence(wrong), "draws"),
        (lambda wrong: ls.plot_traces(wrong, "L0H0"), "draws"),
        (lambda wrong: ls.attribute(wrong, 0), "result"),
        (lambda wrong: ls.modes(wrong), "matrix"),
        (lambda wrong: ls.halves(wrong), "matrix"),
        (lambda wrong: ls.cluster_summary(wrong, None, None), "result"),
        (lambda wrong: ls.cluster_stability(wrong, wrong), "first"),
        (lambda wrong: ls.map_stability(wrong, wrong), "first"),
        (lambda wrong: ls.enrichment(wrong, None), "result"),
        (lambda wrong: ls.enrichment(planted()[0], wrong), "patterns"),
        (lambda wrong: ls.top_tokens(wrong), "result"),
        (lambda wrong: ls.affected_tokens(wrong), "result"),
        (lambda wrong: ls.plot_modes(wrong), "result"),
        (lambda wrong: ls.plot_rllc(wrong), "llc"),
        (lambda wrong: ls.plot_matrix(wrong), "matrix"),
        (lambda wrong: ls.plot_stability({"a": wrong}), "cluster_stability 'a'"),
        (lambda wrong: ls.plot_faithfulness(wrong), "result"),
        (lambda wrong: ls.paper_rllc(wrong), "llc"),
        (lambda wrong: ls.plot(wrong), "result"),
    ],
)
def test_functions_name_the_argument_that_is_no_such_result(use, argument):
    with pytest.raises((TypeError, ValueError), match=f"^{argument} must "):
        use(xr.Dataset({"x": ("y", [1, 2])}))


def test_draws_of_an_older_version_are_refused_when_they_are_opened(tmp_path):
    tokens = ls.load_tokens("code", n_sequences=4, length=8)
    settings = ls.Settings(draws=4, burn_in=1, chains=2, step_size=1e-3, batch_size=2)
    path = tmp_path / "draws.zarr"
    ls.sample(
        ls.load_model("attn-1l"), tokens, "L0H0", settings=settings, path=path, progress=False
    )
    assert name_of(ls.open_draws(path)) == "draws"
    about = read_description(path)
    assert about["schema"] == SCHEMAS["draws"].version
    write_description(path, {**about, "schema": 0})
    with pytest.raises(ValueError, match=r"path: .*draws\.zarr': an older version .* with sample"):
        ls.open_draws(path)


def test_results_on_disk_keep_their_version(made, tmp_path):
    write_zarr(made["modes"], tmp_path / "modes.zarr")
    assert name_of(read_zarr(tmp_path / "modes.zarr")) == "modes"


def test_groups_of_a_tree_are_checked_one_by_one():
    draws = made_draws(probes=True)
    draws["probes/code"] = draws["probes/code"].to_dataset().drop_vars("weight")
    with pytest.raises(ValueError, match=r"no probes/code/weight \(sequence, position\)"):
        require(draws, "draws", argument="draws")


def test_schemas_say_nothing_twice():
    for name, one in SCHEMAS.items():
        assert isinstance(one, Schema) and one.name == name and one.version >= 1
        assert not set(one.needed) & set(one.optional)
        assert not {dim for dims in one.variables.values() for dim in dims} & {*schema.LEADING}
