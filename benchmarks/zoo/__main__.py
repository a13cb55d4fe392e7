"""The exact refined LLCs of the zoo: ``python -m benchmarks.zoo --seed 0 --n 10 --cache DIR``.

Everything that is computed is kept in the cache folder; an interrupted run continues from there.
"""

from __future__ import annotations

import time
import warnings
from pathlib import Path

from benchmarks import common
from benchmarks.zoo import Effort, truths, zoo

COLUMNS = (
    "model", "component", "P", "λ truth", "± SE", "R̂", "acc.", "CPU s", "nβ·h_max", "converged"
)  # fmt: skip


def main() -> None:
    """Command line."""
    made = common.parser(__doc__)
    made.add_argument("--n", type=int, default=40, help="models; forty hold every kind")
    made.add_argument("--cache", type=Path, help="folder for trained models and finished truths")
    made.add_argument("--seconds", type=float, default=Effort.seconds, help="CPU, per component")
    args = made.parse_args()
    common.one_thread()
    warnings.filterwarnings("ignore")
    effort = Effort(seconds=args.seconds)
    if args.quick:
        effort = Effort(seconds=1.0, warm_up=4, rounds=2, block=5, least=5)
    rows = []
    began = time.process_time()
    for entry in zoo(args.seed, 2 if args.quick else args.n):
        short = entry.shortened() if args.quick else entry
        for found in truths(short.build(args.cache), args.cache, effort):
            rows.append(
                [
                    entry.name, found.component, found.n_parameters, found.llc, found.se,
                    found.rhat, found.acceptance, found.cpu_seconds, found.n_beta_h_max,
                    "yes" if found.converged else "NO",
                ]
            )  # fmt: skip
            common.say(", ".join(x if isinstance(x, str) else f"{x:.4g}" for x in rows[-1]))
    common.show_table(f"Zoo of seed {args.seed}", COLUMNS, rows)
    figures = {
        "components": len(rows),
        "converged": sum(row[-1] == "yes" for row in rows),
        "truth_cpu_seconds": float(sum(row[7] for row in rows)),
        "cpu_seconds_now": time.process_time() - began,
    }
    common.finish(args, figures)


if __name__ == "__main__":
    main()
