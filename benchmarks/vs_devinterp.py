"""Side by side with devinterp 2.0.1: CPU time of a step, and CPU time to a value within 5 %.

Two-layer attention-only model, d_model 256, 8 heads, vocabulary 5000, 256 tokens, nβ 30, γ 200, one
thread. Throughput: batch 32 on both sides. Time to 5 %: both use minibatches of 8 from the same 16
sequences; lens_slt its default ``lm`` with one antithetic pair of chains, devinterp SGLD with the
best learning rate of those listed, a single chain (least burn-in), burn-in removed and the initial
loss taken on exactly the minibatches of the chain, so that its losses are paired too.

Counted on both sides is the sampling loop alone: for lens_slt the prefix, losses, gradients, noise,
update and storage; for devinterp the body of ``sample_single_chain``.
"""

from __future__ import annotations

import argparse
import warnings
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor

import lens_slt as ls
from benchmarks import common, peer
from benchmarks.common import Target, WithError
from benchmarks.engine import step_seconds
from lens_slt.sampling.metric import LANCZOS_STEPS
from lens_slt.sampling.pilot import CURVATURE_BATCHES
from lens_slt.sampling.settings import Settings
from lens_slt.sampling.spread import standard_error

TARGETS = {
    "throughput_ratio_l0": Target(least=2.5),
    "throughput_ratio_l1": Target(least=8),
    "throughput_ratio_table": Target(least=4),
    "time_to_5pct_ratio": Target(least=50),
}
TOLERANCE = 0.05
PEER_RATES = (1e-3, 5e-4, 3e-4, 2e-4, 1e-4)
PROBE_STEP = 4e-3  # SGLD's bias is large against its noise here; linear in ε below
SMALL_BATCH = 8


@dataclass(frozen=True)
class Effort:
    """How much is run."""

    rounds: int = 3
    own_draws: int = 60
    exact_draws: int = 150
    sgld_draws: int = 100
    peer_steps: int = 200

    def times(self, share: float) -> Effort:
        """A share of all draws and steps."""
        draws = {key: max(8, round(share * value)) for key, value in asdict(self).items()}
        return Effort(**(draws | {"rounds": self.rounds}))


QUICK = Effort(rounds=1, own_draws=8, exact_draws=8, sgld_draws=8, peer_steps=12)


def throughput(
    model: Any, tokens: Tensor, batch_size: int, effort: Effort
) -> tuple[dict[str, float], dict[str, float]]:
    """CPU seconds per head-step of both libraries, measured alternately; ratios; medians."""
    spent: dict[str, list[float]] = {}
    settings = Settings(draws=2, burn_in=0, batch_size=batch_size, step_size=4e-3)
    n_heads = int(model.cfg.n_heads)
    jobs = {"lens_slt L0": "L0H0", "lens_slt L1": "L1H0", "lens_slt table": "heads"}
    for _ in range(effort.rounds):
        for layer in (0, 1):
            chain = peer.peer_chain(
                model, f"L{layer}H1", tokens, batch_size=batch_size, steps=3, lr=1e-3, seed=0
            )
            spent.setdefault(f"devinterp L{layer}", []).extend(chain.seconds)
        for name, heads in jobs.items():
            layer_heads = [f"{heads[:2]}H{h}" for h in range(n_heads)]
            components = "heads" if heads == "heads" else layer_heads
            size = (2 if heads == "heads" else 1) * n_heads * settings.chains
            seconds = step_seconds(model, tokens, components, settings) / size
            spent.setdefault(name, []).extend(seconds)
    cost = {name: float(np.median(values)) for name, values in spent.items()}
    table = (cost["devinterp L0"] + cost["devinterp L1"]) / 2
    ratios = {
        "throughput_ratio_l0": cost["devinterp L0"] / cost["lens_slt L0"],
        "throughput_ratio_l1": cost["devinterp L1"] / cost["lens_slt L1"],
        "throughput_ratio_table": table / cost["lens_slt table"],
    }
    rows = [
        [which, cost[f"devinterp {which}"], cost[f"lens_slt {which}"], ratio]
        for which, ratio in (
            ("L0", ratios["throughput_ratio_l0"]), ("L1", ratios["throughput_ratio_l1"]),
        )
    ]  # fmt: skip
    rows.append(["all heads", table, cost["lens_slt table"], ratios["throughput_ratio_table"]])
    columns = ["heads of", "devinterp", "lens_slt", "ratio"]
    title = f"CPU seconds per head and step, batch {batch_size}, 4 chains per head"
    common.show_table(title, columns, rows)
    return ratios, cost


def run(model: Any, tokens: Tensor, heads: list[str], settings: Settings) -> dict[str, WithError]:
    """λ̂ of every head, all chains."""
    draws = ls.sample(model, tokens, heads, settings=settings, progress=False)
    return {head: common.llc_of(draws, i) for i, head in enumerate(heads)}


