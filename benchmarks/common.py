"""What every benchmark shares: arguments, printed tables and figures, CPU time."""

from __future__ import annotations

import argparse
import json
import math
import os
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TQDM_DISABLE", "1")

import numpy as np
import torch
import xarray as xr
from rich.console import Console
from rich.table import Table

from lens_slt.sampling.result import component_names, n_draws, settings_of
from lens_slt.sampling.settings import Settings
from lens_slt.sampling.spread import independent_units, standard_error
from lens_slt.versions import versions


@dataclass(frozen=True)
class Target:
    """What a figure has to reach: ``least`` ≤ figure ≤ ``most``."""

    least: float = float("-inf")
    most: float = float("inf")

    def met(self, value: float) -> bool:
        return self.least <= value <= self.most

    def __str__(self) -> str:
        if self.most == float("inf"):
            return f"at least {self.least:g}"
        if self.least == float("-inf"):
            return f"at most {self.most:g}"
        return f"{self.least:g} to {self.most:g}"


@dataclass(frozen=True)
class WithError:
    """A number with its standard error."""

    value: float
    se: float

    def __str__(self) -> str:
        return f"{self.value:.3g} ± {self.se:.2g}"


def parser(doc: str | None) -> argparse.ArgumentParser:
    """The arguments that all benchmarks take."""
    made = argparse.ArgumentParser(description=(doc or "").split("\n\n")[0])
    made.add_argument("--json", action="store_true", help="end with one line of JSON")
    made.add_argument("--quick", action="store_true", help="toy sizes: does the code run?")
    made.add_argument("--save", type=Path, help="file for the figures (docs/measured/X.json)")
    made.add_argument("--seed", type=int, default=0)
    return made


def toy(settings: Settings) -> Settings:
    """Just enough draws to run every line, one step each."""
    return settings.but(draws=8, burn_in=2, thin=1, steps_per_draw=1)


def one_thread() -> None:
    """CPU time is comparable between implementations on one thread only."""
    torch.set_num_threads(1)


def cpu_seconds() -> float:
    """CPU time of this process, all threads."""
    return time.process_time()


def show_table(title: str, columns: Sequence[str], rows: Sequence[Sequence[Any]]) -> None:
    """Print one table; numbers are shown to three digits."""
    table = Table(title=title, title_justify="left")
    for i, column in enumerate(columns):
        table.add_column(column, justify="left" if i == 0 else "right")
    for row in rows:
        table.add_row(*[_cell(value) for value in row])
    console().print(table)


def say(text: str) -> None:
    """Print a sentence."""
    console().print(text, highlight=False)


def finish(
    args: argparse.Namespace, figures: dict[str, Any], targets: dict[str, Target] | None = None
) -> None:
    """Print the figures beside their targets and, if asked for, as a last line of JSON."""
    targets = targets or {}
    rows = []
    for name, value in figures.items():
        target = targets.get(name)
        verdict = "" if target is None else "met" if target.met(value) else "MISSED"
        rows.append([name, value, "" if target is None else str(target), verdict])
    show_table("Figures", ["figure", "value", "target", ""], rows)
    if args.quick:
        say("--quick: toy sizes, the figures mean nothing.")
    if args.save:
        _save(args.save, figures)
    if args.json:
        print(json.dumps(figures))


def _save(file: Path, figures: dict[str, Any]) -> None:
    """Keep figures with what gave them; numbers in the documentation are checked against these."""
    given = zip(["", *sys.argv[1:]], sys.argv[1:], strict=False)
    places = {"--save", "--cache"}  # say nothing about the figures
    options = [
        "FOLDER" if Path(one).is_absolute() else one  # of this machine
        for before, one in given if not {before, one} & places and one != "--json"
    ]  # fmt: skip
    module = Path(sys.argv[0])
    name = module.parent.name if module.stem == "__main__" else module.stem
    record = {
        "command": " ".join(["python -m", f"benchmarks.{name}", *options]),
        "versions": versions(),
        "figures": {name: _plain(value) for name, value in figures.items()},
    }
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(json.dumps(record, indent=1) + "\n", "utf-8")


def _plain(value: Any) -> Any:
    """For JSON, which has no infinity and nothing that is not a number."""
    return None if isinstance(value, float) and not math.isfinite(value) else value


def console() -> Console:
    """Wide enough for the tables, also where output is piped."""
    return Console(width=140, soft_wrap=True)


def llc_of(draws: xr.DataTree, component: int = 0) -> WithError:
    """λ̂ over *all* chains, none excluded for how it looks.

    Health verdicts are made for heads; an exponent below one half gives loss traces that look spiky
    and are not. A non-finite chain still shows, as a NaN.
    """
    settings = settings_of(draws)
    n = n_draws(draws, component_names(draws)[component])
    loss = draws["posterior"]["paired_loss"].values[component, :, :n].astype(np.float64)
    units = independent_units(loss, np.ones(len(loss), dtype=bool), settings.antithetic)
    return WithError(
        float(settings.n_beta * units.mean()), float(settings.n_beta * standard_error(units))
    )


def gemm_rate(rows: int = 1024, seconds: float = 1.0, device: str = "cpu") -> float:
    """Multiply-adds counted as two, per second, of a float32 matrix product of this machine."""
    a, b = torch.randn(rows, 1024, device=device), torch.randn(1024, 1024, device=device)
    out = a @ b
    best, spent = float("inf"), 0.0
    while spent < seconds:
        start = clock(device)
        for _ in range(5):
            torch.mm(a, b, out=out)
        took = clock(device) - start
        best, spent = min(best, took / 5), spent + took
    return 2 * rows * 1024 * 1024 / best


def clock(device: str) -> float:
    """CPU seconds on the CPU, wall seconds after all work is done on a GPU."""
    if device == "cpu":
        return cpu_seconds()
    torch.cuda.synchronize()
    return time.perf_counter()


def _cell(value: Any) -> str:
    if isinstance(value, float | np.floating):
        return f"{value:.4g}"
    return str(value)
