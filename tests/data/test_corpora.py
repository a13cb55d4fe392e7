"""The built-in corpora: present, ordered, mixed, and large enough."""

import ast

import pytest

from lens_slt.data.corpora import CORPORA, corpus


@pytest.mark.parametrize("name", CORPORA)
def test_a_corpus_is_large_and_free_of_repeats(name: str) -> None:
    documents = corpus(name)
    assert len(documents) > 200
    assert sum(map(len, documents)) > 10**6
    assert len(set(documents)) > 0.95 * len(documents)
    assert corpus(name) == documents


def test_code_is_python_source() -> None:
    parsed = 0
    for text in corpus("code")[:40]:
        try:
            ast.parse(text)
        except SyntaxError:
            continue
        parsed += 1
    assert parsed >= 38


def test_prose_is_text_rather_than_code() -> None:
    def share_of_letters(name: str) -> float:
        text = "".join(corpus(name)[:100])
        return sum(c.isalpha() for c in text) / len(text)

    assert share_of_letters("prose") > share_of_letters("code") + 0.05


def test_unknown_corpus_is_named() -> None:
    with pytest.raises(ValueError, match=r"one of code, prose; got 'poetry'"):
        corpus("poetry")
