"""Runs of ``sample``: reproducible, resumable, independent of engine, and harmless to the model."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
import xarray as xr
import zarr

import lens_slt as ls
from lens_slt.models.adapter import adapt, weights_hash
from lens_slt.sampling import driver, lm, store
from lens_slt.sampling.folder import SamplingWarning
from lens_slt.sampling.store import STATE_FILE
from tests.tiny_models import GENERIC_MODELS, native, wrapped_gpt2

SHORT = ls.Settings(chains=2, draws=6, burn_in=3, batch_size=4, gamma=50.0)


def tokens_for(n_sequences: int = 8, length: int = 12, seed: int = 0, d_vocab: int = 50):
    return torch.randint(
        d_vocab, (n_sequences, length), generator=torch.Generator().manual_seed(seed)
    )


def run(model=None, components="L0H1,L1H2", settings=SHORT, **options):
    model = native() if model is None else model
    return ls.sample(model, tokens_for(), components, settings=settings, progress=False, **options)


def loss_of(draws):
    return draws["posterior"]["paired_loss"].values


@pytest.mark.slow
@pytest.mark.parametrize(
    ("sampler", "step_size", "tolerance"),
    [
        ("lm", 0.016, 1e-4),
        ("lm", None, 1e-3),  # a preconditioner from gradient differences enlarges rounding
        ("sgld", None, 1e-4),
        ("rmsprop_sgld", None, 1e-4),
        ("pcn", None, 1e-4),
        ("importance", None, 1e-4),
    ],
)
def test_engines_draw_the_same(sampler, step_size, tolerance):
    settings = SHORT.but(sampler=sampler, step_size=step_size)
    probes = {"held_out": tokens_for(3, seed=9)}
    runs = {
        engine: run(settings=settings, engine=engine, probes=probes)
        for engine in ("auto", "functional", "modules")
    }
    for engine in ("functional", "modules"):
        np.testing.assert_allclose(loss_of(runs[engine]), loss_of(runs["auto"]), atol=tolerance)
        np.testing.assert_allclose(
            runs[engine]["probes/held_out"]["paired_loss"].values,
            runs["auto"]["probes/held_out"]["paired_loss"].values,
            atol=tolerance,
        )
    assert np.abs(loss_of(runs["auto"])).max() > 0.01


def test_a_component_does_not_depend_on_its_company():
    alone = run(components="L1H2")
    together = run(components="heads")
    np.testing.assert_allclose(
        loss_of(alone)[0], together["posterior"]["paired_loss"].sel(component="L1H2"), atol=1e-5
    )


def test_components_come_back_in_the_order_asked_for():
    draws = run(components="L1H2,L0H1,embed,L1H0")
    assert list(draws["posterior"]["component"].values) == ["L1H2", "L0H1", "embed", "L1H0"]
    np.testing.assert_allclose(loss_of(draws)[1], loss_of(run())[0], atol=1e-5)
    assert list(draws["layer"].values) == [1, 0, 0, 1]


def test_the_seed_decides():
    assert np.array_equal(loss_of(run()), loss_of(run()))
    assert not np.array_equal(loss_of(run()), loss_of(run(settings=SHORT.but(seed=1))))


def test_first_draw_of_sgld_without_burn_in_is_the_given_weights():
    draws = run(settings=SHORT.but(burn_in=0, sampler="sgld"))
    assert np.abs(loss_of(draws)[:, :, 0]).max() < 1e-5
    assert (draws["posterior"]["squared_distance"].values[:, :, 0] == 0).all()


def test_probe_losses_are_the_models_own():
    """At the one draw that is the given weights, and against the logits of the model."""
    model, probe = native(), tokens_for(3, seed=9)
    draws = run(
        model, settings=SHORT.but(burn_in=0, thin=6, sampler="sgld"), probes={"held_out": probe}
    )
    with torch.no_grad():
        logits = model(probe, return_type="logits")[:, :-1]
    expected = torch.nn.functional.cross_entropy(
        logits.transpose(1, 2), probe[:, 1:], reduction="none"
    )
    found = draws["probes/held_out"]
    np.testing.assert_allclose(found["base_loss"], expected, atol=1e-4)
    assert found["paired_loss"].dims == ("component", "chain", "draw", "sequence", "position")
    assert found["paired_loss"].shape == (2, 2, 1, 3, 11)
    assert np.abs(found["paired_loss"].values).max() < 1e-4


def test_padding_does_not_count():
    model, tokens = native(), tokens_for()
    mask = torch.ones_like(tokens, dtype=torch.bool)
    mask[::2, 8:] = False
    results = []
    for filler in (1, 2):
        padded = torch.where(mask, tokens, filler)
        draws = ls.sample(model, padded, "L0H1", settings=SHORT, mask=mask, progress=False)
        results.append(loss_of(draws))
    assert np.array_equal(*results)
    assert not np.array_equal(results[0], loss_of(run(model, "L0H1")))


def test_generic_models_say_so():
    with pytest.warns(SamplingWarning, match="running its own blocks, which is slower: .*soft cap"):
        draws = run(GENERIC_MODELS["native_logit_cap"]())
    assert set(draws["evaluated_by"].values) == {"the model's own blocks"}


def test_shared_keys_and_tied_embeddings_are_named():
    draws = run(native(n_key_value_heads=2))
    assert list(draws["shares_key_value_with"].values) == ["L0H0", "L1H3"]
    tied = run(wrapped_gpt2(), "embed")
    assert "tied" in str(tied["note"].values[0])


def test_half_precision_drift_is_close():
    settings = SHORT.but(gamma=200.0, draws=20, step_size=0.004)
    exact = loss_of(run(settings=settings))
    half = loss_of(run(settings=settings.but(drift_dtype="bfloat16")))
    assert not np.array_equal(exact, half)
    assert np.abs(half - exact).mean() < 0.05 * np.abs(exact).mean()


def test_half_precision_drift_has_no_preconditioner():
    """Differences of gradients that close would be rounding noise in half precision."""
    draws = run(settings=SHORT.but(gamma=200.0, drift_dtype="bfloat16"))
    assert np.isnan(draws["curvature"].values).all()


def test_half_precision_drift_needs_the_functional_pass():
    with pytest.raises(ValueError, match="drift_dtype='bfloat16' needs the functional forward"):
        run(settings=SHORT.but(drift_dtype="bfloat16"), engine="modules")


# The caller's model ------------------------------------------------------------------------------


def fingerprint(model):
    generator_state = torch.random.get_rng_state()
    hooks = [len(p.fwd_hooks) for _, p in model.hook_dict.items()]
    grads = [None if p.grad is None else p.grad.clone() for p in model.parameters()]
    flags = [p.requires_grad for p in model.parameters()]
    numpy_state = np.random.get_state()[1].tolist()  # noqa: NPY002, the caller's legacy state
    return (
        weights_hash(adapt(model)), generator_state.tolist(), hooks, flags, model.training,
        torch.is_grad_enabled(), numpy_state, [None if g is None else g.tolist() for g in grads],
    )  # fmt: skip


@pytest.fixture
def lived_in():
    """A model with gradients, frozen parameters and a hook of the caller's."""
    model = native()
    model(tokens_for(), return_type="loss").backward()
    next(iter(model.parameters())).requires_grad_(False)
    model.add_hook("blocks.0.hook_resid_pre", lambda value, hook: value)
    return model


