"""Does the structure read from draws agree with what interventions say about induction?

Three seeds of the shipped two-layer model, all 16 heads. Truth comes from mean ablation alone: an
induction head is one whose ablation raises the loss of induction tokens (the bigram occurred
earlier in the context) at least 0.2 nats more than that of the other tokens. For the two-posterior
susceptibility and the per-token rLLC, on standardised columns with and without whitening of the
sampling noise, and for the nβ = 0 control:

- ``induction_mode_auc``: of the first three modes, the one whose scores tell induction tokens from
  the others best (AUC, either side);
- ``head_auc``: how well that mode's loadings tell induction heads from the others. A head expresses
  what its rLLC is high on, or its susceptibility low; heads are ranked from expression to
  suppression of the mode's induction side.

What limits the first figure is shown beside it: the AUC of a linear discriminant that is told the
labels (of all 16 columns, cross-validated over sequences), and that of the same mode where tokens
that their two predecessors predict (pattern ngram) are left out.

Settings of the demonstration, with a probe of 32 sequences.
"""

from __future__ import annotations

import argparse
import warnings
from dataclasses import dataclass
from typing import Any

import numpy as np
import xarray as xr
from sklearn.discriminant_analysis import LinearDiscriminantAnalysis
from sklearn.metrics import roc_auc_score
from sklearn.model_selection import GroupKFold, cross_val_predict
from torch import Tensor

import lens_slt as ls
from benchmarks import common
from benchmarks.common import Target
from lens_slt.demo import demo_settings
from lens_slt.structure.standardize import standardized

MODELS = ("attn-2l", "attn-2l-seed1", "attn-2l-seed2")
TARGETS = {"induction_mode_auc": Target(least=0.8), "head_auc": Target(least=0.95)}
MARGIN = 0.2  # nats
N_MODES = 3
KINDS = (("chi", ""), ("chi", "_whitened"), ("llc", ""), ("llc", "_whitened"))


@dataclass(frozen=True)
class Recovered:
    """One matrix of one model: the mode that knows induction."""

    mode: int
    auc: float
    auc_without_ngram: float
    discriminant_auc: float
    head_auc: float
    score: np.ndarray  # [token], high on induction tokens
    expression: xr.DataArray  # [component], loading with the sign of expression
    explained: float
    split_half: float


def ablation_effects(model: Any, tokens: Tensor, induction: np.ndarray) -> dict[str, float]:
    """Nats by which mean ablation hurts induction tokens more than the others, per head."""
    effects = {}
    for layer in range(model.cfg.n_layers):
        for head in range(model.cfg.n_heads):
            rise = ls.ablate(model, tokens, f"L{layer}H{head}")["effect"].values
            effects[f"L{layer}H{head}"] = float(rise[induction].mean() - rise[~induction].mean())
    return effects


def recovered(
    matrix: xr.Dataset, patterns: xr.DataArray, heads: list[str], whiten: bool
) -> Recovered:
    """The mode among the first three that tells induction tokens best."""
    found = ls.modes(matrix, n_modes=N_MODES, n_bootstrap=0, whiten=whiten)
    where = found["sequence"].values, found["position"].values
    labels, ngram = (patterns.sel(pattern=name).values[where] for name in ("induction", "ngram"))
    aucs = [roc_auc_score(labels, score) for score in found["score"].values]
    best = int(np.argmax([max(auc, 1 - auc) for auc in aucs]))
    sign = 1.0 if aucs[best] > 0.5 else -1.0
    score, loading = sign * found["score"].values[best], sign * found["loading"][best]
    expression = loading if matrix.attrs["quantity"] == "llc" else -loading
    told = cross_val_predict(
        LinearDiscriminantAnalysis(), standardized(matrix), labels, groups=where[0],
        cv=GroupKFold(4), method="decision_function",
    )  # fmt: skip
    return Recovered(
        best + 1, max(aucs[best], 1 - aucs[best]), roc_auc_score(labels[~ngram], score[~ngram]),
        roc_auc_score(labels, told),
        roc_auc_score(np.isin(loading["component"].values, heads), expression),
        score, expression, float(found["explained"][best]), float(matrix["split_half"].median()),
    )  # fmt: skip


