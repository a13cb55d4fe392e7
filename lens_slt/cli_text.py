"""Which sequences a command takes: of text, of rows of ids; none of them for two purposes."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from lens_slt.arguments import location
from lens_slt.cli_options import OfText, OfWeightedText
from lens_slt.data.checks import mask_from_pad_id
from lens_slt.data.datasets import dataset_columns, holds_ids
from lens_slt.data.inputs import others, read_inputs, sequences_in
from lens_slt.data.tokens import ARRAY_FILES, DEFAULT_LENGTH, load_tokens, read_file

N_SEQUENCES = 256  # of text and of data sets, where nobody says how many


def text_of(
    options: OfText,
    model: Any,
    sequences: int | None,
    *,
    source: str | None = None,
    seed: int = 0,
    without: Sequence[Any] = (),
) -> Any:
    """So many sequences of ``--data``, or of another source, with a mask where there is padding.

    Rows of ids are taken in their order, text is cut as ``seed`` decides. Sequences in ``without``,
    which serve other purposes of the command, are left out. None takes 256, or of a shorter text
    and of an array all that there are.
    """
    source = source or options.data
    if Path(source).suffix in ARRAY_FILES:
        rows = load_tokens(source, length=options.length)
        tokens: Any = rows[_places(rows, sequences, without)]
    elif holds_ids(source):
        n = sequences or N_SEQUENCES
        tokens = dataset_columns(source, n, length=options.length, without=without)
    else:
        tokens = _cut(options, model, source, sequences, seed, without)
    return _masked(tokens, options.pad_id)


def weighted_text(
    options: OfWeightedText,
    model: Any,
    sequences: int | None,
    *,
    seed: int = 0,
    without: Sequence[Any] = (),
) -> tuple[Any, Any]:
    """Sequences of ``--data``, and the position weights of ``--positions``, None without.

    ``last`` is the last token of every sequence that is no padding; a file holds weights of the
    predicted tokens ``[position - 1]`` or, for an array, ``[sequence, position - 1]``, or a mask
    with one position more; anything else is a column of a data set with token ids.
    """
    positions, source = options.positions, options.data
    if positions is None or positions == "last":
        tokens = text_of(options, model, sequences, seed=seed, without=without)
        return tokens, None if positions is None else _last_only(tokens)
    if Path(positions).suffix in ARRAY_FILES:
        weights = _numbers(read_file(location("positions", positions), "weights"), positions)
        tokens = text_of(options, model, sequences, seed=seed, without=without)
        if weights.ndim == 2:
            if Path(source).suffix not in ARRAY_FILES:
                raise ValueError(
                    f"--positions {positions!r} has a row for every sequence, and which sequences "
                    f"of --data {source!r} are taken is decided here: give one weight a position, "
                    f"or --data as an array ({', '.join(ARRAY_FILES)})"
                )
            rows = load_tokens(source, length=options.length)
            weights = weights[_places(rows, sequences, without)]
    elif holds_ids(source):
        n = sequences or N_SEQUENCES
        found = dataset_columns(source, n, [positions], length=options.length, without=without)
        weights = _numbers(found.pop(positions), positions)
        tokens = _masked(found, options.pad_id)
    else:
        raise ValueError(
            f"--positions {positions!r} must be last, a file ({', '.join(ARRAY_FILES)}), or a "
            "column of a data set with token ids, --data hf:NAME:SPLIT:COLUMN"
        )
    n_positions = read_inputs(tokens).ids.shape[1]
    return tokens, weights[..., 1:] if weights.shape[-1:] == (n_positions,) else weights


def first_rows(tokens: Any, n: int) -> Any:
    """The first sequences, with their mask where there is one."""
    is_plain = isinstance(tokens, Tensor)
    return tokens[:n] if is_plain else {key: rows[:n] for key, rows in tokens.items()}


def _places(rows: Tensor, sequences: int | None, without: Sequence[Any]) -> list[int]:
    """Of the rows of an array that are taken."""
    places = others(rows, without)
    if len(places) < (sequences or 1):
        wanted = "" if sequences is None else f", and {sequences} were asked for"
        raise ValueError(
            f"the array has {len(rows)} sequences, of which {len(rows) - len(places)} are for "
            f"probes and trials: {len(places)} are left{wanted}; give more, or ask for fewer"
        )
    return places[:sequences]


def _cut(
    options: OfText, model: Any, source: str, sequences: int | None, seed: int,
    without: Sequence[Any],
) -> Tensor:  # fmt: skip
    """Sequences of a text, with the model's own tokenizer."""
    tokenizer = model.tokenizer
    if tokenizer is None:
        raise ValueError(
            f"--data {source!r} is text and the model has no tokenizer; give a token array "
            f"({', '.join(ARRAY_FILES)})"
        )
    length = options.length or DEFAULT_LENGTH
    known = [row for row in sequences_in(list(without)) if len(row) == length]
    given: dict[str, Any] = dict(length=length, bos=options.bos, seed=seed)
    given["without"] = torch.tensor(known) if known else ()
    try:
        return load_tokens(source, tokenizer, n_sequences=sequences or N_SEQUENCES, **given)
    except ValueError:
        if sequences is not None:
            raise
        return load_tokens(source, tokenizer, **given)  # a short text: all of it


def _masked(tokens: Any, pad_id: int | None) -> Any:
    """Tokens with the mask that ``--pad-id`` tells; those that came with one have it already."""
    ids, real = read_inputs(tokens)
    if pad_id is None or real is not None:
        return tokens
    return {"input_ids": ids, "attention_mask": mask_from_pad_id(ids, pad_id, "tokens").long()}


def _last_only(tokens: Any) -> Tensor:
    """Weights ``[sequence, position - 1]`` of the last real token alone."""
    ids, real = read_inputs(tokens)
    if real is None:
        real = torch.ones_like(ids, dtype=torch.bool)
    place = ids.shape[1] - 1 - real.flip(1).int().argmax(1)
    return (torch.arange(1, ids.shape[1]) == place[:, None]).double()


def _numbers(given: Any, name: str) -> Tensor:
    """Weights as they were given; ragged rows end in 0."""
    if isinstance(given, list):
        longest = max(len(row) for row in given)
        given = [[*row, *[0] * (longest - len(row))] for row in given]
    try:
        return torch.as_tensor(given).double()
    except (TypeError, ValueError) as error:
        raise ValueError(f"--positions {name!r} must hold numbers: {error}") from None
