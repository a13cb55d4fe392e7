"""Does the structure read from draws agree with what interventions say about induction?

Three seeds of the shipped two-layer model, all 16 heads. Truth comes from mean ablation alone: an
induction head is one whose ablation raises the loss of induction tokens (the bigram occurred
earlier in the context) at least 0.2 nats more than that of the other tokens. For the two-posterior
susceptibility and the per-token rLLC, each on standardised columns, and for the nβ = 0 control:

- ``induction_mode_auc``: of the first three modes, the one whose scores tell induction tokens from
  the others best (AUC, either side);
- ``head_auc``: how well the size of that mode's loadings tells induction heads from the others.

Settings of the demonstration, but a probe of 64 sequences.
"""

from __future__ import annotations

import argparse
import warnings
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import xarray as xr
from sklearn.metrics import roc_auc_score
from torch import Tensor

import lens_slt as ls
from benchmarks import common
from benchmarks.common import Target
from lens_slt.demo import demo_settings

MODELS = ("attn-2l", "attn-2l-seed1", "attn-2l-seed2")
TARGETS = {"induction_mode_auc": Target(least=0.8), "head_auc": Target(least=0.95)}
MARGIN = 0.2  # nats
N_MODES = 3
MATRICES = ("chi", "llc")


@dataclass(frozen=True)
class Recovered:
    """One matrix of one model: the mode that knows induction."""

    mode: int
    auc: float
    head_auc: float
    score: np.ndarray  # [token]
    loading: xr.DataArray  # [component]
    explained: float
    split_half: float


def per_token_loss(model: Any, tokens: Tensor, hooks: list[Any]) -> np.ndarray:
    """Loss of every predicted token ``[sequence, position]`` with hooks in place."""
    with torch.no_grad():
        logits = model.run_with_hooks(tokens[:, :-1], fwd_hooks=hooks)
        return -logits.log_softmax(-1).gather(-1, tokens[:, 1:, None])[..., 0].numpy()


def ablation_effects(model: Any, tokens: Tensor, induction: np.ndarray) -> dict[str, float]:
    """Nats by which mean ablation hurts induction tokens more than the others, per head."""
    base = per_token_loss(model, tokens, [])
    effects = {}
    for layer in range(model.cfg.n_layers):
        for head in range(model.cfg.n_heads):

            def to_its_mean(z: Tensor, hook: Any, head: int = head) -> Tensor:
                z = z.clone()
                z[:, :, head] = z[:, :, head].mean((0, 1))
                return z

            rise = per_token_loss(model, tokens, [(f"blocks.{layer}.attn.hook_z", to_its_mean)])
            rise = rise - base
            effects[f"L{layer}H{head}"] = float(rise[induction].mean() - rise[~induction].mean())
    return effects


def recovered(matrix: xr.Dataset, induction: np.ndarray, heads: list[str]) -> Recovered:
    """The mode among the first three that tells induction tokens best."""
    found = ls.modes(matrix, n_modes=N_MODES, n_bootstrap=0)
    labels = induction[found["sequence"].values, found["position"].values]
    aucs = [roc_auc_score(labels, score) for score in found["score"].values]
    best = int(np.argmax([max(auc, 1 - auc) for auc in aucs]))
    sign = 1.0 if aucs[best] > 0.5 else -1.0
    loading = sign * found["loading"][best]
    truth = np.isin(loading["component"].values, heads)
    return Recovered(
        best + 1, max(aucs[best], 1 - aucs[best]), roc_auc_score(truth, np.abs(loading)),
        sign * found["score"].values[best], loading, float(found["explained"][best]),
        float(matrix["split_half"].median()),
    )  # fmt: skip


def matrices(
    model: Any, probe: Tensor, n_beta: float, args: argparse.Namespace
) -> dict[str, xr.Dataset]:
    """χ and per-token rLLC of all heads."""
    sequences, length = (16, 32) if args.quick else (512, 128)
    settings = demo_settings(8 if args.quick else 160, args.seed).but(n_beta=n_beta)
    draws = ls.sample(
        model, ls.load_tokens("mix", n_sequences=sequences, length=length), ["heads", "full"],
        settings=settings, probes={"mix": probe}, progress=False,
    )  # fmt: skip
    options = {"keep_blocks": False}
    return {
        "chi": ls.susceptibility(draws, **options),
        "llc": ls.per_token_llc(draws, **options).drop_sel(component="full"),
    }


def one_model(
    name: str, probe: Tensor, args: argparse.Namespace
) -> tuple[dict[tuple[str, float], Recovered], list[str]]:
    """Everything about one seed, with its table."""
    model = ls.load_model(name)
    induction = ls.label_patterns(probe).sel(pattern="induction").values
    effects = ablation_effects(model, probe, induction)
    heads = [head for head, effect in effects.items() if effect >= MARGIN]
    if args.quick:
        heads = heads or ["L1H2"]
    found = {
        (kind, n_beta): recovered(matrix, induction, heads)
        for n_beta in (30.0, 0.0)
        for kind, matrix in matrices(model, probe, n_beta, args).items()
    }
    columns = ["head", "ablation: induction − others"]
    columns += [f"{kind}, nβ {n_beta:g}" for kind, n_beta in found]
    rows: list[list[Any]] = [
        [head, effect, *(float(r.loading.sel(component=head)) for r in found.values())]
        for head, effect in sorted(effects.items(), key=lambda item: -item[1])
    ]
    for label, attribute in (
        ("mode", "mode"), ("its share of variance", "explained"), ("AUC over tokens", "auc"),
        ("AUC over heads", "head_auc"), ("median split-half", "split_half"),
    ):  # fmt: skip
        rows.append([label, "", *(getattr(r, attribute) for r in found.values())])
    share = 100 * induction.mean()
    common.show_table(
        f"{name}: loadings of the induction mode; induction heads: {', '.join(heads)}; "
        f"{share:.0f} % of {induction.size} tokens are induction tokens",
        columns, rows,
    )  # fmt: skip
    return found, heads


def main() -> None:
    """Command line."""
    made = common.parser(__doc__)
    made.add_argument("--models", nargs="+", default=MODELS, choices=MODELS)
    args = made.parse_args()
    warnings.filterwarnings("ignore")
    probe = ls.load_tokens("mix", n_sequences=8 if args.quick else 64, length=128, seed=1)
    by_model = {name: one_model(name, probe, args)[0] for name in args.models}
    figures: dict[str, Any] = {}
    for kind in MATRICES:
        for n_beta in (30.0, 0.0):
            tail = f"_{kind}" + ("" if n_beta else "_control")
            runs = [found[kind, n_beta] for found in by_model.values()]
            figures[f"induction_mode_auc{tail}"] = min(run.auc for run in runs)
            figures[f"head_auc{tail}"] = min(run.head_auc for run in runs)
            scores = [run.score for run in runs]
            cosines = [
                np.corrcoef(a, b)[0, 1] for i, a in enumerate(scores) for b in scores[i + 1 :]
            ]
            if cosines:
                angle = np.degrees(np.arccos(np.clip(np.min(cosines), -1, 1)))
                figures[f"largest_angle_between_seeds{tail}"] = float(angle)
    better = max(MATRICES, key=lambda kind: sum(figures[f"{name}_{kind}"] for name in TARGETS))
    figures |= {name: figures[f"{name}_{better}"] for name in TARGETS} | {"better": better}
    common.finish(args, figures, None if args.quick else TARGETS)


if __name__ == "__main__":
    main()
