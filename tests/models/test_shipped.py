"""The shipped models: equal in both backends, and with the circuit they are shipped for."""

import json
import random
import re
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor
from transformers import GPT2Config, GPT2LMHeadModel

from lens_slt.circuits.behaviour import behaviour_scores
from lens_slt.data.tokenizer import BOS_ID
from lens_slt.models import forward
from lens_slt.models.shipped import (
    architecture_of,
    has_hooked_transformer,
    load_model,
    shipped_architecture,
    shipped_weights,
)
from lens_slt.models.shipped_files import (
    ALIASES,
    SHIPPED,
    SHIPPED_FOLDER,
    name_of_files,
    shipped_checkpoints,
)
from lens_slt.training.train import repeat_losses

TWO_LAYERS = ("attn-2l", "attn-2l-seed1", "attn-2l-seed2")
# name → checkpoints before step 100, and within 500 steps of the transition, at least
WITH_CHECKPOINTS = {"attn-2l": (6, 8), "gelu-4l": (3, 6)}
BACKENDS = ("hooked", "bridge") if has_hooked_transformer() else ("bridge",)


def random_tokens(length: int = 128) -> Tensor:
    return torch.randint(0, 512, (3, length), generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("name", SHIPPED)
def test_both_backends_give_the_logits_of_the_weights(name: str, backend: str) -> None:
    tokens = random_tokens()
    weights = shipped_weights(name)
    arch = architecture_of(weights)
    model = load_model(name, backend=backend, device="cpu")
    with torch.no_grad():
        expected = forward.logits(arch, weights, tokens)
        logits = model(tokens)
    assert expected.std() > 0.5  # not trivially equal
    torch.testing.assert_close(logits, expected, atol=2e-4, rtol=1e-4)
    assert not model.training
    assert {p.dtype for p in model.parameters()} == {torch.float32}
    assert all(parameter.isfinite().all() for parameter in model.parameters())


@pytest.mark.parametrize("backend", BACKENDS)
def test_biases_are_zero_in_the_attention_only_models_alone(backend: str) -> None:
    def biases(name: str) -> list[Tensor]:
        named = load_model(name, backend=backend, device="cpu").named_parameters()
        return [p for key, p in named if re.search(r"\.b_[^U]|\.bias$", key)]

    assert biases("attn-2l")
    assert all((bias == 0).all() for bias in biases("attn-2l"))
    assert all((bias != 0).any() for bias in biases("gelu-4l") if bias.shape[-1] != 512)


@pytest.mark.skipif(not has_hooked_transformer(), reason="TransformerLens 4 has the bridge only")
@pytest.mark.parametrize("name", ["attn-2l", "gelu-4l"])
def test_hooked_transformer_and_bridge_agree(name: str) -> None:
    tokens = random_tokens()
    with torch.no_grad():
        hooked = load_model(name, backend="hooked", device="cpu")(tokens)
        bridge = load_model(name, backend="bridge", device="cpu")(tokens)
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


@pytest.mark.parametrize("name", WITH_CHECKPOINTS)
def test_checkpoints_lead_from_the_first_step_to_the_shipped_weights(name: str) -> None:
    steps = shipped_checkpoints(name)
    assert steps == shipped_checkpoints(ALIASES.get(name, name))
    assert len(steps) >= 16
    assert steps[0] == 0
    last, final = shipped_weights(name, steps[-1]), shipped_weights(name)
    assert all(torch.equal(last[key], final[key]) for key in final)
    early, late = (load_model(name, checkpoint=step, device="cpu") for step in (0, steps[-1]))
    assert not torch.equal(early.embed.W_E, late.embed.W_E)
    # Log-spaced, so that early training is not lost, and dense where induction forms.
    folder = SHIPPED_FOLDER / name_of_files(name)
    curve = json.loads((folder / "training.json").read_text("utf-8"))["curve"]
    formed = next(p["step"] for p in curve if p["first"] - p["second"] > 2)
    early_steps, dense = WITH_CHECKPOINTS[name]
    assert sum(0 < step < 100 for step in steps) >= early_steps
    assert sum(abs(step - formed) <= 500 for step in steps) >= dense
    assert shipped_checkpoints("attn-1l") == []


def test_every_checkpoint_loads() -> None:
    for name in WITH_CHECKPOINTS:
        final = shipped_weights(name)
        for step in shipped_checkpoints(name):
            weights = shipped_weights(name, step)
            assert {k: t.shape for k, t in weights.items()} == {
                k: t.shape for k, t in final.items()
            }
            assert all(tensor.isfinite().all() for tensor in weights.values())


def test_four_layers_with_mlps_learn_induction() -> None:
    steps = shipped_checkpoints("gelu-4l")
    arch = shipped_architecture(4, mlps=True)
    gains = []
    for step in (steps[0], steps[-1]):
        first, second = repeat_losses(arch, shipped_weights("gelu-4l", step), arch.n_ctx)
        gains.append(first - second)
    assert abs(gains[0]) < 0.1
    assert gains[1] > 4
    kinds = behaviour_scores(load_model("gelu-4l", device="cpu"))["head_type"].to_series()
    assert list(kinds.index[kinds == "previous token"]) == ["L0H1"]
    # L1H1 matters most of the paths into them, and writes nothing where nothing is repeated.
    assert {"L1H1", "L2H1", "L2H5", "L3H1", "L3H5"} <= set(kinds.index[kinds == "induction"])
    assert not (kinds == "dead").any()


@pytest.mark.parametrize("name", TWO_LAYERS)
def test_two_layers_have_an_induction_circuit(name: str) -> None:
    first, second = repeat_losses(shipped_architecture(2), shipped_weights(name), 128)
    assert first - second >= 2
    scores = behaviour_scores(load_model(name, device="cpu"))
    prefix, previous = (scores[key].values for key in ("prefix_matching", "previous_token"))
    assert prefix[8:].max() > 0.4
    assert previous[:8].max() > 0.5
    assert prefix[:8].max() < 0.2


def test_one_layer_has_no_induction() -> None:
    first, second = repeat_losses(shipped_architecture(1), shipped_weights("attn-1l"), 128)
    assert first - second < 1
    scores = behaviour_scores(load_model("attn-1l", device="cpu"))
    assert scores["prefix_matching"].max() < 0.2


@pytest.mark.parametrize("backend", BACKENDS)
def test_the_detector_of_transformer_lens_finds_the_previous_token_head(backend: str) -> None:
    from transformer_lens.head_detector import detect_head

    model = load_model("attn-2l", backend=backend, device="cpu")
    text = "The parser reads one line at a time and returns the tokens that it has found.\n"
    scores = detect_head(model, text, "previous_token_head")
    ours = behaviour_scores(model)["previous_token"].values[:8]
    assert scores[0].max() > 0.5
    assert int(scores[0].argmax()) == ours.argmax()


def test_the_package_holds_at_most_45_megabytes_and_a_card() -> None:
    files = [path for path in SHIPPED_FOLDER.rglob("*") if path.is_file()]
    assert sum(path.stat().st_size for path in files) < 45e6
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