@pytest.mark.parametrize("engine", ["auto", "modules"])
@pytest.mark.parametrize("stop", [None, RuntimeError, KeyboardInterrupt])
def test_the_model_is_untouched(lived_in, engine, stop, monkeypatch):
    before = fingerprint(lived_in)
    if stop is not None:
        calls = []

        def failing(*args, **options):
            calls.append(1)
            if len(calls) > 3:
                raise stop
            return original(*args, **options)

        original = lm.step
        monkeypatch.setattr(lm, "step", failing)
        with pytest.raises(stop):
            run(lived_in, "L0H1,L1,embed", engine=engine)
        assert len(calls) > 3
    else:
        run(lived_in, "L0H1,L1,embed", engine=engine, probes={"p": tokens_for(2, seed=3)})
    assert fingerprint(lived_in) == before


def test_an_interrupt_inside_the_models_own_blocks_restores_the_weights(lived_in, monkeypatch):
    from lens_slt.models import suffix

    before = fingerprint(lived_in)
    original = suffix.model_logits_from
    calls = []

    def interrupted(*args):
        calls.append(1)
        if len(calls) == 6:
            raise KeyboardInterrupt
        return original(*args)

    monkeypatch.setattr(suffix, "model_logits_from", interrupted)
    with pytest.raises(KeyboardInterrupt):
        run(lived_in, "L0H1,L1H0", engine="modules")
    assert fingerprint(lived_in) == before


