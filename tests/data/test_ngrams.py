"""Counts of hand-made corpora, and the patterns that need them, against slow ones."""

from collections import Counter

import numpy as np

from lens_slt.data.ngrams import ngram_counts
from lens_slt.data.patterns import label_patterns
from tests.made_tokenizers import Pieces, random_rows


def test_ngrams_are_the_sure_continuations_of_frequent_contexts() -> None:
    tokenizer = Pieces(*"abcdefg")
    often = tokenizer.ids(*"abc")[0]  # 3 of 5 contexts: sure
    corpus = [often] * 3 + [tokenizer.ids(*"abd")[0]] * 2
    corpus += [tokenizer.ids(*"efg")[0]] * 4  # too few contexts
    corpus += [tokenizer.ids(*"cde")[0]] * 2 + [tokenizer.ids(*"cd" + x)[0] for x in "abf"]  # 2/5
    counts = ngram_counts(corpus, tokenizer)
    codes = {int(c): int(n) for c, n in zip(counts.contexts, counts.context_counts, strict=True)}
    assert codes == {1 * 8 + 2: 5, 5 * 8 + 6: 4, 3 * 8 + 4: 5}
    assert counts.continuations.tolist() == [3, 5, 7]
    assert counts.continuation_counts.tolist() == [3, 2, 4]
    tokens = tokenizer.ids(*"abcdefgabd")
    found = label_patterns(tokens, tokenizer, counts=counts).sel(pattern="ngram").values[0]
    assert np.flatnonzero(found).tolist() == [1]
    tied = ngram_counts([*corpus, tokenizer.ids(*"abd")[0]], tokenizer)  # 3 of 6 each: the lower id
    found = label_patterns(tokens, tokenizer, counts=tied).sel(pattern="ngram").values[0]
    assert np.flatnonzero(found).tolist() == [1]


def test_skip_grams_are_strong_pairs_at_a_distance() -> None:
    filler = [f" f{i}" for i in range(20)]
    tokenizer = Pieces("if", "then", *filler)
    rng = np.random.default_rng(0)
    tokens = rng.integers(3, 23, (200, 12))
    tokens[:15, 2], tokens[:15, 7] = 1, 2
    counts = ngram_counts(tokens, tokenizer)
    assert counts.skip_counts[[1], [2]] == 15
    probe = tokenizer.ids("<bos>", "if", *filler[:3], "then", *filler[3:12], "then", "if", "then")
    found = label_patterns(probe, tokenizer, counts=counts).sel(pattern="skip_gram").values[0]
    assert np.flatnonzero(found).tolist() == [4]  # then at distance 4; not at 14, not at 1
    few = ngram_counts(tokens[6:], tokenizer)  # 9 pairs
    assert not label_patterns(probe, tokenizer, counts=few).sel(pattern="skip_gram").any()


def test_counts_and_their_labels_against_slow_ones() -> None:
    tokenizer = Pieces(*(f"t{i}" for i in range(11)))
    tokens = (random_rows(10, 200, 24) * random_rows(10, 200, 24, seed=1)) % 10
    tokens[:, 2::3] = (tokens[:, 1::3] + tokens[:, 0::3]) % 10 * (tokens[:, 2::3] > 3)
    tokens[:30, 4], tokens[:30, 10] = 10, 11
    counts = ngram_counts(tokens, tokenizer)
    trigrams, pairs = Counter(), Counter()
    for row in tokens.tolist():
        for p in range(24):
            if p >= 2 and 0 not in row[p - 2 : p + 1]:
                trigrams[tuple(row[p - 2 : p + 1])] += 1
            pairs.update(
                (row[p - d], row[p]) for d in range(2, 9) if d <= p and row[p - d] * row[p]
            )
    dense = np.zeros((12, 12), int)
    for pair, n in pairs.items():
        dense[pair] = n
    np.testing.assert_array_equal(counts.skip_counts.toarray(), dense)
    ratio = dense / dense.sum(1, keepdims=True).clip(1) * dense.sum() / dense.sum(0).clip(1)
    found = label_patterns(tokens, tokenizer, counts=counts)
    n_ngram = n_skip = 0
    for row, ids in enumerate(tokens.tolist()):
        for p in range(1, 24):
            after = {t: trigrams[(*ids[p - 2 : p], t)] for t in range(12)} if p >= 2 else {}
            total = sum(after.values())
            best = max(after.values(), default=0)
            ngram = total >= 5 and 2 * best >= total and after[ids[p]] == best
            ngram = ngram and ids[p] == min(t for t in after if after[t] == best) and ids[p] > 0
            skip = not ngram and any(
                ratio[ids[p - d], ids[p]] >= 8 and dense[ids[p - d], ids[p]] >= 10
                for d in range(2, 9)
                if d <= p
            )
            assert found.sel(pattern="ngram").values[row, p - 1] == ngram, (row, p)
            assert found.sel(pattern="skip_gram").values[row, p - 1] == skip, (row, p)
            n_ngram, n_skip = n_ngram + ngram, n_skip + skip
    assert n_ngram > 100 and n_skip >= 30


def test_counts_leave_special_tokens_and_padding_out() -> None:
    tokenizer = Pieces("a", "b", "c")
    tokens = [[0, 1, 2, 3, 0, 1, 2, 3, 3]]
    counts = ngram_counts(tokens, tokenizer, mask=[[1] * 8 + [0]])
    assert counts.contexts.tolist() == [1 * 4 + 2]
    assert counts.context_counts.tolist() == [2]
    assert counts.skip_counts[[3], [3]] == 1


def test_counts_of_short_sequences_are_empty() -> None:
    counts = ngram_counts([[1, 2]], Pieces("a", "b"))
    assert len(counts.contexts) == counts.skip_counts.nnz == 0
    assert not label_patterns([[1, 2]], Pieces("a", "b"), counts=counts)[-2:].any()
