"""What a token set must be, and which of its positions are real."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from lens_slt.data.columns import moved
from lens_slt.data.inputs import Inputs, checked_mask, read_inputs, text_encoder

_PAD_RUN = 2  # shortest run of one id at the end of a row that may be padding
_LONG_RUN = 4  # a run that counts although the id is doubled inside rows too, if most rows have one
_ROWS_PER_RUN = 16  # in a padded set at least one row of so many ends in a run


def usable_device(device: torch.device | str) -> torch.device:
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
            f"device must be a device of this machine: {', '.join(there)}; got {device!r} "
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
    model: Any = None,
    mask: Any = None,
    pad_id: int | None = None,
) -> tuple[Tensor, Tensor, Tensor]:
    """Tokens as int64 ``[sequence, position]``, the mask of real ones, and how rows were moved.

    Rows padded on the left come back moved to the left, their padding behind them;
    :mod:`lens_slt.data.columns` moves arrays by the shift ``[sequence]``, and back.

    With ``d_vocab_out`` the real tokens but the first of each row must be among those predicted.

    Padding must be announced: by an attention mask that comes with the tokens, by ``mask`` (true
    for real tokens), or by ``pad_id``, whose runs at both ends of each row are the padding. With
    none of them, tokens that look padded are refused (:func:`padding_side` has the rule);
    ``pad_id=-1`` says that there is none. A text is read by the tokenizer of ``model``.

    Raises TypeError for what is no integer array, ValueError for wrong values; both name the
    argument (``name``), the value and what is allowed.
    """
    given = read_inputs(tokens, name, text_encoder(model), fill=pad_id or 0)
    ids = given.ids
    check_length(ids, n_ctx, name)
    real = real_tokens(given, mask, pad_id, name)
    check_ids(ids, real, d_vocab, name)
    if d_vocab_out is not None:
        predicted = torch.nn.functional.pad(loss_mask(real), (1, 0))
        check_ids(ids, predicted, d_vocab_out, name, "d_vocab_out")
    ids = ids.masked_fill(~real & ((ids < 0) | (ids >= d_vocab)), 0)
    shift = left_padding(real)
    return moved(ids, shift), moved(real, shift), shift


def loss_mask(mask: Tensor) -> Tensor:
    """Where there is a loss, ``[sequence, position - 1]``: both tokens of the pair are real."""
    return mask[:, 1:] & mask[:, :-1]


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


def left_padding(real: Tensor) -> Tensor:
    """How many tokens ``[sequence]`` stand before the first real one."""
    return (real.int().cummax(1).values == 0).sum(1)


def real_tokens(given: Inputs, mask: Any, pad_id: int | None, name: str) -> Tensor:
    """The mask of real tokens, ``[sequence, position]``; raises as :func:`check_tokens`."""
    if mask is not None and pad_id is not None:
        raise ValueError(f"pass mask or pad_id for {name}, not both")
    ids, real = given
    if real is not None and pad_id is not None:
        _check_pad_id(ids, real, pad_id, name)
    elif pad_id is not None:
        real = mask_from_pad_id(ids, pad_id, name)
    elif mask is not None:
        real = _mask_of_padding(given, mask, name)
    elif real is None:
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
    tail = torch.arange(ids.shape[1] - 1, -1, -1) < runs[:, None]
    if side == "left" or counts is None or (tail[:, 1:] & counts).any():
        ends = "begin" if side == "left" else "end"
        raise ValueError(
            f"{name} looks padded: {int((runs > 0).sum())} of {len(ids)} rows {ends} with a run of "
            f"token {pad}. Pass pad_id={pad} or mask= to leave the padding out of the loss, or "
            "pad_id=-1 to say that these are real tokens"
        )


def left_by_mask(ids: Tensor, mask: Tensor, name: str) -> Tensor | None:
    """Tokens before the first true of a mask, bool, if they are padding; None if they are context.

    They are padding where all of them are one id, unless it is one token in every row, which is an
    uncounted BOS. Raises ValueError where rows look padded and the mask hides more than that.
    """
    skipped = (mask.int().cummax(1).values == 0) & mask.any(1, keepdim=True)
    n_skipped = skipped.sum(1)[mask.any(1)]
    if not skipped.any() or bool((n_skipped == 1).all()):
        return None
    if ids[skipped].unique().numel() == 1:
        return skipped
    found = padding_side(ids)
    if found is not None and found[0] == "left":
        raise ValueError(
            f"{name} looks padded on the left with token {found[1]}, and its mask is false on more "
            f"than that: pass pad_id={found[1]}, or tokens with their attention_mask, and what "
            "counts as weights="
        )
    return None


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


def _mask_of_padding(given: Inputs, mask: Any, name: str) -> Tensor:
    """A mask that tells padding, and nothing else, from real tokens."""
    mask = checked_mask(given.ids, mask, f"mask of {name}")
    if given.real is not None:
        mask &= given.real
    first = mask.int().cummax(1).values
    gap = ((~mask[:, :-1] & mask[:, 1:]) & (first[:, :-1] > 0)).any(1).nonzero()
    if len(gap):
        raise ValueError(
            f"mask of {name} has a hole in row {int(gap[0])}: only padding at either end can be "
            "left out here"
        )
    hidden = first.eq(0) & mask.any(1, keepdim=True)
    if given.real is None:
        is_padding = not hidden.any() or left_by_mask(given.ids, mask, name) is not None
    else:
        is_padding = not (hidden & given.real).any()
    if not is_padding:
        n_hidden = int(hidden[:, 0].sum())
        raise ValueError(
            f"mask of {name} is false at the start of {n_hidden} rows, on tokens that are no "
            "padding (padding is one id, and not as long in all rows where it is a single token)"
        )
    return mask


def mask_from_pad_id(ids: Tensor, pad_id: int, name: str) -> Tensor:
    """Real tokens: those between the runs of ``pad_id`` at both ends of each row.

    Where every row begins with it, the last of each run on the left is a BOS of the same id.
    """
    if isinstance(pad_id, bool) or not isinstance(pad_id, int):
        raise TypeError(f"pad_id of {name} must be an integer; got {pad_id!r}")
    is_pad = ids == pad_id
    real = ~is_pad.flip(1).int().cumprod(1).bool().flip(1)
    n_left = is_pad.int().cumprod(1).sum(1)
    least = int(n_left.min())
    if least > 1:
        raise ValueError(
            f"every row of {name} begins with at least {least} tokens of pad_id {pad_id}: whether "
            "the last of them is a BOS of the same id cannot be told; pass mask= or the "
            "attention_mask"
        )
    return real & (torch.arange(ids.shape[1]) >= (n_left - least)[:, None])


def _check_pad_id(ids: Tensor, real: Tensor, pad_id: int, name: str) -> None:
    """Refuse a ``pad_id`` that contradicts the mask which came with the tokens."""
    differ = (mask_from_pad_id(ids, pad_id, name) != real).any(1).nonzero()
    if len(differ):
        raise ValueError(
            f"{name} come with their padding, by attention_mask or length, and pad_id={pad_id} "
            f"says otherwise in row {int(differ[0])}: leave out pad_id, or pass the ids alone"
        )
