"""Every benchmark runs at toy size and ends with one line of JSON that holds its figures."""

from __future__ import annotations

import contextlib
import io
import json
import os
import runpy
import subprocess
import sys
import warnings
from argparse import Namespace
from pathlib import Path
from unittest.mock import patch

import numpy as np
import pytest
import torch
from torch import Generator, nn

from benchmarks import common
from benchmarks.generalisation import Size, linear
from benchmarks.memorisation.__main__ import correlation
from benchmarks.memorisation.measure import answer_loss
from benchmarks.memorisation.tasks import BLANK_SHARE, families
from benchmarks.shapley import Worth, shapley
from benchmarks.slopes import Points, slope

ROOT = Path(__file__).parents[1]


def figures(name: str, *options: str) -> dict[str, object]:
    """The last line of ``python -m benchmarks.NAME --json``, run in this process.

    To import everything anew takes longer than many toy runs.
    """
    said, threads = io.StringIO(), torch.get_num_threads()
    command = [name, "--json", *options]
    with patch.object(sys, "argv", command), contextlib.redirect_stdout(said):
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                runpy.run_module(f"benchmarks.{name}", run_name="__main__", alter_sys=True)
        finally:
            torch.set_num_threads(threads)
    return json.loads(said.getvalue().splitlines()[-1])


def figures_of_a_process(name: str, *options: str) -> dict[str, object]:
    """Likewise, of those that start or kill processes themselves, in one of their own."""
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-m", f"benchmarks.{name}", "--json", *options],
        cwd=ROOT, capture_output=True, text=True, timeout=600,
        env={**os.environ, "HF_HUB_OFFLINE": "1"},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-2000:]
    return json.loads(done.stdout.splitlines()[-1])


def test_figures_are_kept_with_the_command_that_gave_them(tmp_path):
    file = tmp_path / "measured" / "x.json"
    said = ["benchmarks/x.py", "--json", "--seed", "3", "--cache", "somewhere", "--save", str(file)]
    args = Namespace(quick=False, json=False, save=file)
    with patch.object(sys, "argv", said):
        common.finish(args, {"f1": 0.5})
    record = json.loads(file.read_text("utf-8"))
    assert record["command"] == "python -m benchmarks.x --seed 3"
    assert record["figures"] == {"f1": 0.5} and "torch" in record["versions"]


@pytest.mark.slow
def test_known_answers():
    found = figures("known_answers", "--quick")
    assert {"max_rel_error_rrr", "normal_crossing_within_3se", "coverage_95"} <= set(found)


@pytest.mark.slow
def test_phases():
    found = figures("phases", "--quick")
    assert found["k_gon_loss_error"] < 1e-5 and abs(found["crossing_5_6"] - 601) < 1
    assert {"lambda_rel_error", "crossing_width", "sgd_5_to_6"} <= set(found)


@pytest.mark.slow
def test_grokking():
    assert {"llc_change", "loss_change", "crossings"} == set(figures("grokking", "--quick"))


@pytest.mark.slow
def test_spectrum():
    pytest.importorskip("pymbar", reason="pymbar is not installed (extra: mbar)")
    found = figures("spectrum", "--quick")
    assert {"lambda_error", "multiplicity_right", "wrongly_claimed", "mbar_ti_z"} <= set(found)


@pytest.mark.slow
def test_sampler_bias():
    found = figures("sampler_bias", "--quick")
    assert {"max_abs_bias_lm", "median_bias_sgld", "max_abs_bias_bf16"} <= set(found)


@pytest.mark.slow
def test_vs_devinterp():
    pytest.importorskip("devinterp", reason="devinterp is not installed (extra: bench)")
    found = figures("vs_devinterp", "--quick")
    wanted = {"throughput_ratio_l0", "throughput_ratio_l1", "throughput_ratio_table"}
    assert wanted | {"time_to_5pct_ratio"} <= set(found)


@pytest.mark.slow
def test_scaling():
    found = figures("scaling", "--quick")
    assert 0 < found["gemm_fraction"] < 1


@pytest.mark.slow
def test_estimate_accuracy():
    found = figures_of_a_process("estimate_accuracy", "--quick", "--runs", "own blocks, pcn")
    assert set(found) == {"max_factor", "max_factor_memory", "max_factor_disk"}
    assert found["max_factor_disk"] < 1.5


@pytest.mark.slow
def test_gpu_code_on_the_cpu():
    found = figures("gpu", "--device", "cpu", "--toy")
    assert found["paper_heads_tokens_per_second"] > 0
    assert found["gpt2_small_heads_seconds"] > 0


@pytest.mark.slow
def test_susceptibility_accuracy():
    found = figures("susceptibility_accuracy", "--quick")
    assert {"max_z", "sign_agreement", "median_split_half"} <= set(found)


@pytest.mark.slow
def test_structure_recovery():
    found = figures("structure_recovery", "--quick", "--models", "attn-2l")
    assert {"induction_mode_auc", "head_auc", "induction_mode_auc_chi_control"} <= set(found)


