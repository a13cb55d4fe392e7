"""What ``estimate`` says before a run against what the run then takes: time, memory and disk.

Five runs that differ in what they spend their time on. Each is predicted in one fresh process and
run in another, as ``--dry-run`` and the run itself are. Memory is the peak that the process gains
during ``sample``, looked at every few milliseconds; disk is what the files and folders occupy. A
factor is the larger of predicted / measured and measured / predicted.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

import lens_slt as ls
from benchmarks import common
from benchmarks.engine import random_model, random_tokens
from lens_slt.sampling.machine import MemoryWatch

TARGETS = {
    "max_factor": common.Target(most=1.5),
    "max_factor_memory": common.Target(most=1.5),
    "max_factor_disk": common.Target(most=1.5),
}
QUANTITIES = ("seconds", "memory_bytes", "disk_bytes")


def heads(quick: bool) -> dict[str, Any]:
    """All heads, no probes: nearly all of the time is steps."""
    return {
        "model": ls.load_model("attn-2l"),
        "tokens": ls.load_tokens("code", n_sequences=128, length=24 if quick else 96),
        "components": "heads",
        "settings": ls.Settings(chains=2, draws=10 if quick else None, batch_size=4),
    }


def probes(quick: bool) -> dict[str, Any]:
    """The last layer with two probes, thinned: most of the time is probes."""
    length = 24 if quick else 96
    return {
        "model": ls.load_model("attn-2l"),
        "tokens": ls.load_tokens("code", n_sequences=64, length=length),
        "components": "L1H*",
        "settings": ls.Settings(chains=2, draws=10 if quick else 100, batch_size=4, thin=2),
        "probes": {
            name: ls.load_tokens(name, n_sequences=4 if quick else 32, length=length)
            for name in ("code", "prose")
        },
    }


def large_components(quick: bool) -> dict[str, Any]:
    """The whole model and its layers: large states, half-precision drift."""
    return {
        "model": ls.load_model("attn-2l"),
        "tokens": ls.load_tokens("prose", n_sequences=64, length=24 if quick else 96),
        "components": ["full", "L0", "L1"],
        "settings": ls.Settings(draws=10 if quick else 220, batch_size=4, antithetic=False),
        "probes": {"text": ls.load_tokens("prose", n_sequences=4, length=24, seed=1)},
    }


def own_blocks(quick: bool) -> dict[str, Any]:
    """A model with MLPs through its own blocks, exact sampler: forwards over all tokens."""
    size = 16 if quick else 64
    model = random_model(n_layers=2, d_model=size, n_heads=4, d_vocab=500, n_ctx=64, mlp=True)
    return {
        "model": model,
        "tokens": random_tokens(500, 16 if quick else 32, 64),
        "components": "L0H0,L0MLP,L1H1,L1MLP",
        "settings": ls.Settings(sampler="pcn", chains=2, draws=10 if quick else 150, burn_in=10),
        "engine": "modules",
    }


def large_model(quick: bool) -> dict[str, Any]:
    """Four layers with MLPs and a large vocabulary, heads of two layers, one probe.

    Its step is given: weights that were never trained are at no minimum.
    """
    d_vocab = 500 if quick else 20000
    model = random_model(
        n_layers=4, d_model=32 if quick else 256, n_heads=8, d_vocab=d_vocab, n_ctx=128, mlp=True
    )
    return {
        "model": model,
        "tokens": random_tokens(d_vocab, 16, 32 if quick else 128),
        "components": "L1H0,L1H1,L3H0,L3H1",
        "settings": ls.Settings(
            chains=2, draws=10 if quick else 30, burn_in=5, batch_size=2, step_size=4e-3
        ),
        "probes": {"random": random_tokens(d_vocab, 2, 32 if quick else 128)},
    }


RUNS: dict[str, Callable[[bool], dict[str, Any]]] = {
    "all heads": heads,
    "last layer, two probes": probes,
    "full and layers": large_components,
    "own blocks, pcn": own_blocks,
    "large random model": large_model,
}


def measure(name: str, what: str, quick: bool) -> dict[str, float]:
    """In this process: predict a run, or run it."""
    arguments = RUNS[name](quick)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "draws.zarr"
        if what == "predict":
            began = time.perf_counter()
            found = ls.estimate(**arguments, path=path)
            cost = time.perf_counter() - began
            return {key: getattr(found, key) for key in QUANTITIES} | {"cost": cost}
        with MemoryWatch(torch.device("cpu")) as memory:
            began = time.perf_counter()
            ls.sample(**arguments, path=path, progress=False)
            seconds = time.perf_counter() - began
            peak = memory.peak
        occupied = sum(512 * file.stat().st_blocks for file in (path, *path.rglob("*")))
        return {"seconds": seconds, "memory_bytes": peak, "disk_bytes": occupied}


def in_own_process(name: str, what: str, quick: bool) -> dict[str, float]:
    """The same in a fresh process."""
    command = [sys.executable, "-W", "ignore", "-m", "benchmarks.estimate_accuracy"]
    command += ["--case", name, "--what", what] + ["--quick"] * quick
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    return json.loads(done.stdout.splitlines()[-1])


def factor(predicted: float, measured: float) -> float:
    """How far apart, at least 1."""
    return max(predicted / measured, measured / predicted)


def main() -> None:
    """Command line."""
    made = common.parser(__doc__)
    made.add_argument("--case", choices=list(RUNS), help="one run, in this process")
    made.add_argument("--what", choices=["predict", "run"], default="predict")
    made.add_argument("--runs", nargs="+", choices=list(RUNS), default=list(RUNS))
    args = made.parse_args()
    warnings.simplefilter("ignore")
    if args.case:
        print(json.dumps(measure(args.case, args.what, args.quick)))
        return
    columns = [
        "run", "predicted, s", "measured, s", "factor", "predicted, MiB", "measured, MiB", "factor",
        "disk, MiB", "measured", "factor", "cost, s",
    ]  # fmt: skip
    rows, factors = [], []
    for name in args.runs:
        run = measure if args.quick else in_own_process
        predicted, measured = (run(name, what, args.quick) for what in ("predict", "run"))
        row: list[Any] = [name]
        for key in QUANTITIES:
            unit = 1 if key == "seconds" else 2**20
            row += [predicted[key] / unit, measured[key] / unit]
            row += [factor(predicted[key], measured[key])]
        rows.append([*row, predicted["cost"]])
        factors.append(row[3::3])
        common.say(f"{name}: factors " + ", ".join(f"{x:.2f}" for x in row[3::3]))
    common.show_table("Predicted before the run, and measured", columns, rows)
    figures = dict(zip(TARGETS, map(max, zip(*factors, strict=True)), strict=True))
    common.finish(args, figures, TARGETS)


if __name__ == "__main__":
    main()
