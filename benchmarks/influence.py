"""Does Bayesian influence predict retraining, and does its kernel know the domains?

1. *Retraining.* Groups of sequences of several domains are left out or counted twice, at random;
   the shipped model is trained on, on each of these data; the loss of every held-out query is
   correlated (Spearman, over the subsets) with what a method predicts to first order: the *linear
   datamodelling score* (Park et al. 2023, arXiv 2303.14186), the mean over queries. Methods:
   Bayesian influence (``ls.influence`` of the whole model's local posterior), the dot product of
   gradients, and influence functions (captum's, on the leading eigenvectors of the Hessian). The
   ceiling is the score of the same retrainings with another seed.
2. *Kernel.* Sequences are clustered by the correlation of their losses over the posterior, less
   what all share; beside it, by the cosines of their gradients and of their token counts.

With ``--text`` the domains are the folders of text files there, else code, prose and their
repeats.
"""

from __future__ import annotations

import argparse
import tempfile
import time
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from scipy import stats
from sklearn.cluster import SpectralClustering
from sklearn.metrics import adjusted_rand_score
from torch import Tensor

import lens_slt as ls
from benchmarks import common

SETTINGS = ls.Settings(chains=4, draws=150, batch_size=16, thin=2)
OPTIMISATION = ls.Optimisation(learning_rate=3e-4)
LENGTH = 64
DOCUMENT = 20_000  # characters
BOOTSTRAP = 200

Array = NDArray[np.float64]


@dataclass(frozen=True)
class Size:
    """How much of everything."""

    pieces: int = 2  # groups a domain
    sequences: int = 32  # a group
    queries: int = 8  # a domain
    subsets: int = 32
    steps: int = 100
    seeds: tuple[int, ...] = (0, 1)
    projection: int = 50  # eigenvectors of the Hessian
    arnoldi: int = 100


QUICK = Size(sequences=2, queries=2, subsets=4, steps=1, projection=2, arnoldi=4)


@dataclass(frozen=True)
class QueryLosses:
    """Mean loss of every query, of a model; pickles."""

    queries: Tensor

    def __call__(self, model: Any) -> dict[str, float]:
        with torch.no_grad():
            losses = sequence_losses(model(self.queries[:, :-1]), self.queries[:, 1:])
        return {f"query {i}": float(loss) for i, loss in enumerate(losses)}


class Logits(torch.nn.Module):
    """What captum asks for: a module from features to predictions."""

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.model = model

    def forward(self, tokens: Tensor) -> Tensor:
        logits: Tensor = self.model(tokens)
        return logits


def sequence_losses(logits: Tensor, following: Tensor) -> Tensor:
    """Mean loss ``[sequence]``."""
    return F.cross_entropy(logits.transpose(1, 2), following, reduction="none").mean(1)


def domain_texts(folder: Path | None) -> dict[str, Any]:
    """What ``ls.load_tokens`` reads, by domain."""
    if folder is None:
        return {"code": "code", "prose": "prose"}
    return {
        place.name: [part for file in sorted(place.glob("*")) for part in documents(file)]
        for place in sorted(folder.iterdir()) if place.is_dir()
    }  # fmt: skip


def documents(file: Path) -> list[str]:
    """A text in parts, of each of which few sequences are taken."""
    text = file.read_text("utf-8", errors="ignore")
    return [text[start : start + DOCUMENT] for start in range(0, len(text), DOCUMENT)]


def said_twice(tokens: Tensor) -> Tensor:
    """Rows whose second half is their first half again."""
    half = (tokens.shape[1] - 1) // 2
    twice = torch.cat([tokens[:, : half + 1], tokens[:, 1:]], 1)
    return twice[:, : tokens.shape[1]]


def data(
    folder: Path | None, size: Size, seed: int
) -> tuple[Tensor, NDArray[np.int_], NDArray[np.int_], Tensor, list[str]]:
    """Candidates, their group and domain, held-out queries, and names of the domains."""
    per_domain = size.pieces * size.sequences
    rows, queries, names = [], [], []
    for name, source in domain_texts(folder).items():
        tokens = ls.load_tokens(
            source, n_sequences=per_domain + size.queries, length=LENGTH, seed=seed
        )
        kinds = {name: tokens} if folder else {name: tokens, f"{name} twice": said_twice(tokens)}
        for kind, these in kinds.items():
            rows.append(these[:per_domain])
            queries.append(these[per_domain:])
            names.append(kind)
    group = np.repeat(np.arange(len(names) * size.pieces), size.sequences)
    return torch.cat(rows), group, group // size.pieces, torch.cat(queries), names


