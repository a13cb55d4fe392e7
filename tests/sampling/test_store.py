"""Folders of runs: whose they are, who writes there, what was altered, and errors in words."""

from __future__ import annotations

import errno
import json
import os
import re
import shutil
import threading
from pathlib import Path

import numpy as np
import pytest
import torch
import xarray as xr
import zarr

import lens_slt as ls
from lens_slt.sampling import folder as folders
from lens_slt.sampling import identity, store
from lens_slt.sampling.driver import run_chains
from lens_slt.sampling.folder import DESCRIPTION, LOCK_FILE, SamplingWarning, StoreError
from lens_slt.sampling.store import STATE_FILE
from tests.made_targets import MadeTarget, quadratic, store_of
from tests.made_targets import run as run_made
from tests.tiny_models import native, wrapped_gpt2

SHORT = ls.Settings(chains=2, draws=13, burn_in=3, batch_size=4, gamma=50.0, step_size=0.01)
MADE = MadeTarget(
    [{"a": quadratic(torch.ones(6))}, {"b": quadratic(torch.arange(6.0))}], 6,
    SHORT.but(batch_size=None, draws=23), probes=True,
)  # fmt: skip
TOKENS = torch.randint(50, (8, 12), generator=torch.Generator().manual_seed(0))


def run(model=None, path=None, probes=None, **options):
    model = native() if model is None else model
    return ls.sample(
        model, TOKENS, "L0H1", settings=SHORT, probes=probes, path=path, progress=False, **options
    )


def stop_after(step, path):
    """A run of the made target that ends with an interrupt."""

    def interrupt(book):
        if book.step == step:
            raise KeyboardInterrupt

    with store_of(MADE, path) as opened, pytest.raises(KeyboardInterrupt):
        run_chains(MADE, MADE.settings, opened, interrupt)


def identical(found, expected):
    xr.testing.assert_identical(found.load(), expected.load())


# Identity ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("first", "second", "named"),
    [
        (dict(attn_only=False, act_fn="gelu"), dict(attn_only=False, act_fn="relu"), "config: act"),
        (dict(eps=1e-5), dict(eps=1e-3), "config: eps"),
        (dict(), dict(output_logits_soft_cap=5.0), "config: output_logits_soft_cap"),
    ],
)
def test_equal_weights_are_not_the_same_model(first, second, named, tmp_path):
    run(native(**first), tmp_path)
    with pytest.raises(ValueError, match=f"holds the draws of another run .*{named}"):
        run(native(**second), tmp_path)


def test_a_hook_is_another_model(tmp_path):
    run(path=tmp_path)
    hooked = native()
    hooked.blocks[1].hook_resid_pre.add_hook(lambda value, hook: 0.9 * value)
    with pytest.raises(ValueError, match=r"another run .*hooks: \[\] there, .*hook_resid_pre"):
        run(hooked, tmp_path)


def test_what_no_configuration_says_shows_in_the_losses(tmp_path):
    """A part of another class: neither weights, configuration nor hooks know."""
    run(path=tmp_path, engine="modules")
    other = native()

    class Louder(type(other.embed)):
        def forward(self, ids):
            return 1.5 * super().forward(ids)

    other.embed.__class__ = Louder
    with pytest.raises(ValueError, match=r"another run \(.*losses on tokens: .* nats"):
        run(other, tmp_path, engine="modules")


def test_a_reference_is_known_by_what_it_predicts(tmp_path):
    probes = {"p": ls.Probe(TOKENS[:3], reference=native(seed=1, d_head=8))}
    run(path=tmp_path, probes=probes)
    other = native(seed=1, d_head=8, eps=0.1)
    with pytest.raises(ValueError, match="another run .reference of probe p: .* differ, by up to"):
        run(path=tmp_path, probes={"p": ls.Probe(TOKENS[:3], reference=other)})
    run(path=tmp_path, probes=probes)


def test_the_engine_is_named(tmp_path):
    run(path=tmp_path)
    with pytest.raises(ValueError, match="engine: .*low-rank last layer|engine: .*own blocks"):
        run(path=tmp_path, engine="modules")


def test_rounding_is_no_other_model(tmp_path, monkeypatch):
    """What another number of threads or another CPU changes: the last digits of every loss."""
    first = run(wrapped_gpt2(), tmp_path)
    losses = identity._losses
    for share, same in ((1e-5, True), (1e-2, False)):
        rounded = lambda *a, share=share: [x * (1 + share) for x in losses(*a)]  # noqa: E731
        monkeypatch.setattr(identity, "_losses", rounded)
        if same:
            identical(run(wrapped_gpt2(), tmp_path), first)
        else:
            with pytest.raises(ValueError, match="losses on tokens: "):
                run(wrapped_gpt2(), tmp_path)


