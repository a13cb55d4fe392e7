"""Models from a file of weights and a config: the same logits, and what does not fit is named."""

from __future__ import annotations

import json
import pickle
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

import lens_slt as ls
from lens_slt.data.tokenizer import TokenizerWarning
from lens_slt.models.shipped import shipped_weights
from tests.tiny_models import SIZES, has_hooked_transformer, hooked, native

TOKENS = torch.randint(0, 50, (3, 12), generator=torch.Generator().manual_seed(0))
CONFIG: dict[str, Any] = {**SIZES, "attn_only": False, "d_mlp": 24, "act_fn": "gelu"}
VARIANTS: dict[str, dict[str, Any]] = {
    "mlp": {},
    "gated, grouped": {"gated_mlp": True, "act_fn": "silu", "n_key_value_heads": 2},
    "rotary": {
        "positional_embedding_type": "rotary",
        "rotary_dim": 4,
        "rotary_adjacent_pairs": True,
    },
    "norm without weights": {"normalization_type": "LNPre"},
}
only_hooked = pytest.mark.skipif(
    not has_hooked_transformer(), reason="HookedTransformer was removed in 4.0"
)


def logits(model: Any) -> torch.Tensor:
    with torch.no_grad():
        return model(TOKENS, return_type="logits")


def canonical(model: nn.Module) -> dict[str, torch.Tensor]:
    """Weights under TransformerLens's names, by hand for a native bridge without MLP."""
    found = {}
    for name, w in model.state_dict().items():
        w = w.detach().clone()
        if name.startswith("embed"):
            found["embed.W_E"] = w
        elif name.startswith("pos_embed"):
            found["pos_embed.W_pos"] = w
        elif name.startswith("unembed"):
            found["unembed.W_U" if name.endswith("weight") else "unembed.b_U"] = (
                w.T if w.ndim == 2 else w
            )
        elif ".attn." in name:
            layer, part = name.split(".")[1], name.split(".")[3].upper()
            kind = "W" if name.endswith("weight") else "b"
            if kind == "W":
                w = w.view(4, 4, 16).transpose(1, 2) if part != "O" else w.T.reshape(4, 4, 16)
            elif part != "O":
                w = w.view(4, 4)
            found[f"blocks.{layer}.attn.{kind}_{part}"] = w
        else:
            found[name.replace(".weight", ".w").replace(".bias", ".b")] = w
    return found


@only_hooked
@pytest.mark.parametrize("name", VARIANTS)
@pytest.mark.parametrize("backend", ["auto", "bridge"])
def test_a_hooked_transformer_comes_back(name: str, backend: str, tmp_path: Path) -> None:
    config = CONFIG | VARIANTS[name]
    model: Any = hooked(**config)
    if config.get("gated_mlp"):  # the bridge's has no biases
        for block in model.blocks:
            block.mlp.b_in.data.zero_()
            block.mlp.b_out.data.zero_()
    torch.save(model.state_dict(), tmp_path / "mine.pt")
    loaded = ls.load_model(tmp_path / "mine.pt", config=config, backend=backend)
    torch.testing.assert_close(logits(loaded), logits(model), rtol=1e-4, atol=1e-4)
    assert type(loaded).__name__ == (
        "HookedTransformer" if backend == "auto" else "TransformerBridge"
    )
    assert loaded.cfg.model_name == "mine"
    assert not loaded.training


@only_hooked
def test_ways_of_saving_and_of_giving_the_config(tmp_path: Path) -> None:
    model: Any = hooked(**CONFIG)
    weights = dict(model.state_dict())
    expected = logits(model)
    names = {key: value for key, value in model.cfg.to_dict().items() if key != "device"}
    (tmp_path / "config.json").write_text(json.dumps(names, default=str))
    saved: dict[str, Any] = {
        "plain.pt": weights,
        "wrapped.ckpt": {"state_dict": weights, "epoch": 3},
        "parallel.pth": {"model_state_dict": {f"module.{k}": w for k, w in weights.items()}},
    }
    for name, content in saved.items():
        torch.save(content, tmp_path / name)
    save_file({k: w.contiguous() for k, w in weights.items()}, tmp_path / "safe.safetensors")
    for name in (*saved, "safe.safetensors"):
        for config in (CONFIG, model.cfg, tmp_path / "config.json", str(tmp_path / "config.json")):
            loaded = ls.load_model(str(tmp_path / name), config=config)
            torch.testing.assert_close(logits(loaded), expected)


def test_a_native_bridge_comes_back_by_its_own_names_and_by_transformer_lens_s(
    tmp_path: Path,
) -> None:
    config = {**SIZES, "attn_only": True, "normalization_type": "LN"}
    model: Any = native(**config)
    torch.save(dict(model.state_dict()), tmp_path / "own.pt")
    torch.save(canonical(model), tmp_path / "theirs.pt")
    own = ls.load_model(tmp_path / "own.pt", config=config)
    assert type(own).__name__ == "TransformerBridge"
    torch.testing.assert_close(logits(own), logits(model))
    theirs = ls.load_model(tmp_path / "theirs.pt", config=config)
    torch.testing.assert_close(logits(theirs), logits(model), rtol=1e-4, atol=1e-4)


