"""Every pattern on hand-made text, and the fast rules against slow ones on random tokens."""

import keyword
import re
import time
from typing import Any

import numpy as np
import pytest
import torch
import xarray as xr
from scipy.sparse import csr_array

from lens_slt.data.ngrams import NgramCounts, ngram_counts
from lens_slt.data.patterns import PATTERNS, bracket_depth, label_patterns
from lens_slt.data.tokenizer import TokenizerWarning, shipped_tokenizer
from lens_slt.data.tokens import load_tokens
from lens_slt.data.vocabulary import is_readable, read_text
from tests.made_tokenizers import Pieces, random_rows


def labelled(name: str, *pieces: str) -> list[int]:
    """Which of these tokens, which follow a BOS, have a label; the first is number 0."""
    tokenizer = Pieces(*pieces)
    tokens = tokenizer.ids("<bos>", *pieces)
    found = label_patterns(tokens, tokenizer).sel(pattern=name)
    assert found.shape == (1, len(pieces))
    return np.flatnonzero(found.values[0]).tolist()


def in_code(name: str, string: str) -> list[str]:
    """The shipped tokenizer's tokens of a text that have a label."""
    tokenizer = shipped_tokenizer()
    ids = tokenizer(string, add_special_tokens=False)["input_ids"]
    found = label_patterns([[0, *ids]], tokenizer).sel(pattern=name).values[0]
    return [tokenizer.decode([i]) for i, is_found in zip(ids, found, strict=True) if is_found]


def test_the_result_is_a_named_array_one_position_shorter() -> None:
    tokens = load_tokens("mix", n_sequences=4, length=16)
    found = label_patterns(tokens)
    assert isinstance(found, xr.DataArray)
    assert (found.name, found.dtype) == ("patterns", np.dtype(bool))
    assert found.dims == ("pattern", "sequence", "position")
    assert found.shape == (17, 4, 15)
    assert list(found["pattern"].values) == list(PATTERNS)[:17]
    with_counts = label_patterns(tokens, counts=ngram_counts(tokens))
    assert list(with_counts["pattern"].values) == list(PATTERNS)
    xr.testing.assert_equal(with_counts[:17], found)
    for same in (tokens.numpy(), tokens.tolist(), tokens.int()):
        xr.testing.assert_equal(label_patterns(same), found)


def test_induction_needs_the_pair_to_have_ended_before_the_token() -> None:
    assert labelled("induction", *"abcab") == [4]
    assert labelled("induction", *"aab") == []
    assert labelled("induction", *"aaab") == [2]  # occurrences may overlap
    assert labelled("induction", *"abba") == []


def test_repeats_are_longer_than_induction() -> None:
    text = "abcdefxabcdefy"
    assert labelled("induction", *text) == [8, 9, 10, 11, 12]
    assert labelled("repeat_3", *text) == [9, 10, 11, 12]
    assert labelled("repeat_5", *text) == [11, 12]


def test_repeats_do_not_reach_across_sequences_or_special_tokens() -> None:
    tokenizer = Pieces("a", "b", "c")
    tokens = [[0, 1, 2, 3, 0, 1, 2, 0], [0, 1, 2, 3, 1, 2, 3, 0]]
    found = label_patterns(tokens, tokenizer)
    assert np.argwhere(found.sel(pattern="induction").values).tolist() == [[0, 5], [1, 4], [1, 5]]
    assert np.argwhere(found.sel(pattern="repeat_3").values).tolist() == [[1, 5]]
    assert not found.isel(position=[3, 6], sequence=0).any()  # a BOS is predicted here


@pytest.mark.parametrize(("d_vocab", "length"), [(2, 9), (4, 40), (30, 64), (7, 2), (2, 4)])
def test_repeats_against_a_slow_search(d_vocab: int, length: int) -> None:
    tokenizer = Pieces(*map(str, range(100, 100 + d_vocab - 1)))
    tokens = random_rows(d_vocab, 25, length)
    found = label_patterns(tokens, tokenizer)
    for name, n in (("induction", 2), ("repeat_3", 3), ("repeat_5", 5)):
        slow = np.zeros((25, length), bool)
        for row, ids in enumerate(tokens.tolist()):
            for end in range(n, length + 1):
                gram = ids[end - n : end]
                earlier = [ids[e - n : e] for e in range(n, end)]
                slow[row, end - 1] = 0 not in gram and gram in earlier
        np.testing.assert_array_equal(found.sel(pattern=name).values, slow[:, 1:])


