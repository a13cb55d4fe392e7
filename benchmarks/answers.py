"""Do the draws of an answer rank heads as ablating them does?

Two transformers of two layers with six heads each, trained here within a minute or two:

- *addition*: a, b, = and (a + b) mod 23; the wrong answers are the 22 other numbers;
- *names*: A and B, a word, A again, two words, and then B (indirect objects, Wang et al. 2023,
  2211.00593, in a vocabulary of 22 tokens); the wrong answer is A.

The loss counts at the answer alone (position weights). For every head: the refined LLC with its
certificate, the refined observable (:func:`lens_slt.refined_observable`) of the logit of the right
answer less that of the wrong, and what mean ablation of the head, position by position, takes away
from the same difference on the same prompts. Figures, for each model:

- *certified_share* of the heads;
- *rank_correlation_observable*, *rank_correlation_llc*: Spearman's, over the heads, of the fall of
  the observable under the local posterior, and of the refined LLC, with its fall under ablation;
  *p_…* is the chance of so large a correlation (two-sided) between unrelated rankings.
"""

from __future__ import annotations

import hashlib
import json
import time
import warnings
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from scipy.stats import spearmanr
from torch import Generator, Tensor

import lens_slt as ls
from benchmarks import common
from benchmarks.common import Target
from benchmarks.zoo.models import Shape, load_weights, new_model, weights_of
from benchmarks.zoo.tasks import BOS, Task
from benchmarks.zoo.train import Training, train

MODELS = ("addition", "names")
TARGETS = {
    f"{figure}_{model}": Target(least=least)
    for model in MODELS
    for figure, least in (("certified_share", 1.0), ("rank_correlation_observable", 0.6))
}
MODULUS = 23
N_NAMES, N_WORDS = 12, 8
N_PROMPTS = 128
RECIPE = 1  # changes when kept weights may no longer be used


@dataclass(frozen=True)
class Case:
    """A task, how its model is built and trained, and which answers are wrong."""

    task: Task
    shape: Shape
    training: Training

    def wrong(self, tokens: Tensor) -> Tensor:
        """Ids ``[sequence, answer]`` of the wrong answers."""
        if self.task.name == "names":
            return tokens[:, 5:6]
        numbers = torch.arange(1, MODULUS + 1).expand(len(tokens), -1)
        return numbers[numbers != tokens[:, -1:]].view(len(tokens), -1)


def addition_case(quick: bool) -> Case:
    """Modular addition: every pair of numbers is seen in training."""

    def draw(n: int, generator: Generator) -> Tensor:
        a, b = torch.randint(0, MODULUS, (2, n), generator=generator)
        columns = [
            torch.full_like(a, BOS), a + 1, b + 1, torch.full_like(a, MODULUS + 1),
            (a + b) % MODULUS + 1,
        ]  # fmt: skip
        return torch.stack(columns, dim=1)

    task = Task("addition", MODULUS + 2, 5, draw, (0.0, 0.0, 0.0, 1.0))
    return Case(task, _shape(task, d_mlp=128), Training(20 if quick else 2500, 2e-3, 0.1))


def names_case(quick: bool) -> Case:
    """Two names, one of them again: the other one is the answer."""
    first_word = 1 + N_NAMES

    def draw(n: int, generator: Generator) -> Tensor:
        names = torch.rand(n, N_NAMES, generator=generator).argsort(1)[:, :2] + 1
        again = torch.randint(0, 2, (n,), generator=generator)
        words = torch.randint(0, N_WORDS, (3, n), generator=generator) + first_word
        rows = torch.arange(n)
        columns = [
            torch.full_like(again, BOS), names[:, 0], torch.full_like(again, first_word + N_WORDS),
            names[:, 1], words[0], names[rows, again], words[1], words[2],
            names[rows, 1 - again],
        ]  # fmt: skip
        return torch.stack(columns, dim=1)

    task = Task("names", first_word + N_WORDS + 1, 9, draw, (0.0,) * 7 + (1.0,))
    return Case(task, _shape(task, d_mlp=0), Training(20 if quick else 2000, 2e-3, 0.01))


def _shape(task: Task, d_mlp: int) -> Shape:
    return Shape(
        n_layers=2, n_heads=6, d_model=48, d_head=8, d_mlp=d_mlp, norm="LN", positions="standard",
        d_vocab=task.d_vocab, n_ctx=task.length,
    )  # fmt: skip


