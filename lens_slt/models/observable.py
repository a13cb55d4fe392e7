"""What is read off a model's logits: an observable, one number at every prediction that counts.

The loss is one. Others are a logit difference between two answers, the probability of a set of
tokens, accuracy, the divergence from the predictions at the given weights, or any function of your
own. They are recorded at every draw (``Probe(..., observables=...)``), and are the metric of
ablations (``metric=``).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Protocol

import torch
from jaxtyping import Float, Int
from torch import Tensor

Answers = int | Sequence[int] | Sequence[Sequence[int]] | Tensor | None


@dataclass(frozen=True)
class Sites:
    """The predictions at which an observable is read; they are ordered by sequence, then position.

    ``sequence``, ``position`` and ``target`` are integers ``[site]``: which row of the tokens,
    which position (0 predicts the second token), and the id of the token that comes next. Where
    rows are padded on the left, ``position`` counts in the columns that were passed, and ``column``
    in rows that were moved to begin with their first token.

    Example:
        >>> import lens_slt as ls
        >>> model, text = ls.load_model("attn-1l"), ls.load_tokens("mix", n_sequences=8, length=16)
        >>> def late(logits, sites):
        ...     return logits.softmax(-1).amax(-1) * (sites.position > 7)
        >>> found = ls.ablate(model, text, "L0H2", metric=late)
        >>> bool((found["effect"].isel(position=slice(8)) == 0).all())
        True
    """

    sequence: Int[Tensor, " site"]
    position: Int[Tensor, " site"]
    target: Int[Tensor, " site"]
    index: Int[Tensor, " site"]  # among all sites of these tokens
    column: Int[Tensor, " site"]

    @classmethod
    def of(
        cls,
        tokens: Int[Tensor, "sequence position"],
        counts: Tensor,
        shift: Int[Tensor, " sequence"] | None = None,
    ) -> Sites:
        """Where ``counts``, bool ``[sequence, position - 1]``, is true, in moved rows."""
        sequence, column = counts.nonzero(as_tuple=True)
        index = torch.arange(len(sequence), device=sequence.device)
        position = column if shift is None else column + shift.to(column.device)[sequence]
        return cls(sequence, position, tokens[sequence, column + 1], index, column)

    def some(self, chosen: Tensor) -> Sites:
        """Those that an index, or a mask over sites, chooses."""
        fields = (self.sequence, self.position, self.target, self.index, self.column)
        return Sites(*(field[chosen] for field in fields))

    def of_rows(self, rows: slice) -> Sites:
        """Those in some sequences."""
        return self.some((self.sequence >= rows.start) & (self.sequence < rows.stop))


class Observable(Protocol):
    """A function of logits; anything with these members will do.

    ``cost_sign`` is 1 where more of it means that the model does worse (a loss), −1 where it does
    better (a logit difference), 0 where neither: effects are reported as they are, and "hurts" is
    read with this sign.
    """

    @property
    def name(self) -> str: ...

    @property
    def units(self) -> str: ...

    @property
    def cost_sign(self) -> int: ...

    def __call__(
        self, logits: Float[Tensor, "site d_vocab"], sites: Sites
    ) -> Float[Tensor, " site"]: ...


@dataclass(frozen=True)
class Loss:
    """Cross-entropy of the next token, in nats."""

    name: str = "loss"
    units: str = "nats"
    cost_sign: int = 1

    def __call__(self, logits: Tensor, sites: Sites) -> Tensor:
        return -logits.log_softmax(-1).gather(-1, sites.target[:, None])[:, 0]


@dataclass(frozen=True)
class LogitDifference:
    """Logit of the right answer less that of a wrong one (Wang et al. 2023, 2211.00593).

    Args:
        wrong: token ids: one for all sequences, one for each, or several for each, whose logits are
            averaged; −1 is none.
        right: likewise; the next token by default.
        name: in tables and arrays.

    Example:
        >>> import lens_slt as ls, torch
        >>> model, text = ls.load_model("attn-1l"), torch.arange(1, 41).reshape(4, 10)
        >>> found = ls.ablate(model, text, "L0H2", metric=ls.LogitDifference(wrong=7))
        >>> found.attrs["metric"], found.attrs["units"]
        ('logit_difference', 'logits')
    """

    wrong: Answers
    right: Answers = None
    name: str = "logit_difference"
    units: str = "logits"
    cost_sign: int = -1

    def __call__(self, logits: Tensor, sites: Sites) -> Tensor:
        right = _answers(logits, self.right, sites, "right").nanmean(-1)
        return right - _answers(logits, self.wrong, sites, "wrong").nanmean(-1)


@dataclass(frozen=True)
class Probability:
    """Probability of the answer: the sum over the ids where there are several.

    Args:
        of: token ids as in :class:`LogitDifference`; the next token by default.
        minus: ids whose probability is taken away, as in greater-than (Hanna et al. 2023).
        name: in tables and arrays.

    Example:
        >>> import lens_slt as ls, torch
        >>> model, text = ls.load_model("attn-1l"), torch.arange(1, 41).reshape(4, 10)
        >>> found = ls.ablate(model, text, "L0H2", metric=ls.Probability(of=[7, 8, 9, 10]))
        >>> found.attrs["metric"], found.attrs["units"]
        ('probability', 'probability')
    """

    of: Answers = None
    minus: Answers = None
    name: str = "probability"
    units: str = "probability"
    cost_sign: int = -1

    def __call__(self, logits: Tensor, sites: Sites) -> Tensor:
        p = logits.softmax(-1)
        found = _answers(p, self.of, sites, "of").nansum(-1)
        if self.minus is not None:
            found = found - _answers(p, self.minus, sites, "minus").nansum(-1)
        return found


@dataclass(frozen=True)
class Accuracy:
    """1 where the likeliest token is the one that comes next, 0 elsewhere.

    Example:
        >>> import lens_slt as ls
        >>> model, text = ls.load_model("attn-2l"), ls.load_tokens("mix", n_sequences=16)
        >>> found = ls.ablate(model, text, "L1H2", metric=ls.Accuracy())
        >>> found.attrs["units"], set(found["accuracy"].values.ravel().tolist()) <= {0.0, 1.0}
        ('share', True)
    """

    name: str = "accuracy"
    units: str = "share"
    cost_sign: int = -1

    def __call__(self, logits: Tensor, sites: Sites) -> Tensor:
        return (logits.argmax(-1) == sites.target).to(logits.dtype)


@dataclass(frozen=True)
class Divergence:
    """Kullback–Leibler divergence from the predictions of the untouched model, in nats.

    Example:
        >>> import lens_slt as ls
        >>> model, text = ls.load_model("attn-2l"), ls.load_tokens("mix", n_sequences=16)
        >>> found = ls.ablate(model, text, "L1H2", metric=ls.Divergence())
        >>> bool((found["effect"] > -1e-5).all())
        True
    """

    log_probs: Tensor | None = None  # [site, d_vocab], filled in by `prepared`
    name: str = "divergence"
    units: str = "nats"
    cost_sign: int = 1

    def __call__(self, logits: Tensor, sites: Sites) -> Tensor:
        if self.log_probs is None:
            return torch.zeros_like(logits[:, 0])
        there = self.log_probs[sites.index].to(logits)
        return (there.exp() * (there - logits.log_softmax(-1))).sum(-1)


@dataclass(frozen=True)
class Custom:
    """A function of your own: logits ``[site, d_vocab]`` and :class:`Sites` to ``[site]``."""

    function: Callable[[Tensor, Sites], Tensor]
    name: str
    units: str = ""
    cost_sign: int = 0

    def __call__(self, logits: Tensor, sites: Sites) -> Tensor:
        return self.function(logits, sites)


def named_observables(given: Any) -> dict[str, Observable]:
    """Observables by name, from one, several, or a mapping from names; functions become values.

    Raises TypeError and ValueError for what is no observable, names that repeat or are none, and
    names that are taken.
    """
    items: list[tuple[str | None, Any]]
    if given is None:
        return {}
    if isinstance(given, Mapping):
        items = [(str(name), one) for name, one in given.items()]
    elif isinstance(given, (list, tuple)):
        items = [(None, one) for one in given]
    else:
        items = [(None, given)]
    found: dict[str, Observable] = {}
    for name, one in items:
        observable = as_observable(one)
        name = name or observable.name
        if not name.isidentifier() or name in TAKEN:
            raise ValueError(
                f"observables: {name!r} is not a name that is free; use letters, digits and "
                f"underscores, and none of {', '.join(sorted(TAKEN))}"
            )
        if name in found:
            raise ValueError(
                f"observables: two of them are called {name!r}; give names with a mapping, such as "
                "{'io': LogitDifference(...), 's': ...}"
            )
        found[name] = observable
    return found


TAKEN = frozenset({"paired_loss", "base_loss", "tokens", "weight"})


def as_observable(given: Any) -> Observable:
    """An observable from an object that is one, or from a function."""
    if isinstance(given, type):
        raise TypeError(f"observables: {given.__name__} is a class; write {given.__name__}(...)")
    if callable(given) and all(hasattr(given, part) for part in ("name", "units", "cost_sign")):
        return given
    if callable(given):
        return Custom(given, getattr(given, "__name__", "observable").strip("<>"))
    raise TypeError(
        f"observables: expected an observable such as LogitDifference(wrong=…), or a function of "
        f"logits [site, d_vocab] and sites; got {given!r}"
    )


def prepared(observable: Observable, logits: Tensor, sites: Sites) -> tuple[Observable, Tensor]:
    """The observable, knowing the untouched model's logits, and its values there ``[site]``.

    Raises ValueError where it returns another shape, no numbers, or a value that is not finite.
    """
    if isinstance(observable, Divergence):
        observable = replace(observable, log_probs=logits.log_softmax(-1))
    values = observable(logits, sites)
    name = f"observables: {observable.name}"
    if not isinstance(values, Tensor) or values.shape != sites.target.shape:
        shape = list(values.shape) if isinstance(values, Tensor) else type(values).__name__
        raise ValueError(
            f"{name} must return one number for each site, a tensor of shape "
            f"{list(sites.target.shape)}; got {shape}"
        )
    if not bool(torch.isfinite(values).all()):
        where = int((~torch.isfinite(values)).nonzero()[0])
        raise ValueError(
            f"{name} is {float(values[where])} at sequence {int(sites.sequence[where])}, position "
            f"{int(sites.position[where])} of the untouched model; it must be finite"
        )
    return observable, values


def _answers(values: Tensor, answers: Answers, sites: Sites, name: str) -> Tensor:
    """Values ``[site, answer]`` of token ids; NaN for the id −1, which is none."""
    ids = _answer_ids(answers, sites, name)
    if bool((ids >= values.shape[-1]).any()) or bool((ids < -1).any()):
        worst = int(ids.max()) if bool((ids >= values.shape[-1]).any()) else int(ids.min())
        raise ValueError(
            f"{name} has the token id {worst}; the model predicts ids from 0 to "
            f"{values.shape[-1] - 1}"
        )
    return values.gather(-1, ids.clamp(min=0)).masked_fill(ids < 0, float("nan"))


def _answer_ids(answers: Answers, sites: Sites, name: str) -> Int[Tensor, "site answer"]:
    """Token ids of the answers at every site, from ids for all, for each sequence, or several."""
    if answers is None:
        return sites.target[:, None]
    ids = torch.as_tensor(answers, device=sites.target.device)
    if ids.is_floating_point() or ids.is_complex() or ids.dtype == torch.bool:
        raise TypeError(f"{name} must be token ids, integers; got {ids.dtype}")
    if ids.ndim == 0:
        return ids.long().expand(len(sites.target), 1)
    if ids.ndim > 2:
        raise ValueError(
            f"{name} must be one id, ids [sequence], or ids [sequence, answer]; got shape "
            f"{list(ids.shape)}"
        )
    n = int(sites.sequence.max()) + 1 if len(sites.sequence) else 0
    if len(ids) < n:
        raise ValueError(
            f"{name} has answers for {len(ids)} sequences, tokens have at least {n}: one for each"
        )
    ids = ids.long()[sites.sequence]
    return ids[:, None] if ids.ndim == 1 else ids