# Saving and resuming -----------------------------------------------------------------------------

LONG = SHORT.but(draws=40, thin=3)
PROBES = {"held_out": tokens_for(2, seed=9)}


@pytest.mark.parametrize("sampler", ["lm", "rmsprop_sgld", "pcn"])
def test_resume_after_an_interrupt_equals_an_uninterrupted_run(sampler, tmp_path, monkeypatch):
    settings = LONG.but(sampler=sampler)
    whole = run(settings=settings, probes=PROBES)
    save, stop_at = driver._Loop.save, iter([False, True])

    def interrupted(*args):
        save(*args)
        if next(stop_at, False):
            raise KeyboardInterrupt

    monkeypatch.setattr(driver._Loop, "save", interrupted)
    with pytest.raises(KeyboardInterrupt):
        run(settings=settings, probes=PROBES, path=tmp_path / "draws")
    monkeypatch.undo()
    resumed = run(settings=settings, probes=PROBES, path=tmp_path / "draws")
    assert np.array_equal(loss_of(resumed), loss_of(whole))
    np.testing.assert_array_equal(
        resumed["probes/held_out"]["paired_loss"].values,
        whole["probes/held_out"]["paired_loss"].values,
    )


KILLED = """
import sys, time
from tests.sampling.test_sample import run, LONG, PROBES
from lens_slt.sampling import lm
step = lm.step
def slow(*args, **options):
    time.sleep(0.02)
    return step(*args, **options)
lm.step = slow
print("sampling", flush=True)
run(settings=LONG, probes=PROBES, path=sys.argv[1])
"""


@pytest.mark.slow
def test_resume_after_kill_9_equals_an_uninterrupted_run(tmp_path):
    path = tmp_path / "draws"
    root = Path(__file__).parents[2]
    process = subprocess.Popen(
        [sys.executable, "-c", KILLED, str(path)], cwd=root,
        env={**os.environ, "PYTHONPATH": str(root)},
    )  # fmt: skip
    deadline = time.monotonic() + 120
    while not (path / STATE_FILE).exists():
        assert process.poll() is None and time.monotonic() < deadline
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    process.wait()
    resumed = run(settings=LONG, probes=PROBES, path=path)
    whole = run(settings=LONG, probes=PROBES)
    assert np.array_equal(loss_of(resumed), loss_of(whole))
    np.testing.assert_array_equal(
        resumed["probes/held_out"]["paired_loss"].values,
        whole["probes/held_out"]["paired_loss"].values,
    )


@pytest.mark.parametrize("check_step", [False, True])
def test_a_finished_run_is_read_back(check_step, tmp_path, monkeypatch):
    options = {"settings": SHORT.but(check_step=check_step), "path": tmp_path, "probes": PROBES}
    first = run(**options)
    monkeypatch.setattr(lm, "step", None)  # nothing is sampled again, not even at half the step
    xr.testing.assert_identical(run(**options).load(), first.load())
    assert np.isfinite(first["bias"].values).all() == check_step


def test_draws_are_opened_without_the_model(tmp_path):
    probes = {**PROBES, "reference": ls.Probe(tokens_for(2), reference=native(seed=3))}
    made = run(components="L1H2,full,L0H1", probes=probes, path=tmp_path)
    opened = ls.open_draws(tmp_path)
    xr.testing.assert_identical(opened.load(), made.load())
    assert opened["probes/reference"].attrs["loss"] == "divergence"