def test_names_and_devices_are_harmless(tmp_path):
    first, same = native(), native()
    run(first, tmp_path)
    same.cfg.model_name, same.cfg.seed, same.cfg.tokenizer_name = "elsewhere", 7, "/tmp/tokenizer"
    same.cfg.unheard_of = object()
    run(same, tmp_path)


def test_other_versions_are_named(tmp_path, monkeypatch):
    made = run(path=tmp_path)
    monkeypatch.setattr("lens_slt.versions.version_of", lambda package: "0.0.7")
    with pytest.warns(
        SamplingWarning, match="from other versions: .*torch=.* there, .*torch=0.0.7"
    ):
        identical(run(path=tmp_path), made)


# Creation and writers ----------------------------------------------------------------------------


class Killed(BaseException):
    """Stands for a kill: nothing is done after it."""


@pytest.mark.parametrize("call", range(1, 14))
def test_a_kill_during_creation_leaves_a_free_place(call, tmp_path, monkeypatch):
    """At every file that creation writes, with what was written of the next left lying around."""
    whole = run_made(MADE)
    calls, put = [], zarr.storage._local._put

    def killed(path, *args, **options):
        calls.append(path)
        if len(calls) == call:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.with_suffix(".partial").write_bytes(b"{")
            raise Killed
        return put(path, *args, **options)

    monkeypatch.setattr(zarr.storage._local, "_put", killed)
    with pytest.raises(Killed), store_of(MADE, tmp_path / "run"):
        raise Killed  # creation writes fewer files
    monkeypatch.undo()
    identical(run_made(MADE, tmp_path / "run"), whole)


@pytest.mark.parametrize("left", [[], [LOCK_FILE], [LOCK_FILE, DESCRIPTION + ".new"]])
def test_what_a_kill_leaves_before_the_description_is_a_free_place(left, tmp_path):
    for name in left:
        (tmp_path / name).write_text("{")
    identical(run_made(MADE, tmp_path), run_made(MADE))


def test_a_description_alone_is_a_free_place(tmp_path):
    made = run_made(MADE, tmp_path / "a").load()
    (tmp_path / "b").mkdir()
    shutil.copy(tmp_path / "a" / DESCRIPTION, tmp_path / "b")
    identical(run_made(MADE, tmp_path / "b"), made)


def test_creation_removes_nothing_else(tmp_path):
    with store_of(MADE, tmp_path):
        pass
    (tmp_path / "notes.txt").write_text("mine")
    (tmp_path / "probes" / "mine").mkdir()
    identical(run_made(MADE, tmp_path), run_made(MADE))
    assert (tmp_path / "notes.txt").read_text() == "mine"
    assert (tmp_path / "probes" / "mine").exists()


def test_two_writers_are_kept_apart(tmp_path):
    with store_of(MADE, tmp_path / "run"):
        with pytest.raises(StoreError, match=r"another run is writing to '.*run'"):
            run_made(MADE, tmp_path / "run")
        os.symlink(tmp_path / "run", tmp_path / "link")
        caught = []

        def other():
            with pytest.raises(StoreError, match="another run is writing") as error:
                run_made(MADE, tmp_path / "link")
            caught.append(error)

        thread = threading.Thread(target=other)
        thread.start()
        thread.join()
        assert caught
    identical(run_made(MADE, tmp_path / "run"), run_made(MADE))


def test_a_disk_without_locks_is_named(tmp_path, monkeypatch):
    def no_locks(self, *args, **options):
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(folders.FileLock, "acquire", no_locks)
    with pytest.warns(SamplingWarning, match="has no locks"):
        made = run_made(MADE, tmp_path)
    identical(made, run_made(MADE))


# Alterations -------------------------------------------------------------------------------------


def edit(path, change):
    """Rewrite the attributes of a folder's description."""
    record = json.loads((path / DESCRIPTION).read_text())
    change(record["attributes"])
    (path / DESCRIPTION).write_text(json.dumps(record))


def set_value(name):
    def change(path):
        array = zarr.open_group(path, mode="r+")[name]
        array[1, 0, 0] = array[1, 0, 0] + 1

    return change


def set_token(path):
    zarr.open_group(path, mode="r+")["probes/squares/tokens"][0, 0] = 9


def swap_chunks(path):
    a, b = (path / "paired_loss" / "c" / i / "0" / "0" for i in "01")
    old = a.read_bytes()
    a.write_bytes(b.read_bytes())
    b.write_bytes(old)


def break_chunk(path):
    file = path / "virial" / "c" / "0" / "0" / "0"
    file.write_bytes(file.read_bytes()[:-3] + b"abc")


