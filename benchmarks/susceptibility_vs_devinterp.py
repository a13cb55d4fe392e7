"""Susceptibilities side by side with devinterp 2.0.1: same numbers, and CPU time to reliable ones.

Same numbers: the peer's ``compute_susceptibilities`` reads the very draws that lens_slt made (all
16 heads of the shipped model and ``full``), written in its format. Conventions accounted for:

- baseline: the peer takes losses and lens_slt paired losses; the losses at the given weights are
  added before the peer sees them, and cancel in its formula;
- φ: the peer takes the mean loss of an observable, lens_slt the minibatch of the draw; the peer is
  given lens_slt's φ as the loss of its sampling observable;
- burn-in: the peer's draws begin at step 0; it is given draws after burn-in only.

Time to reliability: CPU seconds, one thread, until the two-posterior estimator has a split-half
reliability of 0.9 on every head, ``full`` and burn-in included. Both sample batches of 8, evaluate
a probe of 8 sequences, and take the best of 1, 2 and 4 steps between evaluations. Reliability is
measured at one number of draws and carried over by Spearman–Brown. lens_slt: ``lm``, all heads in
lock-step, the better of two and four chains. Peer: SGLD at the published 1e-3, one chain per head
(least burn-in), the reliability of its rule measured with lens_slt's ``sgld``, its cost per step
and per evaluation with devinterp itself.
"""

from __future__ import annotations

import argparse
import contextlib
import io
from dataclasses import dataclass
from typing import Any

import numpy as np
import xarray as xr
from torch import Tensor

import lens_slt as ls
from benchmarks import common, peer
from benchmarks.common import Target, cpu_seconds
from benchmarks.engine import step_seconds
from benchmarks.quiet import quiet
from lens_slt.demo import MODEL
from lens_slt.sampling.result import component_names, dataset
from lens_slt.sampling.settings import Settings

TARGETS = {
    "max_rel_difference": Target(most=1e-5),
    "time_to_reliability_ratio": Target(least=30),
}
WANTED = 0.9
THINS = (1, 2, 4)
BATCH, PROBE = 8, 8  # sequences
PEER_RATE = 1e-3
GAMMA = 200.0
BASELINE = 3.0  # nats; cancels


@dataclass(frozen=True)
class Effort:
    """How much is run."""

    draws: int = 120
    sequences: int = 512
    length: int = 128
    peer_draws: int = 16


QUICK = Effort(draws=16, sequences=16, length=16, peer_draws=3)


def peer_matrix(draws: xr.DataTree) -> np.ndarray:
    """The peer's susceptibilities ``[component, sequence, position]`` of lens_slt's draws."""
    from devinterp.slt.susceptibilities import compute_susceptibilities

    names, probe = component_names(draws), dataset(draws, "probes/probe")
    phi = dataset(draws, "posterior")["paired_loss"].sel(draw=probe["draw"])
    trees = {}
    for name in names:
        rise = probe["paired_loss"].sel(component=name).values.astype(np.float64)
        train = np.broadcast_to(
            BASELINE + phi.sel(component=name).values[:, :, None, None],
            (*rise.shape[:2], 1, rise.shape[-1]),
        )
        dims = ("chain", "draw")
        tokens = np.zeros((rise.shape[2], rise.shape[3] + 1), dtype=int)
        trees[name] = xr.DataTree(
            xr.Dataset(
                {
                    "loss_train": ((*dims, "batch_train", "token_pos"), train),
                    "loss_probe": (
                        (*dims, "batch_probe", "token_pos"), rise + probe["base_loss"].values,
                    ),
                    "init_loss": ((), BASELINE),
                    "input_ids_train": (("batch_train", "position"), tokens[:1]),
                    "input_ids_probe": (("batch_probe", "position"), tokens),
                }
            )
        )  # fmt: skip
    found = compute_susceptibilities(trees, "train")["susceptibilities"].to_dataset()
    shape = probe["base_loss"].shape
    heads = [name for name in names if name != "full"]
    return np.array([found["sus"].sel(wr=name).values.reshape(shape) for name in heads])


def same_numbers(draws: xr.DataTree) -> float:
    """Largest difference between the two matrices, in units of the column's standard deviation.

    Of components with four good chains: the peer leaves none out.
    """
    good = dataset(draws, "health")["used"].all("chain")
    draws = draws.sel(component=good["component"][good.values])
    own = ls.susceptibility(draws)["chi"].values
    other = peer_matrix(draws).reshape(own.shape)
    difference = np.abs(own - other).max(1) / other.std(1)
    common.show_table(
        "Identical draws",
        ["component", "sd of χ", "largest difference / sd"],
        [
            [name, other[i].std(), difference[i]]
            for i, name in enumerate(n for n in component_names(draws) if n != "full")
        ],
    )
    return float(difference.max())


def thinned(draws: xr.DataTree, thin: int) -> xr.DataTree:
    """Only every thin-th evaluation of the probe."""
    fewer = draws.copy()
    fewer["probes/probe"] = xr.DataTree(
        dataset(draws, "probes/probe").isel(draw=slice(None, None, thin))
    )
    return fewer


def needed(draws: xr.DataTree) -> dict[int, np.ndarray]:
    """Evaluations per chain until split-half 0.9, by steps between them, for every head."""
    found = {}
    for thin in THINS:
        fewer = thinned(draws, thin)
        r = np.clip(ls.susceptibility(fewer, keep_blocks=False)["split_half"].values, 1e-3, None)
        n = dataset(fewer, "probes/probe").sizes["draw"]
        found[thin] = n * (WANTED / (1 - WANTED)) * (1 - r) / r
    return found


