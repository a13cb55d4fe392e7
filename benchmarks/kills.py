"""Runs that are killed at random and started again: are their draws those of a run left alone?

Every run is a child process, made by fork and killed by SIGKILL one to three times: a third of the
times within 50 ms of the moment at which its folder appears, or at which it is started again, else
anywhere until its end. Then it is started once more and left alone, and everything that it returns
is compared bit by bit with an undisturbed run, and so is what is read back from its folder.
"""

from __future__ import annotations

import os
import signal
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import xarray as xr

import lens_slt as ls
from benchmarks.common import Target, finish, one_thread, parser, show_table
from benchmarks.engine import random_model, random_tokens
from lens_slt.sampling.folder import read_description
from lens_slt.sampling.prepare import PreparedRun, prepare
from lens_slt.sampling.run import run
from lens_slt.sampling.store import STATE_FILE, read_about

TARGETS = {"resumed_identical": Target(least=1.0)}
EARLY_SECONDS = 0.05
EARLY_SHARE = 1 / 3
MOST_KILLS = 3  # of one run
MOMENTS = ("no folder", "being created", "no state yet", "sampling", "sampled", "finished")


@dataclass
class Tally:
    """What came out."""

    killed: Counter[str] = field(default_factory=Counter)  # by what the kill left
    runs: int = 0
    identical: int = 0
    failures: list[str] = field(default_factory=list)

    @property
    def share(self) -> float:
        return self.identical / self.runs


def jobs() -> dict[str, PreparedRun]:
    """Small runs of every sampler that keeps another state, up to where they use their folder."""
    model = random_model(n_layers=2, d_model=16, n_heads=2, d_vocab=40, n_ctx=16)
    reference = random_model(n_layers=1, d_model=16, n_heads=2, d_vocab=40, n_ctx=16)
    tokens = random_tokens(40, 12, 12)
    probes = {"plain": tokens[:3], "refined": ls.Probe(tokens[3:5], reference=reference)}
    base = ls.Settings(chains=2, burn_in=3, draws=24, thin=2, batch_size=4)
    settings = {
        "lm": base.but(gamma=200.0, n_beta=100.0),  # begins anew with smaller steps
        "rmsprop_sgld": base.but(sampler="rmsprop_sgld"),
        "pcn": base.but(sampler="pcn"),
    }
    return {
        name: prepare(
            model, tokens, "L0H0,L1H1", settings=s, probes=probes, weights=None, mask=None,
            pad_id=None, engine="auto", device=None,
        )
        for name, s in settings.items()
    }  # fmt: skip


def killed_runs(
    kills: int, seed: int, folder: Path, say: Callable[[str], None] = lambda text: None
) -> Tally:
    """Kill ``kills`` times, in as many runs as that takes."""
    rng, tally = np.random.default_rng(seed), Tally()
    whole = {name: (job, *_undisturbed(job, folder / name)) for name, job in jobs().items()}
    while tally.killed.total() < kills:
        name = list(whole)[tally.runs % len(whole)]
        job, seconds, expected = whole[name]
        path = folder / f"run {tally.runs}"
        for _ in range(min(int(rng.integers(1, MOST_KILLS + 1)), kills - tally.killed.total())):
            early = rng.random() < EARLY_SHARE
            _kill_one(job, path, rng.uniform(0, EARLY_SECONDS if early else 1.1 * seconds))
            tally.killed[_moment(path)] += 1
        tally.runs += 1
        try:
            found = [run(job, path).load(), ls.open_draws(path).load()]
        except Exception as error:
            tally.failures.append(f"{name}: {type(error).__name__}: {error}")
            continue
        if all(_identical(one, expected) for one in found):
            tally.identical += 1
        else:
            tally.failures.append(f"{name}: other draws in {path}")
        say(f"{tally.killed.total()} kills, {tally.identical} of {tally.runs} runs identical")
    return tally


def _undisturbed(job: PreparedRun, path: Path) -> tuple[float, xr.DataTree]:
    """Seconds from the folder's appearance to the end, and the draws."""
    made = run(job, path).load()
    pid = _started(job, path.with_name(f"{path.name} timed"))
    began = _appeared(path.with_name(f"{path.name} timed"), pid)
    os.waitpid(pid, 0)
    return time.monotonic() - began, made


def _kill_one(job: PreparedRun, path: Path, seconds: float) -> None:
    """Start a run and kill it so many seconds after its folder appears, or was there."""
    pid = _started(job, path)
    _appeared(path, pid)
    time.sleep(seconds)
    os.kill(pid, signal.SIGKILL)
    os.waitpid(pid, 0)


def _started(job: PreparedRun, path: Path) -> int:
    pid = os.fork()
    if pid == 0:
        status = 1
        try:
            run(job, path)
            status = 0
        finally:
            os._exit(status)
    return pid


def _appeared(path: Path, pid: int) -> float:
    """The moment at which the child's folder is there."""
    while not path.exists():
        if os.waitid(os.P_PID, pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is not None:
            break
        time.sleep(0.0002)
    return time.monotonic()


def _moment(path: Path) -> str:
    """What a kill left."""
    if not path.exists():
        return "no folder"
    try:
        about = read_description(path)
    except ValueError:
        return "being created"
    if "labels" in about:
        return "finished"
    if not (path / STATE_FILE).exists():
        return "no state yet"
    done = all(course["done"] for course in read_about(path)["courses"])
    return "sampled" if done else "sampling"


def _identical(found: xr.DataTree, expected: xr.DataTree) -> bool:
    """Whether all arrays have the same bits, and the same names and attributes."""
    try:
        xr.testing.assert_identical(found, expected)
    except AssertionError:
        return False
    return all(
        node[name].values.tobytes() == expected[node.path][name].values.tobytes()
        for node in found.subtree
        for name in node.data_vars
        if node[name].dtype.kind == "f"
    )


def main() -> None:
    args = parser(__doc__)
    args.add_argument("--kills", type=int, default=200)
    chosen = args.parse_args()
    one_thread()
    with tempfile.TemporaryDirectory(prefix="lens-slt-kills-") as folder:
        tally = killed_runs(6 if chosen.quick else chosen.kills, chosen.seed, Path(folder))
    rows = [[moment, tally.killed[moment]] for moment in MOMENTS]
    show_table("What the kills left", ["left", "kills"], rows)
    show_table("What went wrong", ["run"], [[text] for text in tally.failures])
    figures = {
        "resumed_identical": tally.share,
        "runs": tally.runs,
        "kills": tally.killed.total(),
        "before_the_first_state": sum(tally.killed[moment] for moment in MOMENTS[:3]),
    }
    finish(chosen, figures, TARGETS)


if __name__ == "__main__":
    main()
