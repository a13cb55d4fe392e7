"""One model's weights with some of another's in their place, and what that does to losses."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from copy import deepcopy
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from lens_slt.arrays import FloatArray
from lens_slt.circuits.runs import Runs
from lens_slt.data.patterns import checked_pattern
from lens_slt.models.adapter import AdaptedModel, adapt, copy_weights, model_logits, trainable
from lens_slt.models.components import Slot
from lens_slt.models.stream import MOST_LOGITS

Weights = dict[str, Tensor]


class Grafts:
    """Losses of a model from before some training with any of the weights from after it.

    The weights are written into a copy; neither of the two models is touched.

    Args:
        before, after: two models of one architecture.
        tokens, weights, mask, pad_id: as in :func:`lens_slt.sample`.
        pattern: which predictions count, bool ``[sequence, position - 1]``; None is all.

    Raises ValueError for models of other shapes, weights that did not change, and a pattern of
    another shape or without tokens.
    """

    def __init__(self, before: Any, after: Any, tokens: Any, pattern: Any, **which: Any) -> None:
        self.model = adapt(deepcopy(before))
        self.start, self.change = changed_weights(self.model, adapt(after))
        runs = Runs(self.model, tokens, **which)
        self.tokens = runs.tokens
        chosen = np.ones(runs.real.shape, dtype=bool)
        if pattern is not None:
            chosen = checked_pattern(pattern, chosen.shape, "pattern")
        self.weight: FloatArray = np.where(runs.moved(chosen), runs.weight, 0.0)
        if not self.weight.any():
            raise ValueError("pattern has no token that counts")

    @property
    def n_weights(self) -> int:
        """Of the whole model."""
        return sum(value.numel() for value in self.start.values())

    def losses(self, change: Weights, sequences: Iterable[int] | None = None) -> FloatArray:
        """Summed loss of the pattern in nats, of all sequences or some, with changed weights."""
        self._write(change)
        found = []
        with torch.no_grad():
            for rows in self._batches(range(len(self.tokens)) if sequences is None else sequences):
                found.append(self._summed(rows).double().cpu().numpy())
        return np.concatenate(found)

    def gradient(self, change: Weights, sequences: Iterable[int]) -> Weights:
        """Of the pattern's mean loss over some sequences, at changed weights."""
        self._write(change)
        chosen = list(sequences)
        found = {name: torch.zeros_like(value) for name, value in self.start.items()}
        total = float(self.weight[chosen].sum())
        leaves = self.model.leaves
        with trainable(self.model), torch.enable_grad():
            parameters = {id(leaf.parameter): leaf.parameter for leaf in leaves.values()}
            wanted = [one for one in parameters.values() if one.requires_grad]
            for rows in self._batches(chosen):
                loss = self._summed(rows).sum() / total
                parts = torch.autograd.grad(loss, wanted, allow_unused=True)
                by_id = {id(one): part for one, part in zip(wanted, parts, strict=True)}
                for name, leaf in leaves.items():
                    part = by_id.get(id(leaf.parameter))
                    if part is not None:
                        found[name] += leaf.view(part)
        return found

    def chosen(self, masks: Mapping[str, Tensor]) -> Weights:
        """The change of some weights."""
        return {name: value * masks[name] for name, value in self.change.items()}

    def _write(self, change: Weights) -> None:
        with torch.no_grad():
            for name, leaf in self.model.leaves.items():
                leaf.view(leaf.parameter.data).copy_(self.start[name] + change[name])

    def _summed(self, rows: list[int]) -> Tensor:
        ids = self.tokens[rows].to(self.model.device)
        logits = model_logits(self.model, ids[:, :-1])
        each = F.cross_entropy(logits.transpose(1, 2), ids[:, 1:], reduction="none")
        return (each * torch.from_numpy(self.weight[rows]).to(each)).sum(1)

    def _batches(self, rows: Iterable[int]) -> Iterable[list[int]]:
        chosen = list(rows)
        size = max(1, MOST_LOGITS // (self.tokens.shape[1] * self.model.d_vocab_out))
        return [chosen[i : i + size] for i in range(0, len(chosen), size)]


def joined(weights: Weights) -> Tensor:
    """All weights in one vector."""
    return torch.cat([value.flatten() for value in weights.values()])


def split(flat: Tensor, like: Weights) -> Weights:
    """A vector over all weights as tensors of their shapes."""
    parts = flat.split([value.numel() for value in like.values()])
    pairs = zip(like.items(), parts, strict=True)
    return {name: part.view(value.shape) for (name, value), part in pairs}


def changed_weights(before: AdaptedModel, after: AdaptedModel) -> tuple[Weights, Weights]:
    """All weights before, and what was added to them.

    Raises ValueError for models of other shapes and where nothing changed.
    """
    start, end = copy_weights(before), copy_weights(after)
    _refuse_others(start, end)
    change = {name: end[name].to(value.device) - value for name, value in start.items()}
    if not any(bool(value.any()) for value in change.values()):
        raise ValueError("before and after have the same weights: the interval has no change")
    return start, change


def matrix_of(slot: Slot, weights: Weights) -> Tensor:
    """A component's part of a weight, in double precision; a vector is a matrix of one column."""
    whole = weights[slot.name]
    part = (whole if slot.index is None else whole[slot.index]).double().cpu()
    return part[:, None] if part.ndim == 1 else part.flatten(0, -2)


def _refuse_others(before: Weights, after: Weights) -> None:
    shapes = [{name: tuple(value.shape) for name, value in one.items()} for one in (before, after)]
    if shapes[0] == shapes[1]:
        return
    differ = sorted(set(shapes[0].items()) ^ set(shapes[1].items()))
    name = differ[0][0]
    raise ValueError(
        f"before and after are models of other shapes: {name} is {shapes[0].get(name, 'absent')} "
        f"before and {shapes[1].get(name, 'absent')} after; weights can be exchanged between "
        "checkpoints of one architecture only"
    )