def break_state(path):
    content = bytearray((path / STATE_FILE).read_bytes())
    content[-1] ^= 1
    (path / STATE_FILE).write_bytes(content)


ALTERED = {
    "settings": lambda path: edit(path, lambda a: a["identity"]["settings"].update(n_beta=31.0)),
    "components": lambda path: edit(path, lambda a: a["identity"]["components"].reverse()),
    "record": lambda path: edit(path, lambda a: a["identity"]["record"].update(model="other")),
    "paired_loss of a, paired_loss of b": swap_chunks,
    "defect of b": set_value("defect"),
    "probes/squares/paired_loss of b": set_value("probes/squares/paired_loss"),
    "virial": break_chunk,
    "virial of a": lambda path: (path / "virial" / "c" / "0" / "0" / "0").unlink(),
    "step_loss is missing": lambda path: shutil.rmtree(path / "step_loss"),
    "the state of the chains": break_state,
    f"{STATE_FILE} cannot be read": lambda path: (path / STATE_FILE).write_bytes(b"nothing"),
}


@pytest.mark.parametrize("named", ALTERED)
def test_what_was_altered_is_found_before_a_run_goes_on(named, tmp_path):
    stop_after(17, tmp_path)
    ALTERED[named](tmp_path)
    with pytest.raises(ValueError, match=rf"altered or damaged .*: {re.escape(named)}"):
        run_made(MADE, tmp_path)


@pytest.mark.parametrize("named", ALTERED)
def test_what_was_altered_is_found_when_draws_are_opened(named, tmp_path):
    run_made(MADE, tmp_path)
    ALTERED[named](tmp_path)
    with pytest.raises(ValueError, match=rf"altered or damaged .*: {re.escape(named)}"):
        ls.open_draws(tmp_path)


@pytest.mark.parametrize(
    ("change", "named"),
    [
        (lambda path: edit(path, lambda a: a["labels"]["order"].reverse()), "labels in"),
        (set_token, "probes/squares/tokens"),
        (lambda path: (path / STATE_FILE).unlink(), f"{STATE_FILE} is missing"),
    ],
)
def test_what_was_altered_of_the_labels_is_found(change, named, tmp_path):
    run_made(MADE, tmp_path)
    change(tmp_path)
    with pytest.raises(ValueError, match=named):
        ls.open_draws(tmp_path)


def test_any_nan_is_the_same_nan(tmp_path):
    """Zarr leaves out chunks that are all NaN, whichever NaN that was."""
    negative = np.array([0xFFC00000], np.uint32).view(np.float32)[0]
    store_ = store_of(MADE, tmp_path)
    counts = {"paired_loss": [2, 0]}
    with store_:
        for draw in range(2):
            store_.put("paired_loss", 0, draw, np.full(2, negative))
        store_.save({}, {"step": 1}, counts)
    with store_of(MADE, tmp_path) as again:
        assert again.load_state()[0]["step"] == 1


# The disk ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "remove",
    [
        lambda path: shutil.rmtree(path),
        lambda path: [shutil.rmtree(path), path.mkdir()],
        lambda path: (path / DESCRIPTION).unlink(),
        lambda path: shutil.rmtree(path / "paired_loss"),
    ],
)
def test_a_deleted_folder_is_noticed_at_the_next_save(remove, tmp_path):
    path = tmp_path / "run"
    steps = []

    def on_step(book):
        steps.append(book.step)
        if book.step == 12:
            remove(path)
            steps.append(sorted(path.rglob("*")))

    with pytest.raises(StoreError, match="was deleted or replaced while draws were written there"):
        run_made(MADE, path, on_step)
    assert steps[-1] == 20
    assert sorted(path.rglob("*")) == steps[12]  # nothing was made anew


def read_only(monkeypatch):
    """A disk on which nothing can be written, for root too."""

    def refuse(*args, **options):
        raise OSError(errno.EROFS, os.strerror(errno.EROFS), "here")

    monkeypatch.setattr(folders.FileLock, "acquire", refuse)
    monkeypatch.setattr(os, "replace", refuse)
    monkeypatch.setattr(zarr.storage._local, "_put", refuse)


def test_a_finished_run_is_read_from_a_disk_that_cannot_be_written(tmp_path, monkeypatch):
    made = run(path=tmp_path, probes={"p": TOKENS[:2]}).load()
    read_only(monkeypatch)
    identical(ls.open_draws(tmp_path), made)
    identical(run(path=tmp_path, probes={"p": TOKENS[:2]}), made)


def test_an_unfinished_run_needs_a_disk_that_can_be_written(tmp_path, monkeypatch):
    stop_after(17, tmp_path)
    read_only(monkeypatch)
    with pytest.raises(StoreError, match=r"path: cannot write to '.*': Read-only file system; use"):
        run_made(MADE, tmp_path)