def test_words_have_a_start_parts_and_an_end() -> None:
    text = (" He", "l", "lo", " a", ",", "b", "\n", "c", "d", "1", " 2", "e")
    assert labelled("word_start", *text) == [0, 3, 5, 7, 11]
    assert labelled("word_part", *text) == [1]
    assert labelled("word_end", *text) == [2, 3, 5, 8]  # nobody knows whether the last "e" ends


def test_a_special_token_ends_a_word_and_padding_leaves_it_open() -> None:
    tokenizer = Pieces("a", "b")
    tokens = [[0, 1, 2, 0, 2]]
    assert label_patterns(tokens, tokenizer).sel(pattern="word_end").values.tolist() == [
        [False, True, False, False]
    ]
    assert label_patterns(tokens, tokenizer).sel(pattern="word_start").values.tolist() == [
        [True, False, False, True]
    ]
    padded = label_patterns(tokens, tokenizer, mask=[[1, 1, 1, 0, 0]])
    assert padded.sel(pattern="word_start").values.tolist() == [[True, False, False, False]]
    assert not padded.sel(pattern="word_end").any()


def test_part_of_a_character_is_part_of_a_word() -> None:
    string = "caf\u00e9s \u2014 x"
    assert in_code("word_part", string) == ["a", "f", *["\ufffd"] * 5]
    assert in_code("word_start", string) == ["c", "x"]
    assert in_code("word_end", string) == ["s"]
    assert in_code("punctuation", string) == []
    assert in_code("word_part", "\u00e9") == ["\ufffd"] * 2  # also at the end of the sequence


def test_letters_of_any_script_are_letters() -> None:
    hindi = " \u0939\u093f", "\u0928\u094d", "\u0926\u0940", " "  # vowel signs are no letters
    assert labelled("word_start", *hindi) == [0]
    assert labelled("word_part", *hindi) == [1]
    assert labelled("word_end", *hindi) == [2]


def test_spaces_newlines_and_indentation() -> None:
    text = ("a", " ", "b", ":\n", "  ", "\t", "c", "\n\n  ", "d", " \n", "  x", "\n", "y", "  ")
    assert labelled("spacing", *text) == [1, 4, 5, 7, 9, 11, 13]
    assert labelled("newline", *text) == [3, 7, 9, 11]
    assert labelled("indentation", *text) == [4, 5, 7]
    assert labelled("indentation", " ", "a") == []  # no newline has begun this line
    assert in_code("indentation", "if x:\n    y = 1\n") == ["\n   ", " "]


def test_delimiters_and_quotes() -> None:
    text = ("f", "(", "[{", "'", "x", "'", "}]", "()", ")", "\u201c", "don't", "<")
    assert labelled("left_delimiter", *text) == [1, 2, 7]
    assert labelled("right_delimiter", *text) == [6, 7, 8]
    assert labelled("quote", *text) == [3, 5, 9, 10]


def test_matching_needs_an_earlier_token_to_have_opened_the_bracket() -> None:
    assert labelled("matching", *")(a)))") == [3]
    assert labelled("matching", "()", ")", "(", "())", "(", "]", ")") == [3, 6]
    assert labelled("matching", *"([)]") == [2, 3]  # kinds are counted on their own
    assert labelled("matching", "(", ")(", ")", ")") == [1, 2]
    assert in_code("matching", "f('x', (1, 2))[0]()") == ["))", "]"]


def test_bracket_depth_is_what_the_context_has_open() -> None:
    tokenizer = Pieces("(", "[", ")", "a", "))", "()")
    tokens = tokenizer.ids("<bos>", "(", "[", "a", "))", "()", "(", ")", "a")
    assert bracket_depth(tokens, tokenizer).tolist() == [[0, 1, 2, 2, 1, 1, 2, 1]]


