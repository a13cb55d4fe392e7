"""The zoo: models and functions that differ in everything in which strangers' models differ."""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict, dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from torch import Generator, Tensor

import lens_slt as ls
from benchmarks.zoo.functions import FunctionCase, make_function
from benchmarks.zoo.models import Rescaling, Shape, load_weights, new_model, rescale, weights_of
from benchmarks.zoo.tasks import Task, make_task
from benchmarks.zoo.train import Training, full_steps, train
from lens_slt.models.adapter import AdaptedModel, adapt
from lens_slt.models.components import parse_components

RECIPE = 2  # changes when kept weights may no longer be used
MOST_PARAMETERS = 20_000  # of a component
MOST_TOKENS = 1024  # predicted tokens of a data set
HALF = 0.15  # of the steps of a full training: the task is half learned

# What is drawn: (where the weights come from, how long they trained). Any ten in a row differ.
KINDS = (
    ("induction", "full"), ("function", "logarithms"), ("modular", "full"), ("text", "full"),
    ("skip_trigram", "none"), ("shipped", "full"), ("sorting", "full"), ("brackets", "half"),
    ("function", "linear_regression"), ("majority", "full"),
    ("copying", "full"), ("induction", "half"), ("parity", "full"), ("function", "reduced_rank"),
    ("text", "half"), ("skip_trigram", "full"), ("brackets", "full"), ("modular", "half"),
    ("function", "tanh_network"), ("text", "none"),
    ("sorting", "half"), ("induction", "full"), ("copying", "half"), ("function", "quartic"),
    ("majority", "half"), ("shipped", "half"), ("text", "full"), ("skip_trigram", "half"),
    ("modular", "full"), ("sorting", "none"),
    ("induction", "none"), ("parity", "half"), ("copying", "full"), ("text", "full"),
    ("function", "ill_conditioned"), ("brackets", "full"), ("sorting", "full"),
    ("majority", "full"), ("skip_trigram", "full"), ("induction", "full"),
)  # fmt: skip


@dataclass(frozen=True)
class ModelCase:
    """What ``lens_slt.sample`` takes."""

    model: Any
    tokens: Tensor  # [sequence, position]
    weights: Tensor | None  # [sequence, position - 1]
    components: tuple[str, ...]


Case = ModelCase | FunctionCase


