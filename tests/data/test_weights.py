"""Which predicted tokens count, by how much, and what every bad weight or mask is told."""

from typing import Any

import numpy as np
import pytest
import torch

from lens_slt.data.weights import weighted_tokens

RANDOM = torch.randint(1, 50, (8, 12), generator=torch.Generator().manual_seed(0))
LAST = torch.zeros(8, 12, dtype=torch.bool)
LAST[:, -1] = True
ONES = torch.ones(8, 11)
LEFT = RANDOM.clone()
for row, n in enumerate([0, 3, 5, 1, 2, 0, 4, 7]):
    LEFT[row, :n] = 0


def weigh(tokens: Any = RANDOM, **arguments: Any) -> tuple[torch.Tensor, torch.Tensor]:
    sizes = {"d_vocab": 50, "d_vocab_out": 50, "n_ctx": 16}
    ids, weight, shift = weighted_tokens(tokens, **(sizes | arguments))
    assert not shift.any()
    return ids, weight


def changed(place: tuple[int, int], value: float) -> torch.Tensor:
    tensor = (RANDOM if isinstance(value, int) else ONES).clone()
    tensor[place] = value
    return tensor


def test_without_weights_every_predicted_token_counts_once() -> None:
    ids, weight = weigh()
    assert torch.equal(ids, RANDOM)
    assert torch.equal(weight, torch.ones(8, 11, dtype=torch.float64))


def test_one_row_of_weights_is_for_all_sequences_and_the_scale_does_not_matter() -> None:
    row = [0.0] * 9 + [1.0, 4.0]
    expected = torch.tensor([0.0] * 9 + [0.25, 1.0], dtype=torch.float64).expand(8, -1)
    for weights in (row, np.array(row) * 3, torch.tensor(row) / 7, [[*row]] * 8):
        torch.testing.assert_close(weigh(weights=weights)[1], expected)
    flags = [value > 0 for value in row]
    assert torch.equal(weigh(weights=flags)[1], (expected > 0).double())


def test_weights_multiply_the_padding() -> None:
    tokens = RANDOM.clone()
    tokens[::2, 8:] = 0
    real = torch.ones(8, 12, dtype=torch.bool)
    real[::2, 8:] = False
    weights = torch.arange(1.0, 12.0)
    expected = torch.where(real[:, 1:], weights, 0.0).double() / 11
    for how in ({"pad_id": 0}, {"mask": real}):
        torch.testing.assert_close(weigh(tokens, weights=weights, **how)[1], expected)


def test_a_mask_of_answers_marks_what_counts() -> None:
    ids, weight = weigh(mask=LAST)
    assert torch.equal(ids, RANDOM)
    assert torch.equal(weight, weigh(weights=LAST[:, 1:])[1])
    two = LAST.clone()
    two[:, [0, 4]] = True
    two[3] = False
    assert torch.equal(weigh(mask=two)[1], two[:, 1:].double())


def test_an_uncounted_bos_is_no_padding() -> None:
    tokens = RANDOM.clone()
    tokens[:, 0] = 0
    assert torch.equal(weigh(tokens, mask=tokens != 0)[1], torch.ones(8, 11).double())


