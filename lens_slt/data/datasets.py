"""Hugging Face data sets, streamed: texts, or rows of token ids with columns beside them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import chain, islice
from typing import Any

from lens_slt.arguments import did_you_mean
from lens_slt.data.corpora import SOURCES
from lens_slt.data.inputs import ATTENTION, IDS, sequences_in

SHUFFLE_BUFFER = 1000  # documents of a streamed data set that are shuffled at a time


def dataset_columns(
    name: str,
    n: int,
    more: Sequence[str] = (),
    *,
    seed: int = 0,
    length: int | None = None,
    without: Any = (),
) -> dict[str, Any]:
    """``n`` rows of ``hf:NAME:SPLIT:COLUMN`` whose column holds token ids, cut to ``length``.

    Returns ``input_ids``, ``attention_mask`` where there is one, and the columns in ``more``, each
    a list over rows; rows whose ids are in ``without`` are left out. Raises as :func:`load_tokens`;
    ValueError for a column that is not there.
    """
    rows, column = _dataset(name, seed)
    wanted = {IDS: column, ATTENTION: ATTENTION} | {one: one for one in more}
    known = sequences_in(without)
    taken = []
    for row in islice(rows, n) if not known else rows:
        for key in (column, *more):
            if key not in row:
                hint = did_you_mean(key, row)
                raise ValueError(
                    f"the data set {name!r} has no column {key!r}: {', '.join(row)}{hint}"
                )
        one = {key: row[there] for key, there in wanted.items() if there in row}
        if length is not None:  # columns of predicted tokens are shorter by one
            ids = len(one[IDS])
            one = {
                key: v[: max(0, length + len(v) - ids)] if isinstance(v, list) else v
                for key, v in one.items()
            }
        if tuple(one[IDS]) not in known:
            taken.append(one)
        if len(taken) == n:
            break
    if len(taken) < n:
        beside = f" that are not among the {len(known)} in without" if known else ""
        raise ValueError(f"the data set {name!r} has {len(taken)} rows{beside}; {n} were asked for")
    return {key: [row[key] for row in taken] for key in taken[0]}


def holds_ids(name: str) -> bool:
    """Whether ``hf:NAME:SPLIT:COLUMN`` names a column of token ids."""
    if not name.startswith("hf:") or name.count(":") < 3:
        return False
    rows, column = _dataset(name, 0)
    return isinstance(next(rows).get(column), list)


def dataset_documents(name: str, seed: int) -> Iterator[str]:
    """Texts of a Hugging Face data set, streamed and shuffled."""
    rows, column = _dataset(name, seed)
    first = next(rows)
    texts = [key for key, value in first.items() if isinstance(value, str)]
    if not column:
        column = "text" if "text" in texts else next(iter(texts), "")
    if column not in texts:
        raise ValueError(
            f"the data set {name!r} has no text column {column!r}; "
            f"its text columns: {', '.join(texts) or 'none'}"
        )
    return (row[column] for row in chain([first], rows))


def _dataset(name: str, seed: int) -> tuple[Iterator[dict[str, Any]], str]:
    """Rows of a Hugging Face data set, streamed and shuffled, at least one; the column named."""
    parts = name.split(":")
    if not 2 <= len(parts) <= 4 or not all(parts):
        raise ValueError(
            f"source must read hf:NAME, hf:NAME:SPLIT or hf:NAME:SPLIT:COLUMN; got {name!r}"
        )
    dataset_name, split = parts[1], parts[2] if len(parts) > 2 else "train"
    from datasets import load_dataset

    try:
        rows = load_dataset(dataset_name, split=split, streaming=True)
    except OSError as error:
        reason = str(error).strip().split("\n")[0]
        raise ConnectionError(
            f"the Hugging Face data set {dataset_name!r} could not be loaded ({reason}). Without a "
            f"network use a built-in corpus: {', '.join(SOURCES)}."
        ) from error
    rows = iter(rows.shuffle(seed=seed, buffer_size=SHUFFLE_BUFFER))
    first = next(rows, None)
    if first is None:
        raise ValueError(f"the data set {name!r} is empty")
    return chain([first], rows), parts[3] if len(parts) > 3 else ""
