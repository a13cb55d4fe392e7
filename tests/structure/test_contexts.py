"""Tokens in context."""

from __future__ import annotations

import numpy as np
import pytest

import lens_slt as ls
from lens_slt.data.tokenizer import TokenizerWarning, shipped_tokenizer
from lens_slt.sampling.result import dataset
from lens_slt.structure.contexts import VISIBLE, token_texts
from lens_slt.structure.overview import open_views, read_structure
from tests.made_matrices import planted
from tests.made_probes import POSITIONS, SEQUENCES, per_token_draws


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
    with pytest.raises(ValueError, match=r"of result cannot be read .* tokenizer=model\.token"):
        ls.contexts(matrix)
    shipped = matrix.assign_attrs(model="attn-2l")  # the run's record knows the tokenizer
    assert ls.contexts(shipped, rows=[3 * 20 + 7], width=1) == ['Q«"»']
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
    of_heads = ls.top_tokens(matrix, Letters(), n=1)
    highest = of_heads[of_heads["end"] == "high"].set_index("component")["score"]
    assert highest.to_dict() == matrix["llc"].max("token").to_series().to_dict()
    with pytest.raises(TypeError, match=r"result must come from modes\(…\) or per_token_llc"):
        ls.top_tokens(ls.label_patterns(np.zeros((2, 3), int)))


def test_the_shipped_models_tokens_need_no_tokenizer():
    tokens = ls.load_tokens("mix", n_sequences=30, length=21)[:, 1:]
    matrix = planted()[0].assign_coords(token_id=("token", tokens.flatten().numpy()))
    text = [text.translate(VISIBLE) for text in shipped_tokenizer().batch_decode(tokens[:, :5])]
    assert ["".join(token_texts(matrix)[20 * row :][:5]) for row in range(30)] == text
    assert len(ls.top_tokens(ls.modes(matrix, n_bootstrap=0))) > 0
    few = matrix.isel(token=np.flatnonzero(matrix["position"].values > 9))
    assert len(ls.contexts(few)) == 300


def test_structure_of_a_model_without_tokenizer_shows_ids(tmp_path):
    draws = per_token_draws()
    tokens = np.zeros((SEQUENCES, POSITIONS + 1), int)
    tokens[:, 1:] = dataset(draws, "probes/text")["tokens"].values
    with pytest.warns(TokenizerWarning, match="patterns of text are left out"):
        views = read_structure(draws, "text", tokens, folder=tmp_path)
    assert views["llc"].modes["text"].values[0] == f"[{tokens[0, 1]}]"
    assert views["llc"].by_mode["pattern"].values.tolist() == ["induction", "repeat_3", "repeat_5"]
    assert "[" in open_views(tmp_path)["chi"].top["context"][0]
    with pytest.warns(TokenizerWarning):
        slt = ls.read_slt_evidence(draws, "text", tokens)
    assert list(slt.labels) == ["induction", "repeat_3", "repeat_5"]
    known = draws.copy()
    known.attrs["model"] = "attn-1l"
    assert "word_start" in ls.read_slt_evidence(known, "text", tokens).labels
