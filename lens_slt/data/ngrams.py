"""Counts of a corpus that say which tokens the nearest few tokens already predict."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy.sparse import coo_array, csr_array

from lens_slt.arrays import BoolArray
from lens_slt.data.vocabulary import IntArray, Text, read_text

_NGRAM_SHARE = 0.5  # conditional frequency of the continuation, at least
_NGRAM_CONTEXTS = 5  # occurrences of the two preceding tokens, at least
_DISTANCES = range(2, 9)  # of a skip-gram
_SKIP_RATIO = 2**3  # conditional over marginal frequency, at least
_SKIP_PAIRS = 10  # co-occurrences, at least


@dataclass(frozen=True, eq=False)
class NgramCounts:
    """What follows each pair of tokens in a corpus, and which tokens come in each other's wake.

    A context is the code ``first * vocabulary_size + second`` of two adjacent tokens.
    ``skip_counts[a, b]`` is the number of places where a stands 2 to 8 positions before b.
    """

    vocabulary_size: int
    contexts: IntArray  # [context], ascending
    context_counts: IntArray  # [context]
    continuations: IntArray  # [context], the most frequent next token; the lowest id of equals
    continuation_counts: IntArray  # [context]
    skip_counts: csr_array  # [token, token]


def ngram_counts(tokens: Any, tokenizer: Any = None, *, mask: Any = None) -> NgramCounts:
    """Counts over ``tokens``, int ``[sequence, position]``, for the patterns ngram and skip_gram.

    The tokenizer gives the size of the vocabulary and the special tokens, which are not counted;
    nor are tokens where ``mask`` is false. It may be left out for tokens of the shipped models.
    Raises as :func:`lens_slt.data.patterns.label_patterns` does; ValueError where it is missing.

    Example:
        >>> import lens_slt as ls
        >>> text = ls.load_tokens("mix", n_sequences=16)
        >>> labels = ls.label_patterns(text, counts=ls.ngram_counts(text))
        >>> "ngram" in labels["pattern"]
        True
    """
    text = read_text(tokens, tokenizer, mask)
    contexts, after, here = _triples(text)
    # One sort of the triples groups them by context; the counts then order each group.
    triples, counts = np.unique(contexts[here] * text.size + after[here], return_counts=True)
    of_triples = triples // text.size
    order = np.lexsort((triples, -counts, of_triples))
    known, first, group = np.unique(of_triples[order], return_index=True, return_inverse=True)
    best = order[first]
    return NgramCounts(
        vocabulary_size=text.size,
        contexts=known,
        context_counts=np.bincount(group, weights=counts[order]).astype(np.int64),
        continuations=triples[best] % text.size,
        continuation_counts=counts[best],
        skip_counts=_skip_counts(text),
    )


def ngram_labels(text: Text, counts: NgramCounts) -> dict[str, BoolArray]:
    """The patterns ngram and skip_gram, each ``[sequence, position]`` of the labelled token."""
    _check_counts(counts, text.size)
    ngram = np.zeros(text.ids.shape, bool)
    contexts, after, here = _triples(text)
    sure = (counts.context_counts >= _NGRAM_CONTEXTS) & (
        counts.continuation_counts >= _NGRAM_SHARE * counts.context_counts
    )
    predicted = counts.contexts[sure] * text.size + counts.continuations[sure]
    ngram[:, 2:] = here & _is_in(contexts * text.size + after, predicted)
    skip = np.zeros_like(ngram)
    strong = _strong_pairs(counts)
    for distance in _DISTANCES:
        pairs, both = _pairs(text, distance)
        skip[:, distance:] |= both & _is_in(pairs, strong)
    return {"ngram": ngram, "skip_gram": skip & ~ngram}


def _triples(text: Text) -> tuple[IntArray, IntArray, BoolArray]:
    """Context, next token, and where all three are text; each ``[sequence, position - 2]``."""
    ids, is_text = text.ids, text.is_text
    contexts = ids[:, :-2] * text.size + ids[:, 1:-1]
    return contexts, ids[:, 2:], is_text[:, :-2] & is_text[:, 1:-1] & is_text[:, 2:]


def _pairs(text: Text, distance: int) -> tuple[IntArray, BoolArray]:
    """Code of each pair at a distance, and where both are text; ``[sequence, -distance]``."""
    ids, is_text = text.ids, text.is_text
    codes = ids[:, :-distance] * text.size + ids[:, distance:]
    return codes, is_text[:, :-distance] & is_text[:, distance:]


def _skip_counts(text: Text) -> csr_array:
    shape = (text.size, text.size)
    total = csr_array(shape, dtype=np.int64)
    for distance in _DISTANCES:
        pairs, both = _pairs(text, distance)
        rows_columns = np.divmod(pairs[both], text.size)
        ones = np.ones(len(rows_columns[0]), np.int64)
        total = total + coo_array((ones, rows_columns), shape=shape).tocsr()
    return total


def _strong_pairs(counts: NgramCounts) -> IntArray:
    """Codes, ascending, of the pairs whose second token the first makes much more frequent."""
    pairs = counts.skip_counts.tocoo()
    earlier, later = pairs.coords
    of_earlier = np.bincount(earlier, pairs.data, counts.vocabulary_size)
    of_later = np.bincount(later, pairs.data, counts.vocabulary_size)
    conditional = pairs.data / of_earlier[earlier]
    marginal = of_later[later] / max(1, pairs.data.sum())
    strong = (pairs.data >= _SKIP_PAIRS) & (conditional >= _SKIP_RATIO * marginal)
    return np.sort(earlier[strong].astype(np.int64) * counts.vocabulary_size + later[strong])


def _is_in(codes: IntArray, known: IntArray) -> BoolArray:
    """Which codes are among the known ones, which are ascending."""
    if not len(known):
        return np.zeros(codes.shape, bool)
    return known[np.searchsorted(known, codes).clip(max=len(known) - 1)] == codes


def _check_counts(counts: NgramCounts, size: int) -> None:
    if not isinstance(counts, NgramCounts):
        raise TypeError(
            f"counts must be what ngram_counts returns, or None; got {type(counts).__name__}"
        )
    if counts.vocabulary_size != size:
        raise ValueError(
            f"counts come from a vocabulary of {counts.vocabulary_size} entries; this tokenizer "
            f"has {size}. Count with the same tokenizer: ngram_counts(tokens, tokenizer)"
        )