def test_brackets_against_a_slow_stack() -> None:
    pieces = ["(", ")", "[", "]", "{", "}", "()", "))", ")(", "([", "a", "])}"]
    tokenizer = Pieces(*pieces)
    tokens = random_rows(len(pieces) + 1, 60, 50)
    matching, depth = np.zeros((60, 50), bool), np.zeros((60, 50), int)
    for row, ids in enumerate(tokens.tolist()):
        opened: dict[str, list[int]] = {kind: [] for kind in "([{"}
        for position, i in enumerate(ids):
            for character in tokenizer.texts[i] if i else "":
                if character in "([{":
                    opened[character].append(position)
                elif character in ")]}":
                    stack = opened["([{"[")]}".index(character)]]
                    if stack and stack.pop() < position:
                        matching[row, position] = True
            depth[row, position] = sum(map(len, opened.values()))
    found = label_patterns(tokens, tokenizer).sel(pattern="matching").values
    np.testing.assert_array_equal(found, matching[:, 1:])
    np.testing.assert_array_equal(bracket_depth(tokens, tokenizer), depth[:, :-1])


def test_formatting() -> None:
    text = ("==", "a", "--", "---", "b", "--", " -", "##", "c", "#", " ***", "`x", "\\n", "*", "**")
    assert labelled("formatting", *text) == [2, 3, 7, 10, 11, 12, 13, 14]
    text = ("<", "b", ">", "<a", " href", "</", "/>", "1", " < ", "c", "<<", "n", "<", "=")
    assert labelled("formatting", *text) == [0, 3, 5, 6]
    assert in_code("formatting", "x == y\n==========\n") == ["=="] * 5


def test_numbers_and_punctuation() -> None:
    text = ("1", " 23", "4.5", "1,000", "1.", "x2", ".", " +=", "():", "a.", "_", " ", "\n)")
    assert labelled("numeric", *text) == [0, 1, 2, 3]
    assert labelled("punctuation", *text) == [6, 7, 8, 10, 12]


def test_keywords_are_whole_and_complete_words() -> None:
    text = (" ret", "urn", " x", " if", "(", "if", "_", "is", "1", " import", "s", " or", "der")
    assert labelled("keyword", *text, ".") == [0, 1, 3]
    assert labelled("keyword", "_", "if", " ", "2", "if", " ") == []
    assert labelled("keyword", " if", " not", " no", "t", "\n", *"continue", " ", *"nonlocals") == [
        0, 1, 2, 3, 5, 6, 7, 8, 9, 10, 11, 12,
    ]  # fmt: skip
    assert labelled("keyword", " x", " if") == []  # it may go on: "iffy"
    assert in_code("keyword", "from a import b\nNone\n") == ["f", "rom", " i", "mport", "None"]


def test_words_and_keywords_of_code_against_regular_expressions() -> None:
    tokenizer = shipped_tokenizer()
    tokens = load_tokens("code", n_sequences=100, length=64)
    found = label_patterns(tokens)
    words = "|".join(keyword.kwlist)
    n_keywords = 0
    for row, ids in enumerate(tokens[:, 1:].tolist()):
        pieces = [tokenizer.decode([i]) for i in ids]
        string = "".join(pieces)
        if not string.isascii():
            continue
        ends = np.cumsum([len(piece) for piece in pieces])
        expected = {name: np.zeros(63, bool) for name in ("word_start", "word_end", "keyword")}
        for word in re.finditer("[A-Za-z]+", string):
            expected["word_start"][np.searchsorted(ends, word.start(), "right")] = True
            if word.end() < len(string):
                expected["word_end"][np.searchsorted(ends, word.end())] = True
        for word in re.finditer(rf"(?<!\w)(?:{words})(?!\w)(?!\Z)", string):
            first, last = np.searchsorted(ends, word.start(), "right"), word.end()
            expected["keyword"][first : np.searchsorted(ends, last) + 1] = True
        for name, slow in expected.items():
            np.testing.assert_array_equal(found.sel(pattern=name).values[row], slow, str(pieces))
        n_keywords += expected["keyword"].sum()
    assert n_keywords > 100


def test_labels_overlap() -> None:
    tokenizer = Pieces(" if", "(", "\n")
    tokens = tokenizer.ids("<bos>", " if", "(", "\n", " if", "(", "\n")
    found = label_patterns(tokens, tokenizer)
    names = [set(found["pattern"].values[found.values[:, 0, p]]) for p in range(6)]
    assert names[0] == {"word_start", "word_end", "keyword"}
    assert names[4] == {"left_delimiter", "punctuation", "induction"}
    assert names[5] == {"spacing", "newline", "induction", "repeat_3"}