def gradients(model: Any, tokens: Tensor) -> Tensor:
    """Gradient of every sequence's mean loss, ``[sequence, weight]``."""
    parameters = [p for p in model.parameters() if p.requires_grad]
    rows = []
    for row in tokens:
        loss = sequence_losses(model(row[None, :-1]), row[None, 1:]).sum()
        found = torch.autograd.grad(loss, parameters, allow_unused=True)
        rows.append(torch.cat([g.flatten() for g in found if g is not None]))
    return torch.stack(rows)


def influence_functions(model: Any, train: Tensor, queries: Tensor, size: Size, seed: int) -> Array:
    """Change of each query's loss per weight of each sequence, up to a scale; of captum."""
    from captum.influence._core.arnoldi_influence_function import ArnoldiInfluenceFunction
    from torch.utils.data import TensorDataset

    found = ArnoldiInfluenceFunction(
        Logits(model), TensorDataset(train[:, :-1], train[:, 1:]), checkpoint="",
        checkpoints_load_func=lambda module, path: 1.0, loss_fn=sequence_losses, batch_size=32,
        projection_dim=size.projection, arnoldi_dim=size.arnoldi, seed=seed,
    )  # fmt: skip
    helps = found.influence((queries[:, :-1], queries[:, 1:]))  # of lower loss: the other sign
    return -np.asarray(helps.detach(), dtype=np.float64)


def score(predicted: Array, realised: Array) -> tuple[float, float, float]:
    """Linear datamodelling score of values ``[subset, query]``, with its interval over subsets."""

    def mean(rows: NDArray[np.int_]) -> float:
        each = [
            float(stats.spearmanr(predicted[rows, q], realised[rows, q]).statistic)
            for q in range(predicted.shape[1])
        ]
        return float(np.nanmean(each))

    n = len(predicted)
    generator = np.random.default_rng(0)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # constant values of a resample have no rank correlation
        resampled = [mean(generator.integers(n, size=n)) for _ in range(BOOTSTRAP)]
        whole = mean(np.arange(n))
    low, high = np.nanquantile(resampled, [0.025, 0.975])
    return whole, float(low), float(high)


def clustered(similarity: Array, n: int, seed: int) -> NDArray[np.int_]:
    """Spectral clusters of a matrix of similarities; negative ones count as none."""
    kernel = np.maximum(similarity, 0)
    made = SpectralClustering(n, affinity="precomputed", random_state=seed)
    return np.asarray(made.fit_predict(kernel))


def as_correlations(covariance: Array) -> Array:
    """Of what is left when the mean over all sequences is taken off each."""
    apart = covariance - covariance.mean(0) - covariance.mean(1)[:, None] + covariance.mean()
    scale = np.sqrt(np.maximum(np.diag(apart), 1e-300))
    return np.asarray(apart / np.outer(scale, scale))


