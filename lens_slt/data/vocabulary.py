"""Tokens as text: what each vocabulary entry decodes to, looked up once per entry."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import DTypeLike, NDArray
from torch import Tensor

from lens_slt.arrays import BoolArray
from lens_slt.data.checks import check_length, left_padding, real_tokens
from lens_slt.data.columns import moved
from lens_slt.data.inputs import plain_encoder, read_inputs
from lens_slt.data.tokenizer import PASS_TOKENIZER, can_be_shipped, shipped_tokenizer

IntArray = NDArray[np.integer[Any]]


@dataclass(frozen=True, eq=False)
class Text:
    """Token sequences and the text of every vocabulary entry that occurs in them.

    ``ids`` is ``[sequence, position]`` and holds ``size``, which is no entry, wherever there is no
    text: at special tokens and padding. The text there is the empty string. Rows begin with their
    first real token; ``shift [sequence]`` is how far those with padding on the left were moved, and
    ``given`` holds the ids as they came.
    """

    given: IntArray  # [sequence, position]
    shift: Tensor
    ids: IntArray
    real: BoolArray  # [sequence, position]: no padding
    size: int  # of the vocabulary
    entries: IntArray  # the ids that occur, ascending
    texts: tuple[str, ...]  # of ``entries``

    @property
    def is_text(self) -> BoolArray:
        """Where a token is neither special nor padding, ``[sequence, position]``."""
        return self.ids < self.size

    @property
    def has_next(self) -> BoolArray:
        """Where a real token follows, so that it is known what comes next."""
        return shifted(self.real, -1)

    def each(self, trait: Callable[[str], Any], dtype: DTypeLike = bool) -> NDArray[Any]:
        """``trait`` of every token's text, ``[sequence, position]``; zero where there is none."""
        table = np.zeros(self.size + 1, dtype)
        table[self.entries] = [trait(text) for text in self.texts]
        return table[self.ids]


def read_text(tokens: Any, tokenizer: Any = None, mask: Any = None) -> Text:
    """Checked tokens and their texts; ``mask`` is true for real tokens, as in ``check_tokens``.

    Without a tokenizer the tokens must be the shipped models'. Rows padded on the left are moved.
    Raises TypeError for what is no integer array or no tokenizer, ValueError for ids outside the
    tokenizer's vocabulary, a mask of another shape, and tokens of another tokenizer than the
    shipped one where none is given.
    """
    if tokenizer is not None and not callable(getattr(tokenizer, "decode", None)):
        raise TypeError(
            f"tokenizer must have a decode method, or be None for the shipped models'; "
            f"got {type(tokenizer).__name__}"
        )
    ids, real, shift = _checked(tokens, tokenizer, mask)
    if tokenizer is None:
        if not can_be_shipped(ids, real):
            raise ValueError(f"tokens cannot be read as text: {PASS_TOKENIZER}")
        tokenizer = shipped_tokenizer()
    size = vocabulary_size(tokenizer)
    _check_ids(ids, real, size)
    special = np.zeros(size, bool)
    special[[i for i in _special_ids(tokenizer) if 0 <= i < size]] = True
    is_text = real & ~special[np.where(real, ids, 0)]
    entries = np.flatnonzero(np.bincount(ids[is_text], minlength=size))
    return Text(
        given=ids,
        shift=shift,
        ids=moved(np.where(is_text, ids, size), shift),
        real=moved(real, shift),
        size=size,
        entries=entries,
        texts=_texts(tokenizer, entries.tolist()),
    )


def is_readable(tokens: Any, mask: Any = None) -> bool:
    """Whether the shipped models' tokenizer can have made the tokens, so that none is needed."""
    ids, real, _ = _checked(tokens, None, mask)
    return can_be_shipped(ids, real)