@pytest.mark.parametrize("where", ["_put", "save_file"])
def test_a_full_disk_keeps_what_was_saved(where, tmp_path, monkeypatch):
    def on_step(book):
        if book.step == 12:
            monkeypatch.setattr(*(owner, where), full)

    owner = zarr.storage._local if where == "_put" else store
    full_error = OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    if where == "save_file":
        full_error = store.SafetensorError("I/O error: No space left on device (os error 28)")

    def full(*args, **options):
        raise full_error

    with pytest.raises(StoreError, match="cannot save draws to .*No space left.*; free some space"):
        run_made(MADE, tmp_path, on_step)
    monkeypatch.undo()
    identical(run_made(MADE, tmp_path), run_made(MADE))


def as_file(path):
    path.write_text("mine")


def as_newer(path):
    run_made(MADE, path)
    edit(path, lambda a: a.update(format=folders.FORMAT + 1))


def as_older(path):
    run_made(MADE, path)
    edit(path, lambda a: [a.pop("format"), a.pop("digests")])


def as_group(path):
    zarr.create_group(path)


def as_garbage(path):
    path.mkdir()
    (path / DESCRIPTION).write_text("{ no json")


def as_dangling_link(path):
    os.symlink(path.with_name("nowhere") / "deep", path)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (as_file, "is a file; give a folder"),
        (as_newer, "was written by a newer version of lens_slt .format 3.*install that one"),
        (as_older, "was written by an older version of lens_slt .format 1.*use another path"),
        (as_group, "holds a Zarr group, but no lens_slt draws"),
        (as_garbage, "is damaged"),
    ],
)
def test_what_cannot_be_a_run_is_refused_in_words(make, message, tmp_path):
    make(tmp_path / "run")
    before = sorted(tmp_path.rglob("*"))
    for use in (lambda path: run_made(MADE, path), ls.open_draws):
        with pytest.raises(ValueError, match=rf"^path: '.*run'.* {message}"):
            use(tmp_path / "run")
    assert sorted(tmp_path.rglob("*")) == before


def test_paths_through_files_links_and_names_that_are_too_long(tmp_path):
    as_file(tmp_path / "file")
    as_dangling_link(tmp_path / "link")
    for path, message in (
        (tmp_path / "file" / "run", "a part of this path is a file"),
        (tmp_path / ("x" * 300), "use a shorter path"),
        (tmp_path / "link", "something that is no folder is in the way"),
    ):
        with pytest.raises(StoreError, match=message):
            run_made(MADE, path)


def test_a_path_within_another_run_is_refused(tmp_path):
    run_made(MADE, tmp_path / "run")
    with pytest.raises(ValueError, match=r"lies inside the draws in '.*run'; use another path"):
        run_made(MADE, tmp_path / "run" / "probes" / "more")


@pytest.mark.parametrize("path", [3, b"bytes", "", "a\0b", "~nobody-of-this-name/run"])
def test_what_is_no_path_is_refused_before_any_work(path, monkeypatch):
    monkeypatch.setattr("lens_slt.sampling.sample.prepare", None)
    with pytest.raises((TypeError, ValueError), match="^path"):
        run(path=path)
    with pytest.raises((TypeError, ValueError), match="^path"):
        ls.open_draws(path)


def test_home_folders_spaces_and_other_letters(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("USERPROFILE", str(tmp_path))
    made = run(path="~/läufe 1/№ 7", probes={"p": TOKENS[:2]})
    identical(ls.open_draws(Path("~/läufe 1/№ 7")), made)
    assert (tmp_path / "läufe 1" / "№ 7" / DESCRIPTION).exists()
    assert not Path("~").exists()
    found = ls.estimate(
        native(), TOKENS, "L0H1", settings=SHORT, probes={"p": TOKENS[:2]}, path="~/läufe 1/№ 7"
    )
    assert found.steps == 0
    torch.save(TOKENS, tmp_path / "tokens.pt")
    assert torch.equal(ls.load_tokens("~/tokens.pt"), TOKENS)


def test_draws_are_found_where_the_readme_says(tmp_path):
    """``sample(path=X)`` is opened by X; what a command wrote is opened by its ``--out``, too."""
    made = run_made(MADE, tmp_path / "out" / "draws.zarr")
    identical(ls.open_draws(tmp_path / "out"), made)
    identical(ls.open_draws(tmp_path / "out" / "draws.zarr"), made)
    readme = (Path(__file__).parents[2] / "README.md").read_text()
    assert 'path="runs/mine"' in readme
    assert 'ls.open_draws("runs/mine")' in readme
