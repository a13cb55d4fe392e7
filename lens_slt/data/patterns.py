r"""Patterns of tokens in context: which class of text each predicted token belongs to.

``PATTERNS`` has their rules. The text decides, not a model. A token may have several labels or
none. Special tokens and padding have none, end words and repeats, and count as non-letters. "Spaces
aside" means after leading and trailing whitespace is taken off. Where a rule needs the next token
and there is none (the end of the sequence, or padding that ``mask`` announces), the label is not
given.

Earlier occurrences may overlap with the labelled one; they end before it. Brackets are counted per
kind, and one that closes nothing is ignored, because sequences begin in mid-document; a pair within
one token, as ``()``, matches nothing outside it. A byte-level token can hold part of a character:
decoded alone it holds U+FFFD, and is a word_part whatever stands around it. A run of one character
and a word may span tokens. A keyword is labelled at each token of its word. Prose has keywords too
(``is``, ``and``): nothing tells it from code.
"""

from __future__ import annotations

import keyword
import re
import unicodedata
import warnings
from typing import Any

import numpy as np
import xarray as xr
from jaxtyping import Int
from torch import Tensor

from lens_slt.arguments import typed
from lens_slt.arrays import BoolArray
from lens_slt.data.columns import moved_back
from lens_slt.data.ngrams import NgramCounts, ngram_counts, ngram_labels
from lens_slt.data.tokenizer import PASS_TOKENIZER, TokenizerWarning, shipped_tokenizer
from lens_slt.data.vocabulary import IntArray, Text, is_readable, read_ids, read_text, shifted
from lens_slt.schema import stamped

__all__ = ["PATTERNS", "NgramCounts", "bracket_depth", "label_patterns", "ngram_counts"]

PATTERNS: dict[str, str] = {
    "induction": "and the token before it stood next to each other earlier in this sequence",
    "repeat_3": "ends three tokens that stood in this order earlier in this sequence",
    "repeat_5": "ends five tokens that stood in this order earlier in this sequence",
    "word_start": (
        "has a letter first, spaces aside, and begins with a space or follows a non-letter"
    ),
    "word_part": "continues a word, and the next token does too; or is part of a UTF-8 character",
    "word_end": "ends in a letter, and the next token does not begin with one",
    "spacing": "is whitespace only",
    "newline": "contains a line break",
    "indentation": (
        "has blanks after a line break; or is blanks only and nothing else began its line"
    ),
    "left_delimiter": "contains one of ( [ {",
    "right_delimiter": "contains one of ) ] }",
    "quote": "contains a quotation mark; an apostrophe is one",
    "matching": "closes a bracket that an earlier token of this sequence opened",
    "formatting": (
        "is in a run of 3 or more of one of = - * _ ~ + ^ or of 2 or more #; contains a "
        "backtick or a backslash; or reads like an HTML tag: begins <a or </, contains />"
    ),
    "numeric": "is digits, spaces aside; . , _ may stand between two digits",
    "punctuation": "is punctuation and symbols only, spaces aside",
    "keyword": "belongs to a word that is a Python keyword, no letter, digit or _ next to it",
    "ngram": (
        "is the most frequent continuation of its two preceding tokens in counts, which "
        "follows at least half of their occurrences, of which there are 5 or more"
    ),
    "skip_gram": (
        "is no ngram, and a token 2 to 8 positions before it makes it at least 8 times as "
        "frequent in counts (at these distances), in 10 or more co-occurrences"
    ),
}
"""Patterns, with what the predicted token is or does."""

_FRAGMENT = "\ufffd"  # what part of a UTF-8 character decodes to
_REPEATS = {2: "induction", 3: "repeat_3", 5: "repeat_5"}
_BRACKETS = ("()", "[]", "{}")
_QUOTES = frozenset("'\"‘’“”«»")
_RULERS = "#=-*_~+^"
_LONGEST = 8  # bytes of a keyword, and of the integers that words are packed into
_LINE_START = re.compile(r"[\n\r][ \t]*\Z")
_INDENTED = re.compile(r"[\n\r][ \t]")
_BLANKS = re.compile(r"[ \t]+")
_NUMBER = re.compile(r"\s*\d+(?:[.,_]\d+)*\s*")
_TAG = re.compile(r"</|/>|<[A-Za-z!]")
_TAG_OPENS = re.compile(r"(?<!<)<\Z")
_TAG_GOES_ON = re.compile(r"[A-Za-z!/]")