def matrices(
    model: Any, probe: Tensor, n_beta: float, args: argparse.Namespace
) -> dict[str, xr.Dataset]:
    """χ and per-token rLLC of all heads."""
    sequences, length = (16, 32) if args.quick else (512, 128)
    settings = demo_settings(draws=160, seed=args.seed).but(n_beta=n_beta)
    settings = common.toy(settings) if args.quick else settings
    draws = ls.sample(
        model, ls.load_tokens("mix", n_sequences=sequences, length=length), ["heads", "full"],
        settings=settings, probes={"mix": probe}, progress=False,
    )  # fmt: skip
    return {
        "chi": ls.susceptibility(draws),
        "llc": ls.per_token_llc(draws).drop_sel(component="full"),
    }


def one_model(
    name: str, probe: Tensor, patterns: xr.DataArray, args: argparse.Namespace
) -> dict[str, Recovered]:
    """Everything about one seed, with its table."""
    model = ls.load_model(name)
    induction = patterns.sel(pattern="induction").values
    effects = ablation_effects(model, probe, induction)
    heads = [head for head, effect in effects.items() if effect >= MARGIN]
    if args.quick:
        heads = heads or ["L1H2"]
    found = {}
    for n_beta in (30.0, 0.0):
        by_kind = matrices(model, probe, n_beta, args)
        for kind, tail in KINDS:
            matrix = by_kind[kind]
            key = f"{kind}{tail}" + ("" if n_beta else "_control")
            found[key] = recovered(matrix, patterns, heads, bool(tail))
    columns = ["head", "ablation", *(key.replace("_", " ") for key in found)]
    rows: list[list[Any]] = [
        [head, effect, *(float(r.expression.sel(component=head)) for r in found.values())]
        for head, effect in sorted(effects.items(), key=lambda item: -item[1])
    ]
    for label, attribute in (
        ("mode", "mode"), ("its share of variance", "explained"), ("AUC over tokens", "auc"),
        ("  without ngram tokens", "auc_without_ngram"),
        ("  of a discriminant", "discriminant_auc"), ("AUC over heads", "head_auc"),
        ("median split-half", "split_half"),
    ):  # fmt: skip
        rows.append([label, "", *(getattr(r, attribute) for r in found.values())])
    common.show_table(
        f"{name}: expression of the induction mode; ablation: nats, induction tokens − others; "
        f"induction heads: {', '.join(heads)}; {100 * induction.mean():.0f} % of {induction.size} "
        "tokens are induction tokens",
        columns, rows,
    )  # fmt: skip
    return found


def main() -> None:
    """Command line."""
    made = common.parser(__doc__)
    made.add_argument("--models", nargs="+", default=MODELS, choices=MODELS)
    args = made.parse_args()
    warnings.filterwarnings("ignore")
    few, many, length = (8, 100, 48) if args.quick else (32, 4000, 128)
    probe = ls.load_tokens("mix", n_sequences=few, length=length, seed=1)
    counts = ls.ngram_counts(ls.load_tokens("mix", n_sequences=many, length=length, seed=2))
    patterns = ls.label_patterns(probe, counts=counts)
    by_model = {name: one_model(name, probe, patterns, args) for name in args.models}
    figures: dict[str, Any] = {}
    keys = list(next(iter(by_model.values())))
    for key in keys:
        runs = [found[key] for found in by_model.values()]
        figures[f"induction_mode_auc_{key}"] = min(run.auc for run in runs)
        figures[f"head_auc_{key}"] = min(run.head_auc for run in runs)
        cosines = [
            np.corrcoef(a.score, b.score)[0, 1] for i, a in enumerate(runs) for b in runs[i + 1 :]
        ]
        if cosines:
            angle = np.degrees(np.arccos(np.clip(np.min(cosines), -1, 1)))
            figures[f"largest_angle_between_seeds_{key}"] = float(angle)
    better = max(
        (key for key in keys if "control" not in key),
        key=lambda key: sum(figures[f"{name}_{key}"] for name in TARGETS),
    )
    runs = [found[better] for found in by_model.values()]
    figures |= {name: figures[f"{name}_{better}"] for name in TARGETS}
    figures["induction_mode_auc_without_ngram"] = min(run.auc_without_ngram for run in runs)
    figures["discriminant_auc"] = min(run.discriminant_auc for run in runs)
    figures["better"] = better
    common.finish(args, figures, None if args.quick else TARGETS)


if __name__ == "__main__":
    main()
