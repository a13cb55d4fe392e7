"""Tokens in context, as text to read."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
import xarray as xr
from numpy.typing import NDArray

from lens_slt.arguments import integer
from lens_slt.data.tokenizer import PASS_TOKENIZER, can_be_shipped, shipped_tokenizer
from lens_slt.models.shipped import tokenizer_of
from lens_slt.schema import require
from lens_slt.schemas import MATRICES
from lens_slt.text import CONTROLS

VISIBLE = CONTROLS | str.maketrans({"\n": "⏎", "\t": "⇥", "\r": "⏎"})
MARKS = "«", "»"


def contexts(
    result: xr.Dataset, tokenizer: Any = None, *, width: int = 12, rows: Any = None
) -> list[str]:
    """The text before each token and the token itself, in « ».

    Args:
        result: a matrix, modes or a map.
        tokenizer: of the model; needs ``decode``. May be left out for the shipped models' tokens.
        width: tokens of context.
        rows: which tokens; all by default.

    Raises ValueError for tokens of another tokenizer than the shipped models', where none is given.

    Example:
        >>> import lens_slt as ls
        >>> model, text = ls.load_model("attn-1l"), ls.load_tokens("mix", n_sequences=8, length=16)
        >>> how = dict(settings=ls.Settings(draws=20, chains=2, steps_per_draw=1), progress=False)
        >>> draws = ls.sample(model, text, "L0H0, L0H1, L0H2", probes={"mix": text}, **how)
        >>> len(ls.contexts(ls.per_token_llc(draws), width=2, rows=[0, 1, 2]))
        3
    """
    integer("width", width, at_least=0)
    if not isinstance(result, xr.Dataset) or "sequence" not in result:
        raise TypeError(f"result must be a matrix, modes or a map; got {type(result).__name__}")
    sequence, position = result["sequence"].values, result["position"].values
    text = np.full((int(sequence.max()) + 1, int(position.max()) + 1), "", dtype=object)
    text[sequence, position] = token_texts(result, tokenizer)
    chosen = np.arange(len(sequence)) if rows is None else np.asarray(rows)
    if chosen.ndim != 1 or not (chosen.dtype == bool or np.issubdtype(chosen.dtype, np.integer)):
        raise TypeError(f"rows must be a list of indices of tokens; got {rows!r}")
    return [
        "".join(text[s, max(0, p - width) : p]) + text[s, p].join(MARKS)
        for s, p in zip(sequence[chosen], position[chosen], strict=True)
    ]


def token_texts(result: xr.Dataset, tokenizer: Any = None) -> NDArray[np.object_]:
    """Every token as text with white space made visible; the coordinate ``text`` where it is there.

    Args:
        result: a matrix, modes or a map.
        tokenizer: of the model; may be left out for the shipped models' tokens.

    Raises ValueError for tokens of another tokenizer than the shipped models', where none is given.
    """
    if "text" in result.coords:
        return result["text"].values.astype(object)
    tokenizer = tokenizer_for(result) if tokenizer is None else tokenizer
    if tokenizer is None:
        raise ValueError(f"the tokens of result cannot be read as text: {PASS_TOKENIZER}")
    return visible_text(result["token_id"].values, tokenizer)


def tokenizer_for(result: xr.Dataset) -> Any:
    """The shipped models' tokenizer where a result is of one, or its tokens can be; else None."""
    known = tokenizer_of(result.attrs)
    if known is not None:
        return known
    sequence, position = result["sequence"].values, result["position"].values
    ids = np.zeros((int(sequence.max()) + 1, int(position.max()) + 1), dtype=np.int64)
    real = np.zeros(ids.shape, dtype=bool)
    ids[sequence, position], real[sequence, position] = result["token_id"].values, True
    return shipped_tokenizer() if can_be_shipped(ids[real.any(1)], real[real.any(1)]) else None


def visible_text(ids: NDArray[np.integer[Any]], tokenizer: Any) -> NDArray[np.object_]:
    """What every token says, with white space made visible; TypeError for what is no tokenizer."""
    if not callable(getattr(tokenizer, "decode", None)):
        raise TypeError(
            f"tokenizer must have a decode method; got {type(tokenizer).__name__}: pass the model's"
        )
    kinds, places = np.unique(ids, return_inverse=True)
    known = [str(tokenizer.decode([int(token)])).translate(VISIBLE) for token in kinds]
    return np.array(known, dtype=object)[places]


def top_tokens(
    result: xr.Dataset, tokenizer: Any = None, *, n: int = 10, width: int = 12
) -> pd.DataFrame:
    """The tokens at both ends of every mode or component, in context.

    At most one of each sequence and end: one that repeats itself would otherwise fill the list.

    Args:
        result: from :func:`lens_slt.modes`, or a matrix, such as per-token rLLCs: the tokens with
            the largest and the smallest values of every component.
        tokenizer: of the model; may be left out for the shipped models' tokens.
        n: tokens of each end.
        width: tokens of context.

    Returns:
        Columns ``mode`` (``component``), ``end`` (high or low), ``score`` (of a matrix its value,
        in its units) and ``context``.

    Example:
        >>> import lens_slt as ls
        >>> model, text = ls.load_model("attn-1l"), ls.load_tokens("mix", n_sequences=8, length=16)
        >>> how = dict(settings=ls.Settings(draws=20, chains=2, steps_per_draw=1), progress=False)
        >>> draws = ls.sample(model, text, "L0H0, L0H1, L0H2", probes={"mix": text}, **how)
        >>> found = ls.modes(ls.per_token_llc(draws), n_modes=1, n_bootstrap=0)
        >>> ls.top_tokens(found, n=1)["end"].tolist()
        ['high', 'low']
    """
    integer("n", n, at_least=1)
    result = require(result, "modes", *MATRICES, argument="result")
    result = result.assign_coords(text=("token", token_texts(result, tokenizer)))
    of = "mode" if "mode" in result.dims else "component"
    values = result["score" if of == "mode" else result.attrs["quantity"]].transpose(of, "token")
    sequence = result["sequence"].values
    rows = []
    for name, score in zip(result[of].values.tolist(), values.values, strict=True):
        for end, order in (("high", np.argsort(-score)), ("low", np.argsort(score))):
            _, first = np.unique(sequence[order], return_index=True)
            best = order[np.sort(first)[:n]]
            rows += [
                {of: name, "end": end, "score": float(score[token]), "context": text}
                for token, text in zip(best, contexts(result, width=width, rows=best), strict=True)
            ]
    return pd.DataFrame(rows, columns=[of, "end", "score", "context"])
