"""Cost per head and step as heads, chains, layers, tokens and vocabulary grow.

Every case runs in a process of its own, so that its peak memory is its own. ``gemm_fraction``: the
operations of the matrix products that the algorithm needs, divided by the CPU time and by the rate
that this machine reaches on a large float32 product on one thread.
"""

from __future__ import annotations

import json
import resource
import subprocess
import sys
from dataclasses import asdict, dataclass, replace

import numpy as np

from benchmarks import common, flops
from benchmarks.engine import random_model, random_tokens, step_seconds
from lens_slt.sampling.settings import Settings


@dataclass(frozen=True)
class Case:
    """One model, minibatch and set of heads."""

    n_layers: int = 2
    d_model: int = 128
    n_heads: int = 8
    d_vocab: int = 1000
    length: int = 64
    batch_size: int = 8
    heads: int = 8  # in every sampled layer
    layers: tuple[int, ...] = (0,)  # that are sampled
    chains: int = 2
    steps: int = 6

    @property
    def shape(self) -> flops.Shape:
        return flops.Shape(
            self.n_layers, self.d_model, self.n_heads, self.d_vocab, self.length, self.batch_size
        )

    @property
    def rows(self) -> int:
        return self.heads * self.chains * len(self.layers)


PAPER = Case(d_model=256, d_vocab=5000, length=256, layers=(0, 1), steps=4)


def sweeps() -> dict[str, list[Case]]:
    """What grows, and the cases of the sweep."""
    base = Case()
    last = replace(base, layers=(1,))
    return {
        "heads": [replace(base, heads=n) for n in (1, 8)],
        "chains": [replace(base, chains=n) for n in (2, 8)],
        "layers": [replace(base, n_layers=n) for n in (2, 4, 8)],
        "length": [replace(base, length=n) for n in (64, 128, 256)],
        "d_vocab": [replace(base, d_vocab=n) for n in (1000, 5000, 20000)],
        "d_vocab, last layer": [replace(last, d_vocab=n) for n in (1000, 5000, 20000)],
        "heads, last layer": [replace(last, heads=n) for n in (1, 8)],
        "the 16-head table of vs_devinterp, batch 8": [PAPER],
    }


def measure(case: Case) -> dict[str, float]:
    """In this process: CPU seconds per head-step, peak memory of the run in MiB, gemm fraction."""
    model = random_model(
        n_layers=case.n_layers, d_model=case.d_model, n_heads=case.n_heads, d_vocab=case.d_vocab,
        n_ctx=case.length,
    )  # fmt: skip
    tokens = random_tokens(case.d_vocab, case.batch_size, case.length)
    heads = [f"L{layer}H{head}" for layer in case.layers for head in range(case.heads)]
    settings = Settings(
        chains=case.chains, draws=case.steps, burn_in=0, batch_size=case.batch_size, step_size=4e-3
    )  # fmt: skip
    before = _peak_mib()
    seconds = float(np.median(step_seconds(model, tokens, heads, settings)))
    needed = flops.table_step(case.shape, list(case.layers), case.heads * case.chains)
    return {
        "ms": 1000 * seconds / case.rows,
        "mib": _peak_mib() - before,
        "gemm_fraction": needed / seconds / common.gemm_rate(seconds=0.5),
    }


def in_own_process(case: Case) -> dict[str, float]:
    """The same in a fresh process."""
    command = [sys.executable, "-W", "ignore", "-m", "benchmarks.scaling", "--case"]
    done = subprocess.run(
        [*command, json.dumps(asdict(case))], capture_output=True, text=True, check=True
    )
    return json.loads(done.stdout.splitlines()[-1])


def _peak_mib() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def main() -> None:
    """Command line."""
    made = common.parser(__doc__)
    made.add_argument("--case", help="one case as JSON, measured in this process")
    args = made.parse_args()
    common.one_thread()
    if args.case:
        fields = json.loads(args.case)
        print(json.dumps(measure(Case(**{**fields, "layers": tuple(fields["layers"])}))))
        return
    chosen = sweeps()
    if args.quick:
        chosen = {"heads": [Case(heads=n, length=16, d_vocab=100, steps=3) for n in (1, 2)]}
    common.say(
        "Base: 2 layers, d_model 128, 8 heads of layer 0 × 2 chains, vocabulary 1000, "
        "batch 8 × 64 tokens. Memory is what the run adds to the peak of its process."
    )
    figures: dict[str, float] = {}
    columns = ["", "CPU ms per head-step", "memory, MiB", "gemm_fraction"]
    for name, cases in chosen.items():
        found = [(measure if args.quick else in_own_process)(case) for case in cases]
        rows = [
            [_label(name, case), one["ms"], one["mib"], one["gemm_fraction"]]
            for case, one in zip(cases, found, strict=True)
        ]
        common.show_table(f"Growing: {name}", columns, rows)
        # The last sweep is the table at full size.
        figures = {"gemm_fraction": found[-1]["gemm_fraction"], "peak_mib": found[-1]["mib"]}
    common.finish(args, figures)


def _label(name: str, case: Case) -> str:
    field = name.split(",")[0]
    if field not in ("heads", "chains", "length", "d_vocab"):
        return f"{case.n_layers} layers, {case.rows} rows"
    return str(getattr(case, field))


if __name__ == "__main__":
    main()