def test_padding_that_weighs_nothing_needs_no_announcement() -> None:
    tokens = RANDOM.clone()
    tokens[:, 8:] = 0
    weights = torch.zeros(11)
    weights[6] = 1
    assert torch.equal(weigh(tokens, weights=weights)[1][:, 6], torch.ones(8).double())
    weights[8] = 1
    with pytest.raises(ValueError, match=r"looks padded: 8 of 8 rows end .* Pass pad_id=0"):
        weigh(tokens, weights=weights)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"weights": ONES * 0}, r"weights of tokens are 0 everywhere; at least one must be above"),
        ({"weights": -ONES}, r"must be finite and not below 0; weights\[0, 0\] is -1"),
        ({"weights": changed((3, 2), float("nan"))}, r"weights\[3, 2\] is nan"),
        ({"weights": [0.0] * 10 + [float("inf")]}, r"weights\[10\] is inf"),
        ({"weights": ONES[:7]}, r"must have shape \(8, 11\) or \(11,\), a number ≥ 0 .*got \(7, 1"),
        ({"weights": LAST}, r"got \(8, 12\); leave out the first .*: weights\[..., 1:\]"),
        ({"weights": ONES[0, :5]}, r"got \(5,\)$"),
        ({"weights": 1.0}, r"got \(\)$"),
        ({"mask": LAST.roll(1, 1)}, r"tokens\[0\] has 1 real tokens after its padding"),
        ({"mask": LAST, "weights": 1 - LAST[0, 1:].int()}, r"tokens has no token that counts: its"),
        ({"mask": LAST, "pad_id": 0}, r"pass mask or pad_id for tokens, not both"),
        ({"mask": LAST[:, 1:]}, r"shape of the tokens, \(8, 12\); got \(8, 11\)"),
        ({"n_ctx": 10}, r"12 tokens; the model's n_ctx is 10, and 11 are allowed as the last is"),
        ({"tokens": changed((2, 5), 50)}, r"tokens\[2, 5\] is 50; token ids must lie .* and 49"),
        (
            {"tokens": changed((2, 11), 50)},
            r"tokens\[2, 11\] is 50; token ids must .* \(d_vocab is",
        ),
        (
            {"tokens": changed((2, 5), 49), "d_vocab_out": 49},
            r"\[2, 5\] is 49; predicted tokens that count must lie between 0 and 48 \(d_vocab_out",
        ),
        (
            {"tokens": LEFT, "mask": LAST},
            r"padded on the left with token 0, and its mask is false on more.*what counts as weigh",
        ),
        (
            {"tokens": torch.cat([LAST[:, 1:] * 0 + 7, RANDOM[:, :1]], 1), "mask": LAST},
            r"tokens\[0\] has 1 real tokens after its padding is left out",
        ),
    ],
)
def test_wrong_values(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        weigh(**arguments)


@pytest.mark.parametrize(
    ("weights", "message"),
    [
        ("heavy", r"weights of tokens must hold numbers, \(8, 11\) or \(11,\).*; got str"),
        ([[1.0], [1.0, 2.0]], r"must hold numbers, .*; got list"),
        (ONES * 1j, r"must hold real numbers; got dtype torch.complex64"),
    ],
)
def test_wrong_types(weights: Any, message: str) -> None:
    with pytest.raises(TypeError, match=message):
        weigh(weights=weights)


def test_one_token_more_than_the_context_is_predicted_only() -> None:
    assert weigh(n_ctx=11)[0].shape == (8, 12)
    tokens = changed((0, 11), 55)
    with pytest.raises(ValueError, match=r"tokens\[0, 11\] is 55"):
        weigh(tokens)
    assert weigh(tokens, d_vocab_out=60)[0][0, 11] == 55


def test_ids_on_which_no_loss_depends_may_be_anything() -> None:
    tokens = changed((0, 11), -100)
    tokens[1, 5] = 48  # read, and more than the model predicts
    weights = ONES.clone()
    weights[0, 10] = weights[1, 4] = 0
    ids, _ = weigh(tokens, weights=weights * (tokens[:, 1:] < 40), d_vocab_out=40)
    assert ids[0, 11] == 0
    assert ids[1, 5] == 48
    weights[0, 10] = 1
    with pytest.raises(ValueError, match=r"tokens\[0, 11\] is -100"):
        weigh(tokens, weights=weights)


@pytest.mark.parametrize("how", ["pad_id", "mask", "attention_mask"])
def test_padding_on_the_left_is_moved_with_its_weights(how: str) -> None:
    weights = torch.rand(8, 11, generator=torch.Generator().manual_seed(1))
    sizes = {"d_vocab": 50, "d_vocab_out": 50, "n_ctx": 16, "weights": weights}
    tokens = {"input_ids": LEFT, "attention_mask": LEFT != 0} if how == "attention_mask" else LEFT
    given = {"pad_id": {"pad_id": 0}, "mask": {"mask": LEFT != 0}}.get(how, {})
    ids, weight, shift = weighted_tokens(tokens, **sizes, **given)
    assert torch.equal(shift, (LEFT == 0).sum(1))
    counts = torch.zeros_like(weights)
    for row, k in enumerate(shift.tolist()):
        assert torch.equal(ids[row, : 12 - k], LEFT[row, k:])
        counts[row, : 11 - k] = weights[row, k:]
    torch.testing.assert_close(weight, (counts / counts.max()).double(), rtol=1e-6, atol=0)


def test_answers_of_rows_padded_on_the_left() -> None:
    """What an attention mask leaves out is padding, whatever a mask of answers says."""
    tokens = {"input_ids": LEFT, "attention_mask": LEFT != 0}
    sizes = {"d_vocab": 50, "d_vocab_out": 50, "n_ctx": 16}
    _, weight, shift = weighted_tokens(tokens, mask=LAST, **sizes)
    assert torch.equal(shift, (LEFT == 0).sum(1))
    assert torch.equal(weight.argmax(1), 10 - shift)
    assert (weight.sum(1) == 1).all()


def test_ids_of_padding_on_the_left_may_be_anything() -> None:
    tokens = LEFT.masked_fill(LEFT == 0, -100)
    sizes = {"d_vocab": 50, "d_vocab_out": 50, "n_ctx": 16}
    ids, _, shift = weighted_tokens(tokens, pad_id=-100, **sizes)
    assert (ids >= 0).all() and torch.equal(shift, (LEFT == 0).sum(1))
    tokens[1, 6] = 77
    with pytest.raises(ValueError, match=r"tokens\[1, 6\] is 77"):  # in the caller's columns
        weighted_tokens(tokens, pad_id=-100, **sizes)