def main() -> None:
    """Command line."""
    made = common.parser(__doc__)
    made.add_argument("--text", type=Path, help="folder of folders of text files, the domains")
    made.add_argument("--cache", type=Path, help="folder for draws and retrainings")
    made.add_argument("--parallel", type=int, help="processes for the retrainings")
    args: argparse.Namespace = made.parse_args()
    warnings.filterwarnings("ignore")
    if not args.parallel:
        common.one_thread()
    began = time.perf_counter()
    size = QUICK if args.quick else Size()
    model = ls.load_model("attn-2l")
    candidates, group, domain, queries, names = data(args.text, size, args.seed)
    generator = np.random.default_rng([args.seed, 1])
    weights = subsets(size.subsets, int(group.max()) + 1, generator)[:, group]
    with tempfile.TemporaryDirectory() as scratch:
        cache = (args.cache or Path(scratch)) / f"seed-{args.seed}"
        settings = SETTINGS.but(seed=args.seed)
        draws = ls.sample(
            model, candidates, "full", path=cache / "draws", progress=False,
            settings=common.toy(settings) if args.quick else settings,
            probes={"candidates": candidates, "queries": queries},
        )  # fmt: skip
        common.say(f"posterior: {draws['health']['certificate'].values[0]}")
        found = ls.retrainings(
            model, candidates, {f"subset {i}": row for i, row in enumerate(weights)},
            QueryLosses(queries), steps=size.steps, path=cache / "retrainings", seeds=size.seeds,
            save_at=[size.steps], optimisation=OPTIMISATION, parallel=args.parallel,
            progress=False,
        )  # fmt: skip
        bayesian = ls.influence(draws, query="queries", source="candidates")["influence"].values
        kernel = -ls.influence(draws, query="candidates")["influence"].values
    slope, asked = gradients(model, candidates), gradients(model, queries)
    per_weight = {
        "Bayesian influence": bayesian,
        "gradient dot product": -(asked @ slope.T).numpy().astype(np.float64),
        "influence functions": influence_functions(model, candidates, queries, size, args.seed),
    }
    figures = retraining_figures(found, weights, per_weight)
    figures |= kernel_figures(kernel, slope, candidates, domain, names, args.seed)
    figures["seconds"] = time.perf_counter() - began
    common.finish(args, figures)


def subsets(n: int, groups: int, generator: np.random.Generator) -> Array:
    """Weights ``[subset, group]``: half of the groups are left out, half count twice."""
    each = np.where(np.arange(groups) < groups // 2, 0.0, 2.0)
    return np.stack([generator.permutation(each) for _ in range(n)])


def retraining_figures(found: Any, weights: Array, per_weight: dict[str, Array]) -> dict[str, Any]:
    """Scores of the methods, with a table."""
    ends = found["value"].isel(checkpoint=-1).transpose("seed", "run", "observable").values
    change = weights / weights.mean(1, keepdims=True) - 1
    keys = ("lds", "lds_gradient", "lds_influence_function")
    scores = {
        name: score(change @ values.T, ends.mean(0)) for name, values in per_weight.items()
    }  # fmt: skip
    figures: dict[str, Any] = {}
    for key, (value, low, high) in zip(keys, scores.values(), strict=True):
        figures |= {key: value, f"{key}_low": low, f"{key}_high": high}
    scores["another seed (of one)"] = score(ends[0], ends[-1])
    figures["lds_ceiling"] = scores["another seed (of one)"][0]
    common.show_table(
        f"Linear datamodelling score: {ends.shape[1]} subsets, {ends.shape[2]} queries",
        ["prediction", "score", "95 % over subsets"],
        [[name, s[0], f"{s[1]:.3f} to {s[2]:.3f}"] for name, s in scores.items()],
    )
    return figures


def kernel_figures(
    kernel: Array, slope: Tensor, tokens: Tensor, domain: NDArray[np.int_], names: Sequence[str],
    seed: int,
) -> dict[str, Any]:  # fmt: skip
    """Agreement of clusters with domains, and with code against the rest, with a table."""
    counts = F.one_hot(tokens).sum(1).double()
    counts /= counts.norm(dim=1, keepdim=True)
    kernels = {
        "correlation of losses": as_correlations(kernel),
        "cosine of gradients": as_correlations((slope @ slope.T).numpy().astype(np.float64)),
        "cosine of token counts": as_correlations((counts @ counts.T).numpy()),
    }  # fmt: skip
    is_code = np.array(["code" in name for name in names])[domain]
    rows, figures = [], {}
    keys = ("domain_ari", "domain_ari_gradient", "domain_ari_tokens")
    for key, (name, matrix) in zip(keys, kernels.items(), strict=True):
        by_domain = adjusted_rand_score(domain, clustered(matrix, len(names), seed))
        by_code = adjusted_rand_score(is_code, clustered(matrix, 2, seed))
        rows.append([name, by_domain, by_code])
        figures |= {key: by_domain, key.replace("domain", "code"): by_code}
    common.show_table(
        f"Clusters of {len(tokens)} sequences against {len(names)} domains ({', '.join(names)})",
        ["kernel", "ARI, domains", "ARI, code and the rest"], rows,
    )  # fmt: skip
    return figures


if __name__ == "__main__":
    main()