def trained(case: Case, seed: int, cache: Path | None) -> Any:
    """The model of a seed, from the cache folder where it is known."""
    model = new_model(case.shape, Generator().manual_seed(seed))
    recipe = json.dumps([RECIPE, case.task.name, asdict(case.shape), asdict(case.training), seed])
    key = hashlib.sha256(recipe.encode()).hexdigest()[:32]
    file = None if cache is None else cache / "answers" / f"{key}.safetensors"
    if file is not None and file.exists():
        load_weights(model, load_file(file))
        return model
    train(model, case.task, case.training, torch.tensor(case.task.answer), seed + 1)
    if file is not None:
        file.parent.mkdir(parents=True, exist_ok=True)
        save_file(weights_of(model), file)
    return model


@dataclass(frozen=True)
class Heads:
    """What is known of every head; the observable and its falls in logits."""

    name: list[str]
    llc: np.ndarray
    llc_se: np.ndarray
    certificate: list[str]
    fall: np.ndarray  # of the observable under the local posterior
    fall_se: np.ndarray
    ablated: np.ndarray  # its fall under ablation


def measured(model: Any, case: Case, tokens: Tensor, settings: ls.Settings) -> Heads:
    """Draws of every head, and every head's ablation."""
    answer = torch.tensor(case.task.answer)
    difference = ls.LogitDifference(wrong=case.wrong(tokens))
    probe = ls.Probe(tokens, weights=answer, observables=difference)
    draws = ls.sample(
        model, tokens, "heads", settings=settings, weights=answer, probes={"answers": probe},
        progress=False,
    )  # fmt: skip
    llc, refined = ls.refined_llc(draws), ls.refined_observable(draws)
    names = [str(name) for name in llc["component"].values]
    shift = refined.sel(observable=difference.name)
    ablated = [
        -float(
            ls.ablate(
                model, tokens, name, how="mean_position", metric=difference, weights=answer
            )["effect"].mean()
        )
        for name in names
    ]  # fmt: skip
    return Heads(
        names, llc["llc"].values, llc["se"].values, [str(c) for c in llc["certificate"].values],
        -shift["shift"].values, shift["se"].values, np.array(ablated),
    )  # fmt: skip


def accuracy(model: Any, tokens: Tensor) -> float:
    """Share of answers that are the likeliest token."""
    with torch.no_grad():
        likeliest = model(tokens[:, :-1], return_type="logits")[:, -1].argmax(-1)
    return float((likeliest == tokens[:, -1]).float().mean())


def figures_of(name: str, heads: Heads) -> dict[str, float]:
    """The figures of one model; see the top of the file."""
    certified = [one == "certified" for one in heads.certificate]
    figures = {f"certified_share_{name}": float(np.mean(certified))}
    for what, values in (("observable", heads.fall), ("llc", heads.llc)):
        found = spearmanr(values, heads.ablated)
        figures[f"rank_correlation_{what}_{name}"] = float(found.statistic)
        figures[f"p_{what}_{name}"] = float(found.pvalue)
    return figures


def show(name: str, share_right: float, heads: Heads, seconds: float) -> None:
    """The heads of one model, the most important under ablation first."""
    rows = [
        [
            heads.name[i], heads.ablated[i],
            str(common.WithError(heads.fall[i], heads.fall_se[i])),
            str(common.WithError(heads.llc[i], heads.llc_se[i])), heads.certificate[i],
        ]
        for i in np.argsort(-heads.ablated)
    ]  # fmt: skip
    common.show_table(
        f"{name}: {100 * share_right:.0f} % of the answers right; {seconds:.0f} s of CPU time",
        ["head", "fall if ablated", "fall under the posterior", "λ̂", "certificate"],
        rows,
    )


def main() -> None:
    """Command line."""
    made = common.parser(__doc__)
    made.add_argument("--cache", type=Path, help="folder for trained models")
    args = made.parse_args()
    common.one_thread()
    warnings.filterwarnings("ignore")
    figures: dict[str, float] = {}
    for case in (addition_case(args.quick), names_case(args.quick)):
        began = time.process_time()
        model = trained(case, args.seed, args.cache)
        common.say(f"{case.task.name}: trained in {time.process_time() - began:.0f} s of CPU time")
        n = 16 if args.quick else N_PROMPTS
        tokens = case.task.draw(n, Generator().manual_seed(args.seed + 2))
        settings = ls.Settings(seed=args.seed)
        settings = settings.but(draws=8, burn_in=4, batch_size=8) if args.quick else settings
        heads = measured(model, case, tokens, settings)
        spent = time.process_time() - began
        show(case.task.name, accuracy(model, tokens), heads, spent)
        figures |= figures_of(case.task.name, heads)
    common.finish(args, figures, None if args.quick else TARGETS)


if __name__ == "__main__":
    main()
