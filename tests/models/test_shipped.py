"""The shipped models: equal in both backends, and with the circuit they are shipped for."""

import random
import re
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor
from transformers import GPT2Config, GPT2LMHeadModel

from lens_slt.data.tokenizer import BOS_ID
from lens_slt.models import forward
from lens_slt.models.ship import head_scores
from lens_slt.models.shipped import (
    ALIASES,
    SHIPPED,
    SHIPPED_FOLDER,
    has_hooked_transformer,
    load_model,
    shipped_checkpoints,
    shipped_training,
    shipped_weights,
)
from lens_slt.models.train import repeat_losses, shipped_architecture

TWO_LAYERS = ("attn-2l", "attn-2l-seed1", "attn-2l-seed2")
BACKENDS = ("hooked", "bridge") if has_hooked_transformer() else ("bridge",)


def random_tokens(length: int = 128) -> Tensor:
    return torch.randint(0, 512, (3, length), generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("name", SHIPPED)
def test_both_backends_give_the_logits_of_the_weights(name: str, backend: str) -> None:
    tokens = random_tokens()
    weights = shipped_weights(name)
    arch = shipped_architecture(1 if name == "attn-1l" else 2)
    model = load_model(name, backend=backend, device="cpu")
    with torch.no_grad():
        expected = forward.logits(arch, weights, tokens)
        logits = model(tokens)
    assert expected.std() > 0.5  # not trivially equal
    torch.testing.assert_close(logits, expected, atol=2e-4, rtol=1e-4)
    assert not model.training
    assert {p.dtype for p in model.parameters()} == {torch.float32}
    biases = [p for key, p in model.named_parameters() if re.search(r"\.b_|\.bias$", key)]
    assert biases
    assert all((p == 0).all() for p in biases)


@pytest.mark.skipif(not has_hooked_transformer(), reason="TransformerLens 4 has the bridge only")
def test_hooked_transformer_and_bridge_agree() -> None:
    tokens = random_tokens()
    with torch.no_grad():
        hooked = load_model("attn-2l", backend="hooked", device="cpu")(tokens)
        bridge = load_model("attn-2l", backend="bridge", device="cpu")(tokens)
    torch.testing.assert_close(hooked, bridge, atol=2e-4, rtol=1e-4)


def test_auto_prefers_hooked_transformer_where_it_exists() -> None:
    expected = "HookedTransformer" if has_hooked_transformer() else "TransformerBridge"
    assert type(load_model("attn-2l", device="cpu")).__name__ == expected


@pytest.mark.parametrize("backend", BACKENDS)
def test_the_tokenizer_is_attached_and_prepends_bos_once(backend: str) -> None:
    model = load_model("attn-2l", backend=backend, device="cpu")
    tokens = model.to_tokens("def f(x):\n    return x")
    assert tokens[0, 0] == BOS_ID
    assert (tokens[0, 1:] != BOS_ID).all()
    assert model.to_string(tokens[0, 1:]) == "def f(x):\n    return x"
    without = model.to_tokens("def f(x):\n    return x", prepend_bos=False)
    assert torch.equal(without, tokens[:, 1:])


@pytest.mark.parametrize("backend", BACKENDS)
def test_loading_leaves_every_generator_alone(backend: str) -> None:
    torch.manual_seed(5)
    states = torch.get_rng_state(), random.getstate(), np.random.get_state()  # noqa: NPY002
    load_model("attn-2l", backend=backend, device="cpu")
    assert torch.equal(torch.get_rng_state(), states[0])
    assert random.getstate() == states[1]
    assert (np.random.get_state()[1] == states[2][1]).all()  # noqa: NPY002


def test_checkpoints_lead_from_the_first_step_to_the_shipped_weights() -> None:
    steps = shipped_checkpoints("attn-2l")
    assert steps == shipped_checkpoints("attn-2l-seed0")
    assert len(steps) >= 16
    assert steps[0] == 0
    last, final = shipped_weights("attn-2l", steps[-1]), shipped_weights("attn-2l")
    assert all(torch.equal(last[key], final[key]) for key in final)
    early, late = (
        load_model("attn-2l", checkpoint=step, device="cpu") for step in (steps[0], steps[-1])
    )
    assert not torch.equal(early.embed.W_E, late.embed.W_E)
    # Log-spaced, so that early training is not lost, and dense where induction forms.
    assert sum(0 < step < 100 for step in steps) >= 6
    curve = shipped_training("attn-2l")["curve"]
    formed = next(p["step"] for p in curve if p["first"] - p["second"] > 2)
    assert sum(abs(step - formed) <= 500 for step in steps) >= 8
    assert shipped_checkpoints("attn-1l") == []


@pytest.mark.parametrize("name", TWO_LAYERS)
def test_two_layers_have_an_induction_circuit(name: str) -> None:
    first, second = repeat_losses(shipped_architecture(2), shipped_weights(name), 128)
    assert first - second >= 2
    scores = head_scores(load_model(name, device="cpu"))
    assert scores.prefix[1].max() > 0.4
    assert scores.previous[0].max() > 0.5
    assert scores.prefix[0].max() < 0.2


def test_one_layer_has_no_induction() -> None:
    first, second = repeat_losses(shipped_architecture(1), shipped_weights("attn-1l"), 128)
    assert first - second < 1
    assert head_scores(load_model("attn-1l", device="cpu")).prefix.max() < 0.2


@pytest.mark.parametrize("backend", BACKENDS)
def test_the_detector_of_transformer_lens_finds_the_previous_token_head(backend: str) -> None:
    from transformer_lens.head_detector import detect_head

    model = load_model("attn-2l", backend=backend, device="cpu")
    text = "The parser reads one line at a time and returns the tokens that it has found.\n"
    scores = detect_head(model, text, "previous_token_head")
    ours = head_scores(model)
    assert scores[0].max() > 0.5
    assert scores[0].argmax() == ours.previous[0].argmax()


def test_the_repository_holds_at_most_40_megabytes_and_a_card() -> None:
    files = [path for path in SHIPPED_FOLDER.rglob("*") if path.is_file()]
    assert sum(path.stat().st_size for path in files) < 40e6
    card = (SHIPPED_FOLDER / "MODEL_CARD.md").read_text(encoding="utf-8")
    assert "training-curve.svg" in card
    assert (SHIPPED_FOLDER / "training-curve.svg").is_file()
    assert all(f"`{name}`" in card for name in SHIPPED)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("atn-2l", r"no model 'atn-2l'; did you mean 'attn-2l'\? Shipped models: attn-2l, .*1l"),
        ("attn-2l-seed3", r"did you mean 'attn-2l-seed\d'"),
    ],
)
def test_misspelt_names(name: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        load_model(name)


@pytest.mark.parametrize("name", ["gpt2", "nobody/nothing"])
@pytest.mark.parametrize("backend", ["auto", "bridge"])
def test_offline_names_the_shipped_models(name: str, backend: str) -> None:
    with pytest.raises(
        OSError,
        match=rf"'{name}' is not a shipped model, .* could not load it .* Without a network use a "
        r"shipped model. Shipped models: attn-2l, .* nearest name is 'attn-",
    ):
        load_model(name, backend=backend, device="cpu")


def test_unknown_checkpoints() -> None:
    with pytest.raises(ValueError, match=r"'attn-2l' has no checkpoint 98 \(nearest: 100\)"):
        load_model("attn-2l", checkpoint=98)
    with pytest.raises(ValueError, match=r"'attn-1l' has its final weights only"):
        load_model("attn-1l", checkpoint=100)
    with pytest.raises(ValueError, match=r"'gpt2' is not a shipped model"):
        shipped_checkpoints("gpt2")


def test_unknown_backend() -> None:
    with pytest.raises(ValueError, match="must be one of auto, hooked, bridge; got 'hooks'"):
        load_model("attn-2l", backend="hooks")


@pytest.mark.skipif(has_hooked_transformer(), reason="this TransformerLens has HookedTransformer")
def test_hooked_transformer_is_gone() -> None:
    with pytest.raises(ImportError, match="which TransformerLens 4 removed"):
        load_model("attn-2l", backend="hooked")


def test_a_saved_hugging_face_model(tmp_path: Path) -> None:
    config = GPT2Config(n_layer=1, n_head=2, n_embd=16, n_positions=32, vocab_size=512)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        saved = GPT2LMHeadModel(config).eval()
    saved.save_pretrained(tmp_path / "model")
    from lens_slt.models.shipped import model_tokenizer

    model_tokenizer().save_pretrained(tmp_path / "model")
    state = torch.get_rng_state()
    model = load_model(tmp_path / "model", device="cpu")
    assert torch.equal(torch.get_rng_state(), state)
    tokens = random_tokens(20)
    with torch.no_grad():
        torch.testing.assert_close(model(tokens), saved(tokens).logits, atol=1e-5, rtol=1e-5)
    with pytest.raises(ValueError, match="backend='hooked'"):
        load_model(tmp_path / "model", backend="hooked") if has_hooked_transformer() else (
            pytest.skip("TransformerLens 4 has no backend='hooked'")
        )


def test_a_folder_without_a_model(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"holds no config.json"):
        load_model(tmp_path)


def test_aliases_point_at_files() -> None:
    for name in SHIPPED:
        assert (SHIPPED_FOLDER / f"{ALIASES.get(name, name)}.safetensors").is_file()