def shipped_config(model: Any) -> dict[str, Any]:
    """What a user would write down of a shipped model."""
    config = {k: getattr(model.cfg, k) for k in ("n_layers", "d_model", "n_heads", "d_head")}
    config |= dict(n_ctx=model.cfg.n_ctx, d_vocab=512, attn_only=True, normalization_type=None)
    keys = ("normalization_type", "positional_embedding_type", "rotary_dim", "eps")
    config |= {k: getattr(model.cfg, k) for k in keys}
    config |= {"tokenizer_name": "lens-slt", "act_fn": "relu"}
    config["rotary_adjacent_pairs"] = model.cfg.rotary_adjacent_pairs
    return config


def test_the_shipped_weights_are_a_file_of_one_s_own(tmp_path: Path) -> None:
    """Its tokenizer is on no hub: the model comes without, and says so."""
    model = ls.load_model("attn-1l")
    torch.save(dict(model.state_dict()), tmp_path / "mine.pt")
    config = shipped_config(model)
    with pytest.warns(TokenizerWarning, match=r"its tokenizer 'lens-slt' cannot be loaded, and"):
        loaded = ls.load_model(tmp_path / "mine.pt", config=config)
    torch.testing.assert_close(logits(loaded), logits(model), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("backend", ["bridge", pytest.param("hooked", marks=only_hooked)])
def test_a_file_without_any_bias_is_of_a_model_without(backend: str, tmp_path: Path) -> None:
    """As the training script writes them; one with some biases has to have all."""
    model, weights = ls.load_model("attn-1l"), shipped_weights("attn-1l")
    assert not any(".b_" in name for name in weights)
    file = tmp_path / "mine.pt"
    torch.save(weights, file)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", TokenizerWarning)
        loaded = ls.load_model(file, config=shipped_config(model), backend=backend)
        torch.testing.assert_close(logits(loaded), logits(model), rtol=1e-4, atol=1e-4)
        torch.save(weights | {"blocks.0.attn.b_Q": torch.zeros(8, 32)}, file)
        with pytest.raises(ValueError, match=r"the file lacks blocks\.0\.attn\.b_K"):
            ls.load_model(file, config=shipped_config(model), backend=backend)


class Evil:
    def __reduce__(self) -> Any:
        return (print, ("code in a pickle ran",))


@pytest.fixture
def mine(tmp_path: Path) -> Path:
    torch.save(canonical(native(attn_only=True)), tmp_path / "mine.pt")
    return tmp_path / "mine.pt"


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"d_vocab": 60},
            r"does not fit its config: shapes: embed.W_E is \[50, 16\] in the file, \[60",
        ),
        ({"n_layers": 3}, r"the file lacks blocks.2.* and \d+ more$"),
        ({"n_layers": 1}, r"the config has no place for blocks.1.* and \d+ more$"),
        ({"n_head": 4}, r"config: TransformerLens knows no 'n_head'; did you mean 'n_heads'"),
        ({"dtype": "float33"}, r"config: dtype must be one of torch's, such as float32; got 'flo"),
        ({"d_model": None}, r"config: TransformerLens makes no model of it: "),
    ],
)
def test_what_does_not_fit(mine: Path, changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        ls.load_model(mine, config={**SIZES, "attn_only": True, **changes})


@pytest.mark.parametrize(
    "changes", [{"positional_embedding_type": "rotary"}, {"parallel_attn_mlp": True}]
)
def test_what_a_bridge_does_not_compute_is_refused(mine: Path, changes: dict[str, Any]) -> None:
    config = {**SIZES, "attn_only": True, **changes}
    with pytest.raises(
        ValueError, match=r"config: \w+=\w+ is not computed by a native Transformer"
    ):
        ls.load_model(mine, config=config, backend="bridge")


def test_bad_files_and_configs(mine: Path, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    config = {**SIZES, "attn_only": True}
    with pytest.raises(
        ValueError, match=r"is a file of weights and needs config=, the model's Hook"
    ):
        ls.load_model(mine)
    with pytest.raises(TypeError, match=r"config must be a dict; got 3"):
        ls.load_model(mine, config=3)
    with pytest.raises(FileNotFoundError, match=r"there is no file .*none.json"):
        ls.load_model(mine, config=tmp_path / "none.json")
    with pytest.raises(FileNotFoundError, match=r"there is no file 'absent.pt'"):
        ls.load_model("absent.pt", config=config)
    with pytest.raises(ValueError, match=r"config is for files of weights .*; 'attn-1l' is none"):
        ls.load_model("attn-1l", config=config)
    with pytest.raises(ValueError, match=r"checkpoint must be None for a file of weights; got 5"):
        ls.load_model(mine, config=config, checkpoint=5)
    for content, words in (
        (b"", "cannot be read as weights"),
        (pickle.dumps(Evil()), "cannot be read as weights"),
    ):
        (tmp_path / "bad.pt").write_bytes(content)
        with pytest.raises(ValueError, match=words):
            ls.load_model(tmp_path / "bad.pt", config=config)
    torch.save(Evil(), tmp_path / "bad.pt")
    with pytest.raises(ValueError, match=r"whole pickled models are not loaded"):
        ls.load_model(tmp_path / "bad.pt", config=config)
    assert "code in a pickle ran" not in capsys.readouterr().out
    torch.save({"epoch": 3}, tmp_path / "bad.pt")
    with pytest.raises(ValueError, match=r"holds no state dict, names with tensors, but: epoch"):
        ls.load_model(tmp_path / "bad.pt", config=config)
