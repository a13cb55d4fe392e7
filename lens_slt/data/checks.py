"""What a token set must be, and which of its positions are real."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor

_PAD_RUN = 2  # shortest run of one id at the end of a row that may be padding
_LONG_RUN = 4  # a run that counts although the id is doubled inside rows too, if most rows have one
_ROWS_PER_RUN = 16  # in a padded set at least one row of so many ends in a run


def usable_device(device: torch.device | str, name: str = "device") -> torch.device:
    """A device that can hold a number; ValueError for what is none, or none of this machine's."""
    try:
        found = torch.device(device)
        torch.empty(1, device=found)
    except (RuntimeError, AssertionError, NotImplementedError, TypeError) as error:
        there = ["cpu", *(f"cuda:{i}" for i in range(torch.cuda.device_count()))]
        if torch.backends.mps.is_available():
            there.append("mps")
        reason = str(error).strip().split("\n")[0].rstrip(".")
        raise ValueError(
            f"{name} must be a device of this machine: {', '.join(there)}; got {device!r} "
            f"({reason[:120]})"
        ) from None
    return found


def check_tokens(
    tokens: Any,
    *,
    d_vocab: int,
    n_ctx: int,
    d_vocab_out: int | None = None,
    name: str = "tokens",
    mask: Any = None,
    pad_id: int | None = None,
) -> tuple[Tensor, Tensor]:
    """Tokens as int64 ``[sequence, position]`` and the mask of real tokens, bool, same shape.

    With ``d_vocab_out`` the real tokens but the first of each row must be among those predicted.

    Padding must be on the right and announced: by ``mask`` (true for real tokens) or by
    ``pad_id``, whose run at the end of each row is the padding. With neither, tokens that look
    padded are refused (:func:`padding_side` has the rule); ``pad_id=-1`` says that there is none.

    Raises TypeError for what is no integer array, ValueError for wrong values; both name the
    argument (``name``), the value and what is allowed.
    """
    ids = token_array(tokens, name)
    check_length(ids, n_ctx, name)
    real = real_tokens(ids, mask, pad_id, name)
    check_ids(ids, real, d_vocab, name)
    if d_vocab_out is not None:
        predicted = real & (torch.arange(ids.shape[1]) > 0)
        check_ids(ids, predicted, d_vocab_out, name, "d_vocab_out")
    return ids.masked_fill(~real & ((ids < 0) | (ids >= d_vocab)), 0), real


def loss_mask(mask: Tensor) -> Tensor:
    """Where there is a loss, ``[sequence, position - 1]``: both tokens of the pair are real."""
    return mask[:, 1:] & mask[:, :-1]


