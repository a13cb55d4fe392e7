"""The 16-head table at the paper's size, and all heads of a GPT-2-small-sized model, on a GPU.

Random weights: only speed and memory are measured. Steps are timed after the first; a table of 4
chains × 200 draws with burn-in is that many steps, one a draw. Without a CUDA device
the benchmark says so and ends; ``--device cpu --toy`` runs the same code at toy size.
"""

from __future__ import annotations

import argparse
import json
from typing import Any

import numpy as np
import torch

from benchmarks import common, flops
from benchmarks.engine import random_model, random_tokens, step_seconds
from lens_slt.sampling.settings import Settings

PAPER = flops.Shape(2, 256, 8, 5000, 1024, 32)
GPT2_SMALL = flops.Shape(12, 768, 12, 50257, 1024, 8, mlp=True)
TOY_PAPER = flops.Shape(2, 16, 2, 50, 16, 4)
TOY_GPT2 = flops.Shape(2, 16, 2, 60, 16, 4, mlp=True)


def measure(shape: flops.Shape, chains: int, steps: int, device: str, rate: float) -> list[Any]:
    """Seconds of a full table, tokens per second, share of the matrix-product rate, peak memory."""
    model = random_model(
        n_layers=shape.n_layers, d_model=shape.d_model, n_heads=shape.n_heads,
        d_vocab=shape.d_vocab, n_ctx=shape.length, mlp=shape.mlp,
    )  # fmt: skip
    model = model.to(device)
    tokens = random_tokens(shape.d_vocab, shape.batch_size, shape.length)
    full = Settings(chains=chains)
    settings = full.but(
        step_size=full.epsilon, draws=steps, burn_in=0, batch_size=shape.batch_size
    )  # fmt: skip
    if device == "cuda":
        torch.cuda.reset_peak_memory_stats()
    seconds = float(np.median(step_seconds(model, tokens, "heads", settings, device)))
    peak = torch.cuda.max_memory_allocated() / 2**30 if device == "cuda" else float("nan")
    layers = list(range(shape.n_layers))
    needed = flops.table_step(shape, layers, shape.n_heads * chains)
    rows = shape.n_layers * shape.n_heads * chains
    table = (full.burn_in_steps + full.least_draws) * seconds
    return [seconds, table, rows * shape.n_tokens / seconds, needed / seconds / rate, peak]


def main() -> None:
    """Command line."""
    made = common.parser(__doc__)
    made.add_argument("--device", choices=("cuda", "cpu"), default="cuda")
    made.add_argument("--toy", action="store_true", help="toy sizes")
    args: argparse.Namespace = made.parse_args()
    if args.device == "cuda" and not torch.cuda.is_available():
        common.say("Skipped: this machine has no CUDA device.")
        if args.json:
            print(json.dumps({"skipped": "no CUDA device"}))
        return
    toy = args.toy or args.quick
    common.one_thread()
    rate = common.gemm_rate(1024 if toy else 16384, 0.2 if toy else 2.0, args.device)
    cases = {
        "paper_heads": (TOY_PAPER if toy else PAPER, 4, 3 if toy else 8),
        "gpt2_small_heads": (TOY_GPT2 if toy else GPT2_SMALL, 2, 3 if toy else 4),
    }
    rows, figures = [], {"gemm_tflops": rate / 1e12}
    names = ("seconds_per_step", "seconds", "tokens_per_second", "gemm_fraction", "peak_gib")
    for name, (shape, chains, steps) in cases.items():
        found = measure(shape, chains, steps, args.device, rate)
        rows.append([name, shape.n_layers * shape.n_heads, chains, *found])
        figures |= {f"{name}_{key}": value for key, value in zip(names, found, strict=True)}
    columns = [
        "table", "heads", "chains", "s per step", "s for 200 draws and burn-in",
        "row-tokens per s", "share of matrix-product rate", "peak GiB",
    ]  # fmt: skip
    where = torch.cuda.get_device_name() if args.device == "cuda" else "CPU"
    common.show_table(f"{where}, {rate / 1e12:.3g} TFLOP/s in float32 products", columns, rows)
    common.finish(args, figures)


if __name__ == "__main__":
    main()
