"""Estimates before a run: exact counts and sizes, times by a clock of the test, nothing touched."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

import lens_slt as ls
from lens_slt.sampling import estimate, foresee, lm, store, timed_target, timing
from lens_slt.sampling.half_step import DRAWS
from lens_slt.sampling.metric import LANCZOS_STEPS
from lens_slt.sampling.pilot import CURVATURE_BATCHES, PRIOR_BATCHES
from lens_slt.sampling.plan import Plan, StepCosts, Stretch
from lens_slt.sampling.result import probe_specs, trace_specs
from lens_slt.sampling.store import STATE_FILE
from lens_slt.sampling.target import TransformerTarget
from lens_slt.text import duration, size
from tests.sampling.test_sample import fingerprint, tokens_for
from tests.tiny_models import native

SHORT = ls.Settings(
    chains=2, draws=23, burn_in=7, thin=3, batch_size=4, gamma=50.0, step_size=0.016
)  # fmt: skip
FREE = StepCosts(0.0, np.zeros(2), np.zeros(2), np.zeros(2))
PROBES = {"held_out": tokens_for(3, seed=9)}
HEADS = "L0H1,L1H2"


@pytest.fixture(autouse=True)
def few_steps(monkeypatch):
    monkeypatch.setattr(timing, "MOST_TRIAL_STEPS", 6)


def arguments(**changes: Any) -> dict[str, Any]:
    given = {"model": native(), "tokens": tokens_for(), "components": HEADS, "settings": SHORT}
    return {**given, **changes}


def run(**changes: Any) -> Any:
    return ls.sample(**arguments(**changes), progress=False)


def stop_after(steps: int, path: Path, monkeypatch, **changes: Any) -> None:
    """A run that is interrupted in a step."""
    step, calls = lm.step, []

    def stopped(*args, **options):
        calls.append(1)
        if len(calls) > 2 * steps:  # two layers
            raise KeyboardInterrupt
        return step(*args, **options)

    monkeypatch.setattr(lm, "step", stopped)
    with pytest.raises(KeyboardInterrupt):
        run(path=path, **changes)
    monkeypatch.setattr(lm, "step", step)


def contents(folder: Path) -> dict[str, bytes]:
    return {str(f): f.read_bytes() for f in sorted(folder.rglob("*")) if f.is_file()}


def stretches(
    settings: ls.Settings, done: int = 0, strides: tuple[int, ...] = (1, 1)
) -> tuple[Stretch, ...]:
    """Of components that take so many steps a draw from the start."""
    n = settings.burn_in_steps + settings.least_draws
    return tuple(
        Stretch(i, 0, min(done, n * k), n * k, k, settings.burn_in_steps)
        for i, k in enumerate(strides)
    )


def plan(
    settings: ls.Settings = SHORT,
    done: int = 0,
    shape: tuple[int, int] = (3, 11),
    strides: tuple[int, ...] = (1, 1),
) -> Plan:
    specs = trace_specs(2, settings) | probe_specs(2, settings, {"p": shape})
    return Plan(settings, specs, stretches(settings, done, strides), done)


# Arithmetic --------------------------------------------------------------------------------------


@pytest.mark.parametrize("done", [0, 7, 8, 16, 17, 29, 30])
@pytest.mark.parametrize("thin", [1, 3])
def test_what_is_left_is_counted_as_the_driver_counts(done, thin):
    settings = SHORT.but(thin=thin)
    with_probes = [step for step in range(done, 30) if step >= 7 and (step - 7) % thin == 0]
    assert plan(settings, done).steps == 30 - done
    assert plan(settings, done).probe_draws == len(with_probes)
    bare = Plan(settings, trace_specs(2, settings), stretches(settings, done), done)
    assert bare.probe_draws == 0


def test_components_cost_what_they_take():
    """7 + 23 draws: 30 steps of one component, 90 of the other, probes at every third draw."""
    costs = StepCosts(0.5, np.array([1.0, 10.0]), np.array([100.0, 1000.0]), np.array([7.0, 0.0]))
    p = plan(strides=(1, 3))
    assert p.steps == 90
    assert p.seconds(costs) == 90 * 0.5 + 30 + 90 * 10 + 8 * 1100 + 23 * 7
    late = plan(strides=(1, 3), done=60)
    # Of the second 13 of 23 draws are done, 5 of 8 with probes.
    assert late.seconds(costs) == 30 * 0.5 + 30 * 10 + 3 * 1000


@pytest.mark.parametrize("pending", [2**28, 900])
def test_saves_are_those_of_the_driver(pending, tmp_path, monkeypatch):
    for module in ("store", "plan"):
        monkeypatch.setattr(f"lens_slt.sampling.{module}.LARGEST_PENDING", pending)
    real, found = store.DrawStore.save, []

    def save(self, state, about, counts):
        found.append((about["step"], self._n_pending))
        real(self, state, about, counts)

    monkeypatch.setattr(store.DrawStore, "save", save)
    run(probes=PROBES, path=tmp_path)
    saves = plan().saves(FREE)
    *others, end, after = found  # at the end traces have been written for the last decision
    assert [(save.stop, save.pending) for save in saves[:-1]] == others
    assert saves[-1].stop == end[0] == after[0] == 30
    assert after[1] == 0 < end[1] < saves[-1].pending
    assert saves[0].start == 0
    assert (len(saves) == 3) == (pending > 900)


def test_slow_steps_are_saved_every_minute():
    settings = SHORT.but(burn_in=0, draws=24)
    saves = plan(settings).saves(StepCosts(1.0, np.full(2, 3.0), np.zeros(2), np.zeros(2)))
    assert [save.stop - save.start for save in saves] == [9, 1, 9, 1, 4]


def test_writes_of_parts_of_chunks_are_told_from_whole_ones():
    settings = SHORT.but(burn_in=3, draws=20, thin=1)
    p = plan(settings)
    # Draws 0–6, 7–16, 17–19 in chunks of ten.
    saves = p.saves(FREE)
    assert p.chunk_writes("paired_loss", saves) == (0, 2 * 4)
    assert p.chunk_writes("probes/p/paired_loss", saves) == (0, 2 * 4)
    assert p.chunk_writes("burn_in_loss", saves) == (2, 0)
    aligned = plan(settings.but(burn_in=10))
    assert aligned.chunk_writes("probes/p/paired_loss", aligned.saves(FREE)) == (2 * 2, 0)
    # A component with two steps a draw: draws 0–2, 3–7, 8–12, … at every tenth step.
    slow = plan(settings.but(burn_in=2), strides=(1, 2))
    first, both = (
        2 + 2,
        1 + 1 + 2 + 1 + 1,
    )  # of draws 0–7, 8–17, 18–19; 0–2, 3–7, 8–12, 13–17, 18–19
    assert slow.chunk_writes("paired_loss", slow.saves(FREE)) == (0, first + both)


def test_memory_adds_what_is_recorded():
    settings, shape = SHORT.but(burn_in=0, draws=100, thin=1), (1000, 100)
    p = plan(settings, shape=shape)
    traces = 2 * 2 * 5 * 4  # bytes of one draw: components, chains, traces, float32
    draw = 2 * 2 * 4 * 100_000 + traces
    before = 2 * 2 * 4  # one interval of burn-in at least
    saves = p.saves(FREE)
    assert p.recorded_bytes == 100 * draw
    kept = 100 * draw + before
    assert p.memory_bytes(1000, saves, in_memory=True) == 1000 + kept + 100 * draw
    assert p.memory_bytes(1000, saves, in_memory=False) == 1000 + 2 * 10 * draw + 10 * draw


def test_several_runs_load_libraries_once():
    one = ls.Estimate(10.0, 5, 6, 7, 30, 2, 0.1, 0.2, 3.0, "cpu", 0)
    both = one.repeated([30, 50])
    assert both.seconds == pytest.approx(10 + 7 + 20 * 0.1)
    assert (both.steps, both.probe_draws, both.memory_bytes) == (80, 4, 5)


# Against real runs -------------------------------------------------------------------------------


def on_disk(path: Path) -> int:
    """Files and folders in blocks of 4 KiB."""
    total = 0
    for file in (path, *path.rglob("*")):
        total += -(-file.stat().st_size // 4096) * 4096 if file.is_file() else 4096
    return total


def test_disk_holds_the_directions_of_preconditioners(tmp_path):
    """Of a whole layer they are far larger than its draws."""
    model, tokens = ls.load_model("attn-1l"), ls.load_tokens("code", n_sequences=8, length=16)
    chosen = dict(settings=ls.Settings(draws=10, batch_size=4, chains=2), path=tmp_path / "draws")
    found = ls.estimate(model, tokens, "L0", **chosen)
    ls.sample(model, tokens, "L0", progress=False, **chosen)
    assert found.disk_bytes == pytest.approx(on_disk(tmp_path / "draws"), rel=0.2)
    assert found.disk_bytes > 2**20


def test_disk_is_what_the_run_writes(tmp_path, monkeypatch):
    probes = {"a": tokens_for(8, 30), "b": tokens_for(2, 12)}
    found = ls.estimate(**arguments(probes=probes), path=tmp_path / "draws")
    run(probes=probes, path=tmp_path / "draws")
    assert found.disk_bytes == pytest.approx(on_disk(tmp_path / "draws"), rel=0.1)
    # 23 draws of five traces, 7 of burn-in, 8 × tokens; of two components and chains in float32
    assert found.recorded_bytes == 2 * 4 * 2 * (5 * 23 + 7 + 8 * (8 * 29 + 2 * 11))
    stop_after(20, tmp_path / "part", monkeypatch, probes=probes)
    before = on_disk(tmp_path / "part")
    rest = ls.estimate(**arguments(probes=probes), path=tmp_path / "part")
    run(probes=probes, path=tmp_path / "part")
    assert 0 < rest.disk_bytes == pytest.approx(on_disk(tmp_path / "part") - before, abs=6 * 4096)
    assert rest.disk_bytes < found.disk_bytes / 2


def test_an_estimate_is_for_the_rest_of_a_run(tmp_path, monkeypatch):
    stop_after(16, tmp_path, monkeypatch, probes=PROBES)
    before = contents(tmp_path)
    found = ls.estimate(**arguments(probes=PROBES), path=tmp_path)
    assert (found.already_done, found.steps, found.probe_draws) == (16, 14, 5)
    assert "for the rest of a run: 16 steps are done" in str(found)
    assert contents(tmp_path) == before
    run(probes=PROBES, path=tmp_path)
    found = ls.estimate(**arguments(probes=PROBES), path=tmp_path)
    assert (found.already_done, found.steps, found.probe_draws) == (30, 0, 0)
    assert "(every step is done)" in str(found)


def test_nothing_is_written(tmp_path, monkeypatch):
    scratch = tmp_path / "scratch"
    scratch.mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(scratch))
    path = tmp_path / "draws" / "here"
    found = ls.estimate(**arguments(probes=PROBES), path=path)
    assert found.disk_bytes > 0
    assert not path.parent.exists()
    assert list(scratch.iterdir()) == []


class FakeTime:
    """A clock that goes on only where a test says so."""

    def __init__(self, monkeypatch) -> None:
        self.now = 0.0
        fake = SimpleNamespace(perf_counter=lambda: self.now)
        for module in (timed_target, timing, estimate):
            monkeypatch.setattr(module, "time", fake)
        self.monkeypatch = monkeypatch

    def slow(self, name: str, seconds: float, later: list[float]) -> None:
        """Evaluating a loss of a target takes so long, the first time longer."""
        original = getattr(TransformerTarget, name)

        def take() -> None:
            self.now += later.pop() if later else seconds

        def wrapped(target, *args):
            evaluate = original(target, *args)

            def slowly(part, u, *, gradient):
                take()
                return evaluate(part, u, gradient=gradient)

            return slowly

        def probes(target, *args):
            take()
            return original(target, *args)

        replaced = probes if name == "probe_values" else wrapped
        self.monkeypatch.setattr(TransformerTarget, name, replaced)


@pytest.mark.parametrize("sampler", ["lm", "rmsprop_sgld", "pcn", "importance"])
@pytest.mark.parametrize("thin", [1, 3])
def test_time_by_a_clock_of_the_test(sampler, thin, monkeypatch):
    """A step takes 1 s per layer, the probes 0.5 s, full losses 0.25 s; the first of each more."""
    clock = FakeTime(monkeypatch)
    exact = sampler in ("pcn", "importance")
    pilot = 2 * PRIOR_BATCHES * 1.0
    clock.slow("minibatch", 1.0, [])
    clock.slow("everything", 1.0, [1.0, 9.0])
    clock.slow("probe_values", 0.5, [0.5, 7.0])
    monkeypatch.setattr(timing, "TRIAL_SECONDS", 40.0)
    settings = SHORT.but(sampler=sampler, thin=thin)
    found = ls.estimate(**arguments(settings=settings, probes=PROBES))
    draws = 23 if thin == 1 else 8
    assert found.seconds_per_step == pytest.approx(2.0)
    assert found.seconds_per_probe_draw == pytest.approx(1.0)
    # Of the first step and the first probes, 8 s and 6.5 s are set-up.
    set_up = (8.0 if exact else 0.0) + 6.5
    assert found.seconds == pytest.approx(pilot + 30 * 2.0 + draws * 1.0 + set_up)


def test_steps_of_a_draw_that_are_given_are_counted(monkeypatch):
    clock = FakeTime(monkeypatch)
    clock.slow("minibatch", 1.0, [])
    monkeypatch.setattr(timing, "TRIAL_SECONDS", 10.0)
    given = SHORT.but(step_size=None, n_beta=0, steps_per_draw={"L0H1": 3})
    found = ls.estimate(**arguments(settings=given), patience=0)
    assert found.steps == 3 * 30 and found.steps_per_draw == {"L0H1": 3, "L1H2": 1}
    # A layer each: one takes all steps, the other a third of them.
    assert found.seconds == pytest.approx(2 * PRIOR_BATCHES + 90 + 30)


def test_full_losses_and_runs_at_half_the_step_have_their_time(monkeypatch):
    clock = FakeTime(monkeypatch)
    clock.slow("minibatch", 1.0, [])
    clock.slow("everything", 5.0, [])
    monkeypatch.setattr(timing, "TRIAL_SECONDS", 40.0)
    found = ls.estimate(**arguments(settings=SHORT.but(full_loss=True, check_step=True)))
    assert found.half_steps == ("L0H1", "L1H2")
    half = 2 * (7 + DRAWS) * 3
    assert found.seconds == pytest.approx(2 * PRIOR_BATCHES + 30 * 2 + 23 * 2 * 5 + half)
    assert "2 of 2 run again at half the step" in str(found)


@pytest.mark.parametrize("drift_dtype", ["float32", "bfloat16"])
def test_a_slow_step_is_run_once(drift_dtype, monkeypatch):
    """Curvature, two minibatches for every layer, is measured where gradients are exact."""
    clock = FakeTime(monkeypatch)
    steps = []
    original = TransformerTarget.minibatch

    def slow(self, key, parts):
        if isinstance(key, int):
            clock.now += 100.0
            steps.append(key)
        return original(self, key, parts)

    monkeypatch.setattr(TransformerTarget, "minibatch", slow)
    found = ls.estimate(**arguments(settings=SHORT.but(step_size=None, drift_dtype=drift_dtype)))
    assert steps == [0]
    curvature = 2 * CURVATURE_BATCHES * 100.0 if drift_dtype == "float32" else 0.0
    assert found.seconds == pytest.approx(30 * 100 + curvature)
    assert "longer if components, none of which was tried, need smaller steps" in str(found)


# Courses -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("n_beta", [3.0, 100.0])
def test_steps_and_draws_are_those_of_the_run(n_beta, monkeypatch):
    """At the high nβ the first steps are far too large, and a trial sees that."""
    monkeypatch.setattr(foresee, "TRIAL_SECONDS", 1000.0)
    settings = SHORT.but(n_beta=n_beta, step_size=None, draws=20)
    found = ls.estimate(**arguments(settings=settings), patience=1000)
    root = run(settings=settings).to_dataset()
    assert list(found.steps_per_draw) == ["L0H1", "L1H2"]
    assert list(found.draws.values()) == [20, 20]
    strides = list(root["steps_per_draw"].values)
    assert (max(strides) > 1) == (n_beta == 100.0)
    assert [k > 1 for k in found.steps_per_draw.values()] == [k > 1 for k in strides]


def test_a_wanted_error_is_continued_on_paper(monkeypatch):
    """After 30 draws of a trial, the draws of a run are foreseen to a factor of four."""
    settings = SHORT.but(draws=None, target_se=0.02, chains=4, batch_size=8)
    monkeypatch.setattr(foresee, "MOST_COURSE_STEPS", 37)
    found = ls.estimate(**arguments(settings=settings), patience=1000)
    root = run(settings=settings).to_dataset()
    for name, n in found.draws.items():
        there = int(root["n_draws"].sel(component=name))
        assert there > 50
        assert there / 4 <= n <= 4 * there
    assert "longer if components need more draws" in str(found)


def test_the_pilot_is_in_the_estimate(monkeypatch):
    """Lanczos takes a gradient of every component on two minibatches and at thirteen points."""
    clock = FakeTime(monkeypatch)
    clock.slow("minibatch", 1.0, [])
    monkeypatch.setattr(timing, "TRIAL_SECONDS", 10.0)
    settings = SHORT.but(step_size=None, n_beta=3.0)
    found = ls.estimate(**arguments(settings=settings), patience=1000)
    curvature = 2 * CURVATURE_BATCHES * (LANCZOS_STEPS + 1)
    assert found.seconds == pytest.approx(curvature + 2 * PRIOR_BATCHES + 30 * 2)


# The caller's things -----------------------------------------------------------------------------


@pytest.mark.parametrize("engine", ["auto", "modules"])
@pytest.mark.parametrize("stop", [None, KeyboardInterrupt])
def test_the_model_is_untouched(engine, stop, monkeypatch):
    model = native()
    model(tokens_for(), return_type="loss").backward()
    next(iter(model.parameters())).requires_grad_(False)
    model.add_hook("blocks.0.hook_resid_pre", lambda value, hook: value)
    before = fingerprint(model)
    given = arguments(model=model, components="L0H1,L1,embed", engine=engine, probes=PROBES)
    if stop is None:
        ls.estimate(**given)
    else:
        step, calls = lm.step, []

        def stopped(*args, **options):
            calls.append(1)
            if len(calls) > 4:
                raise stop
            return step(*args, **options)

        monkeypatch.setattr(lm, "step", stopped)
        with pytest.raises(stop):
            ls.estimate(**given)
        assert len(calls) > 4
    assert fingerprint(model) == before


@pytest.mark.parametrize(
    "changes",
    [
        dict(components="L2H0"),
        dict(settings="wang2025"),
        dict(probes={"my probe": tokens_for()}),
        dict(settings=SHORT.but(batch_size=9)),
        dict(settings=SHORT.but(draws=10**7, thin=1), probes=PROBES),
        dict(engine="module"),
        dict(settings=SHORT.but(drift_dtype="bfloat16"), engine="modules"),
        dict(model="gpt2"),
    ],
)
def test_bad_input_is_refused_as_sample_refuses_it(changes):
    errors = []
    for function in (ls.sample, ls.estimate):
        with pytest.raises((ValueError, TypeError)) as caught:
            function(**arguments(**changes))
        errors.append((caught.type, str(caught.value)))
    assert errors[0] == errors[1]


def test_a_path_with_other_draws_is_refused(tmp_path):
    run(path=tmp_path / "draws")
    other = arguments(settings=SHORT.but(n_beta=31.0), path=tmp_path / "draws")
    with pytest.raises(ValueError, match="holds the draws of another run .*settings"):
        ls.estimate(**other)
    (tmp_path / "notes").mkdir()
    (tmp_path / "notes" / "notes.txt").write_text("mine")
    with pytest.raises(ValueError, match="holds no lens_slt draws"):
        ls.estimate(**arguments(path=tmp_path / "notes"))
    assert not (tmp_path / "notes" / STATE_FILE).exists()


# Words -------------------------------------------------------------------------------------------


def test_what_the_machine_lacks_is_said(tmp_path, monkeypatch):
    monkeypatch.setattr(estimate, "available_memory", lambda device: 2**10)
    monkeypatch.setattr(estimate, "free_disk", lambda path: 3 * 2**10)
    found = ls.estimate(**arguments(probes=PROBES), path=tmp_path / "draws")
    assert len(found.warnings) == 2
    assert "warning: memory: 1 KiB are available on cpu; a smaller batch_size" in str(found)
    assert f"disk: 3 KiB are free at {str(tmp_path / 'draws')!r}" in str(found)
    assert json.loads(json.dumps(found.as_dict()))["warnings"] == list(found.warnings)


def test_words():
    gib = 2**30
    found = ls.Estimate(
        200.4, int(0.93 * gib), 5, 120 * 2**20, 220, 200, 0.9, 0.0123, 0.0, "cpu", 0
    )
    assert str(found) == (
        "about 3 min 20 s on cpu (220 steps of 900 ms; 200 draws of the probes of 12 ms); "
        "memory about 0.9 GiB; disk about 120 MiB"
    )
    courses = dict(
        steps_per_draw={"a": 1, "b": 8, "c": 4}, draws={"a": 200, "b": 200, "c": 400},
        half_steps=("b",), unknown="longer if components need more draws",
    )  # fmt: skip
    assert str(replace(found, **courses)) == (
        "about 3 min 20 s on cpu (220 steps of 900 ms; 200 draws of the probes of 12 ms; "
        "2 of 3 components with up to 8 steps a draw; 1 of 3 with about 400 draws instead of 200; "
        "1 of 3 run again at half the step; longer if components need more draws); "
        "memory about 0.9 GiB; disk about 120 MiB"
    )


@pytest.mark.parametrize(
    ("seconds", "words"),
    [
        (0.0004, "0.4 ms"), (0.04, "40 ms"), (0.9996, "1.0 s"), (2.54, "2.5 s"), (59.4, "59 s"),
        (59.6, "1 min"), (3590, "1 h"), (7500, "2 h 5 min"), (180_000, "50 h"),
    ],
)  # fmt: skip
def test_durations(seconds, words):
    assert duration(seconds) == words


@pytest.mark.parametrize(
    ("n_bytes", "words"),
    [(0, "0 KiB"), (12 * 2**10, "12 KiB"), (1.5 * 2**20, "1.5 MiB"), (2**30 * 12.2, "12 GiB")],
)
def test_sizes(n_bytes, words):
    assert size(n_bytes) == words


@pytest.mark.gpu
def test_memory_on_a_gpu_is_what_pytorch_allocates():
    model = native().to("cuda")
    given = arguments(model=model, probes=PROBES)
    found = ls.estimate(**given)
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    ls.sample(**given, progress=False)
    measured = torch.cuda.max_memory_allocated() - before
    assert measured / 1.5 < found.memory_bytes < 1.5 * measured
