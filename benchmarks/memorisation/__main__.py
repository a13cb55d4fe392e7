"""Does the learning coefficient count what a model has memorised? λ̂ against known amounts.

Three families of tasks, six sizes each, two models of every size:

- *tables*: 4 to 128 random trigrams of 16 symbols; two layers, attention only;
- *addition*: (a + b) mod p for p from 3 to 13, all pairs; one layer with an MLP;
- *parities*: 1 to 8 parities of two of five bits, all inputs; one layer with an MLP.

All models of a family have one shape and are trained until 0.5 % of what there is to learn is
missing. The *amount learned* is in bits: Σ over contexts of (loss of a guess − loss)/ln 2, measured
on the trained model. λ̂ of the whole model and the sum over its heads come from
:func:`lens_slt.sample` with the same settings for all. Figures, for each family:

- *rank_correlation_FAMILY*: Spearman's, over the twelve models, of λ̂ of the whole model with the
  amount learned; *certified_FAMILY*, the share of those λ̂ that are certified;
- *…_heads*, of the sum over heads; *…_ablation*, of what mean ablation of each head adds to the
  loss, summed; *…_norm*, of the norm of all weights: the rivals.

The table has the p-value of each (two-sided, by permutation) and a 95 % interval (bootstrap over
models).
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from scipy.stats import permutation_test, spearmanr

from benchmarks import common
from benchmarks.common import Target, WithError
from benchmarks.memorisation.measure import MOST_STEPS, SETTINGS, Measured, measured
from benchmarks.memorisation.tasks import families

SEEDS = 2
TARGETS = {f"rank_correlation_{family.name}": Target(least=0.9) for family in families()}
RIVALS = {
    "llc": "λ̂, model", "heads": "λ̂, sum of heads", "ablation": "ablation loss",
    "norm": "weight norm",
}  # fmt: skip
RESAMPLES = 2000


def correlation(x: Sequence[float], y: Sequence[float], seed: int) -> tuple[float, ...]:
    """Spearman's with its interval over models and its p-value; NaN where a value is unknown."""
    a, b = np.array(x), np.array(y)
    if not np.isfinite([a, b]).all():
        return (math.nan,) * 4
    rng = np.random.default_rng(seed)

    def rho(u: Any, v: Any = b) -> float:
        return float(spearmanr(u, v).statistic)

    p = permutation_test(
        (a,), rho, permutation_type="pairings", n_resamples=RESAMPLES, rng=rng
    ).pvalue
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # a resample of one model only has no ranks
        again = rng.integers(len(a), size=(RESAMPLES, len(a)))
        low, high = np.nanquantile([rho(a[i], b[i]) for i in again], (0.025, 0.975))
    return rho(a), float(low), float(high), float(p)


def row(one: Measured) -> list[Any]:
    """One model of the table."""
    return [
        f"{one.family} {one.size}", one.seed, f"{one.bits:.1f}", f"{one.learned:.3f}",
        str(WithError(one.llc, one.llc_se)), one.certificate,
        str(WithError(one.heads, one.heads_se)), f"{one.heads_certified} of {one.n_heads}",
        one.ablation, one.norm, f"{one.cpu_seconds:.0f}",
    ]  # fmt: skip


def main() -> None:
    """Command line."""
    made = common.parser(__doc__)
    made.add_argument("--cache", type=Path, help="folder for finished models")
    args = made.parse_args()
    common.one_thread()
    warnings.filterwarnings("ignore")
    settings, steps = SETTINGS, MOST_STEPS
    if args.quick:
        settings, steps = settings.but(draws=4, burn_in=1, steps_per_draw=1), 30
    figures: dict[str, Any] = {}
    rows = []
    for family in families():
        found = []
        for size in family.sizes[:3] if args.quick else family.sizes:
            for seed in range(1 if args.quick else SEEDS):
                found.append(
                    measured(family, size, SEEDS * args.seed + seed, settings, args.cache, steps)
                )
            common.say(f"{family.name} {size}: done")
        common.show_table(
            family.name,
            ["task", "seed", "bits", "learned", "λ̂, model", "", "λ̂, heads", "certified",
             "ablation, nats", "norm", "CPU s"],
            [row(one) for one in found],
        )  # fmt: skip
        bits = [one.bits for one in found]
        for name, words in RIVALS.items():
            values = correlation([getattr(one, name) for one in found], bits, args.seed)
            rows.append([family.name, words, *values])
            key = "" if name == "llc" else f"_{name}"
            figures[f"rank_correlation_{family.name}{key}"] = values[0]
        figures[f"certified_{family.name}"] = float(
            np.mean([one.certificate == "certified" for one in found])
        )
    common.show_table(
        "Rank correlation with the bits learned", ["family", "of", "Spearman", "low", "high", "p"],
        rows,
    )  # fmt: skip
    common.finish(args, figures, None if args.quick else TARGETS)


if __name__ == "__main__":
    main()