@typed
def label_patterns(
    tokens: Any,
    tokenizer: Any = None,
    *,
    mask: Any = None,
    counts: NgramCounts | None = None,
) -> xr.DataArray:
    """Which patterns each predicted token belongs to: bool, pattern × sequence × position.

    ``tokens`` is int ``[sequence, position]``, or anything else that :func:`lens_slt.sample` takes
    (text is read by ``tokenizer``, a BOS first where it has one); position p of the result labels
    the prediction of ``tokens[:, p + 1]`` from the tokens up to p, so it has one position less.
    ``PATTERNS`` of this module has the rules. ``tokenizer``, that of the model, needs ``decode``
    and a length; WordPiece, which does not write spaces, is not understood. It may be left out for
    tokens that the shipped models' tokenizer made; of others only the patterns that need no text
    are labelled then, with a warning: repeats, and those of ``counts``. ``mask`` is true for real
    tokens, and false at padding on either side. Without ``counts``, from :func:`ngram_counts`, the
    patterns ngram and skip_gram are left out.

    Raises TypeError for tokens that are no integer array, for what is no tokenizer or no counts;
    ValueError for ids outside the tokenizer's vocabulary, counts of another vocabulary, or a mask
    of another shape.

    Example:
        >>> import lens_slt as ls
        >>> labels = ls.label_patterns(ls.load_tokens("mix", n_sequences=2, length=16))
        >>> labels.dims, labels.shape[1:]
        (('pattern', 'sequence', 'position'), (2, 15))
    """
    if tokenizer is None and is_readable(tokens, mask):
        tokenizer = shipped_tokenizer()
    if tokenizer is not None:
        text = read_text(tokens, tokenizer, mask)
        found = _repeats(text) | _of_text(text)
    else:
        text = read_ids(tokens, mask, getattr(counts, "vocabulary_size", None))
        found = _repeats(text)
        _warn_of_ids_alone(found)
    if counts is not None:
        found |= ngram_labels(text, counts)
    names = [name for name in PATTERNS if name in found]
    here = text.is_text[:, 1:]
    labels = np.stack([found[name][:, 1:] & here for name in names])
    patterns = xr.DataArray(
        moved_back(labels, text.shift),
        dims=("pattern", "sequence", "position"),
        coords={
            "pattern": names,
            "token_id": (("sequence", "position"), text.given[:, 1:]),  # to tell what was labelled
        },
        name="patterns",
    )
    return stamped(patterns, "patterns")


def _of_text(text: Text) -> dict[str, BoolArray]:
    """The patterns that depend on what the tokens say."""
    found = _words(text) | _spaces(text) | _delimiters(text)
    found["formatting"] = _formatting(text)
    found["numeric"] = text.each(lambda string: bool(_NUMBER.fullmatch(string)))
    found["punctuation"] = text.each(_is_punctuation)
    return found


def _warn_of_ids_alone(labelled: dict[str, BoolArray]) -> None:
    """Say which patterns are left out; points at the caller of :func:`label_patterns`."""
    left_out = [name for name in PATTERNS if name not in {*labelled, "ngram", "skip_gram"}]
    warnings.warn(
        f"tokens: patterns of text are left out ({', '.join(left_out)}), because {PASS_TOKENIZER}",
        TokenizerWarning,
        stacklevel=4,  # typed, label_patterns, this
    )


def bracket_depth(
    tokens: Any, tokenizer: Any = None, *, mask: Any = None
) -> Int[np.ndarray, "sequence position"]:
    """Brackets of this sequence that are open where the next token is predicted.

    Position p counts those that tokens up to p opened and did not close, each kind on its own, as
    in the pattern "matching". Raises as :func:`label_patterns` does.

    Example:
        >>> import lens_slt as ls
        >>> from lens_slt.data.tokenizer import shipped_tokenizer
        >>> tokenizer = shipped_tokenizer()
        >>> ls.bracket_depth([tokenizer.encode("f(a[0])")], tokenizer)
        array([[0, 1, 1, 2, 2, 1]])
    """
    text = read_text(tokens, tokenizer, mask)
    depth = np.sum([_depth(text, kind)[:, :-1] for kind in _BRACKETS], axis=0)
    return moved_back(depth, text.shift)


def _repeats(text: Text) -> dict[str, BoolArray]:
    """Whether the n tokens that end at each position stood in this order before."""
    found = {}
    all_text = text.is_text
    ranks = text.ids
    for n in range(2, max(_REPEATS) + 1):
        # The rank of an n-gram within its row stands for it: codes of five tokens would overflow.
        ranks = shifted(ranks, 1) * (text.size + 1) + text.ids
        ranks[:, : n - 1] = -np.arange(1, n)[: ranks.shape[1]]  # equal to nothing else
        ranks, seen = _ranks(ranks)
        all_text = all_text & shifted(text.is_text, n - 1)
        if n in _REPEATS:
            found[_REPEATS[n]] = seen & all_text
    return found


