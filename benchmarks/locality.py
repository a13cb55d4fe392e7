"""How few weights carry what a pattern gains: where it is known, and at the shipped transitions.

*Planted*: models of ``lens_slt.planted_suite`` with a circuit, before (its heads are zero, and all
weights differ by a tenth of what the circuit's weights are) and after. The circuit's heads are the
truth: the smallest share that keeps 95 % of the gain over their share (``recovered_share``), and
what a random mask of as many weights of each matrix keeps there (``null_kept``).

*Shipped*: random tokens said twice, loss on the second half, from the last checkpoint before the
induction transition to the first one after it. Weights by size of change, whole heads by how much
their rLLC grew (``--llc``; sampled with shared noise) and by what ablating them costs afterwards,
and the stiffest directions; beside it the interval outside the transition whose weights moved most
nearly as far, and the stable rank of what moved in each head.
"""

from __future__ import annotations

import argparse
import warnings
from copy import deepcopy
from typing import Any

import numpy as np
import torch

import lens_slt as ls
from benchmarks import common
from benchmarks.common import Target
from lens_slt.models.adapter import adapt
from lens_slt.models.components import head_names, parse_components
from lens_slt.training.train import repeated_tokens

TARGETS = {
    "recovered_share_low": Target(least=0.5), "recovered_share_high": Target(most=2.0),
    "null_kept": Target(most=0.05),
}  # fmt: skip
NOISE = 0.1  # of the root mean square of the circuit's weights
TRANSITIONS = {"attn-2l": (2100, 2600), "gelu-4l": (2350, 2650)}
SETTINGS = ls.Settings(chains=2, draws=40, batch_size=8, thin=2)
SEQUENCES, LENGTH = 32, 65
DIRECTIONS = 16


def before_it_grew(model: Any, heads: list[str], seed: int, noise: float) -> tuple[Any, float]:
    """A copy in which some heads are zero and all weights a little off; the heads' share.

    ``noise`` is a share of the root mean square of the heads' weights.
    """
    before = deepcopy(model)
    adapted = adapt(before)
    parts = []
    for component in parse_components(heads, adapted):
        for slot in component.slots:
            leaf = adapted.leaves[slot.name]
            parts.append(leaf.view(leaf.parameter.data)[slot.index])
    size = float(torch.cat([part.flatten() for part in parts]).square().mean().sqrt())
    generator = torch.Generator().manual_seed(seed)
    everything = 0
    with torch.no_grad():
        for part in parts:
            part.zero_()
        for leaf in adapted.leaves.values():
            moved = noise * size * torch.randn(leaf.parameter.shape, generator=generator)
            leaf.parameter.add_(moved)
            everything += leaf.parameter.numel()
    return before, sum(part.numel() for part in parts) / everything


def planted_part(seeds: int, seed: int, quick: bool) -> dict[str, float]:
    """Recovered shares of planted circuits."""
    rows, ratios, nulls = [], [], []
    for p in ls.planted_suite(seeds, n_sequences=64, seed=seed):
        if p.truth is None or not p.truth.edges or (quick and p.family != "induction"):
            continue
        before, share = before_it_grew(p.model, list(p.truth.components), seed, NOISE)
        pattern = p.patterns.sel(pattern=p.pattern).values
        try:
            found = ls.locality(before, p.model, p.tokens, pattern, seed=seed, progress=False)
        except ValueError as error:  # the noise alone undoes what it should carry
            rows.append([p.name, share, *[float("nan")] * 4, str(error)[:40]])
            continue
        one = found.sel(ranking="size")
        ratio = float(one["smallest_share"]) / share
        ratios.append(ratio)
        nulls.append(float(found["null_kept"]))
        ends = [float(one[f"smallest_share_{end}"]) / share for end in ("low", "high")]
        rows.append([p.name, share, ratio, *ends, nulls[-1], ""])
    common.show_table(
        "Planted: smallest share over the circuit's",
        ["instance", "share of the circuit", "ratio", "low", "high", "null keeps", "note"], rows,
    )  # fmt: skip
    return {
        "recovered_share_low": float(np.min(ratios)),
        "recovered_share_high": float(np.max(ratios)),
        "recovered_share_median": float(np.median(ratios)), "null_kept": float(np.max(nulls)),
        "planted": len(ratios), "planted_without_gain": len(rows) - len(ratios),
    }  # fmt: skip


def distance(one: Any, other: Any) -> float:
    """Between the weights of two checkpoints."""
    pairs = zip(one.parameters(), other.parameters(), strict=True)
    return float(sum(((a - b).detach() ** 2).sum() for a, b in pairs) ** 0.5)


def equal_interval(run: ls.Checkpoints, first: int, last: int) -> tuple[int, int]:
    """Checkpoints outside the transition whose weights are most nearly as far apart."""
    wanted = distance(run.load(first), run.load(last))
    outside = [s for s in run.steps if s >= last]
    pairs = [(a, b) for i, a in enumerate(outside) for b in outside[i + 1 :]]
    gaps = {pair: distance(run.load(pair[0]), run.load(pair[1])) for pair in pairs}
    return min(pairs, key=lambda pair: abs(np.log(gaps[pair] / wanted)))