def token_array(tokens: Any, name: str = "tokens") -> Tensor:
    """A tensor, array or list of integers as int64 ``[sequence, position]`` on the CPU."""
    instead = _instead_of(tokens, name)
    if instead:
        raise TypeError(
            f"{name} must be an integer tensor, array or list of lists, [sequence, position]; got "
            f"{instead}"
        )
    if isinstance(tokens, list | tuple):
        tokens = _from_rows(tokens, name)
    if isinstance(tokens, np.ndarray):
        if not np.issubdtype(tokens.dtype, np.integer):
            raise TypeError(f"{name} must hold integer token ids; got dtype {tokens.dtype}")
        tokens = torch.from_numpy(tokens.astype(np.int64))
    if not isinstance(tokens, Tensor):
        raise TypeError(
            f"{name} must be an integer tensor, array or list of lists; got {type(tokens).__name__}"
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


def check_length(ids: Tensor, n_ctx: int, name: str, *, unread: int = 0) -> None:
    """Raise ValueError for sequences too long for a model that reads all but ``unread`` tokens."""
    length = ids.shape[1]
    if length < 2:
        raise ValueError(
            f"{name} has sequences of {length} token; a next-token loss needs at least 2"
        )
    if length > n_ctx + unread:
        more = f", and {n_ctx + unread} are allowed as the last is only predicted" * bool(unread)
        raise ValueError(
            f"{name} has sequences of {length} tokens; the model's n_ctx is {n_ctx}{more}"
        )


def check_ids(ids: Tensor, where: Tensor, size: int, name: str, size_name: str = "d_vocab") -> None:
    """Raise ValueError for ids outside a vocabulary, if they stand where ``where`` is true."""
    outside = where & ((ids < 0) | (ids >= size))
    if outside.any():
        worst = ids.masked_fill(~outside, 0).abs().argmax()
        row, position = divmod(int(worst), ids.shape[1])
        what = "token ids" if size_name == "d_vocab" else "predicted tokens that count"
        raise ValueError(
            f"{name}[{row}, {position}] is {int(ids[row, position])}; {what} must lie between 0 "
            f"and {size - 1} ({size_name} is {size}; {int(outside.sum())} ids do not)"
        )


def real_tokens(ids: Tensor, mask: Any, pad_id: int | None, name: str) -> Tensor:
    """The mask of real tokens, ``[sequence, position]``; raises as :func:`check_tokens`."""
    if mask is not None and pad_id is not None:
        raise ValueError(f"pass mask or pad_id for {name}, not both")
    if mask is not None:
        real = _mask_of_padding(ids, mask, name)
    elif pad_id is not None:
        real = _mask_from_pad_id(ids, pad_id, name)
    else:
        refuse_padding(ids, name)
        real = torch.ones_like(ids, dtype=torch.bool)
    short = (real.sum(1) < 2).nonzero()
    if len(short):
        row = int(short[0])
        raise ValueError(
            f"{name}[{row}] has {int(real[row].sum())} real tokens after its padding is left out; "
            "a next-token loss needs at least 2"
        )
    return real


def refuse_padding(ids: Tensor, name: str, counts: Tensor | None = None) -> None:
    """Raise ValueError for tokens that look padded, on the right only where the padding counts.

    ``counts [sequence, position - 1]`` marks the predicted tokens that enter a loss; None is all.
    """
    found = padding_side(ids)
    if found is None:
        return
    side, pad = found
    rows = ids if side == "left" else ids.flip(1)
    runs = (rows == pad).int().cumprod(1).sum(1)
    runs[runs < _PAD_RUN] = 0
    ends = int((runs > 0).sum())
    if side == "left":
        raise ValueError(left_padding(name, f"{ends} rows begin with a run of token {pad}"))
    tail = torch.arange(ids.shape[1] - 1, -1, -1) < runs[:, None]
    if counts is None or (tail[:, 1:] & counts).any():
        raise ValueError(
            f"{name} looks padded: {ends} of {len(ids)} rows end with a run of token {pad}. "
            f"Pass pad_id={pad} or mask= to leave the padding out of the loss, or pad_id=-1 to say "
            "that these are real tokens"
        )


def checked_mask(ids: Tensor, mask: Any, name: str) -> Tensor:
    """A mask of tokens as bool ``[sequence, position]``."""
    try:
        mask = torch.as_tensor(mask).cpu()
    except (TypeError, ValueError, RuntimeError):
        raise TypeError(
            f"mask of {name} must be an array of true and false; got {str(mask)[:80]!r}"
        ) from None
    if mask.shape != ids.shape:
        raise ValueError(
            f"mask of {name} must have the shape of the tokens, {tuple(ids.shape)}; "
            f"got {tuple(mask.shape)}"
        )
    if mask.dtype != torch.bool and not bool(((mask == 0) | (mask == 1)).all()):
        raise ValueError(f"mask of {name} must hold true and false, or 1 and 0")
    return mask.bool()


def left_padding(name: str, what: str) -> str:
    """The words that refuse padding on the left."""
    return (
        f"{name} is padded on the left ({what}). Padding on the left changes the positions and the "
        "attention of the real tokens; pad on the right"
    )


def padding_side(ids: Tensor) -> tuple[str, int] | None:
    """Side and id of what looks like padding, or None.

    An id pads the right when rows end in runs (of at least 2) of it, and it begins every row as
    well (a BOS that shares the padding's id); or it never stands twice in a row anywhere else,
    and the rows with a run are at least two and at least one in sixteen; or at least half of the
    rows, and at least two, end in a run of at least 4. In real text an id that doubles at the end
    of rows doubles inside them too, ``position`` times as often, so newlines and rulers do not
    count. The left is judged alike, and only when the runs differ in length: padding has no
    reason to be equally long in all rows, and a doubled BOS is.
    """
    for side, rows in (("right", ids.flip(1)), ("left", ids)):
        runs = (rows == rows[:, :1]).int().cumprod(1).sum(1)  # length of the run that starts a row
        if side == "left" and runs.unique().numel() == 1:
            continue
        doubled = _doubled_inside(rows, runs)
        starts = rows[:, -1].unique().tolist()
        for pad in rows[runs >= _PAD_RUN, 0].unique().tolist():
            lengths = runs[(rows[:, 0] == pad) & (runs >= _PAD_RUN)]
            many = 2 <= len(lengths) >= len(rows) / _ROWS_PER_RUN
            n_long = int((lengths >= _LONG_RUN).sum())
            mostly = 2 <= n_long >= len(rows) / 2
            if starts == [pad] or (many and pad not in doubled) or mostly:
                return side, pad
    return None


def _doubled_inside(rows: Tensor, runs: Tensor) -> set[int]:
    """Ids that stand twice in a row somewhere behind the run that starts their row."""
    position = torch.arange(rows.shape[1] - 1)
    pairs = (rows[:, 1:] == rows[:, :-1]) & (position >= runs[:, None])
    return set(rows[:, 1:][pairs].tolist())


def _instead_of(tokens: Any, name: str) -> str:
    """What text, a batch or a data set is, and what to pass in its place; "" for anything else."""
    rows = tokens if isinstance(tokens, list | tuple) else ()
    first = rows[0] if len(rows) else None
    inner = first[0] if isinstance(first, list | tuple) and len(first) else first
    if isinstance(tokens, str) or isinstance(inner, str):
        return "text: pass its token ids, such as model.to_tokens(…), or lens_slt.load_tokens(…)"
    columns = list(getattr(tokens, "column_names", None) or ())
    if columns or isinstance(tokens, Mapping):
        what = type(tokens).__name__
        keys = columns or [str(key) for key in tokens]
        if "input_ids" not in keys:
            there = ", ".join(keys) or "nothing"
            return f"a {what} without 'input_ids' ({there}): tokenize its text and pass the ids"
        mask = f", with mask={name}['attention_mask']" if "attention_mask" in keys else ""
        ids = f"list({name}['input_ids'])" if columns else f"{name}['input_ids']"
        return f"a {what}: pass {ids}{mask}"
    if isinstance(first, Mapping):
        return f"a list of {type(first).__name__}: pass [row['input_ids'] for row in {name}]"
    return ""


def _from_rows(rows: Any, name: str) -> Tensor | np.ndarray:
    """Rows of a list as one array, after checking that they are of one length."""
    if all(isinstance(row, Tensor) for row in rows) and len(rows):
        rows = [row.tolist() for row in rows]
    if not len(rows):
        raise ValueError(f"{name} is empty")
    if not all(isinstance(row, list | tuple | np.ndarray) for row in rows):
        raise ValueError(
            f"{name} must have two dimensions, [sequence, position]; got a flat list"
            " (for a single sequence pass [tokens])"
        )
    for i, row in enumerate(rows):
        if len(row) != len(rows[0]):
            raise ValueError(
                f"{name} is ragged: {name}[{i}] has {len(row)} tokens, {name}[0] has "
                f"{len(rows[0])}; cut them to one length, or pad on the right and pass pad_id"
            )
    return np.asarray(rows) if len(rows[0]) else np.empty((len(rows), 0), dtype=np.int64)


def _mask_of_padding(ids: Tensor, mask: Any, name: str) -> Tensor:
    mask = checked_mask(ids, mask, name)
    gap = (~mask[:, :-1] & mask[:, 1:]).any(1).nonzero()
    if len(gap):
        row = int(gap[0])
        raise ValueError(
            left_padding(name, f"row {row} of its mask has padding before real tokens")
        )
    return mask


def _mask_from_pad_id(ids: Tensor, pad_id: int, name: str) -> Tensor:
    if isinstance(pad_id, bool) or not isinstance(pad_id, int):
        raise TypeError(f"pad_id of {name} must be an integer; got {pad_id!r}")
    is_pad = ids == pad_id
    real = ~is_pad.flip(1).int().cumprod(1).bool().flip(1)
    # One leading pad_id in every row is a BOS that shares its id; anything else is left padding.
    leading = is_pad & real
    doubled = leading[:, 0] & leading[:, 1]
    some = leading[:, 0].any() and not is_pad[:, 0].all()
    if doubled.any() or some:
        row = int((doubled if doubled.any() else leading[:, 0]).nonzero()[0])
        raise ValueError(left_padding(name, f"row {row} begins with pad_id {pad_id}"))
    return real
