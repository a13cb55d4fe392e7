"""Prompts have their roles where they say, and one right answer."""

from __future__ import annotations

import re
from typing import Any

import pytest
import torch

from lens_slt.data.prompts import make_prompts
from lens_slt.data.tokenizer import shipped_tokenizer


class Words:
    """A tokenizer of whole words, as large models' are for names and two-digit numbers."""

    bos_token_id = 0

    def __init__(self) -> None:
        self.known: list[str] = ["<bos>"]

    def encode(self, text: str, add_special_tokens: bool = True) -> list[int]:
        found = []
        for piece in re.findall(r" ?[A-Za-z]+| ?\d\d|\s|[^\sA-Za-z\d]", text):
            if piece not in self.known:
                self.known.append(piece)
            found.append(self.known.index(piece))
        return found

    def decode(self, ids: Any) -> str:
        return "".join(self.known[int(i)] for i in ids)


def texts(tokenizer: Any, prompts: Any, role: str) -> list[str]:
    rows = torch.arange(len(prompts.tokens))
    return [tokenizer.decode([i]) for i in prompts.tokens[rows, prompts.role(role)].tolist()]


@pytest.mark.parametrize("make", [Words, shipped_tokenizer])
def test_indirect_objects(make: Any) -> None:
    tokenizer = make()
    prompts = make_prompts("ioi", tokenizer, n=12)
    io, s1, s2 = (texts(tokenizer, prompts, role) for role in ("IO", "S1", "S2"))
    answers = [tokenizer.decode([i]) for i in prompts.tokens[:, -1].tolist()]
    assert s1 == s2
    assert io == answers
    assert all(one != other for one, other in zip(io, s1, strict=True))
    assert prompts.right[:, 0].tolist() == prompts.tokens[:, -1].tolist()
    assert [tokenizer.decode([i]) for i in prompts.wrong[:, 0].tolist()] == s1
    changed = prompts.tokens != prompts.corrupted
    assert changed.sum(1).tolist() == [1] * 12
    assert changed.nonzero()[:, 1].tolist() == prompts.roles["S2"].tolist()
    assert set(texts(tokenizer, prompts, "END")) == {" to"}
    both = (prompts.roles["IO"] < prompts.roles["S1"]).float().mean()
    assert 0 < float(both) < 1  # ABBA and BABA


def test_greater_years() -> None:
    tokenizer = Words()
    prompts = make_prompts("greater_than", tokenizer, n=8)
    years = [int(text) for text in texts(tokenizer, prompts, "YEAR")]
    for row, year in enumerate(years):
        right = [int(tokenizer.decode([i])) for i in prompts.right[row].tolist() if i >= 0]
        wrong = [int(tokenizer.decode([i])) for i in prompts.wrong[row].tolist() if i >= 0]
        assert right == list(range(year + 1, 100))
        assert wrong == list(range(year + 1))
    with pytest.raises(ValueError, match="greater_than prompts need one token for 00 to 99"):
        make_prompts("greater_than", shipped_tokenizer())


def test_docstrings() -> None:
    tokenizer = shipped_tokenizer()
    prompts = make_prompts("docstring", tokenizer, n=6)
    assert texts(tokenizer, prompts, "DEF1") == texts(tokenizer, prompts, "DOC1")
    answers = [tokenizer.decode([i]) for i in prompts.tokens[:, -1].tolist()]
    assert answers == texts(tokenizer, prompts, "DEF3")
    assert not (prompts.wrong == prompts.right).any()


def test_bad_input() -> None:
    with pytest.raises(ValueError, match="kind must be one of ioi, greater_than, docstring; got"):
        make_prompts("io", shipped_tokenizer())
    with pytest.raises(TypeError, match="tokenizer must have encode"):
        make_prompts("ioi", None)
    with pytest.raises(ValueError, match="role must be one of IO, S1, S2, END; got 'S3'"):
        make_prompts("ioi", shipped_tokenizer(), n=2).role("S3")
