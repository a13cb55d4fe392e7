"""Tokens that the model knows nothing of, and models that cannot read text."""

from __future__ import annotations

import warnings

import numpy as np
import pytest
import torch

import lens_slt as ls
from lens_slt.circuits.interventions import ablate
from lens_slt.data.tokenizer import TokenizerWarning


def test_tokens_of_another_tokenizer_are_noticed():
    model = ls.load_model("attn-2l")
    tokens = ls.load_tokens("code", n_sequences=8, length=24)
    with warnings.catch_warnings():
        warnings.simplefilter("error", TokenizerWarning)
        ablate(model, tokens, "L1H2")
    mixed = torch.randperm(512, generator=torch.Generator().manual_seed(0))[tokens]
    words = (
        r"tokens: loss at the given weights \d+.\d+ nats, a uniform guess 6.24: untrained, or tok"
    )
    with pytest.warns(TokenizerWarning, match=words):
        ablate(model, mixed, "L1H2")


def test_a_model_without_a_tokenizer_has_patterns_of_ids_only():
    model = ls.load_model("attn-2l")
    tokens = torch.randint(1, 512, (24, 24), generator=torch.Generator().manual_seed(0))
    model.tokenizer = None
    guess = ls.circuit("L0H2->L1H2.K", pattern="word_start")
    with (
        pytest.warns(TokenizerWarning, match="patterns of text are left out"),
        pytest.raises(ValueError, match=r"it is read off the text, and the model has no tokenizer"),
    ):
        ls.cross_check(model, tokens, guess, progress=False)
    with pytest.raises(TypeError, match=r"tokens is text, and there is no tokenizer to read it"):
        ablate(model, "def f(x):", "L1H2")


def test_texts_are_read_by_the_model_s_tokenizer():
    model = ls.load_model("attn-2l")
    texts = ["def f(x):\n    return x", "import numpy as np\n"]
    found = ablate(model, texts, "L1H2", how="zero")
    for row, text in enumerate(texts):
        ids = model.to_tokens(text)
        alone = ablate(model, ids, "L1H2", how="zero")
        n = ids.shape[1] - 1
        np.testing.assert_allclose(found["loss"][row, :n], alone["loss"][0], rtol=1e-4, atol=1e-5)
        assert np.isnan(found["loss"][row, n:]).all()