def test_unfinished_draws_are_not_opened(tmp_path, monkeypatch):
    def interrupted(*args, **options):
        raise KeyboardInterrupt

    monkeypatch.setattr(lm, "step", interrupted)
    with pytest.raises(KeyboardInterrupt):
        run(path=tmp_path)
    with pytest.raises(ValueError, match=r"not finished \(step 0\)"):
        ls.open_draws(tmp_path)
    with pytest.raises(ValueError, match="holds no lens_slt draws"):
        ls.open_draws(tmp_path / "elsewhere")


@pytest.mark.parametrize(
    ("change", "named"),
    [
        (dict(model=native(seed=1, normalization_type=None)), "model"),
        (dict(components="L0H1,L1H3"), "components"),
        (dict(settings=SHORT.but(n_beta=31.0)), "settings: n_beta 30.0 there, 31.0 here"),
        (dict(probes={"p": tokens_for(2)}), "probes"),
    ],
)
def test_a_path_with_other_draws_is_refused(change, named, tmp_path):
    run(path=tmp_path)
    with pytest.raises(ValueError, match=f"holds the draws of another run .*{named}"):
        run(path=tmp_path, **change)


def test_a_path_with_draws_of_other_tokens_is_refused(tmp_path):
    run(path=tmp_path)
    with pytest.raises(ValueError, match="holds the draws of another run .tokens"):
        ls.sample(native(), tokens_for(seed=5), "L0H1,L1H2", settings=SHORT, path=tmp_path)


def test_a_path_with_something_else_is_refused(tmp_path):
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(ValueError, match="holds no lens_slt draws"):
        run(path=tmp_path)
    assert (tmp_path / "notes.txt").read_text() == "mine"


# Bad input ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (dict(components="L2H0"), "components: 'L2H0' does not exist"),
        (dict(settings="wang2025"), "preset must be one of .*did you mean 'wang2024'"),
        (dict(probes={"my probe": tokens_for()}), "probes: 'my probe' is not a name"),
        (
            dict(probes={"p": tokens_for() + 20}),
            r"probes\['p'\].* is .*; token ids must lie between 0 and 49",
        ),
        (dict(settings=SHORT.but(batch_size=9)), "8 sequences, fewer than a batch of 9"),
        (
            dict(settings=SHORT.but(draws=10**7), probes={"p": tokens_for()}),
            "probes: their per-token losses would take .* GiB of memory; give path=",
        ),
        (
            dict(probes={"p": ls.Probe(tokens_for(), reference=native(d_vocab=40))}),
            "reference predicts 40 tokens, the model 50",
        ),
    ],
)
def test_bad_input_is_named_before_any_work(options, message, monkeypatch):
    monkeypatch.setattr(driver, "run_chains", None)
    with pytest.raises(ValueError, match=message):
        run(**options)


@pytest.mark.gpu
def test_gpu_and_cpu_agree():
    """The same distribution: random numbers differ between devices, so only statistically."""
    settings = SHORT.but(chains=8, draws=200)
    tables = [ls.refined_llc(run(settings=settings, device=d)) for d in ("cpu", "cuda")]
    gap = abs(tables[0]["llc"] - tables[1]["llc"])
    assert (gap < 4 * np.hypot(tables[0]["se"], tables[1]["se"])).all()


def test_large_probes_are_written_before_they_fill_the_memory(tmp_path, monkeypatch):
    """Fewer draws per chunk and earlier saves give the same draws."""
    model, tokens = ls.load_model("attn-1l"), ls.load_tokens("code", n_sequences=4, length=16)
    options = {
        "settings": ls.Settings(draws=7, burn_in=2, batch_size=2, thin=2),
        "probes": {"code": tokens}, "progress": False,
    }  # fmt: skip
    whole = ls.sample(model, tokens, "L0H0,L0H1", **options)
    monkeypatch.setattr(store, "LARGEST_CHUNK", 4 * 4 * 4 * 15 * 2)  # two draws
    monkeypatch.setattr(store, "LARGEST_PENDING", 1)
    streamed = ls.sample(model, tokens, "L0H0,L0H1", path=tmp_path / "draws", **options)
    assert zarr.open_group(tmp_path / "draws")["probes/code/paired_loss"].chunks[2] == 2
    xr.testing.assert_identical(
        whole["probes/code"].to_dataset(), streamed["probes/code"].to_dataset().load()
    )
