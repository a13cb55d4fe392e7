"""Every bad token set gets a message that names the argument, the value and what is allowed."""

from typing import Any

import numpy as np
import pytest
import torch

from lens_slt.data.checks import check_tokens, loss_mask, padding_side
from lens_slt.data.tokens import load_tokens

RANDOM = torch.randint(1, 50, (8, 12), generator=torch.Generator().manual_seed(0))


def check(tokens: Any, **arguments: Any) -> tuple[torch.Tensor, torch.Tensor]:
    return check_tokens(tokens, **({"d_vocab": 50, "n_ctx": 16} | arguments))


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
        ([["a", "b"]], r"integer tensor, array or list of lists, .*; got text: pass its token ids"),
        ("some text", r"integer tensor, array or list of lists, .*; got text: pass its token ids"),
        (None, r"integer tensor, array or list of lists; got NoneType"),
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
        ([[1, 2, 3], [1, 2]], {}, r"ragged: tokens\[1\] has 2 tokens, tokens\[0\] has 3"),
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


def test_left_padding_is_refused() -> None:
    tokens = padded("left")
    reason = "on the left .* changes the positions and the attention .*; pad on the right"
    with pytest.raises(ValueError, match=reason):
        check(tokens, pad_id=0)
    with pytest.raises(ValueError, match=reason):
        check(tokens, mask=tokens != 0)
    with pytest.raises(ValueError, match=r"left \(\d rows begin with a run of token 0\)"):
        check(tokens)


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
