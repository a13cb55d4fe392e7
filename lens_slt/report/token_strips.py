"""Tokens in context as HTML, every token in the colour of its own score."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import xarray as xr

from lens_slt.arrays import FloatArray
from lens_slt.structure.contexts import token_texts
from lens_slt.text import html_text

FULL_COLOUR = 3.0  # standard deviations of the score
STRONGEST = 0.65  # opacity
ENDS = 5  # tokens of each end
WIDTH = 24  # tokens of context


def token_strips(result: xr.Dataset, score: FloatArray) -> str:
    """The tokens at both ends of a score, with those before them, coloured by score.

    Args:
        result: modes with the coordinate ``text``, as in
            :class:`lens_slt.structure.overview.View`.
        score: of every token, in standard deviations.
    """
    sequence, position = result["sequence"].values, result["position"].values
    place = {(int(s), int(p)): i for i, (s, p) in enumerate(zip(sequence, position, strict=True))}
    texts = token_texts(result)
    parts = []
    for end, order in (("Highest", np.argsort(-score)), ("Lowest", np.argsort(score))):
        _, first = np.unique(sequence[order], return_index=True)
        lines = []
        for token in order[np.sort(first)[:ENDS]]:
            before = [
                place.get((int(sequence[token]), p))
                for p in range(int(position[token]) - WIDTH, int(position[token]))
            ]
            tokens = [_token(texts[i], score[i]) for i in before if i is not None]
            tokens.append(_token(texts[token], score[token], "token here"))
            lines.append(
                f'<li><span class="score">{score[token]:+.1f}</span>{"".join(tokens)}</li>'
            )
        parts.append(f'<p><b>{end} scores</b></p><ul class="tokens">{"".join(lines)}</ul>')
    return "".join(parts)


def token_scores(matrix: xr.Dataset, result: xr.Dataset) -> Iterator[tuple[str, FloatArray]]:
    """Every usable component of a matrix with its value at every token, in standard deviations.

    ``result`` are the modes of the matrix, which has the same tokens.
    """
    values = matrix[str(matrix.attrs["quantity"])]
    for name in result["component"].values:
        column = values.sel(component=name).values.astype(float)
        spread = float(np.nanstd(column)) or 1.0
        yield str(name), np.nan_to_num((column - np.nanmean(column)) / spread)


def _token(text: str, score: float, kind: str = "token") -> str:
    strength = STRONGEST * min(abs(score) / FULL_COLOUR, 1)
    colour = "high" if score > 0 else "low"
    return (
        f'<span class="{kind}" style="background:rgba(var(--{colour}),{strength:.2f})" '
        f'title="score {score:+.2f}">{html_text(text)}</span>'
    )
