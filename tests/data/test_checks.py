"""Every bad token set gets a message that names the argument, the value and what is allowed."""

from typing import Any

import numpy as np
import pytest
import torch

from lens_slt.data.checks import check_tokens, loss_mask, padding_side
from lens_slt.data.columns import moved_back
from lens_slt.data.tokens import load_tokens

RANDOM = torch.randint(1, 50, (8, 12), generator=torch.Generator().manual_seed(0))


def check(tokens: Any, **arguments: Any) -> tuple[torch.Tensor, torch.Tensor]:
    """Of tokens that are not padded on the left."""
    ids, real, shift = check_tokens(tokens, **({"d_vocab": 50, "n_ctx": 16} | arguments))
    assert not shift.any()
    return ids, real


def padded(side: str = "right", pad: int = 0) -> torch.Tensor:
    tokens = RANDOM.clone()
    for row, n in enumerate([0, 3, 5, 1, 2, 0, 4, 7]):
        if n:
            tokens[row, slice(-n, None) if side == "right" else slice(n)] = pad
    return tokens


def test_good_tokens_come_back_as_int64_with_everything_real() -> None:
    for tokens in (RANDOM.int(), RANDOM.numpy().astype(np.uint16), RANDOM.tolist()):
        ids, real = check(tokens)
        assert ids.dtype == torch.int64
        assert torch.equal(ids, RANDOM)
        assert real.dtype == torch.bool
        assert real.all()


@pytest.mark.parametrize(
    ("tokens", "message"),
    [
        (RANDOM.float(), r"tokens must hold integer token ids; got dtype torch.float32"),
        (RANDOM > 3, r"integer token ids; got dtype torch.bool"),
        (RANDOM.numpy() * 1.0, r"integer token ids; got dtype float64"),
        ([[1.5, 2.0]], r"integer token ids; got dtype float64"),
        ([["a", "b"]], r"token ids, or texts alone, one for each sequence; got list"),
        (["a", 1], r"token ids, or texts alone, one for each sequence; got str 'a'"),
        ("some text", r"tokens is text, and there is no tokenizer to read it with: pass token ids"),
        (None, r"integer tensor, array, list of lists, BatchEncoding, .*; got NoneType"),
    ],
)
def test_wrong_types(tokens: Any, message: str) -> None:
    with pytest.raises(TypeError, match=message):
        check(tokens)


