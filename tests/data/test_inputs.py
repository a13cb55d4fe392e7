"""Whatever people have as tokens becomes the same ids and the same mask."""

from __future__ import annotations

from typing import Any

import datasets
import numpy as np
import pytest
import torch
from transformers import BatchEncoding

import lens_slt as ls
from lens_slt.data.inputs import plain_encoder, read_inputs, text_encoder
from lens_slt.data.tokenizer import BOS, BOS_ID, shipped_tokenizer

WHOLE = [[1, 2, 3, 4], [5, 6, 7, 8]]
RAGGED = [[1, 2, 3, 4], [5, 6], [7, 8, 9]]
FILLED = [[1, 2, 3, 4], [5, 6, 0, 0], [7, 8, 9, 0]]
LENGTHS = [4, 2, 3]
LEFT = [[1, 2, 3, 4], [0, 0, 5, 6], [0, 7, 8, 9]]
LEFT_MASK = [[1, 1, 1, 1], [0, 0, 1, 1], [0, 1, 1, 1]]

data = datasets.Dataset.from_dict({"input_ids": WHOLE, "text": ["a", "b"]})
ragged = datasets.Dataset.from_dict({"input_ids": RAGGED})
masked = datasets.Dataset.from_dict({"input_ids": LEFT, "attention_mask": LEFT_MASK})


@pytest.mark.parametrize(
    "tokens",
    [
        WHOLE,
        tuple(map(tuple, WHOLE)),
        np.array(WHOLE, dtype=np.uint16),
        torch.tensor(WHOLE, dtype=torch.int32),
        [torch.tensor(row) for row in WHOLE],
        [np.array(row) for row in WHOLE],
        {"input_ids": WHOLE},
        BatchEncoding({"input_ids": torch.tensor(WHOLE)}),
        data,
        data["input_ids"],
        data.with_format("torch"),
        data.with_format("numpy")["input_ids"],
        [{"input_ids": row} for row in WHOLE],
        list(data),
    ],
)
def test_rows_of_one_length(tokens: Any) -> None:
    ids, real = read_inputs(tokens)
    assert ids.dtype == torch.int64
    assert ids.tolist() == WHOLE
    assert real is None


@pytest.mark.parametrize(
    "tokens",
    [
        RAGGED,
        [torch.tensor(row) for row in RAGGED],
        {"input_ids": RAGGED},
        {"input_ids": RAGGED, "attention_mask": [[1] * n for n in LENGTHS]},
        ragged,
        ragged["input_ids"],
        ragged.with_format("torch"),
        list(ragged),
    ],
)
def test_ragged_rows_are_filled_up_on_the_right(tokens: Any) -> None:
    ids, real = read_inputs(tokens)
    assert ids.tolist() == FILLED
    assert real is not None and real.sum(1).tolist() == LENGTHS
    assert torch.equal(real, torch.arange(4) < torch.tensor(LENGTHS)[:, None])


@pytest.mark.parametrize(
    "tokens",
    [
        {"input_ids": LEFT, "attention_mask": LEFT_MASK},
        BatchEncoding({"input_ids": torch.tensor(LEFT), "attention_mask": np.array(LEFT_MASK)}),
        masked,
        masked.with_format("torch"),
        [dict(row) for row in masked],
    ],
)
def test_an_attention_mask_comes_with_the_tokens(tokens: Any) -> None:
    ids, real = read_inputs(tokens)
    assert ids.tolist() == LEFT
    assert real is not None and real.int().tolist() == LEFT_MASK