def exact(model: Any, tokens: Tensor, head: str, draws: int, seed: int) -> tuple[str, WithError]:
    """``importance`` where k̂ ≤ 0.7, else ``pcn``."""
    settings = Settings(
        sampler="importance", chains=4, draws=draws, antithetic=False, seed=seed, batch_size=4
    )
    found = ls.refined_llc(ls.sample(model, tokens, [head], settings=settings, progress=False))
    if np.isfinite(float(found["llc"][0])):
        return "importance", WithError(float(found["llc"][0]), float(found["se"][0]))
    pcn = settings.but(sampler="pcn", draws=2 * draws)
    return "pcn", run(model, tokens, [head], pcn)[head]


@dataclass(frozen=True)
class PeerModel:
    """Bias and noise of SGLD on one head as functions of the learning rate."""

    bias_at_probe: float  # relative, at PROBE_STEP; proportional to the rate
    variance: float  # of one independent draw, relative to λ̂²
    correlation: float  # autocorrelation time at 1e-3; inversely proportional to the rate

    def bias(self, lr: float) -> float:
        return self.bias_at_probe * lr / PROBE_STEP

    def steps(self, lr: float) -> float:
        """Steps until |bias| + 2 SE is within the tolerance, burn-in included."""
        room = TOLERANCE - abs(self.bias(lr))
        if room <= 0:
            return float("inf")
        draws = self.variance * max(1.0, self.correlation * 1e-3 / lr) / (room / 2) ** 2
        return draws + peer.burn_in(lr)

    def best_rate(self) -> float:
        return min(PEER_RATES, key=self.steps)


def peer_model(
    model: Any, tokens: Tensor, head: str, truth: WithError, draws: int, seed: int
) -> PeerModel:
    """Measured with lens_slt's ``sgld``, which is the peer's rule at a fraction of its cost."""
    base = Settings(
        sampler="sgld", chains=4, draws=draws, antithetic=False, batch_size=SMALL_BATCH, seed=seed
    )
    coarse = run(model, tokens, [head], base.but(step_size=PROBE_STEP, burn_in=15))[head]
    fine = ls.sample(
        model, tokens, [head], settings=base.but(step_size=1e-3, burn_in=peer.burn_in(1e-3)),
        progress=False,
    )  # fmt: skip
    trace = 30.0 * fine["posterior"]["paired_loss"].values[0].astype(np.float64) / truth.value
    variance = float(trace.var(ddof=1))
    # Chains share minibatches: their own correlation in time is what a single chain pays.
    errors = [standard_error(chain[None]) for chain in trace]
    correlation = float(np.mean(np.square(errors))) * trace.shape[1] / variance
    return PeerModel((coarse.value - truth.value) / truth.value, variance, correlation)


