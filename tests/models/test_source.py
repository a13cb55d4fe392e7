"""Sources of models: what they load is the model, in another process too."""

from __future__ import annotations

import pickle
import random
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import lens_slt as ls
from lens_slt.models.adapter import adapt, weights_hash
from lens_slt.models.saved import save_source
from lens_slt.models.source import CalledModel, LoadedModel, ModelSource
from lens_slt.sampling.identity import configuration
from tests.tiny_models import (
    GENERIC_MODELS,
    TINY_MODELS,
    has_hooked_transformer,
    hooked,
    native,
    wrapped_gpt2,
)

TOKENS = torch.randint(0, 50, (2, 12), generator=torch.Generator().manual_seed(0))
ALL_MODELS = {**TINY_MODELS, **GENERIC_MODELS}
MODELS = [n for n in ALL_MODELS if has_hooked_transformer() or not n.startswith("hooked_")]


def logits(model: Any, tokens: torch.Tensor = TOKENS) -> torch.Tensor:
    with torch.no_grad():
        return model(tokens, return_type="logits")


def at_step(step: int) -> Any:
    torch.manual_seed(step), random.seed(step), np.random.seed(step)  # noqa: NPY002
    return native(seed=step).train()


def travelled(source: Any) -> Any:
    """A source as another process gets it."""
    return pickle.loads(pickle.dumps(source))


def test_a_name_loads_its_checkpoint() -> None:
    source = travelled(ls.model_source("attn-2l", checkpoint=300))
    expected = ls.load_model("attn-2l", checkpoint=300)
    assert isinstance(source, ModelSource) and source.label == "attn-2l at step 300"
    assert weights_hash(adapt(source.load("cpu"))) == weights_hash(adapt(expected))


def test_a_file_loads_with_its_config(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = native()
    torch.save(model.state_dict(), tmp_path / "mine.pt")
    monkeypatch.chdir(tmp_path)
    source = travelled(ls.model_source("mine.pt", config=model.cfg, backend="bridge"))
    monkeypatch.chdir("/")  # a worker starts somewhere else
    assert source.label == "mine.pt"
    assert torch.equal(logits(source.load()), logits(model))


def test_a_function_loads_and_the_random_state_stays() -> None:
    source = travelled(ls.model_source(at_step, checkpoint=3))
    states = torch.get_rng_state(), random.getstate(), np.random.get_state()  # noqa: NPY002
    model = source.load()
    assert source.label == "at_step at step 3" and not model.training
    assert torch.equal(logits(model), logits(at_step(3).eval()))
    source.load()
    torch.set_rng_state(states[0]), random.setstate(states[1]), np.random.set_state(states[2])  # noqa: NPY002
    source.load()
    assert torch.equal(torch.get_rng_state(), states[0])
    assert random.getstate() == states[1]
    assert np.array_equal(np.random.get_state()[1], states[2][1])  # noqa: NPY002


@pytest.mark.parametrize("name", MODELS)
def test_a_saved_model_is_the_model(name: str, tmp_path: Path) -> None:
    model = ALL_MODELS[name]().eval()
    states = torch.get_rng_state(), random.getstate()
    again = travelled(save_source(model, tmp_path)).load()
    assert torch.equal(torch.get_rng_state(), states[0]) and random.getstate() == states[1]
    ours, theirs = adapt(model), adapt(again)
    assert weights_hash(ours) == weights_hash(theirs)
    assert configuration(ours) == configuration(theirs)
    assert torch.equal(logits(model), logits(again))


@pytest.mark.skipif(not has_hooked_transformer(), reason="HookedTransformer was removed in 4.0")
def test_double_precision_and_the_tokenizer_are_saved(tmp_path: Path) -> None:
    precise = hooked(dtype=torch.float64)
    again = save_source(precise, tmp_path / "precise").load()
    assert torch.equal(logits(again), logits(precise)) and logits(again).dtype == torch.float64
    model = ls.load_model("attn-1l", backend="hooked", device="cpu")
    model.tokenizer.padding_side = "left"
    again = save_source(model, tmp_path / "padded").load()
    tokens = model.to_tokens(["a b", "some more words"])
    assert again.tokenizer.padding_side == "left"
    assert torch.equal(logits(again, tokens), logits(model, tokens))


def test_what_cannot_be_rebuilt_says_what_to_pass_instead(tmp_path: Path) -> None:
    hooked_up = native()
    hooked_up.blocks[0].hook_out.register_forward_hook(lambda module, args, out: out)
    replaced = native()
    forward = type(replaced.unembed).forward
    object.__setattr__(replaced.unembed, "forward", partial(forward, replaced.unembed))
    other = wrapped_gpt2()
    other.original_model.transformer.h[0].mlp.act = torch.nn.ReLU()
    for model, why in (
        (hooked_up, "attached at blocks.0.hook_out"),
        (replaced, "attached at unembed.forward"),
        (other, "another than its configuration makes"),
    ):
        with pytest.raises(ValueError, match=f"{why}.*lens_slt.model_source"):
            save_source(model, tmp_path)


def test_a_model_class_of_ones_own_cannot_be_rebuilt(tmp_path: Path) -> None:
    model = wrapped_gpt2()
    inner = model.original_model
    inner.__class__ = type("Mine", (type(inner),), {"__module__": "mine"})
    with pytest.raises(ValueError, match="Mine of mine is no class of transformers"):
        save_source(model, tmp_path)


def test_no_source_of_what_is_none() -> None:
    model = native()
    with pytest.raises(TypeError, match="origin must be a name, a path or a function"):
        ls.model_source(model)
    generator, values = (i for i in range(3)), np.zeros(20 * 2**20, np.uint8)
    with pytest.raises(TypeError, match="cannot be sent to another process"):
        ls.model_source(lambda: next(generator))
    with pytest.raises(ValueError, match="carries 20 MiB.*instead of holding it"):
        ls.model_source(lambda: values)
    with pytest.raises(ValueError, match="config must be None"):
        ls.model_source(at_step, config={"n_layers": 2})
    with pytest.raises(ValueError, match="checkpoint must be an integer of at least 0"):
        ls.model_source(at_step, checkpoint=-1)
    with pytest.raises(TypeError, match="got list"):
        CalledModel(list).load()


@pytest.mark.parametrize(
    ("name", "options", "words"),
    [
        ("attn-2l", {}, "'attn-2l' is none"),
        ("gpt2", {"checkpoint": 3}, "both say which weights"),
        ("gpt2", {"backend": "hooked"}, "cannot load a revision"),
    ],
)
def test_a_revision_that_means_nothing(name: str, options: Any, words: str) -> None:
    if "backend" in options and not has_hooked_transformer():
        pytest.skip("HookedTransformer was removed in 4.0")
    with pytest.raises(ValueError, match=words):
        LoadedModel(name, revision="main", **options).load()


def test_a_revision_is_asked_of_the_hub(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: dict[str, Any] = {}

    def boot(name: str, **options: Any) -> Any:
        asked.update(options, name=name)
        return hooked() if has_hooked_transformer() else native()

    from transformer_lens.model_bridge import TransformerBridge

    monkeypatch.setattr(TransformerBridge, "boot_transformers", staticmethod(boot))
    source = ls.model_source("EleutherAI/pythia-14m", revision="step1000")
    source.load("cpu")
    assert source.label == "EleutherAI/pythia-14m at step1000"
    assert asked["revision"] == "step1000" and asked["name"] == "EleutherAI/pythia-14m"