def read_ids(tokens: Any, mask: Any = None, size: int | None = None) -> Text:
    """Checked tokens whose text nobody knows; ``size`` of the vocabulary, where it is known."""
    ids, real, shift = _checked(tokens, None, mask)
    size = int(ids[real].max(initial=0)) + 1 if size is None else size
    _check_ids(ids, real, size)
    nothing = np.zeros(0, ids.dtype)
    found = moved(np.where(real, ids, size), shift), moved(real, shift)
    return Text(ids, shift, *found, size, entries=nothing, texts=())


def vocabulary_size(tokenizer: Any) -> int:
    """Number of entries of a tokenizer, special tokens included."""
    if hasattr(tokenizer, "__len__"):
        return len(tokenizer)
    for name in ("vocab_size", "n_vocab"):
        if hasattr(tokenizer, name):
            return int(getattr(tokenizer, name))
    raise TypeError(
        f"tokenizer must have a len() or a vocab_size; {type(tokenizer).__name__} has neither"
    )


def shifted(values: NDArray[Any], by: int) -> NDArray[Any]:
    """Each row moved ``by`` positions to the right (left where negative), zeros moved in."""
    result = np.zeros_like(values)
    if by > 0:
        result[:, by:] = values[:, :-by]
    else:
        result[:, :by] = values[:, -by:]
    return result


def _checked(tokens: Any, tokenizer: Any, mask: Any) -> tuple[IntArray, BoolArray, Tensor]:
    """Ids and where they are real, each ``[sequence, position]``, and the padding on the left.

    Ids may be of any vocabulary: one that is out of range is a mix-up of tokenizers, and has a
    message of its own. Texts are read by the tokenizer, or the shipped models'.
    """

    def encode(text: str) -> list[int]:
        return plain_encoder(shipped_tokenizer() if tokenizer is None else tokenizer)(text)

    given = read_inputs(tokens, encode=encode)
    check_length(given.ids, given.ids.shape[1], "tokens")
    nothing_said = mask is None and given.real is None
    real = real_tokens(given, mask, -1 if nothing_said else None, "tokens")
    return given.ids.numpy(), real.numpy(), left_padding(real)


def _check_ids(ids: IntArray, real: BoolArray, size: int) -> None:
    outside = real & ((ids < 0) | (ids >= size))
    if outside.any():
        row, position = np.argwhere(outside)[0]
        raise ValueError(
            f"tokens[{row}, {position}] is {ids[row, position]}; ids of this tokenizer lie between "
            f"0 and {size - 1} ({int(outside.sum())} ids do not). The labels would belong to "
            "another tokenizer; pass the one that made the tokens"
        )


def _special_ids(tokenizer: Any) -> set[int]:
    found = set(getattr(tokenizer, "all_special_ids", ()))
    found |= {getattr(tokenizer, f"{name}_token_id", None) for name in ("bos", "eos", "pad")}
    added = getattr(tokenizer, "added_tokens_decoder", {})
    found |= {i for i, token in added.items() if getattr(token, "special", False)}
    return {int(i) for i in found if i is not None}


def _texts(tokenizer: Any, ids: list[int]) -> tuple[str, ...]:
    texts = [str(tokenizer.decode([i])) for i in ids]
    if not hasattr(tokenizer, "convert_ids_to_tokens"):
        return tuple(texts)
    pieces = tokenizer.convert_ids_to_tokens(ids)
    return tuple(_with_space(*pair) for pair in zip(pieces, texts, strict=True))


def _with_space(piece: Any, text: str) -> str:
    """Text of one token with the leading space that some decoders strip from a lone token.

    SentencePiece writes a space as U+2581, byte-level BPE as U+0120; a text that itself holds
    the mark is left alone.
    """
    if not isinstance(piece, str):  # None where a tokenizer leaves an id unused
        return text
    if "\u2581" in piece and "\u2581" not in text:
        return piece.replace("\u2581", " ")
    if piece.startswith("\u0120") and not text.startswith((" ", "\u0120")):
        return " " + text
    return text
