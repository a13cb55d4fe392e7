"""What lens_slt says of a model, beside what plain torch says of its untouched copy."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cached_property, partial
from typing import Any

import numpy as np
import torch
from torch import Tensor

import lens_slt as ls
from benchmarks.families import weights
from benchmarks.families.plain import PARTS, Change, Elements, Plain, losses
from benchmarks.families.verdict import Cell, Error, judged, relative
from lens_slt.models.adapter import adapt

PAD, LENGTH, SEQUENCES = 49, 14, 4
SETTINGS = ls.Settings(
    draws=2, burn_in=0, chains=2, batch_size=4, sampler="sgld", step_size=1e-5
)  # fmt: skip


@dataclass(frozen=True)
class Subject:
    """A model as lens_slt gets it, and its plain copy."""

    model: Any
    plain: Plain

    @cached_property
    def tokens(self) -> Tensor:
        """Sequences of full length; the last one ends in padding."""
        generator = torch.Generator().manual_seed(0)
        tokens = torch.randint(2, PAD, (SEQUENCES, LENGTH), generator=generator)
        tokens[-1, LENGTH // 2 :] = PAD
        return tokens

    @property
    def inputs(self) -> Tensor:
        return self.tokens[:, :-1]

    @cached_property
    def real(self) -> Tensor:
        """Predictions that count."""
        return self.tokens[:, 1:] != PAD

    @cached_property
    def weight(self) -> Tensor:
        return self.real / self.real.sum()

    @cached_property
    def elements(self) -> Elements:
        return Elements(self.plain.model)

    @cached_property
    def base(self) -> Tensor:
        with torch.no_grad():
            return losses(self.plain.logits(self.inputs), self.tokens)

    @cached_property
    def reached(self) -> Tensor:
        """Which weights the loss depends on."""
        loss = losses(self.plain.logits(self.inputs), self.tokens)
        return self.elements.gradient((loss * self.weight).sum()) != 0

    def changed(self, changes: dict) -> Tensor:
        """Losses of the plain copy with some places changed."""
        with torch.no_grad():
            return losses(self.plain.logits(self.inputs, changes), self.tokens)

    def gap(self, theirs: Any, right: Tensor) -> float:
        """Largest difference where a loss counts; NaN is no agreement."""
        difference = (torch.as_tensor(np.asarray(theirs)) - right)[self.real].abs()
        return float(difference.max()) if bool(difference.isfinite().all()) else float("inf")

    # Each of the following yields (what, error) pairs.

    def losses(self) -> Iterator[Error]:
        """Losses at the given weights, recorded by a run."""
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            draws = ls.sample(
                self.model, self.tokens, ["L0H1", "L1H2"], probes={"p": self.tokens}, pad_id=PAD,
                settings=SETTINGS, progress=False,
            )  # fmt: skip
        yield "base_loss", self.gap(draws["probes/p"]["base_loss"].values, self.base)

    def heads(self) -> Iterator[Error]:
        """Ablation of heads."""
        for layer, head in ((0, 1), (1, 2)):
            place = self.plain.layers[layer].z
            (z,) = self.plain.values(self.inputs, [place])
            split = z.reshape(*z.shape[:2], self.plain.n_heads, -1)[:, :, head]
            for how, new in (("zero", 0.0), ("mean", split[self.real].mean(0))):
                change = partial(self.plain.only, head, new=new)
                yield from self._ablation(f"L{layer}H{head}", how, {place: change})

    def mlps(self) -> Iterator[Error]:
        """Ablation of MLPs."""
        for layer, one in enumerate(self.plain.layers):
            if one.mlp is None:
                continue
            (out,) = self.plain.values(self.inputs, [one.mlp])
            rows = out.reshape(*self.inputs.shape, -1)
            for how, new in (("zero", torch.zeros(())), ("mean", rows[self.real].mean(0))):
                yield from self._ablation(f"L{layer}MLP", how, {one.mlp: partial(_filled, new=new)})

    def _ablation(self, name: str, how: str, changes: dict) -> Iterator[Error]:
        found = ls.ablate(self.model, self.tokens, name, how=how, pad_id=PAD)
        yield f"{name} {how}", self.gap(found["loss"].values, self.changed(changes))

    def paths(self) -> Iterator[Error]:
        """Ablation of paths from a head into a later head."""
        for part in PARTS:
            yield from self._path("L0H1 -> L1H2", part)

    def _path(self, edge: str, part: str) -> Iterator[Error]:
        plain = self.plain
        change = plain.change(self.inputs, 0, 1, plain.layers[1].start)
        place = plain.layers[1].qkv[PARTS.index(part)]
        new = plain.reread(self.inputs, 1, change)[PARTS.index(part)]
        there = plain.at(part, 2)

        def splice(value: Tensor) -> Tensor:
            flat = value.clone().reshape(*self.inputs.shape, -1)
            flat[..., there] = new.reshape(flat.shape)[..., there]
            return flat.reshape(value.shape)

        found = ls.ablate_path(
            self.model, self.tokens, f"{edge}.{part}", how="zero", pad_id=PAD
        )  # fmt: skip
        yield f"{edge}.{part}", self.gap(found["loss"].values, self.changed({place: splice}))

    def to_logits(self) -> Iterator[Error]:
        """Ablation of paths from a head into the logits."""
        for layer, head in ((0, 1), (1, 2)):
            change = self.plain.change(self.inputs, layer, head, self.plain.final)
            right = self.changed({self.plain.final: lambda x, change=change: x - change})
            edge = f"L{layer}H{head} -> logits"
            found = ls.ablate_path(self.model, self.tokens, edge, how="zero", pad_id=PAD)
            yield edge, self.gap(found["loss"].values, right)

    def composition(self) -> Iterator[Error]:
        """Composition scores, by the formula."""
        scores = ls.composition_scores(self.model, n_null=2)["score"]
        for source in range(self.plain.n_heads):
            for target in range(self.plain.n_heads):
                for part in PARTS:
                    one = scores.sel(source=f"L0H{source}", target=f"L1H{target}", through=part)
                    right = self._score(source, target, part)
                    yield f"L0H{source} -> L1H{target}.{part}", abs(float(one) - right)

    def _score(self, source: int, target: int, part: str) -> float:
        w = {p: self._read(1, p, target) for p in PARTS}
        written = self._read(0, "V", source) @ self._written(0, source)
        qk = w["Q"] @ w["K"].T
        ov = w["V"] @ self._written(1, target)
        read = {"Q": qk, "K": qk.T, "V": ov}[part]
        return float((written @ read).norm() / (written.norm() * read.norm()))

    def _read(self, layer: int, part: str, head: int) -> Tensor:
        """What a head reads with, the norm folded in."""
        matrix = self.plain.head_matrix(layer, part, head, lambda p: p.detach().double())
        weight, centred = self.plain.norm(layer)
        if weight is not None:
            matrix = weight.double()[:, None] * matrix
        inner = self.plain.inner_norm(layer, part)
        matrix = matrix if inner is None else matrix * inner.double()
        return matrix - matrix.mean(0) if centred else matrix

    def _written(self, layer: int, head: int) -> Tensor:
        return self.plain.head_matrix(layer, "O", head, lambda p: p.detach().double())

    def attribution(self) -> Iterator[Error]:
        """Edge attribution: gradient of the loss times the change of what is read."""
        found = ls.edge_attribution(
            self.model, self.tokens, self.real.numpy(), steps=1, ablate="zero", pad_id=PAD
        )["effect"]
        plain, later = self.plain, self.plain.layers[1]
        places = list(dict.fromkeys([*later.qkv, plain.final]))
        kept: dict[Any, Tensor] = {}

        def live(place: Any) -> Change:
            def change(value: Tensor) -> Tensor:
                kept[place] = value.detach().requires_grad_() if place in later.qkv else value
                return kept[place] * 1.0  # OLMo clamps in place

            return change

        loss = losses(plain.logits(self.inputs, {p: live(p) for p in places}), self.tokens)
        values = [kept[p] for p in places]
        grads = dict(
            zip(places, torch.autograd.grad((loss * self.weight).sum(), values), strict=True)
        )
        right, theirs = [], []
        for source in range(plain.n_heads):
            change = plain.change(self.inputs, 0, source, later.start)
            new = plain.reread(self.inputs, 1, change)
            for part, place, reread in zip(PARTS, later.qkv, new, strict=True):
                shape = (*self.inputs.shape, -1)
                effect = (grads[place] * (reread - kept[place].detach())).reshape(shape)
                for target in range(plain.n_heads):
                    right.append(float(effect[..., plain.at(part, target)].sum()))
                    edge = dict(source=f"L0H{source}", target=f"L1H{target}", through=part)
                    theirs.append(float(found.sel(edge)))
            change = plain.change(self.inputs, 0, source, plain.final)
            right.append(-float((grads[plain.final] * change).sum()))
            theirs.append(float(found.sel(source=f"L0H{source}", target="logits", through="")))
        yield "all edges", relative(torch.tensor(theirs), torch.tensor(right))


def _filled(value: Tensor, new: Tensor) -> Tensor:
    return new.expand_as(value).clone()


MEASUREMENTS: dict[str, Callable[[Subject], Iterator[Error]]] = {
    "losses": Subject.losses,
    "moved": weights.moved,
    "gradients": weights.gradients,
    "heads": Subject.heads,
    "mlps": Subject.mlps,
    "paths": Subject.paths,
    "to logits": Subject.to_logits,
    "compos.": Subject.composition,
    "edges": Subject.attribution,
}


def refusals(model: Any) -> dict[str, Cell]:
    """Verdicts on a model that has to be refused, whatever is asked of it."""
    tokens = torch.arange(2, 16)[None].repeat(4, 1)
    mask = torch.ones(4, 13, dtype=torch.bool)
    calls: dict[str, Callable[[], Any]] = {
        "losses": lambda: ls.sample(model, tokens, "L0H1", settings=SETTINGS, progress=False),
        "moved": lambda: adapt(model),
        "gradients": lambda: ls.estimate(model, tokens, "L0H1", settings=SETTINGS),
        "heads": lambda: ls.ablate(model, tokens, "L0H1"),
        "mlps": lambda: ls.ablate(model, tokens, "L0MLP"),
        "paths": lambda: ls.ablate_path(model, tokens, "L0H1 -> L1H2.K"),
        "to logits": lambda: ls.ablate_path(model, tokens, "L0H1 -> logits"),
        "compos.": lambda: ls.composition_scores(model, n_null=2),
        "edges": lambda: ls.edge_attribution(model, tokens, mask),
    }

    def once(call: Callable[[], Any]) -> Iterator[Error]:
        call()
        yield "not refused", float("inf")

    return {name: judged(lambda call=call: once(call)) for name, call in calls.items()}


def measured(model: Any, plain: Plain) -> dict[str, Cell]:
    """All measurements of one model."""
    subject = Subject(model, plain)
    return {
        name: judged(lambda measure=measure: measure(subject))
        for name, measure in MEASUREMENTS.items()
    }
