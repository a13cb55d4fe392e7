"""Prompts with roles for circuits of the literature, made for a given tokenizer.

=============== ==================================================================================
kind            a prompt, its answer after the arrow, and who is who
=============== ==================================================================================
``ioi``         "When Mary and John went to the store, John gave a drink to" → " Mary" (Wang et al.
                2023, arXiv 2211.00593). Roles IO (Mary), S1 and S2 (John twice), END. Corrupted:
                the second subject is a third name.
``greater_than``"The war lasted from the year 1732 to the year 17" → 33 … 99 (Hanna et al. 2023,
                2305.00586). Roles YEAR (32), CENTURY (the last 17), END. Corrupted: the year is 01.
``docstring``   a Python function of five arguments whose docstring names them in order, cut before
                the third (Heimersheim and Janiak 2023). Roles DEF1 to DEF3 (in the signature), DOC1
                and DOC2 (in the docstring), END. Corrupted: other arguments in the docstring.
=============== ==================================================================================

All prompts of a set have the same length, so that each role stands at one position of each prompt.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Int
from torch import Tensor

from lens_slt.arguments import choice, integer, typed

KINDS = ("ioi", "greater_than", "docstring")
NAMES = (
    "Mary", "John", "Tom", "James", "Dan", "Martin", "Amy", "Peter", "Anna", "Paul", "Mark",
    "Robert", "Alice", "Adam", "Kate", "Sarah", "David", "Michael", "Laura", "Simon", "Jack",
    "Emma", "George", "Henry", "Jane", "Kevin", "Lisa", "Max", "Nick", "Ruth",
)  # fmt: skip
PLACES = ("store", "garden", "school", "office", "station", "house")
THINGS = ("drink", "book", "ring", "letter", "ball", "key")
EVENTS = ("war", "trial", "journey", "reign", "project", "debate")
ARGUMENTS = (
    "files", "obj", "state", "size", "shape", "option", "content", "user", "key", "line", "path",
    "value", "index", "name", "data", "text", "count", "mode", "type", "result", "label", "order",
)  # fmt: skip


@dataclass(frozen=True)
class Prompts:
    """Prompts and their answers.

    Attributes:
        kind: what they are.
        tokens: ``[prompt, position]``; the last token is the answer, which is predicted and not
            read.
        corrupted: the same with the telling word replaced, position by position.
        counts: bool ``[prompt, position - 1]``, true at the answer alone: the
            ``weights`` of a loss.
        roles: the position ``[prompt]`` of each role; predictions made there have that index.
        right, wrong: token ids ``[prompt, answer]`` of right and wrong answers; −1 where a prompt
            has fewer.

    Example:
        >>> import lens_slt as ls
        >>> from lens_slt.data.tokenizer import shipped_tokenizer
        >>> prompts = ls.make_prompts("ioi", shipped_tokenizer(), n=4)
        >>> sorted(prompts.roles), prompts.tokens.shape == prompts.corrupted.shape
        (['END', 'IO', 'S1', 'S2'], True)
    """

    kind: str
    tokens: Int[Tensor, "prompt position"]
    corrupted: Int[Tensor, "prompt position"]
    counts: Bool[Tensor, "prompt prediction"]
    roles: dict[str, Int[Tensor, " prompt"]]
    right: Int[Tensor, "prompt answer"]
    wrong: Int[Tensor, "prompt other"]

    def role(self, name: str) -> Int[Tensor, " prompt"]:
        """Position of a role in each prompt; ValueError for one that these prompts lack."""
        choice("role", name, tuple(self.roles))
        return self.roles[name]


@typed
def make_prompts(kind: str, tokenizer: Any, *, n: int = 64, seed: int = 0) -> Prompts:
    """Prompts of one kind for a tokenizer.

    Args:
        kind: ``ioi``, ``greater_than`` or ``docstring``.
        tokenizer: of the model, such as ``model.tokenizer``; needs ``encode`` and ``bos_token_id``.
        n: how many.
        seed: of the choice of words.

    Returns:
        :class:`Prompts`.

    Raises:
        ValueError: an unknown kind, or a tokenizer that splits the words which must be one token.

    Example:
        >>> import lens_slt as ls
        >>> from lens_slt.data.tokenizer import shipped_tokenizer
        >>> prompts = ls.make_prompts("ioi", shipped_tokenizer(), n=4)
        >>> prompts.counts.sum(1).tolist()
        [1, 1, 1, 1]
    """
    choice("kind", kind, KINDS)
    integer("n", n, at_least=1)
    integer("seed", seed, at_least=0)
    makers: dict[str, Callable[[_Words, np.random.Generator], _Prompt]] = {
        "ioi": _ioi, "greater_than": _greater_than, "docstring": _docstring,
    }  # fmt: skip
    words, generator = _Words(tokenizer), np.random.default_rng(seed)
    made: list[_Prompt] = []
    while len(made) < n:
        one = makers[kind](words, generator)
        # Names of places may have several tokens: only prompts as long as the first are kept.
        if not made or len(one.ids) == len(made[0].ids):
            made.append(one)
    tokens = torch.tensor([one.ids for one in made])
    counts = torch.zeros(n, tokens.shape[1] - 1, dtype=torch.bool)
    counts[:, -1] = True
    most = {part: max(len(getattr(one, part)) for one in made) for part in ("right", "wrong")}
    return Prompts(
        kind, tokens, torch.tensor([one.corrupted for one in made]), counts,
        {role: torch.tensor([one.roles[role] for one in made]) for role in made[0].roles},
        torch.tensor([_filled(one.right, most["right"]) for one in made]),
        torch.tensor([_filled(one.wrong, most["wrong"]) for one in made]),
    )  # fmt: skip


@dataclass(frozen=True)
class _Prompt:
    ids: list[int]
    corrupted: list[int]
    roles: dict[str, int]
    right: list[int]
    wrong: list[int]


class _Words:
    """Pieces of text as ids of one tokenizer."""

    def __init__(self, tokenizer: Any) -> None:
        if not hasattr(tokenizer, "encode"):
            raise TypeError(
                f"tokenizer must have encode, such as model.tokenizer; got {tokenizer!r}"
            )
        self._tokenizer = tokenizer
        bos = getattr(tokenizer, "bos_token_id", None)
        self.start: list[int] = [] if bos is None else [int(bos)]

    def ids(self, text: str) -> list[int]:
        return list(self._tokenizer.encode(text, add_special_tokens=False))

    def single(self, words: Sequence[str], least: int, what: str) -> list[str]:
        """Those that are one token behind a space; frequent tokens where names are too few."""
        found = [word for word in words if len(self.ids(f" {word}")) == 1]
        if len(found) < least:
            found += [word for word in self._frequent() if word not in found]
        if len(found) < least:
            raise ValueError(
                f"tokenizer has {len(found)} {what} of one token, {least} are needed; this kind of "
                "prompt cannot be made for it"
            )
        return found

    def _frequent(self) -> list[str]:
        """Words of the vocabulary that are one token behind a space, in the order of their ids."""
        found = []
        for i in range(min(len(self._tokenizer), 5000)):
            text = self._tokenizer.decode([i])
            if text.startswith(" ") and text[1:].isalpha() and self.ids(text) == [i]:
                found.append(text[1:])
        return found


def _filled(answers: list[int], n: int) -> list[int]:
    return answers + [-1] * (n - len(answers))


def _built(
    words: _Words, pieces: Sequence[tuple[str, str]], swap: dict[str, str], answer: str
) -> tuple[list[int], list[int], dict[str, int]]:
    """Ids, corrupted ids and roles of a text in pieces ``(text, role)``; a role has one token."""
    ids, corrupted, roles = list(words.start), list(words.start), {}
    for text, role in pieces:
        if role:
            roles[role] = len(ids)
        ids += words.ids(text)
        corrupted += words.ids(swap.get(role, text))
    roles["END"] = len(ids) - 1
    end = words.ids(answer)
    return ids + end, corrupted + end, roles


def _ioi(words: _Words, generator: np.random.Generator) -> _Prompt:
    names = words.single(NAMES, 4, "names")
    io, subject, other = (f" {name}" for name in generator.choice(names, 3, replace=False))
    place, thing = generator.choice(PLACES), generator.choice(THINGS)
    first, second = (io, "IO"), (subject, "S1")
    if generator.random() < 0.5:
        first, second = second, first
    pieces = [
        ("When", ""), first, (" and", ""), second, (f" went to the {place},", ""), (subject, "S2"),
        (f" gave a {thing} to", ""),
    ]  # fmt: skip
    ids, corrupted, roles = _built(words, pieces, {"S2": other}, io)
    return _Prompt(ids, corrupted, roles, words.ids(io), words.ids(subject))


def _greater_than(words: _Words, generator: np.random.Generator) -> _Prompt:
    pairs = {i: words.ids(f"{i:02d}") for i in range(100)}
    century = str(generator.integers(11, 18))
    if any(len(ids) != 1 for ids in pairs.values()) or len(words.ids(f" {century}")) != 1:
        raise ValueError(
            "tokenizer splits two-digit numbers into several tokens; greater_than prompts need one "
            "token for 00 to 99 (GPT-2 has them)"
        )
    year = int(generator.integers(2, 99))
    pieces = [
        (f"The {generator.choice(EVENTS)} lasted from the year", ""), (f" {century}", ""),
        (f"{year:02d}", "YEAR"), (" to the year", ""), (f" {century}", "CENTURY"),
    ]  # fmt: skip
    answer = int(generator.integers(year + 1, 100))
    ids, corrupted, roles = _built(words, pieces, {"YEAR": "01"}, f"{answer:02d}")
    right = [pairs[i][0] for i in range(year + 1, 100)]
    return _Prompt(ids, corrupted, roles, right, [pairs[i][0] for i in range(year + 1)])


def _docstring(words: _Words, generator: np.random.Generator) -> _Prompt:
    names = words.single(ARGUMENTS, 7, "words")
    chosen = [f" {name}" for name in generator.choice(names, 7, replace=False)]
    a, b, c, d, e, f, g = chosen
    pieces = [
        ("def port(self,", ""), (a, "DEF1"), (",", ""), (b, "DEF2"), (",", ""), (c, "DEF3"),
        (",", ""), (d, ""), (",", ""), (e, ""), ("):\n    :param", ""), (a, "DOC1"),
        (":\n    :param", ""), (b, "DOC2"), (":\n    :param", ""),
    ]  # fmt: skip
    ids, corrupted, roles = _built(words, pieces, {"DOC1": f, "DOC2": g}, c)
    wrong = [words.ids(name)[0] for name in (a, b, d, e)]
    return _Prompt(ids, corrupted, roles, words.ids(c), wrong)
