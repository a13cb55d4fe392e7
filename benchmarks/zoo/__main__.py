"""The exact refined LLCs of the zoo: ``python -m benchmarks.zoo --seed 0 --n 10 --cache DIR``.

Everything that is computed is kept in the cache folder; an interrupted run continues from there.
"""

from __future__ import annotations

import time
import warnings
from pathlib import Path
from typing import Any

from benchmarks import common
from benchmarks.zoo import Effort, Truth, truths, zoo

COLUMNS = ("component", "P", "λ truth", "R̂", "ESS", "acc.", "CPU s", "nβ·h_max", "converged")


def row(found: Truth) -> list[Any]:
    """A truth as a row of the table."""
    return [
        found.component, found.n_parameters, str(common.WithError(found.llc, found.se)),
        f"{found.rhat:.3f}", f"{found.ess:.0f}", f"{found.acceptance:.2f}",
        f"{found.cpu_seconds:.1f}", found.n_beta_h_max, "yes" if found.converged else "NO",
    ]  # fmt: skip


def main() -> None:
    """Command line."""
    made = common.parser(__doc__)
    made.add_argument("--n", type=int, default=40, help="models; forty hold every kind")
    made.add_argument("--cache", type=Path, help="folder for trained models and finished truths")
    made.add_argument("--seconds", type=float, default=Effort.seconds, help="CPU, per component")
    args = made.parse_args()
    common.one_thread()
    warnings.filterwarnings("ignore")
    effort = Effort.toy() if args.quick else Effort(seconds=args.seconds)
    everything: list[Truth] = []
    began = time.process_time()
    for entry in zoo(args.seed, 2 if args.quick else args.n):
        case = (entry.shortened() if args.quick else entry).build(args.cache)
        found = list(truths(case, args.cache, effort))
        common.show_table(entry.describe(), COLUMNS, [row(one) for one in found])
        everything += found
    figures = {
        "components": len(everything),
        "converged": sum(one.converged for one in everything),
        "truth_cpu_seconds": sum(one.cpu_seconds for one in everything),
        "cpu_seconds_now": time.process_time() - began,
    }
    common.finish(args, figures)


if __name__ == "__main__":
    main()