def own_seconds(
    model: Any, tokens: Tensor, probe: Tensor, draws: xr.DataTree, settings: Settings
) -> tuple[float, list[Any]]:
    """CPU seconds of the lock-step run until its least reliable head is reliable."""
    rows = []
    stride = float(draws["steps_per_draw"].mean())  # of the components, which cost alike
    for chains in (2, 4):
        short = settings.but(chains=chains, burn_in=0, draws=10, step_size=settings.epsilon)

        def spent(thin: int, short: Settings = short) -> float:
            seconds = step_seconds(
                model, tokens, ["heads", "full"], short.but(thin=thin), probes={"probe": probe}
            )  # fmt: skip
            return float(np.median(seconds))

        step = spent(10)  # only the first step, which is not timed, has the probe
        evaluation = spent(1) - step
        for thin, n in needed(draws.isel(chain=slice(0, chains))).items():
            total = stride * step * (settings.burn_in_steps + n.max() * thin) + n.max() * evaluation
            rows.append([step, evaluation, chains, thin, float(n.max()) * thin, total])
    best = min(rows, key=lambda row: row[-1])
    return best[-1], best


def peer_seconds(
    model: Any, tokens: Tensor, probe: Tensor, by_thin: dict[int, np.ndarray], effort: Effort
) -> tuple[float, list[Any]]:
    """CPU seconds of one chain per head until each is reliable, and of ``full``."""
    cost = {layer: _peer_cost(model, tokens, probe, f"l{layer}h1", effort) for layer in (0, 1)}
    cost["full"] = _peer_cost(model, tokens, probe, None, effort)
    burn_in = peer.burn_in(PEER_RATE, GAMMA)
    n_heads = int(model.cfg.n_heads)

    def total(thin: int) -> float:
        n = by_thin[thin] * 4  # of the four chains that reliability was measured with
        seconds = 0.0
        for layer in (0, 1):
            step, evaluation = cost[layer]
            for head in range(n_heads):
                seconds += burn_in * step + n[layer * n_heads + head] * (thin * step + evaluation)
        step, evaluation = cost["full"]
        return seconds + burn_in * step + n.max() * (thin * step + evaluation)

    best = min(THINS, key=total)
    step, evaluation = np.mean([cost[0], cost[1]], axis=0)
    slowest = 4 * float(by_thin[best].max()) * best
    return total(best), [step, evaluation, 1, best, slowest, total(best)]


def _peer_cost(
    model: Any, tokens: Tensor, probe: Tensor, head: str | None, effort: Effort
) -> tuple[float, float]:
    """CPU seconds of a step and of an evaluation of devinterp."""
    from devinterp.slt.sampling import sample
    from devinterp.slt.weight_restrictions import create_param_masks

    masks = {name: None for name, _ in model.named_parameters()}
    masks = masks if head is None else create_param_masks(model, head)
    data, observed = peer.token_rows(tokens), peer.token_rows(probe)

    def spent(draws: int, between: int) -> float:
        start = cpu_seconds()
        with contextlib.redirect_stderr(io.StringIO()), contextlib.redirect_stdout(io.StringIO()):
            sample(
                model, data, {"train": (data, 1), "probe": (observed, 1)}, lr=PEER_RATE,
                n_beta=30.0, localization=GAMMA, param_masks=masks, num_chains=1, num_draws=draws,
                batch_size=BATCH, num_steps_bw_draws=between, num_init_loss_batches=1,
                shuffle=False, device="cpu",
            )  # fmt: skip
        return cpu_seconds() - start

    n = effort.peer_draws
    few, more, apart = spent(2, 1), spent(2 + n, 1), spent(2 + n, 4)
    step = max((apart - more) / (3 * n), 1e-6)
    return step, max((more - few) / n - step, 0.0)


@quiet()
def main() -> None:
    """Command line."""
    args: argparse.Namespace = common.parser(__doc__).parse_args()
    common.one_thread()
    effort = QUICK if args.quick else Effort()
    model = ls.load_model(MODEL, device="cpu")
    tokens = ls.load_tokens("mix", n_sequences=effort.sequences, length=effort.length)
    probe = ls.load_tokens("mix", n_sequences=PROBE, length=effort.length, seed=1)
    settings = Settings(draws=effort.draws, batch_size=BATCH, seed=args.seed)
    rule = settings.but(
        sampler="sgld", step_size=PEER_RATE, antithetic=False,
        burn_in=4 if args.quick else peer.burn_in(PEER_RATE, GAMMA),
    )  # fmt: skip
    runs = [
        ls.sample(
            model, tokens, ["heads", "full"], settings=s, probes={"probe": probe}, progress=False
        )
        for s in (settings, rule)
    ]
    difference = same_numbers(runs[0])
    own, own_row = own_seconds(model, tokens, probe, runs[0], settings)
    other, other_row = peer_seconds(model, tokens, probe, needed(runs[1]), effort)
    common.show_table(
        f"CPU seconds until split-half {WANTED}; step, evaluation: of one head, or of all together",
        [
            "",
            "a step",
            "an evaluation",
            "chains",
            "steps between",
            "slowest head's steps",
            "all heads",
        ],
        [["lens_slt", *own_row], ["devinterp", *other_row]],
    )
    figures = {
        "max_rel_difference": difference,
        "time_to_reliability_ratio": other / own,
        "own_seconds": own,
        "peer_seconds": other,
    }
    common.finish(args, figures, None if args.quick else TARGETS)


if __name__ == "__main__":
    main()