def ranked_heads(
    run: ls.Checkpoints, ends: tuple[int, int], llc: bool, seed: int
) -> dict[str, dict[str, float]]:
    """Scores of heads by name of the ranking."""
    after = run.load(ends[1])
    tokens = repeated_tokens(after.cfg.d_vocab, LENGTH, seed=seed + 1, sequences=SEQUENCES)
    again, cost = slice(LENGTH // 2, None), {}
    for head in head_names(adapt(after)):
        effect = ls.ablate(after, tokens, head)["effect"]
        cost[head] = float(effect.isel(position=again).mean())
    scores = {"heads by ablation": cost}
    if llc:
        text = ls.load_tokens("mix", n_sequences=64, length=LENGTH)
        start, end = (
            ls.refined_llc(
                ls.sample(run.load(step), text, "heads", settings=SETTINGS, progress=False)
            )["llc"]
            for step in ends
        )
        scores["heads by ΔrLLC"] = {head: float((end - start).sel(component=head)) for head in cost}
    return scores


def kept_rows(found: Any, names: dict[str, str]) -> list[list[Any]]:
    """Of the rankings named: smallest share with interval, the most that is kept below all."""
    rows = []
    for ranking, name in names.items():
        one = found.sel(ranking=ranking).dropna("share", subset=["kept"])
        smallest = [float(one[f"smallest_share{end}"]) for end in ("", "_low", "_high")]
        most = float(one["kept"].where(one["share"] < 1).max())
        gain = f"gain {found.attrs['gain']:.2f} ± {found.attrs['gain_se']:.2f}"
        rows.append([name, *smallest, most, gain])
    return rows


def shipped_part(name: str, llc: bool, seed: int) -> dict[str, float]:
    """The induction transition of a shipped run."""
    run, ends = ls.checkpoints(name), TRANSITIONS[name]
    tokens = repeated_tokens(run.load(ends[0]).cfg.d_vocab, LENGTH, seed=seed, sequences=SEQUENCES)
    again = np.zeros((SEQUENCES, tokens.shape[1] - 1), dtype=bool)
    again[:, LENGTH // 2 :] = True

    def located(interval: tuple[int, int], **options: Any) -> Any:
        before, after = (run.load(step) for step in interval)
        return ls.locality(before, after, tokens, again, seed=seed, progress=False, **options)

    plain = {"size": "size", "random": "random", "curvature": "curvature"}
    rows = kept_rows(located(ends, n_directions=DIRECTIONS), plain)
    for words, scores in ranked_heads(run, ends, llc, seed).items():
        rows += kept_rows(located(ends, scores=scores), {"components": words})
    figures = {
        f"{name}_{row[0]}".replace("-", "_").replace(" ", "_"): row[1] for row in rows
        if np.isfinite(row[1])  # reached at all: JSON has no NaN
    }  # fmt: skip
    table = [[f"{ends[0]}–{ends[1]}", *row] for row in rows]
    other = equal_interval(run, *ends)
    label = f"{other[0]}–{other[1]}, as far"
    try:
        table += [[label, *row] for row in kept_rows(located(other), {"size": "size"})]
    except ValueError as error:
        table.append([label, "size", *[float("nan")] * 4, str(error).split(":")[1][:40]])
    common.show_table(
        f"{name}: smallest share of weights that keeps 95 % of the gain",
        ["interval", "ranking", "share", "low", "high", "most kept below all", ""], table,
    )  # fmt: skip
    change = ls.weight_change(run.load(ends[0]), run.load(ends[1]))
    mean = change.mean("matrix").sortby("relative_norm", ascending=False)
    common.show_table(
        f"{name}: what moved in each head (means over its matrices)",
        ["head", "‖ΔW‖ / ‖W‖", "stable rank", "of a random change"],
        [
            [str(h), *(float(mean[k].sel(component=h)) for k in
                       ("relative_norm", "stable_rank", "random_stable_rank"))]
            for h in mean["component"].values[:8]
        ],
    )  # fmt: skip
    return figures


def main() -> None:
    """Command line."""
    made = common.parser(__doc__)
    made.add_argument("--seeds", type=int, default=2, help="planted instances of every family")
    made.add_argument("--llc", action="store_true", help="also rank heads by ΔrLLC (minutes)")
    args: argparse.Namespace = made.parse_args()
    warnings.filterwarnings("ignore")
    common.one_thread()
    figures = planted_part(1 if args.quick else args.seeds, args.seed, args.quick)
    for name in () if args.quick else TRANSITIONS:
        figures |= shipped_part(name, args.llc, args.seed)
    common.finish(args, figures, None if args.quick else TARGETS)


if __name__ == "__main__":
    main()
