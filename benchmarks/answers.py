"""Do the draws of an answer rank heads as ablating them does?

Two transformers of two layers with six heads each, trained here within a minute or two:

- *addition*: a, b, = and (a + b) mod 23; the wrong answers are the 22 other numbers;
- *names*: A and B, a word, A again, two words, and then B (indirect objects, Wang et al. 2023,
  2211.00593, in a vocabulary of 22 tokens); the wrong answer is A.

One answer in ten is random, so that the loss does not vanish at the trained weights, as that of
text does not. Where the loss is saturated, λ̂ is next to nothing (1e-4) and from rare draws alone.
The loss counts at the answer alone (position weights). For every head: the refined LLC with its
certificate, the refined observable (:func:`lens_slt.refined_observable`) of the logit of the right
answer less that of the wrong, and what mean ablation of the head, position by position, takes away
from the same difference on the same prompts. Figures, for each model:

- *certified_share* of the heads;
- *rank_correlation_observable*, *rank_correlation_llc*: Spearman's, over the heads, of the fall of
  the observable under the local posterior, and of the refined LLC, with its fall under ablation;
  *p_…* is the chance of so large a correlation (two-sided) between unrelated rankings;
- *within_layers_…*: the mean over the layers of the correlation among the heads of one layer.
  Weights that move also disturb what later layers read, whatever the head has learned; ablation
  does not. So ranks across layers are another question than ranks within one.
"""

from __future__ import annotations

import hashlib
import json
import time
import warnings
from dataclasses import asdict, dataclass, replace
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
N_PROMPTS = 64
NOISE = 0.1  # share of random answers
ROUNDS = 5  # of training
RECIPE = 3  # changes when kept weights may no longer be used


@dataclass(frozen=True)
class Case:
    """A task, how its model is built and trained, and which answers are right and wrong."""

    task: Task  # without random answers
    n_answers: int  # ids from 1
    d_mlp: int
    training: Training

    @property
    def shape(self) -> Shape:
        return Shape(
            n_layers=2, n_heads=6, d_model=48, d_head=8, d_mlp=self.d_mlp, norm="LN",
            positions="standard", d_vocab=self.task.d_vocab, n_ctx=self.task.length,
        )  # fmt: skip

    @property
    def noisy(self) -> Task:
        """The task that the model is trained on."""

        def draw(n: int, generator: Generator) -> Tensor:
            tokens = self.task.draw(n, generator)
            random = torch.rand(n, 1, generator=generator) < NOISE
            return torch.where(random, self.guessed(tokens, generator), tokens)

        return replace(self.task, draw=draw)

    def guessed(self, tokens: Tensor, generator: Generator) -> Tensor:
        """The same prompts with random answers."""
        answers = torch.randint(1, self.n_answers + 1, (len(tokens), 1), generator=generator)
        return torch.cat([tokens[:, :-1], answers], dim=1)

    def difference(self, tokens: Tensor) -> ls.LogitDifference:
        """Right less wrong answers of prompts without random ones."""
        if self.task.name == "names":
            return ls.LogitDifference(wrong=tokens[:, 5])
        numbers = torch.arange(1, self.n_answers + 1).expand(len(tokens), -1)
        return ls.LogitDifference(wrong=numbers[numbers != tokens[:, -1:]].view(len(tokens), -1))


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
    return Case(task, MODULUS, 128, Training(5 if quick else 500, 2e-3, 0.1))


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
    return Case(task, N_NAMES, 0, Training(5 if quick else 400, 2e-3, 0.01))


def trained(case: Case, seed: int, cache: Path | None) -> Any:
    """The model of a seed, from the cache folder where it is known."""
    model = new_model(case.shape, Generator().manual_seed(seed))
    recipe = json.dumps(
        [RECIPE, ROUNDS, case.task.name, NOISE, asdict(case.shape), asdict(case.training), seed]
    )
    key = hashlib.sha256(recipe.encode()).hexdigest()[:32]
    file = None if cache is None else cache / "answers" / f"{key}.safetensors"
    if file is not None and file.exists():
        load_weights(model, load_file(file))
        return model
    for i in range(ROUNDS):  # each on other sequences: random answers are not to be memorised
        train(model, case.noisy, case.training, torch.tensor(case.task.answer), seed + 1 + i)
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


def measured(model: Any, case: Case, settings: ls.Settings, n_prompts: int) -> Heads:
    """Draws of every head, and every head's ablation."""
    generator = Generator().manual_seed(settings.seed + 2)
    tokens = case.task.draw(n_prompts, generator)
    answer = torch.tensor(case.task.answer).expand(n_prompts, -1)
    difference = case.difference(tokens)
    draws = ls.sample(
        model, torch.cat([tokens, case.guessed(tokens, generator)]), "heads", settings=settings,
        weights=torch.cat([(1 - NOISE) * answer, NOISE * answer]), progress=False,
        probes={"answers": ls.Probe(tokens, weights=answer, observables=difference)},
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


def accuracy(model: Any, case: Case, seed: int) -> float:
    """Share of answers that are the likeliest token, of prompts without random ones."""
    tokens = case.task.draw(1000, Generator().manual_seed(seed + 3))
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
        layers = np.array([one.split("H")[0] for one in heads.name])
        within = [
            spearmanr(values[layers == layer], heads.ablated[layers == layer]).statistic
            for layer in np.unique(layers)
        ]
        figures[f"within_layers_{what}_{name}"] = float(np.mean(within))
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
    made.add_argument("--models", nargs="+", choices=MODELS, default=MODELS)
    args = made.parse_args()
    common.one_thread()
    warnings.filterwarnings("ignore")
    makers = {"addition": addition_case, "names": names_case}
    figures: dict[str, float] = {}
    for name in args.models:
        case, began = makers[name](args.quick), time.process_time()
        model = trained(case, args.seed, args.cache)
        right = accuracy(model, case, args.seed)
        common.say(f"{name}: trained in {time.process_time() - began:.0f} s of CPU time")
        settings = ls.Settings(seed=args.seed)
        settings = settings.but(draws=8, burn_in=4, batch_size=8) if args.quick else settings
        heads = measured(model, case, settings, 16 if args.quick else N_PROMPTS)
        show(name, right, heads, time.process_time() - began)
        figures |= figures_of(name, heads)
    targets = {key: target for key, target in TARGETS.items() if key in figures}
    common.finish(args, figures, None if args.quick else targets)


if __name__ == "__main__":
    main()
