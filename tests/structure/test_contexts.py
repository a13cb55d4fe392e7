"""Tokens in context."""

from __future__ import annotations

import numpy as np
import pytest

import lens_slt as ls
from tests.made_matrices import planted


class Letters:
    """Token i is the i-th letter, the last one a line break."""

    def decode(self, ids):
        return "".join("\n" if i == 49 else chr(65 + i) for i in ids)


def test_contexts():
    matrix, _, _ = planted()
    ids = matrix["token_id"].values.reshape(30, 20)
    ids[3, 4:8] = [0, 1, 49, 2]
    matrix = matrix.assign_coords(token_id=("token", ids.ravel()))
    assert ls.contexts(matrix, Letters(), width=3, rows=[3 * 20 + 7]) == ["AB⏎«C»"]
    first = ls.contexts(matrix, Letters(), rows=[0])[0]
    assert first == f"«{Letters().decode([ids[0, 0]])}»"
    assert len(ls.contexts(matrix, Letters())) == 600
    with pytest.raises(TypeError, match="tokenizer must have a decode method; got str"):
        ls.contexts(matrix, "gpt2")


def test_top_tokens_are_the_extreme_ones_of_different_sequences():
    matrix, _, _ = planted()
    found = ls.modes(matrix, n_modes=2, n_bootstrap=0)
    top = ls.top_tokens(found, Letters(), n=5)
    assert len(top) == 2 * 2 * 5
    high = top[(top["mode"] == 1) & (top["end"] == "high")]["score"].values
    best = np.sort(found["score"].values[0].reshape(30, 20).max(1))[::-1][:5]
    np.testing.assert_allclose(high, best)
    with pytest.raises(TypeError, match=r"found must come from modes\(…\); got what per_token"):
        ls.top_tokens(matrix, Letters())