def test_special_tokens_inside_a_row_keep_their_ids() -> None:
    tokens = [[0, 1, 2, 0, 1]]  # two documents: a matrix of the same tokens has these ids too
    assert label_patterns(tokens, Pieces("a", "b"))["token_id"].values.tolist() == [[1, 2, 0, 1]]


def test_special_tokens_and_padding_have_no_label() -> None:
    tokens = load_tokens("code", n_sequences=8, length=32)
    mask = torch.ones_like(tokens, dtype=torch.bool)
    mask[2, 20:] = mask[5, 3:] = False
    padded = tokens.masked_fill(~mask, -100)
    counts = ngram_counts(tokens)
    by_mask = label_patterns(padded, mask=mask, counts=counts)
    by_special = label_patterns(tokens.masked_fill(~mask, 0), counts=counts)
    assert not by_mask.values[:, ~mask[:, 1:].numpy()].any()
    assert not by_special.values[:, ~mask[:, 1:].numpy()].any()
    # Only the last real token differs: whether its word ended is known to the second alone.
    inner = (mask[:, 1:] & torch.nn.functional.pad(mask[:, 2:], (0, 1), value=True)).numpy()
    assert (by_mask.values == by_special.values)[:, inner].all()
    whole = label_patterns(tokens, counts=counts)
    xr.testing.assert_equal(whole.isel(sequence=[0, 1, 7]), by_mask.isel(sequence=[0, 1, 7]))


def test_spaces_that_a_decoder_strips_come_back() -> None:
    class Stripping(Pieces):
        def convert_ids_to_tokens(self, ids: list[int]) -> list[str | None]:
            return [None if i == 4 else self.texts[i] for i in ids]

        def decode(self, ids: list[int]) -> str:
            return super().decode(ids).lstrip("\u2581\u0120").replace("\u2581", " ")

    tokenizer = Stripping("\u2581the", "\u2581\u2581", "\u0120.", "x")
    assert read_text([[1, 2, 3, 4]], tokenizer).texts == (" the", "  ", " .", "x")