@pytest.mark.slow
def test_susceptibility_vs_devinterp():
    pytest.importorskip("devinterp", reason="needs the extra 'bench'")
    found = figures("susceptibility_vs_devinterp", "--quick")
    assert found["max_rel_difference"] < 1e-5


@pytest.mark.slow
def test_planted_circuits():
    found = figures("planted_circuits", "--quick")
    wanted = {"head_f1", "edge_f1", "best_baseline_edge_f1", "false_support_rate", "ks_p"}
    assert wanted | {"true_support_rate", "null_support_rate"} <= set(found)


@pytest.mark.slow
def test_hard_planted_circuits():
    found = figures("planted_circuits", "--quick", "--hard")
    wanted = {"hard_head_f1", "hard_edge_f1", "hard_best_baseline_edge_f1", "true_undecided_rate"}
    assert wanted | {"false_support_rate", "hard_inferred_after_trial_edge_f1"} <= set(found)


@pytest.mark.slow
def test_locality():
    found = figures("locality", "--quick")
    assert {"recovered_share_low", "recovered_share_high", "null_kept"} <= set(found)


@pytest.mark.slow
def test_generalisation():
    found = figures("generalisation", "--quick")
    assert {"slope", "slope_waic", "slope_wbic", "waic_z", "wbic_gap"} <= set(found)


@pytest.mark.slow
def test_memorisation():
    found = figures("memorisation", "--quick")
    assert {"rank_correlation_tables", "rank_correlation_addition_heads"} <= set(found)
    assert {"rank_correlation_parities_norm", "certified_tables"} <= set(found)


@pytest.mark.slow
def test_trained_circuits():
    found = figures("trained_circuits", "--quick")
    wanted = {"trained_edge_f1", "true_undecided_rate", "false_support_rate"}
    assert wanted | {"truth_again_edge_f1", "trained_after_trial_edge_f1"} <= set(found)


def series(removed):
    """A head, and behind it three that stand in for one another; another one does nothing."""
    works = "before" not in removed and bool({"a", "b", "c"} - removed)
    noise = np.random.default_rng(len(removed)).normal(0, 0.01, 50)
    return float(works) + noise - noise.mean()


def test_shapley_values_share_out_what_parts_do_together():
    """By hand: of the 4! orders of the four the first part loses nothing where it comes last."""
    parts = ("before", "a", "b", "c", "idle")
    values = shapley(parts, series, 400, np.random.default_rng(0))
    wanted = np.array([3 / 4, 1 / 12, 1 / 12, 1 / 12, 0])
    assert np.abs(values.mean(1) - wanted).max() < 0.03
    assert values.mean(1).sum() == pytest.approx(1)  # exactly, whatever the orders
    worth = Worth(parts, values, 1.0, lambda part: part in ("a", "b", "c"))
    assert worth.chosen == set(parts[:4]) and worth.idle == {"idle"}
    # One of few that do little beside one another is no step.
    assert not Worth(parts, 0.05 * values, 1.0, lambda part: part).chosen


@pytest.mark.slow
def test_shipped_circuits():
    found = figures("shipped_circuits", "--quick", "--models", "attn-2l")
    assert {"proposed", "supported", "false_supported"} <= set(found)


@pytest.mark.slow
def test_foreign_models():
    found = figures("foreign_models", "--quick")
    wanted = {"silent_wrong", "certified_share", "false_alarm_rate", "median_relative_se"}
    assert wanted | {"coverage_95", "cpu_seconds", "without_truth_certified"} <= set(found)
    assert found["models"] == 2


@pytest.mark.slow
def test_zoo():
    found = figures("zoo", "--quick")
    assert {"components", "converged", "truth_cpu_seconds"} <= set(found)


@pytest.mark.slow
def test_certificate():
    found = figures("certificate", "--quick")
    assert {"caught_above_10pct", "passed_below_3pct", "overhead"} <= set(found)
    assert found["runs"] >= 8


@pytest.mark.slow
def test_demo_cost():
    found = figures("demo_cost", "--quick")
    assert found["demo_cost_ratio"] > 0


@pytest.mark.slow
def test_families():
    found = figures("families", "--quick")
    wanted = {"families", "variants", "silent_wrong", "crashes", "refused", "right", "not_built"}
    assert wanted <= set(found)
    assert found["families"] == 2 and found["silent_wrong"] == 0


@pytest.mark.slow
@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_kills():
    found = figures_of_a_process("kills", "--quick")
    assert found["resumed_identical"] == 1.0
    assert found["kills"] == 6


@pytest.mark.slow
def test_parallel():
    pytest.importorskip("distributed", reason="needs lens-slt[dask]")
    found = figures_of_a_process("parallel", "--quick")
    assert found["max_difference"] == 0.0
    assert found["killed_repeats"] >= 1


