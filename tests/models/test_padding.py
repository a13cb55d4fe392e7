"""A row padded on the left is what it is without padding: the models' own rule."""

from __future__ import annotations

import warnings
from typing import Any

import pytest
import torch

from lens_slt.data.columns import moved, moved_back
from lens_slt.models.adapter import adapt
from lens_slt.models.padding import PaddingWarning, warn_of_padding
from tests.tiny_models import GENERIC_MODELS, TINY_MODELS, has_hooked_transformer, hooked, native

ROWS = torch.randint(1, 48, (4, 12), generator=torch.Generator().manual_seed(0))
SHIFT = torch.tensor([0, 3, 5, 1])
MODELS = (
    "hooked_attn_only", "hooked_rotary", "hooked_shortformer", "hooked_alibi", "native_attn_only",
    "native_rotary", "native_llama_like", "wrapped_gpt2", "wrapped_neox", "wrapped_llama",
    "wrapped_opt", "wrapped_gemma2",
)  # fmt: skip
HERE = [name for name in MODELS if has_hooked_transformer() or not name.startswith("hooked")]


def test_moving_back_undoes_moving() -> None:
    there = moved_back(ROWS, SHIFT)
    assert there[1, 3:].tolist() == ROWS[1, :9].tolist()
    assert torch.equal(moved(there, SHIFT), ROWS)
    many = torch.stack([ROWS, ROWS + 1]).numpy()
    assert (moved_back(many, SHIFT)[1] == there.numpy() + 1).all()


@pytest.mark.parametrize("name", HERE)
def test_the_models_own_rule(name: str) -> None:
    """Each row padded on the left, with its attention mask, against the row alone."""
    model = (TINY_MODELS | GENERIC_MODELS)[name]()
    attended = (torch.arange(12) >= SHIFT[:, None]).long()
    padded = torch.where(attended > 0, moved_back(ROWS, SHIFT), 49)
    with torch.no_grad():
        together = model(padded, attention_mask=attended, return_type="logits")
        for row, k in enumerate(SHIFT.tolist()):
            alone = model(ROWS[row : row + 1, : 12 - k], return_type="logits")
            torch.testing.assert_close(together[row, k:], alone[0], rtol=1e-4, atol=1e-4)
    with warnings.catch_warnings():
        warnings.simplefilter("error", PaddingWarning)
        warn_of_padding(adapt(model), ROWS, SHIFT, "tokens")


@pytest.mark.skipif(not has_hooked_transformer(), reason="HookedTransformer was removed in 4.0")
def test_a_hooked_transformer_that_pads_on_the_left() -> None:
    """What it derives from its tokenizer is the same mask."""

    class Tokenizer:
        padding_side, pad_token_id, bos_token_id = "left", 49, 0

    model = hooked()
    padded = torch.where(torch.arange(12) >= SHIFT[:, None], moved_back(ROWS, SHIFT), 49)
    alone = model(ROWS[1:2, :9])
    model.tokenizer = Tokenizer()
    torch.testing.assert_close(model(padded)[1, 3:], alone[0], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("rule", ["ignores the mask", "knows no mask"])
def test_another_rule_is_said(rule: str, monkeypatch: pytest.MonkeyPatch) -> None:
    model: Any = native()
    forward = model.forward

    def without(tokens: Any, attention_mask: Any = None, **rest: Any) -> Any:
        return forward(tokens, **rest)

    def unknown(tokens: Any, **rest: Any) -> Any:
        if "attention_mask" in rest:
            raise TypeError("unexpected argument attention_mask")
        return forward(tokens, **rest)

    adapted = adapt(model)
    monkeypatch.setattr(model, "forward", without if rule == "ignores the mask" else unknown)
    words = "does otherwise" if rule == "ignores the mask" else "cannot be compared .* unexpected"
    with pytest.warns(PaddingWarning, match=f"probe is padded on the left. .*{words}"):
        warn_of_padding(adapted, ROWS, SHIFT, "probe")