@pytest.mark.parametrize(
    ("tokens", "arguments", "message"),
    [
        ([[1.5, 2.0]], {}, r"tokens must hold integer token ids; got dtype float64"),
        (None, {}, r"tokens must be an integer tensor, array, list of lists, .*; got NoneType"),
        (
            [[1, 2]],
            {"tokenizer": 3},
            r"tokenizer must have a decode method, or be None .*; got int",
        ),
        (
            [[1, 2]],
            {"counts": {}, "tokenizer": Pieces("a", "b")},
            r"counts must be a lens_slt.NgramCounts; got {}",
        ),
    ],
)
def test_wrong_types(tokens: Any, arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(TypeError, match=message):
        label_patterns(tokens, **arguments)


def test_a_tokenizer_without_a_size_is_refused() -> None:
    class Sizeless:
        decode = Pieces.decode

    with pytest.raises(TypeError, match=r"must have a len\(\) or a vocab_size; Sizeless has nei"):
        label_patterns([[1, 2]], Sizeless())


OTHER_COUNTS = NgramCounts(
    7, *(np.zeros(0, int) for _ in range(4)), skip_counts=csr_array((7, 7), dtype=np.int64)
)


@pytest.mark.parametrize(
    ("tokens", "arguments", "message"),
    [
        (
            [1, 2, 3],
            {},
            r"tokens must have two dimensions, \[sequence, position\]; got a flat list",
        ),
        ([[1]], {}, r"tokens has sequences of 1 token"),
        (
            [[1, 2], [3, 600]],
            {"tokenizer": shipped_tokenizer()},
            r"tokens\[1, 1\] is 600; ids of this tokenizer lie between 0 and 511 \(1 ids do not\). "
            r"The labels would belong to another tokenizer; pass the one that made the tokens",
        ),
        ([[1, -2]], {}, r"tokens\[0, 1\] is -2; ids of this tokenizer lie between 0 and 1"),
        ([[1, 2]], {"mask": [[True]]}, r"the shape of the tokens, \(1, 2\); got \(1, 1\)"),
        (
            [[1, 2, 3]],
            {"mask": [[0, 1, 1]]},
            r"mask of tokens is false at the start of 1 rows, on tokens that are no pad",
        ),
        (
            [[1, 2]],
            {"counts": OTHER_COUNTS, "tokenizer": shipped_tokenizer()},
            r"counts come from a vocabulary of 7 entries; this tokenizer has 512. Count with the",
        ),
    ],
)
def test_wrong_values(tokens: Any, arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        label_patterns(tokens, **arguments)


def test_the_callers_tokens_and_mask_stay_as_they_are() -> None:
    tokens = load_tokens("prose", n_sequences=4, length=16)
    mask = torch.ones_like(tokens)
    before = tokens.clone()
    label_patterns(tokens, mask=mask, counts=ngram_counts(tokens, mask=mask))
    assert torch.equal(tokens, before)
    assert (mask == 1).all()


def test_a_hundred_thousand_tokens_take_seconds() -> None:
    tokens = load_tokens("mix", n_sequences=782, length=128)
    start = time.process_time()
    label_patterns(tokens, counts=ngram_counts(tokens))
    assert time.process_time() - start < 5  # measured: 0.2


def permuted(tokens: torch.Tensor) -> torch.Tensor:
    """Tokens as another tokenizer of as many entries would number them, its BOS included."""
    order = 1 + torch.randperm(511, generator=torch.Generator().manual_seed(0))
    return torch.cat([tokens[:, :1], order[tokens[:, 1:] - 1]], dim=1)


@pytest.mark.parametrize(("source", "length"), [("code", 6), ("prose", 16), ("mix", 128)])
def test_the_shipped_tokenizer_knows_its_tokens(source: str, length: int) -> None:
    tokens = load_tokens(source, n_sequences=32, length=length)
    twice = torch.cat([tokens, tokens[:, 1:]], dim=1)
    packed = torch.cat([tokens[:16], tokens[16:]], dim=1)
    for made in (tokens, tokens[:, 1:], tokens[:4], twice, packed):
        assert is_readable(made)
    mask = (torch.arange(length) < 5).expand(tokens.shape)
    assert is_readable(tokens.masked_fill(~mask, -7), mask)
    assert not is_readable(permuted(tokens))


@pytest.mark.parametrize("d_vocab", [10, 26, 64, 114, 256, 300, 512, 50257])
@pytest.mark.parametrize("shape", [(32, 8), (64, 32)])
def test_ids_of_other_vocabularies_are_none_of_its_tokens(
    d_vocab: int, shape: tuple[int, int]
) -> None:
    ids = random_rows(d_vocab, *shape)
    assert not is_readable(ids)
    ids[:, 0] = 0
    assert not is_readable(ids)
    assert not is_readable(np.sort(ids, axis=1))


def test_without_a_tokenizer_only_repeats_of_foreign_ids_are_labelled() -> None:
    half = random_rows(26, 8, 6)
    tokens = np.concatenate([half, half], axis=1)
    with pytest.warns(TokenizerWarning, match=r"left out \(word_start, .*keyword\).*tokenizer=mod"):
        found = label_patterns(tokens)
    assert issubclass(TokenizerWarning, UserWarning)
    assert found["pattern"].values.tolist() == ["induction", "repeat_3", "repeat_5"]
    letters = Pieces(*(chr(96 + i) for i in range(1, 26)))
    letters.bos_token_id = 99
    xr.testing.assert_equal(found, label_patterns(tokens, letters)[:3].assign_coords(found.coords))
    assert found.sel(pattern="repeat_5").values[:, 10].all()
    counts = ngram_counts(tokens, letters)
    with pytest.warns(TokenizerWarning):
        found = label_patterns(tokens, counts=counts)
    assert found["pattern"].values.tolist()[3:] == ["ngram", "skip_gram"]
    mask = np.tile(np.arange(12) < 9, (8, 1))
    with pytest.warns(TokenizerWarning):
        padded = label_patterns(np.where(mask, tokens, -100), mask=mask)
    assert not padded[:, :, 8:].any()


@pytest.mark.parametrize("function", [ngram_counts, bracket_depth])
def test_what_needs_text_refuses_foreign_ids(function: Any) -> None:
    message = "tokens cannot be read as text: they are not .* tokenizer=model.tokenizer"
    with pytest.raises(ValueError, match=message):
        function(random_rows(26, 4, 8))