def real_peer(
    model: Any, tokens: Tensor, head: str, lr: float, steps: int, seed: int
) -> tuple[WithError, int, float]:
    """λ̂ of a real devinterp chain, its number of draws, and CPU seconds per step."""
    skip = min(peer.burn_in(lr), steps // 2)
    chain = peer.peer_chain(
        model, head, tokens, batch_size=SMALL_BATCH, steps=steps, lr=lr, seed=seed
    )
    base = peer.cycle_base_loss(model, tokens, SMALL_BATCH)
    paired = 30.0 * (chain.losses - np.resize(base, steps))[skip:]
    cost = float(np.median(chain.seconds))
    return WithError(float(paired.mean()), standard_error(paired[None])), len(paired), cost


@dataclass(frozen=True)
class OwnTable:
    """All heads with the default sampler."""

    settings: Settings
    llc: dict[str, WithError]
    strides: dict[str, int]  # steps of one draw
    cost: dict[str, float]  # CPU seconds per head-step, by layer

    def steps(self, head: str, bias: float) -> float:
        """Head-steps until |bias| + 2 SE is within the tolerance, with burn-in and curvature."""
        got, s = self.llc[head], self.settings
        room = (TOLERANCE - abs(bias)) / 2
        if room <= 0:
            return float("inf")
        draws = s.least_draws * s.chains * (got.se / got.value / room) ** 2
        curvature = CURVATURE_BATCHES * (LANCZOS_STEPS + 1)
        return self.strides[head] * (draws + s.chains * s.burn_in_steps) + curvature


def own_table(model: Any, tokens: Tensor, effort: Effort, seed: int) -> OwnTable:
    """Run all heads."""
    settings = Settings(chains=2, draws=effort.own_draws, batch_size=SMALL_BATCH, seed=seed)
    found, strides, cost = {}, {}, {}
    for layer in (0, 1):
        heads = [f"L{layer}H{h}" for h in range(int(model.cfg.n_heads))]
        short = settings.but(draws=3, burn_in=0, step_size=settings.epsilon)
        seconds = step_seconds(model, tokens, heads, short)
        cost[f"L{layer}"] = float(np.median(seconds)) / (len(heads) * settings.chains)
        draws = ls.sample(model, tokens, heads, settings=settings, progress=False)
        found |= {head: common.llc_of(draws, i) for i, head in enumerate(heads)}
        strides |= dict(zip(heads, draws["steps_per_draw"].values, strict=True))
    return OwnTable(settings, found, strides, cost)


def time_to_5pct(
    model: Any, tokens: Tensor, effort: Effort, seed: int
) -> dict[str, float | list[str]]:
    """CPU seconds for all heads to come within 5 % of the exact value, both libraries."""
    table = own_table(model, tokens, effort, seed)
    own, settings, own_cost = table.llc, table.settings, table.cost
    columns, own_total, peer_total, reached = [], 0.0, 0.0, []
    for layer in (0, 1):
        heads = [head for head in own if head.startswith(f"L{layer}")]
        run_head = sorted(heads, key=lambda head: own[head].value)[len(heads) // 2]
        common.say(f"Layer {layer}: the head that both run is {run_head}.")
        by, truth = exact(model, tokens, run_head, effort.exact_draws, seed)
        sgld = peer_model(model, tokens, run_head, truth, effort.sgld_draws, seed)
        lr = sgld.best_rate()
        got, draws, peer_cost = real_peer(model, tokens, run_head, lr, effort.peer_steps, seed)
        bias = (own[run_head].value - truth.value) / truth.value
        # Noise is no bias: of the difference from the exact value only what 1 SE leaves counts.
        noise = float(np.hypot(own[run_head].se, truth.se)) / truth.value
        bias = float(np.maximum(0.0, abs(bias) - noise))  # NaN stays
        miss = (abs(got.value - truth.value) + 2 * got.se) / abs(truth.value)
        if miss <= TOLERANCE:
            reached.append(run_head)
        needed = {head: table.steps(head, bias) for head in heads}
        own_seconds = own_cost[f"L{layer}"] * sum(needed.values())
        peer_seconds = peer_cost * sgld.steps(lr) * len(heads)
        own_total, peer_total = own_total + own_seconds, peer_total + peer_seconds
        columns.append(
            {
                "head run by both": run_head,
                "exact": f"{truth} ({by})",
                "lens_slt, lm": f"{own[run_head]}",
                "its bias that 1 SE does not explain": bias,
                "devinterp's best learning rate": lr,
                "its bias there": sgld.bias(lr),
                "its autocorrelation time there": sgld.correlation * 1e-3 / lr,
                "devinterp really run": f"{got} after {draws} draws",
                "its |error| + 2 SE": miss,
                "its steps a draw": int(table.strides[run_head]),
                "lens_slt head-steps to 5 %, burn-in and curvature included": needed[run_head],
                "devinterp steps to 5 %, burn-in included": sgld.steps(lr),
                "layer: lens_slt CPU seconds to 5 %": own_seconds,
                "layer: devinterp CPU seconds to 5 %": peer_seconds,
            }
        )
    common.show_table(
        "Time to 5 %, minibatches of 8 of 16 sequences",
        ["", "layer 0", "layer 1"],
        [[name, *(column[name] for column in columns)] for name in columns[0]],
    )
    common.say(
        f"Really run by lens_slt: all {len(own)} heads, {settings.draws} draws × 2 chains, "
        "rescaled to 5 % by SE ∝ 1/√draws. Really run by the peer: the heads named above"
        + (f" ({', '.join(reached)} to 5 %)" if reached else " (none to 5 % in the steps allowed)")
        + "; its other heads are extrapolated: same steps as the head run in their layer, from the "
        "bias, variance and autocorrelation of its rule (measured with lens_slt's sgld)."
    )
    return {
        "time_to_5pct_ratio": peer_total / own_total,
        "own_seconds_to_5pct": own_total,
        "peer_seconds_to_5pct": peer_total,
        "peer_heads_run_to_5pct": reached,
    }


def main() -> None:
    """Command line."""
    made = common.parser(__doc__)
    made.add_argument("--cache", type=Path, help="folder where the trained model is kept")
    made.add_argument("--only", choices=("throughput", "time"), help="one half of the benchmark")
    made.add_argument(
        "--peer-steps", type=int,
        help="steps that the peer really runs on one head per layer; to reach 5 % takes it hours",
    )  # fmt: skip
    made.add_argument(
        "--share", type=float, default=1.0,
        help="of all draws and steps: less takes less time, and errors are larger",
    )  # fmt: skip
    args: argparse.Namespace = made.parse_args()
    common.one_thread()
    warnings.filterwarnings("ignore")
    size, effort = (peer.TOY, QUICK) if args.quick else (peer.Size(), Effort())
    if args.share != 1:
        effort = effort.times(args.share)
    if args.peer_steps is not None:
        effort = replace(effort, peer_steps=args.peer_steps)
    model = peer.trained_model(size, args.cache)
    figures: dict[str, Any] = {}
    if args.only != "time":
        tokens = peer.synthetic_tokens(size, 32, seed=10**6)
        figures |= throughput(model, tokens, 32, effort)[0]
    if args.only != "throughput":
        tokens = peer.synthetic_tokens(size, 16, seed=10**6)
        figures |= time_to_5pct(model, tokens, effort, args.seed)
    targets = {name: target for name, target in TARGETS.items() if name in figures}
    common.finish(args, figures, None if args.quick else targets)


if __name__ == "__main__":
    main()