@pytest.mark.parametrize(
    ("tokens", "arguments", "message"),
    [
        (RANDOM[0], {}, r"two dimensions.*got shape \(12,\); for a single sequence pass tokens\[N"),
        (RANDOM[None], {}, r"two dimensions, \[sequence, position\]; got shape \(1, 8, 12\)"),
        ([1, 2, 3], {}, r"got a flat list \(for a single sequence pass \[tokens\]\)"),
        ([[1, 2, 3], [1]], {}, r"tokens\[1\] has 1 real tokens after its padding is left out"),
        (
            RANDOM + 40,
            {},
            r"tokens\[\d+, \d+\] is 89; .* between 0 and 49 \(d_vocab is 50; \d+ ids",
        ),
        (-RANDOM, {"name": "probe"}, r"probe\[\d+, \d+\] is -49; token ids must lie between"),
        (RANDOM[:, :1], {}, r"sequences of 1 token; a next-token loss needs at least 2"),
        (RANDOM, {"n_ctx": 8}, r"sequences of 12 tokens; the model's n_ctx is 8"),
        (RANDOM[:0], {}, r"tokens is empty: its shape is \(0, 12\)"),
        ([], {}, r"tokens is empty"),
        ([[], []], {}, r"tokens is empty: its shape is \(2, 0\)"),
        (RANDOM, {"mask": RANDOM > 0, "pad_id": 0}, r"pass mask or pad_id for tokens, not both"),
        (RANDOM, {"mask": RANDOM[:, 1:] > 0}, r"shape of the tokens, \(8, 12\); got \(8, 11\)"),
        (RANDOM, {"mask": RANDOM}, r"mask of tokens must hold true and false, or 1 and 0"),
    ],
)
def test_wrong_values(tokens: Any, arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        check(tokens, **arguments)


def test_announced_padding_is_masked() -> None:
    tokens = padded()
    ids, real = check(tokens, pad_id=0)
    assert torch.equal(ids, tokens)
    assert torch.equal(real, tokens != 0)
    by_mask = check(tokens, mask=(tokens != 0).long())
    assert torch.equal(by_mask[1], real)
    assert torch.equal(loss_mask(real), tokens[:, 1:] != 0)


def test_an_out_of_range_pad_id_is_replaced_where_it_is_padding() -> None:
    ids, real = check(padded(pad=-100), pad_id=-100)
    assert torch.equal(ids, padded(pad=0))
    assert torch.equal(real, padded() != 0)


def test_a_bos_that_shares_the_padding_id_is_real() -> None:
    tokens = padded()
    tokens[:, 0] = 0
    _, real = check(tokens, pad_id=0)
    assert real[:, 0].all()
    assert torch.equal(real[:, 1:], tokens[:, 1:] != 0)


def test_unannounced_left_padding_is_refused() -> None:
    tokens = padded("left")
    with pytest.raises(ValueError, match=r"looks padded: \d of 8 rows begin with a run of token 0"):
        check(tokens)


@pytest.mark.parametrize("how", ["pad_id", "mask"])
def test_rows_padded_on_the_left_are_moved(how: str) -> None:
    tokens = padded("left")
    n = (tokens == 0).sum(1)
    given = {"pad_id": 0} if how == "pad_id" else {"mask": tokens != 0}
    ids, real, shift = check_tokens(tokens, d_vocab=50, n_ctx=16, **given)
    assert torch.equal(shift, n)
    assert torch.equal(real, torch.arange(12) < 12 - n[:, None])
    for row, k in enumerate(n.tolist()):
        assert torch.equal(ids[row, : 12 - k], tokens[row, k:])
    assert torch.equal(moved_back(ids, shift), tokens)


def test_padding_on_both_sides() -> None:
    tokens = padded("left")
    tokens[2, -3:] = 0
    _, real, shift = check_tokens(tokens, d_vocab=50, n_ctx=16, pad_id=0)
    assert int(shift[2]) == 5
    assert real[2].tolist() == [True] * 4 + [False] * 8


def test_a_bos_of_the_same_id_stays_on_the_left() -> None:
    tokens = padded("left")
    tokens = torch.cat([torch.zeros_like(tokens[:, :1]), tokens], 1)
    ids, real, shift = check_tokens(tokens, d_vocab=50, n_ctx=16, pad_id=0)
    assert torch.equal(shift, (tokens == 0).sum(1) - 1)
    assert (ids[:, 0] == 0).all() and real[:, 0].all() and (ids[:, 1] != 0).all()
    twice = torch.cat([torch.zeros_like(tokens[:, :1]), tokens], 1)
    with pytest.raises(ValueError, match=r"begins with at least 2 tokens of pad_id 0: whether"):
        check(twice, pad_id=0)


def test_a_mask_that_hides_text_is_no_mask_of_padding() -> None:
    mask = torch.ones(8, 12, dtype=torch.bool)
    mask[:, :3] = False
    with pytest.raises(ValueError, match=r"false at the start of 8 rows, on tokens that are no"):
        check(RANDOM, mask=mask)
    mask = torch.ones(8, 12, dtype=torch.bool)
    mask[3, 5] = False
    with pytest.raises(ValueError, match=r"mask of tokens has a hole in row 3"):
        check(RANDOM, mask=mask)


def test_a_row_that_is_nothing_but_padding_is_refused() -> None:
    tokens = RANDOM.clone()
    tokens[3, 1:] = 0
    with pytest.raises(ValueError, match=r"tokens\[3\] has 1 real tokens after its padding"):
        check(tokens, pad_id=0)


@pytest.mark.parametrize("pad", [0, 7])
def test_unannounced_padding_is_refused_and_can_be_confirmed(pad: int) -> None:
    tokens = padded(pad=pad)
    with pytest.raises(
        ValueError, match=rf"rows end with a run of token {pad}. Pass pad_id={pad} or .* pad_id=-1"
    ):
        check(tokens)
    assert check(tokens, pad_id=-1)[1].all()
    assert check(tokens, mask=torch.ones_like(tokens))[1].all()


def test_separators_of_the_same_id_do_not_hide_padding() -> None:
    tokens = padded()
    tokens[:, 3] = 0
    assert padding_side(tokens) == ("right", 0)


def test_text_does_not_look_padded() -> None:
    for name in ("code", "prose"):
        for length in (16, 128):
            for seed in range(2):
                tokens = load_tokens(name, n_sequences=64, length=length, seed=seed)
                assert padding_side(tokens) is None, (name, length, seed)


def test_random_and_repeated_tokens_do_not_look_padded() -> None:
    generator = torch.Generator().manual_seed(1)
    for d_vocab in (8, 512, 50_000):
        for _ in range(20):
            segment = torch.randint(0, d_vocab, (32, 24), generator=generator)
            assert padding_side(torch.cat([segment, segment], dim=1)) is None


def test_a_doubled_bos_is_no_left_padding() -> None:
    tokens = RANDOM.clone()
    tokens[:, :2] = 0
    assert padding_side(tokens) is None