def _ranks(codes: IntArray) -> tuple[IntArray, BoolArray]:
    """Rank of each code among the different ones of its row; whether it is in the row earlier."""
    order = np.argsort(codes, axis=1, kind="stable")
    ordered = np.take_along_axis(codes, order, axis=1)
    again = np.zeros(codes.shape, bool)
    again[:, 1:] = ordered[:, 1:] == ordered[:, :-1]
    ranks, seen = np.empty_like(codes), np.empty_like(again)
    np.put_along_axis(ranks, order, (~again).cumsum(axis=1), axis=1)
    np.put_along_axis(seen, order, again, axis=1)
    return ranks, seen


def _words(text: Text) -> dict[str, BoolArray]:
    """Starts, parts and ends of words, and the words that are keywords."""
    follows_letter = shifted(text.each(lambda string: _is_letter(string[-1:])), 1)
    continues = text.each(lambda string: _is_letter(string[:1])) & follows_letter
    ends_word = text.each(lambda string: _is_letter(string[-1:]) and _FRAGMENT not in string)
    ends_word = ends_word & text.has_next & ~shifted(continues, -1)
    fragment = text.each(lambda string: _FRAGMENT in string)
    starts = text.each(lambda string: _is_letter(string.lstrip()[:1])) & ~fragment & ~continues
    return {
        "word_start": starts,
        "word_part": fragment | (continues & shifted(continues, -1)),
        "word_end": ends_word,
        "keyword": _keywords(text, starts, continues),
    }


def _keywords(text: Text, starts: BoolArray, continues: BoolArray) -> BoolArray:
    """Tokens of words that are Python keywords, each word packed into one integer."""
    codes = text.each(_packed, np.uint64).ravel()
    sizes = text.each(lambda string: len(_word_bytes(string)), np.int64).ravel()
    before = shifted(text.each(lambda string: _is_identifier(string[-1:])), 1)
    attached = text.each(lambda string: _is_identifier(string[:1]))
    attached_next = shifted(attached, -1) | ~text.has_next
    goes_on = shifted(continues, -1).ravel()
    begin = np.flatnonzero(starts & (sizes.reshape(starts.shape) > 0) & ~(attached & before))
    end, code, size = begin.copy(), codes[begin], sizes[begin]
    for _ in range(_LONGEST - 1):
        more = goes_on[end]
        end = end + more
        # An entry that is no word, or makes the word too long, can be in no keyword.
        keep = ~more | ((sizes[end] > 0) & (size + sizes[end] <= _LONGEST))
        begin, end, code, size, more = (x[keep] for x in (begin, end, code, size, more))
        longer = (code << (8 * sizes[end]).astype(np.uint64) % np.uint64(64)) | codes[end]
        code = np.where(more, longer, code)
        size = np.where(more, size + sizes[end], size)
    known = np.array([_packed(word) for word in keyword.kwlist], np.uint64)
    whole = ~goes_on[end] & ~attached_next.ravel()[end] & np.isin(code, known)
    edges = np.zeros(starts.size + 1, np.int8)
    edges[begin[whole]] = 1
    np.add.at(edges, end[whole] + 1, -1)
    return edges[:-1].cumsum().astype(bool).reshape(starts.shape)


def _spaces(text: Text) -> dict[str, BoolArray]:
    blanks = text.each(lambda string: bool(_BLANKS.fullmatch(string)))
    line_start = text.each(lambda string: bool(_LINE_START.search(string)))
    # The last token that is more than blanks decides for all the blanks after it.
    last = np.maximum.accumulate(np.where(blanks, 0, np.arange(blanks.shape[1])), axis=1)
    indented = text.each(lambda string: bool(_INDENTED.search(string)))
    return {
        "spacing": text.each(str.isspace),
        "newline": text.each(lambda string: "\n" in string or "\r" in string),
        "indentation": indented | (blanks & np.take_along_axis(line_start, last, axis=1)),
    }


def _delimiters(text: Text) -> dict[str, BoolArray]:
    matching = np.zeros(text.ids.shape, bool)
    for kind in _BRACKETS:
        closes, _ = _closes_and_opens(text, kind)
        matching |= (closes > 0) & (shifted(_depth(text, kind), 1) > 0)
    return {
        "left_delimiter": text.each(lambda string: any(c in "([{" for c in string)),
        "right_delimiter": text.each(lambda string: any(c in ")]}" for c in string)),
        "quote": text.each(lambda string: not _QUOTES.isdisjoint(string)),
        "matching": matching,
    }