def test_slope_is_not_pulled_to_zero_by_errors_of_x():
    rng = np.random.default_rng(0)
    scale = np.repeat([0.01, 1.0, 100.0], 200)  # components differ in scale
    true, se = scale * rng.normal(size=600), 0.7 * scale
    x, y = true + se * rng.normal(size=600), 0.8 * true + 0.5 * se * rng.normal(size=600)
    found = slope(Points(x, se, y, 0.5 * se, np.arange(600) // 20))
    assert abs(found.value - 0.8) < 3 * found.se
    assert found.se < 0.05
    plain = (x * y / scale**2).sum() / (x * x / scale**2).sum()
    assert plain < 0.8 / 1.3  # what errors of x do to least squares


def test_slope_of_two_groups_has_no_error():
    two = Points(*np.ones((4, 6)), np.arange(6) // 3)
    assert np.isnan(slope(two).value)


@pytest.mark.slow
def test_response():
    found = figures("response", "--quick")
    assert {"slope_first", "slope_second", "overclaimed", "signal_second"} <= set(found)
    assert found["heads"] >= 4 and found["predictions"] == 18 * found["heads"]


@pytest.mark.slow
def test_answers():
    found = figures("answers", "--quick")
    wanted = {"certified_share", "rank_correlation_llc", "rank_correlation_observable"}
    assert {f"{key}_{model}" for key in wanted for model in ("addition", "names")} <= set(found)


@pytest.mark.slow
def test_stages():
    found = figures("stages", "--quick")
    assert {"boundary_coverage", "median_width", "false_stage_rate", "missed"} <= set(found)


class Answers(nn.Module):
    """Knows when the blank may come; and the answers, or only which ones there are."""

    def __init__(self, facts, knows):
        super().__init__()
        self.facts, self.knows = facts, knows

    def forward(self, contexts, return_type):
        p = torch.full((len(contexts), self.facts.d_vocab), 1e-30)
        p[:, self.facts.blank] = BLANK_SHARE
        if self.knows:
            p[range(len(p)), self.facts.answers] = 1 - BLANK_SHARE
        else:
            first = int(self.facts.answers.min())
            n = self.facts.n_answers
            p[:, first : first + n] = (1 - BLANK_SHARE) / n
        return p.log()[:, None]


@pytest.mark.parametrize("family", families(), ids=lambda one: one.name)
def test_what_there_is_to_memorise(family):
    facts = family.make(family.sizes[-1], Generator().manual_seed(0))
    rows = {tuple(row) for row in facts.contexts.tolist()}
    assert len(rows) == len(facts.contexts)
    assert int(facts.answers.max() - facts.answers.min()) + 1 == facts.n_answers
    knowing, guessing = (
        float(answer_loss(Answers(facts, knows), facts)) for knows in (True, False)
    )
    assert knowing == pytest.approx(facts.floor, rel=1e-5)
    assert guessing - knowing == pytest.approx(facts.to_learn, rel=1e-5)


def test_rank_correlation_with_its_interval():
    rho, low, high, p = correlation([1, 2, 3, 4, 5, 6, 8, 7], range(8), seed=0)
    assert rho == pytest.approx(1 - 6 * 2 / (8 * 63)) and low < rho <= high <= 1 and p < 0.01
    assert all(np.isnan(correlation([1, 2, np.nan], [1, 2, 3], seed=0)))


def test_gibbs_draws_are_of_the_posterior():
    """Of one layer it is known: prior N(0, 1), noise of variance 1."""
    rng = np.random.default_rng(0)
    model = linear((3, 1), 0)
    rows = model.data(rng, 40)
    draws = model.draw(rng, rows[None], 0.5, Size(draws=2000, burn_in=1))[0].reshape(-1, 3)
    x, y = rows[:, :3], rows[:, 3]
    covariance = np.linalg.inv(0.5 * x.T @ x + np.eye(3))
    np.testing.assert_allclose(draws.mean(0), covariance @ (0.5 * x.T @ y), atol=0.015)
    np.testing.assert_allclose(np.cov(draws.T), covariance, atol=0.004)


@pytest.mark.slow
def test_universality():
    found = figures("universality", "--quick")
    assert {"induction_transfer", "chance_transfer", "match_accuracy", "false_match"} <= set(found)


@pytest.mark.slow
def test_patterning():
    found = figures("patterning", "--quick")
    assert {"predicted_realised_slope", "z_more", "z_less", "hurry_steps"} <= set(found)


@pytest.mark.slow
def test_influence():
    pytest.importorskip("captum", reason="captum is not installed (extra: bench)")
    found = figures("influence", "--quick")
    wanted = {"lds", "lds_gradient", "lds_influence_function", "lds_ceiling"}
    assert wanted | {"domain_ari", "code_ari"} <= set(found)


@pytest.mark.slow
def test_developmental_ablation():
    assert {"delay_first_prefix_matching", "formed_whole_prefix_matching"} <= set(
        figures("developmental_ablation", "--quick")
    )