@dataclass(frozen=True)
class ZooEntry:
    """One member of the zoo; nothing is computed before :meth:`build`."""

    name: str
    source: str  # a task, ``text``, ``shipped`` or ``function``
    level: str  # of training: ``none``, ``half``, ``full``; or which function
    seed: int
    shape: Shape | None = None  # None: the weights come from elsewhere
    training: Training | None = None
    rescaling: Rescaling = field(default_factory=Rescaling)
    weighted: bool = False  # only the answer counts

    def build(self, cache: Path | None = None) -> Case:
        """The model (trained now, or read from the cache folder), its data, its components."""
        if self.source == "function":
            return make_function(self.level, self._rng("function"))
        if self.source == "shipped":
            return self._shipped()
        model = self._model(cache)
        task, generator = self.task, Generator().manual_seed(self.seed + 2)
        most = max(48, min(256, MOST_TOKENS // (task.length - 1)))
        n_sequences = int(self._rng("data").integers(48, most + 1))
        tokens = task.draw(n_sequences, generator)
        weights = torch.tensor(task.answer).expand(n_sequences, -1).contiguous()
        chosen = choose_components(adapt(model), self._rng("components"))
        return ModelCase(model, tokens, weights if self.weighted else None, chosen)

    def shortened(self) -> ZooEntry:
        """The same entry after a handful of training steps: does the code run?"""
        if self.training is None:
            return self
        return replace(self, training=replace(self.training, steps=min(5, self.training.steps)))

    def describe(self) -> str:
        """In one line."""
        if self.shape is None or self.training is None:
            return self.name
        s, r = self.shape, self.rescaling
        parts = [
            f"{self.name}: {s.n_layers}×{s.n_heads} heads", f"d {s.d_model}",
            f"{s.norm or 'no'} norm", s.positions, "MLP" if s.d_mlp else "",
            f"vocab. {s.d_vocab}", "" if r.kind == "none" else f"{r.kind} × {r.factor:.2g}",
            "answer" if self.weighted else "",
        ]  # fmt: skip
        return ", ".join(part for part in parts if part)

    @cached_property
    def task(self) -> Task:
        return make_task(self.source, self._rng("task"))

    def _rng(self, purpose: str) -> np.random.Generator:
        digest = hashlib.sha256(f"{self.seed} {purpose}".encode()).digest()
        return np.random.default_rng(int.from_bytes(digest[:8], "little"))

    def _model(self, cache: Path | None) -> Any:
        assert self.shape is not None and self.training is not None
        model = new_model(self.shape, Generator().manual_seed(self.seed))
        recipe = json.dumps([RECIPE, asdict(replace(self, name="")), torch.get_num_threads()])
        key = hashlib.sha256(recipe.encode()).hexdigest()[:32]
        file = None if cache is None else cache / "models" / f"{key}.safetensors"
        if file is not None and file.exists():
            load_weights(model, load_file(file))
            return model
        task = self.task
        weights = torch.tensor(task.answer if self.weighted else (1.0,) * (task.length - 1))
        preserving = self.rescaling.kind == "preserving"
        if not preserving:
            rescale(model, self.rescaling)
        train(model, task, self.training, weights, self.seed + 1)
        if preserving:
            rescale(model, self.rescaling)
        if file is not None:
            file.parent.mkdir(parents=True, exist_ok=True)
            save_file(weights_of(model), file)
        return model

    def _shipped(self) -> ModelCase:
        rng = self._rng("shipped")
        name = str(rng.choice(["attn-2l", "attn-2l-seed1", "attn-2l-seed2", "attn-1l"]))
        steps = ls.shipped_checkpoints(name)
        early = self.level == "half" and bool(steps)
        model = ls.load_model(name, checkpoint=int(rng.choice(steps)) if early else None)
        tokens = ls.load_tokens("mix", n_sequences=64, length=16, seed=self.seed)
        return ModelCase(model, tokens, None, choose_components(adapt(model), rng))


def zoo(seed: int, n: int = 40) -> list[ZooEntry]:
    """The first ``n`` members of the zoo of a seed.

    Forty in a row hold every kind in :data:`KINDS`, and every number of layers and heads, norm,
    kind of positions and rescaling about equally often, in combinations that the seed decides.
    """
    entries: list[ZooEntry] = []
    for block in range(-(-n // len(KINDS))):
        entries += _forty(np.random.default_rng([seed, block]), len(entries))
    return entries[:n]


def choose_components(model: AdaptedModel, rng: np.random.Generator) -> tuple[str, ...]:
    """Two heads (one where there is one) and, from case to case, something that is no head."""
    heads = [f"L{i}H{j}" for i in range(model.n_layers) for j in range(model.n_heads)]
    chosen = [str(h) for h in rng.permutation(heads)[: int(rng.integers(2, 4))]]
    last = f"L{model.n_layers - 1}"
    others = ["embed", "unembed", last, "L0H0+" + f"{last}H{model.n_heads - 1}"]
    if not model.attn_only:
        others += [f"{last}MLP", "L0MLP"]
    small = [name for name in dict.fromkeys(others) if _fits(model, name)]
    if small and (len(heads) == 1 or rng.random() < 0.5):
        chosen = [*chosen[:2], str(rng.choice(small))]
    return tuple(chosen)


def _fits(model: AdaptedModel, name: str) -> bool:
    if "+" in name and len(set(name.split("+"))) == 1:
        return False
    component = parse_components([name], model)[0]
    return component.n_parameters(model.shapes) <= MOST_PARAMETERS


def _forty(rng: np.random.Generator, first: int) -> list[ZooEntry]:
    columns = {
        "n_layers": _column(rng, [1, 2, 2, 3, 4]),
        "n_heads": _column(rng, [1, 2, 3, 4, 4, 6, 8, 12]),
        "d_model": _column(rng, [16, 24, 32, 48, 64, 64, 96, 128]),
        "norm": _column(rng, [None, "LN", "LNPre", "RMS"]),
        "positions": _column(rng, ["standard", "rotary"]),
        "mlp": _column(rng, [0, 1, 2]),
        "weight_decay": _column(rng, [0.0, 0.01, 0.1]),
        "rescaling": _column(
            rng, ["none", "none", "preserving", "preserving", "none", "embed", "blocks", "unembed"]
        ),
        "weighted": _column(rng, [True, True, False]),
    }
    return [
        _entry(first + i, kind, {name: values[i] for name, values in columns.items()}, rng)
        for i, kind in enumerate(KINDS)
    ]


def _entry(
    place: int, kind: tuple[str, str], drawn: dict[str, Any], rng: np.random.Generator
) -> ZooEntry:
    source, level = kind
    seed = int(rng.integers(2**31 - 8))
    entry = ZooEntry(f"{place:02d} {source} {level}", source, level, seed)
    low, high = (-1.0, 1.0) if drawn["rescaling"] == "preserving" else (-0.7, 0.5)
    factor = 10 ** float(rng.uniform(low, high))
    rescaling = Rescaling(drawn["rescaling"], 1.0 if drawn["rescaling"] == "none" else factor)
    d_head = int(rng.choice([d for d in (4, 8, 16, 32) if d * drawn["n_heads"] <= 128]))
    if source in ("function", "shipped"):
        return entry
    task = entry.task
    d_model = drawn["d_model"] if drawn["n_layers"] < 3 else min(64, drawn["d_model"])
    shape = Shape(
        drawn["n_layers"], drawn["n_heads"], d_model, d_head, d_mlp=drawn["mlp"] * d_model,
        norm=drawn["norm"], positions=drawn["positions"], d_vocab=task.d_vocab, n_ctx=task.length,
    )  # fmt: skip
    share = {"none": 0.0, "half": HALF, "full": 1.0}[level]
    steps = round(share * full_steps(shape, task.length))
    rate = float(rng.choice([1e-3, 3e-3]))
    return replace(
        entry, shape=shape, training=Training(steps, rate, drawn["weight_decay"]),
        rescaling=rescaling, weighted=drawn["weighted"] and min(task.answer) == 0.0,
    )  # fmt: skip


def _column(rng: np.random.Generator, options: list[Any]) -> list[Any]:
    """Every option equally often, in an order that the seed decides."""
    times = -(-len(KINDS) // len(options))
    return [options[i % len(options)] for i in rng.permutation(times * len(options))]
