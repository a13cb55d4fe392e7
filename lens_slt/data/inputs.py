"""Whatever people have as token ids: arrays, lists, batches, data sets, columns, and text."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

IDS, ATTENTION = "input_ids", "attention_mask"

Encode = Callable[[str], list[int]]


class Inputs(NamedTuple):
    """Ids, int64 ``[sequence, position]`` on the CPU, and what came with them.

    ``real`` is what an attention mask or rows of different lengths say about padding: bool, the
    same shape, true for real tokens; None where nothing was said.
    """

    ids: Tensor
    real: Tensor | None


def read_inputs(
    tokens: Any, name: str = "tokens", encode: Encode | None = None, *, fill: int = 0
) -> Inputs:
    """Token ids from any of these, one sequence a row:

    - an integer tensor, array, or list of lists;
    - a list of lists (or tensors) of different lengths, which is filled up on the right;
    - a ``BatchEncoding``, a ``datasets.Dataset``, another mapping or a list of rows with
      ``input_ids`` and, where there is one, an ``attention_mask``;
    - a column of a data set, ``data["input_ids"]``;
    - a text or a list of texts, where ``encode`` turns one into ids (:func:`text_encoder`).

    Args:
        tokens: one of them.
        name: of the argument, for messages.
        encode: from text to ids.
        fill: what rows are filled up with.

    Raises TypeError for anything else, ValueError for what is empty, has another number of
    dimensions or has an attention mask of another shape or with holes.
    """
    attention = None
    if not isinstance(tokens, Tensor | np.ndarray):
        tokens, attention = _columns(tokens, name)
    tokens = _as_ids(tokens, name, encode)
    ids, real = _filled(tokens, name, fill)
    if attention is not None:
        real = _attention(attention, ids, real, name)
    return Inputs(ids, real)


def token_array(tokens: Any, name: str = "tokens") -> Tensor:
    """A tensor, array or list of integers as int64 ``[sequence, position]`` on the CPU."""
    if isinstance(tokens, list | tuple):
        tokens = _from_rows(tokens, name)
    if isinstance(tokens, np.ndarray):
        if not np.issubdtype(tokens.dtype, np.integer):
            raise TypeError(f"{name} must hold integer token ids; got dtype {tokens.dtype}")
        tokens = torch.from_numpy(tokens.astype(np.int64))
    if not isinstance(tokens, Tensor):
        raise TypeError(
            f"{name} must be an integer tensor, array, list of lists, BatchEncoding, data set with "
            f"{IDS!r}, or text; got {type(tokens).__name__}"
        )
    if tokens.dtype == torch.bool or tokens.is_floating_point() or tokens.is_complex():
        raise TypeError(f"{name} must hold integer token ids; got dtype {tokens.dtype}")
    if tokens.ndim != 2:
        hint = "; for a single sequence pass tokens[None]" if tokens.ndim == 1 else ""
        raise ValueError(
            f"{name} must have two dimensions, [sequence, position]; "
            f"got shape {tuple(tokens.shape)}{hint}"
        )
    if tokens.numel() == 0:
        raise ValueError(f"{name} is empty: its shape is {tuple(tokens.shape)}")
    return tokens.detach().to("cpu", torch.int64)


def sequences_in(tokens: Any) -> set[tuple[int, ...]]:
    """Sequences of ids to look up: of a token array, a mapping with ``input_ids``, or a list of
    these."""
    if isinstance(tokens, list | tuple):
        return set().union(*map(sequences_in, tokens))
    if isinstance(tokens, Mapping):
        tokens = tokens[IDS]
        rows = tokens.tolist() if isinstance(tokens, Tensor) else tokens
    else:
        rows = token_array(tokens, "without").tolist()
    return set(map(tuple, rows))


def others(rows: Tensor, without: Any) -> list[int]:
    """Places of the rows that are not among these sequences."""
    known = sequences_in(without)
    return [i for i, row in enumerate(rows.tolist()) if tuple(row) not in known]


def text_encoder(model: Any) -> Encode | None:
    """How a TransformerLens model turns a text into ids; None without a tokenizer.

    BOS is prepended where the model does so by default (``cfg.default_prepend_bos``), once also
    where the text or the tokenizer brings one. Nothing is cut.
    """
    tokenizer = getattr(model, "tokenizer", None)
    if tokenizer is None or not hasattr(model, "to_tokens"):
        return None
    return lambda text: _once(model.to_tokens(text, truncate=False)[0].tolist(), tokenizer)


def plain_encoder(tokenizer: Any) -> Encode:
    """Text to ids with a tokenizer alone: a BOS first where it has one, as models do by default."""
    bos = getattr(tokenizer, "bos_token_id", None)
    if not hasattr(tokenizer, "encode"):
        raise TypeError(
            f"tokenizer must have encode to read text; got {type(tokenizer).__name__}: pass ids"
        )

    def encode(text: str) -> list[int]:
        ids = list(tokenizer.encode(text))
        return _once(ids if bos is None else [bos, *ids], tokenizer)

    return encode


def texts_in(tokens: Any) -> list[str] | None:
    """The texts that ``tokens`` is or holds, None where it is something else."""
    if isinstance(tokens, str):
        return [tokens]
    if isinstance(tokens, Tensor | np.ndarray | Mapping) or hasattr(tokens, "column_names"):
        return None
    if isinstance(tokens, Sequence) and len(tokens) and all(isinstance(x, str) for x in tokens):
        return list(tokens)
    return None


def _once(ids: list[int], tokenizer: Any) -> list[int]:
    """Ids without a second BOS."""
    bos = getattr(tokenizer, "bos_token_id", None)
    return ids[1:] if bos is not None and ids[:2] == [bos, bos] else ids


def _columns(tokens: Any, name: str) -> tuple[Any, Any]:
    """Ids and the attention mask of a batch, a data set or a list of rows; others as they are."""
    columns = getattr(tokens, "column_names", None)
    if isinstance(columns, Mapping):
        splits = ", ".join(map(str, tokens))
        raise TypeError(f"{name} is a {type(tokens).__name__}: pass one of its splits ({splits})")
    if columns is not None or isinstance(tokens, Mapping):
        what, keys = type(tokens).__name__, list(columns or map(str, tokens))
        if columns is not None and not hasattr(tokens, "__len__"):
            raise TypeError(
                f"{name} is a stream ({what}): pass rows of it, such as list({name}.take(256))"
            )
        if IDS not in keys:
            raise TypeError(
                f"{name} is a {what} without {IDS!r} ({', '.join(keys) or 'nothing'}): tokenize "
                "its text, or pass the column of texts"
            )
        return _listed(tokens[IDS]), _listed(tokens[ATTENTION]) if ATTENTION in keys else None
    tokens = _listed(tokens)
    if isinstance(tokens, list | tuple) and len(tokens) and isinstance(tokens[0], Mapping):
        lacking = [i for i, row in enumerate(tokens) if IDS not in row]
        if lacking:
            row = lacking[0]
            raise TypeError(f"{name}[{row}] has no {IDS!r}: it has {', '.join(tokens[row])}")
        masked = all(ATTENTION in row for row in tokens)
        return [row[IDS] for row in tokens], [row[ATTENTION] for row in tokens] if masked else None
    return tokens, None


def _listed(values: Any) -> Any:
    """A column of a data set, or another collection that can be counted, as a list."""
    if isinstance(values, Tensor | np.ndarray | list | tuple | str | Mapping):
        return values
    countable = isinstance(values, Collection) and hasattr(values, "__getitem__")
    return list(values) if countable else values


def _as_ids(tokens: Any, name: str, encode: Encode | None) -> Any:
    """Texts as rows of ids; anything else as it is."""
    texts = texts_in(tokens)
    if texts is None:
        first = tokens[0] if isinstance(tokens, list | tuple) and len(tokens) else None
        if isinstance(first, str) or (
            isinstance(first, list | tuple) and len(first) and isinstance(first[0], str)
        ):
            raise TypeError(
                f"{name} must hold token ids, or texts alone, one for each sequence; got "
                f"{type(first).__name__} {str(first)[:80]!r}"
            )
        return tokens
    if encode is None:
        raise TypeError(
            f"{name} is text, and there is no tokenizer to read it with: pass token ids, or a "
            "model that has its tokenizer (lens_slt.load_tokens takes tokenizer=)"
        )
    return [encode(text) for text in texts]


def _filled(tokens: Any, name: str, fill: int) -> Inputs:
    """Rows as one array; those of different lengths filled up, with the mask of what is real."""
    if not isinstance(tokens, list | tuple):
        return Inputs(token_array(tokens, name), None)
    lengths = [_length(row) for row in tokens]
    known = [n for n in lengths if n is not None]
    if len(known) < len(lengths) or len(set(known)) < 2:
        return Inputs(token_array(tokens, name), None)
    longest = max(known)
    real = torch.arange(longest) < torch.tensor(known)[:, None]
    rows = [[*_plain(row), *[fill] * (longest - n)] for row, n in zip(tokens, known, strict=True)]
    return Inputs(token_array(rows, name), real)


def _from_rows(rows: Any, name: str) -> Tensor | np.ndarray:
    """Rows of one length as one array."""
    if not len(rows):
        raise ValueError(f"{name} is empty")
    lengths = [_length(row) for row in rows]
    if None in lengths:
        raise ValueError(
            f"{name} must have two dimensions, [sequence, position]; got a flat list"
            " (for a single sequence pass [tokens])"
        )
    if len(set(lengths)) > 1:
        row = next(i for i, n in enumerate(lengths) if n != lengths[0])
        raise ValueError(
            f"{name} is ragged: {name}[{row}] has {lengths[row]} tokens, {name}[0] has "
            f"{lengths[0]}; cut them to one length"
        )
    return np.asarray([_plain(r) for r in rows]) if lengths[0] else np.empty((len(rows), 0), int)


def _length(row: Any) -> int | None:
    """Number of tokens of a row; None for what is no row."""
    if isinstance(row, Tensor | np.ndarray):
        return len(row) if row.ndim else None
    return len(row) if isinstance(row, list | tuple) else None


def _plain(row: Any) -> Any:
    return row.tolist() if isinstance(row, Tensor | np.ndarray) else row


def _attention(mask: Any, ids: Tensor, real: Tensor | None, name: str) -> Tensor:
    """An attention mask as bool ``[sequence, position]``, false also where rows were filled up."""
    label = f"{ATTENTION} of {name}"
    found = checked_mask(ids, mask, label)
    found = found if real is None else found & real
    first, last = found.int().cummax(1).values, found.flip(1).int().cummax(1).values.flip(1)
    hole = ((first * last > 0) & ~found).any(1).nonzero()
    if len(hole):
        raise ValueError(
            f"{label} has a hole in row {int(hole[0])}: tokens that are not attended to can only "
            "be padding, at either end; to leave predictions out of the loss pass mask= or weights="
        )
    return found


def checked_mask(ids: Tensor, mask: Any, label: str) -> Tensor:
    """A mask of tokens as bool ``[sequence, position]``; ragged rows are false where they end."""
    mask = _listed(mask)
    if isinstance(mask, list | tuple) and all(_length(row) is not None for row in mask):
        longest = max((_length(row) or 0 for row in mask), default=0)
        mask = [[*_plain(row), *[0] * (longest - len(row))] for row in mask]
    try:
        mask = torch.as_tensor(mask).cpu()
    except (TypeError, ValueError, RuntimeError):
        raise TypeError(
            f"{label} must be an array of true and false; got {str(mask)[:80]!r}"
        ) from None
    if mask.shape != ids.shape:
        raise ValueError(
            f"{label} must have the shape of the tokens, {tuple(ids.shape)}; "
            f"got {tuple(mask.shape)}"
        )
    if mask.dtype != torch.bool and not bool(((mask == 0) | (mask == 1)).all()):
        raise ValueError(f"{label} must hold true and false, or 1 and 0")
    return mask.bool().clone()  # not the caller's, which others may write into