def _depth(text: Text, kind: str) -> IntArray:
    """Open brackets of one kind after each token, ``[sequence, position]``."""
    closes, opens = _closes_and_opens(text, kind)
    steps = np.stack([-closes, opens], axis=-1).reshape(len(closes), -1)
    # A walk that stays at zero instead of falling below it: the walk minus its lowest value yet.
    walk = steps.cumsum(axis=1, dtype=np.int32)
    depth = walk - np.minimum.accumulate(np.minimum(walk, 0), axis=1)
    return depth[:, 1::2]


def _closes_and_opens(text: Text, kind: str) -> tuple[IntArray, IntArray]:
    """Brackets of one kind that each token closes, then opens, beyond its own pairs."""
    closes = text.each(lambda string: _unmatched(string, kind)[0], np.int32)
    return closes, text.each(lambda string: _unmatched(string, kind)[1], np.int32)


def _formatting(text: Text) -> BoolArray:
    single = text.each(lambda s: "`" in s or "\\" in s or bool(_TAG.search(s)))
    opens = text.each(lambda string: bool(_TAG_OPENS.search(string)))
    goes_on = text.each(lambda string: bool(_TAG_GOES_ON.match(string)))
    return single | (opens & shifted(goes_on, -1)) | _rulers(text)


def _rulers(text: Text) -> BoolArray:
    """Tokens in a long run of one character, which may span several tokens."""
    kinds = text.each(_ruler, np.int8)
    joined = (kinds > 0) & (kinds == shifted(kinds, 1))
    joined &= text.each(lambda string: not string[:1].isspace())
    joined &= ~shifted(text.each(lambda string: string[-1:].isspace()), 1)
    runs = (~joined).ravel().cumsum() - 1
    lengths = text.each(lambda string: len(string.strip()), np.int64).ravel()
    totals = np.bincount(runs, lengths)[runs].reshape(kinds.shape)
    hashes = kinds == 1 + _RULERS.index("#")  # two of any other are an operator or a dunder
    return (kinds > 0) & (totals >= np.where(hashes, 2, 3))


def _ruler(string: str) -> int:
    """Which one character a text repeats, spaces aside: 1 + its place in _RULERS, or 0."""
    bare = string.strip()
    return 1 + _RULERS.find(bare[0]) if bare and bare == bare[0] * len(bare) else 0


def _unmatched(string: str, kind: str) -> tuple[int, int]:
    """Brackets that a text closes and opens beyond its own pairs."""
    closes = opens = 0
    for character in string:
        if character == kind[0]:
            opens += 1
        elif character == kind[1] and opens:
            opens -= 1
        elif character == kind[1]:
            closes += 1
    return closes, opens


def _is_letter(character: str) -> bool:
    """A letter, a mark on one, or part of a UTF-8 character, which may be one."""
    if character.isalpha() or character == _FRAGMENT:
        return True
    return bool(character) and unicodedata.category(character)[0] == "M"


def _is_identifier(character: str) -> bool:
    return _is_letter(character) or character.isalnum() or character == "_"


def _is_punctuation(string: str) -> bool:
    bare = string.strip()
    symbols = all(unicodedata.category(character)[0] in "PS" for character in bare)
    return bool(bare) and symbols and _FRAGMENT not in bare


def _word_bytes(string: str) -> bytes:
    """Bytes of a text that is one word or part of one, spaces before it aside; else none."""
    bare = string.lstrip()
    return bare.encode() if all(map(_is_letter, bare)) else b""


def _packed(string: str) -> int:
    """A short word as one integer, the same for no two words; 0 for a longer one."""
    word = _word_bytes(string)
    return int.from_bytes(word, "big") if len(word) <= _LONGEST else 0


def checked_pattern(given: Any, shape: tuple[int, ...], name: str) -> BoolArray:
    """Labels of predicted tokens, which a caller passes by this name, as a bool array.

    Raises TypeError for other values (NaN and texts would count as true), ValueError for other
    shapes.
    """
    found = given.detach().cpu().numpy() if isinstance(given, Tensor) else np.asarray(given)
    if found.dtype != bool or found.shape != shape:
        wrong = TypeError if found.dtype != bool else ValueError
        raise wrong(
            f"{name} must be bool {list(shape)}, [sequence, position - 1], as "
            f"label_patterns(tokens).sel(pattern=…) is; got {found.dtype} {list(found.shape)}"
        )
    return found