@pytest.mark.parametrize(
    ("tokens", "error", "message"),
    [
        (
            "text",
            TypeError,
            r"x is text, and there is no tokenizer to read it with: pass token ids",
        ),
        (data["text"], TypeError, r"x is text, and there is no tokenizer"),
        (["a", 1], TypeError, r"x must hold token ids, or texts alone"),
        ({"ids": WHOLE}, TypeError, r"x is a dict without 'input_ids' \(ids\)"),
        (data.remove_columns("input_ids"), TypeError, r"Dataset without 'input_ids' \(text\)"),
        (datasets.DatasetDict({"train": data}), TypeError, r"pass one of its splits \(train\)"),
        (data.to_iterable_dataset(), TypeError, r"x is a stream .*list\(x.take\(256\)\)"),
        ([{"input_ids": [1]}, {"a": 1}], TypeError, r"x\[1\] has no 'input_ids': it has a"),
        (iter(WHOLE), TypeError, r"x must be an integer tensor, .*; got list_iterator"),
        ([[1.5], [1.5, 2.0]], TypeError, r"x must hold integer token ids; got dtype float64"),
        (WHOLE[0], ValueError, r"got a flat list \(for a single sequence pass \[tokens\]\)"),
        ({"input_ids": torch.tensor(WHOLE[0])}, ValueError, r"two dimensions.*pass tokens\[None\]"),
        ([], ValueError, r"x is empty"),
        (
            {"input_ids": WHOLE, "attention_mask": [[1, 1], [1, 1]]},
            ValueError,
            r"attention_mask of x must have the shape of the tokens, \(2, 4\); got \(2, 2\)",
        ),
        (
            {"input_ids": WHOLE, "attention_mask": [[1, 1, 1, 1], [1, 0, 1, 1]]},
            ValueError,
            r"attention_mask of x has a hole in row 1: .* pass mask= or weights=",
        ),
        (
            {"input_ids": WHOLE, "attention_mask": [[1, 2, 1, 1], [1, 0, 1, 1]]},
            ValueError,
            r"attention_mask of x must hold true and false, or 1 and 0",
        ),
    ],
)
def test_what_is_none_of_these(tokens: Any, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        read_inputs(tokens, "x")


@pytest.mark.parametrize("bos", [True, False])
def test_a_text_is_read_as_the_model_reads_it(bos: bool) -> None:
    model = ls.load_model("attn-1l")
    model.cfg.default_prepend_bos = bos
    texts = ["def f(x):\n    return x", "a b"]
    expected = [model.to_tokens(text)[0].tolist() for text in texts]
    ids, real = read_inputs(texts, encode=text_encoder(model))
    assert real is not None
    assert [row[keep].tolist() for row, keep in zip(ids, real, strict=True)] == expected
    assert (ids[:, 0] == BOS_ID).all() == bos
    ids, real = read_inputs(texts[0], encode=text_encoder(model))
    assert ids.tolist() == expected[:1] and real is None
    ids, _ = read_inputs(BOS + texts[0], encode=text_encoder(model))
    assert ids[0].tolist() == (expected[0] if bos else [BOS_ID, *expected[0]])


def test_a_tokenizer_alone_puts_one_bos_first() -> None:
    ids = plain_encoder(shipped_tokenizer())("a b")
    assert ids == ls.load_model("attn-1l").to_tokens("a b")[0].tolist()
    with pytest.raises(TypeError, match=r"tokenizer must have encode to read text; got object"):
        plain_encoder(object())


def test_texts_and_data_sets_become_token_sequences() -> None:
    assert ls.load_tokens(data).tolist() == WHOLE
    assert ls.load_tokens(masked, length=2, n_sequences=1).tolist() == [[1, 2]]
    with pytest.raises(ValueError, match=r"source has 2 rows that are padded, or shorter than 4"):
        ls.load_tokens(ragged)
    assert ls.load_tokens(ragged, length=2).tolist() == [[1, 2], [5, 6], [7, 8]]
    texts = ["def f(x):\n    return x * 2 + x" * 20, "one two three four five six " * 20]
    tokens = ls.load_tokens(texts, length=16, n_sequences=8)
    assert tokens.shape == (8, 16) and (tokens[:, 0] == BOS_ID).all()


def test_patterns_of_text_and_of_batches() -> None:
    text = "one two three. one two three."
    ids = torch.tensor([plain_encoder(shipped_tokenizer())(text)])
    expected = ls.label_patterns(ids, shipped_tokenizer())
    assert expected.equals(ls.label_patterns(text, shipped_tokenizer()))
    assert expected.equals(ls.label_patterns({"input_ids": ids.tolist()}, shipped_tokenizer()))
    assert bool(expected.sel(pattern="induction").any())
