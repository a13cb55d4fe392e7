"""Checkpoints of a run: which steps, from where, that each loads what is there, and bad input."""

from __future__ import annotations

import json
import pickle
import re
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import GPT2Config, GPT2LMHeadModel

import lens_slt as ls
from lens_slt.models import shipped
from lens_slt.models.adapter import adapt, weights_hash
from lens_slt.models.checkpoints import CheckpointWarning
from lens_slt.models.shipped import model_tokenizer
from lens_slt.models.shipped_files import shipped_file
from lens_slt.models.source import LoadedModel
from tests.tiny_models import SIZES, native

CONFIG: dict[str, Any] = {**SIZES, "attn_only": True, "normalization_type": "LN"}
TOKENS = torch.randint(0, 50, (2, 10), generator=torch.Generator().manual_seed(0))


def state(seed: int, **options: Any) -> dict[str, Tensor]:
    """Weights of a small native bridge, other ones for every seed."""
    model: Any = native(**options)
    generator = torch.Generator().manual_seed(seed)
    return {
        name: w + torch.randn(w.shape, generator=generator)
        for name, w in model.state_dict().items()
    }


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of four files; copied by who changes it."""
    folder = tmp_path_factory.mktemp("made") / "mine"
    folder.mkdir()
    for step in (0, 10, 200, 3000):
        torch.save(state(step), folder / f"seed7-step{step}.pt")
    return folder


@pytest.fixture
def run(made: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(made, tmp_path / "mine"))


def test_the_shipped_series_is_what_load_model_loads() -> None:
    series = ls.checkpoints("gelu-4l")
    assert list(series) == ls.shipped_checkpoints("gelu-4l")
    assert len(series) == len(series.steps)
    assert series.source(100).label == "gelu-4l at step 100"
    loaded, expected = series.load(100, "cpu"), ls.load_model("gelu-4l", checkpoint=100)
    assert weights_hash(adapt(loaded)) == weights_hash(adapt(expected))
    assert not loaded.training
    assert len(repr(series)) < 80
    assert "\n" not in repr(series)


def test_a_subset_the_nearest_and_steps_that_are_not_there() -> None:
    series = ls.checkpoints("attn-2l", steps=[0, 100, 1000])
    assert series.steps == (0, 100, 1000)
    assert series.at(np.array([0, 1000])).steps == (0, 1000)
    assert [series.nearest(step) for step in (-5, 50, 51, 10**6)] == [0, 0, 100, 1000]
    with pytest.raises(ValueError, match=r"step: 'attn-2l' has no checkpoint 99 \(nearest: 100\)"):
        series.load(99)
    with pytest.raises(ValueError, match=r"steps\[1\]: 'attn-2l' has no checkpoint 200 .*: 0, 100"):
        series.at([0, 200])
    with pytest.raises(ValueError, match=r"'attn-1l' has its final weights only, no checkpoints"):
        ls.checkpoints("attn-1l")
    with pytest.raises(ValueError, match=r"steps must be a list of steps of 'attn-2l', not a dict"):
        ls.checkpoints("attn-2l", steps={0: "a"})
    with pytest.raises(ValueError, match=r"config is for files of weights"):
        ls.checkpoints("attn-2l", config={})


@pytest.mark.parametrize(
    ("steps", "message"),
    [
        ([], r"steps must hold at least one step; got none"),
        ([0, 100, 100], r"steps must rise; 100 repeats: sort them, each once"),
        ([100, 0], r"steps must rise; 0 comes after 100"),
        ([0, 1.5], r"steps\[1\] must be an integer of at least 0; got 1.5"),
        ([True], r"steps\[0\] must be an integer"),
        ([-1, 0], r"steps\[0\] must be an integer of at least 0"),
    ],
)
def test_steps_that_are_none(steps: list[Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        ls.checkpoints("attn-2l", steps=steps)
    with pytest.raises(ValueError, match=message):
        ls.checkpoints("attn-2l").at(steps)


def test_a_folder_of_state_dicts(run: Path) -> None:
    series = ls.checkpoints(run, config=CONFIG)
    assert series.steps == (0, 10, 200, 3000)
    assert series.name == "mine"
    for step in series:
        model = series.load(step, "cpu")
        assert model.cfg.model_name == "mine"  # at every step: curves are of one model
        torch.testing.assert_close(dict(model.state_dict()), state(step))
    again = pickle.loads(pickle.dumps(series))
    assert again == series
    assert len(pickle.dumps(series)) < 20_000  # no weights in it
    assert ls.checkpoints(run, config=CONFIG, steps=[10, 3000]).steps == (10, 3000)
    assert ls.checkpoints(str(run / "*200.pt"), config=CONFIG).steps == (200,)
    assert ls.checkpoints(run / "seed7-step10.pt", config=CONFIG).steps == (10,)
    assert series.check() == {}


def test_the_config_may_lie_beside_the_files_and_is_needed(run: Path) -> None:
    with pytest.raises(
        ValueError, match=r"config must be given for files of weights: .*there is no"
    ):
        ls.checkpoints(run)
    (run / "model-config.json").write_text(json.dumps(CONFIG))
    config = dict(CONFIG)
    series = ls.checkpoints(run)
    assert series == ls.checkpoints(run, config=config)
    config["n_layers"] = 5  # what is given is copied
    assert series.load(10, "cpu").cfg.n_layers == 2


@pytest.mark.parametrize(
    ("names", "steps"),
    [
        (["model_100.bin", "model_20.bin"], (20, 100)),
        (["epoch=1-step=50.ckpt", "epoch=2-step=100.ckpt"], (50, 100)),
        (["a/7/model.pt", "a/11/model.pt"], (7, 11)),
        (["x3-ckpt-0010.pt", "x3-ckpt-0002.pt"], (2, 10)),
    ],
)
def test_steps_are_read_off_names(names: list[str], steps: tuple[int, ...], tmp_path: Path) -> None:
    for name in names:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        torch.save({"w": torch.zeros(2)}, tmp_path / name)
    pattern = str(tmp_path / "a" / "*" / "*.pt") if "/" in names[0] else str(tmp_path)
    assert ls.checkpoints(pattern, config=CONFIG).steps == steps


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (
            ["s1-2.pt", "s2-3.pt"],
            r"tell no step, 2 numbers could be one \(s1-2.pt, s2-3.pt\); give st",
        ),
        (["a.pt"], r"tell no step, no number could be one \(a.pt\); give steps=\{step: file name"),
        (["s1.pt", "s01.pt"], r"step 1 is there twice, .*s01.pt' and .*s1.pt'"),
        (["s1.pt", "s2.pt", "best.pt"], r"of 2 kinds, 2 × 's#.pt', 1 × 'best.pt'; give a pattern"),
    ],
)
def test_names_that_tell_no_steps(names: list[str], message: str, tmp_path: Path) -> None:
    for name in names:
        torch.save({"w": torch.zeros(2)}, tmp_path / name)
    with pytest.raises(ValueError, match=message):
        ls.checkpoints(tmp_path, config=CONFIG)
    given = {10 * place: name for place, name in enumerate(names)}
    assert ls.checkpoints(tmp_path, steps=given, config=CONFIG).steps == tuple(given)
    with pytest.raises(FileNotFoundError, match=r"steps\[5\]: there is no file .*none.pt"):
        ls.checkpoints(tmp_path, steps={5: "none.pt"}, config=CONFIG)


def test_steps_that_no_file_has(run: Path) -> None:
    with pytest.raises(
        ValueError, match=r"has no checkpoint 5 by its file names, which say 0, 10, "
    ):
        ls.checkpoints(run, steps=[0, 5], config=CONFIG)


def test_nothing_there(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"holds neither files of weights .* nor saved mod"):
        ls.checkpoints(tmp_path)
    with pytest.raises(FileNotFoundError, match=r"matches no folder and no file of weights"):
        ls.checkpoints(str(tmp_path / "*.pt"))
    with pytest.raises(FileNotFoundError, match=r"there is no file or folder '\./none'"):
        ls.checkpoints("./none")
    with pytest.raises(
        TypeError, match=r"source must be a name, a folder, a pattern or a function"
    ):
        ls.checkpoints(3)
    (tmp_path / "step-1.txt").write_text("x")
    with pytest.raises(ValueError, match=r"step-1.txt' is no file of weights"):
        ls.checkpoints(tmp_path / "step-1.txt", config=CONFIG)


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-100])


@pytest.mark.parametrize(
    "damage", [cut, lambda path: path.write_bytes(b""), lambda path: path.write_bytes(b"x" * 1000)]
)
@pytest.mark.filterwarnings("ignore:Detected pickle protocol")
def test_a_broken_file_in_the_middle_is_named_and_left_out_if_asked(
    run: Path, damage: Callable[[Path], object]
) -> None:
    damage(run / "seed7-step200.pt")
    with pytest.raises(
        ValueError, match=r"1 of 4 checkpoints are broken. step 200: .*step200.pt' cannot be read "
        r".*; skip_broken=True goes on without",
    ):  # fmt: skip
        ls.checkpoints(run, config=CONFIG)
    with pytest.warns(
        CheckpointWarning, match=r"1 of 4 checkpoints are broken and left out. step 2"
    ):
        series = ls.checkpoints(run, config=CONFIG, skip_broken=True)
    assert series.steps == (0, 10, 3000)
    for path in run.iterdir():
        damage(path)
    with pytest.raises(ValueError, match=r"4 of 4 checkpoints are broken"):
        ls.checkpoints(run, config=CONFIG, skip_broken=True)


def test_broken_safetensors(run: Path) -> None:
    for path in list(run.iterdir()):
        save_file(torch.load(path), path.with_suffix(".safetensors"))
        path.unlink()
    assert len(ls.checkpoints(run, config=CONFIG)) == 4
    cut(run / "seed7-step10.safetensors")
    with pytest.raises(ValueError, match=r"step 10: .* cannot be read as weights"):
        ls.checkpoints(run, config=CONFIG)


def test_shapes_are_compared_without_loading(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(self: object, device: object = None) -> None:
        raise AssertionError("loaded")

    monkeypatch.setattr(LoadedModel, "load", refuse)
    torch.save(state(1, d_vocab=60), run / "seed7-step200.pt")
    with pytest.raises(
        ValueError, match=r"1 of 4 are not of the same run as the others, first step 200 .*: "
        r"shapes: embed.weight is \[60, 16\], \[50, 16\] in most",
    ):  # fmt: skip
        ls.checkpoints(run, config=CONFIG)
    assert len(ls.checkpoints(run, config=CONFIG, steps=[0, 10, 3000])) == 3


def test_check_loads_each_and_says_what_is_wrong(run: Path) -> None:
    bad = state(200)
    bad["blocks.0.attn.q.weight"][0, 0] = torch.nan
    torch.save(bad, run / "seed7-step200.pt")
    series = ls.checkpoints(run, config=CONFIG)
    torch.save(state(1, d_vocab=60), run / "seed7-step10.pt")  # changed since
    wrong = series.check()
    assert list(wrong) == [10, 200]
    assert wrong[10].startswith("it cannot be loaded: ValueError: ")
    assert re.fullmatch(r"weights that are not finite: \w+.0.attn.q.weight", wrong[200])
    assert series.at([step for step in series if step not in wrong]).steps == (0, 3000)


def test_hashes_tell_checkpoints_apart(run: Path) -> None:
    series = ls.checkpoints(run, config=CONFIG)
    hashes = {series.hash(step) for step in series}
    assert len(hashes) == 4
    torch.save(state(5), run / "seed7-step10.pt")
    assert series.hash(10) not in hashes
    import hashlib

    content = shipped_file("attn-2l", 100).read_bytes()
    assert ls.checkpoints("attn-2l").hash(100) == hashlib.sha256(content).hexdigest()


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What Hugging Face's Trainer leaves, without what is no checkpoint of the model."""
    folder = tmp_path_factory.mktemp("trainer") / "out"
    sizes = dict(n_layer=1, n_head=2, n_embd=16, n_positions=32, vocab_size=512)
    for step in (500, 1000, 1500):
        with torch.random.fork_rng():
            torch.manual_seed(step)
            GPT2LMHeadModel(GPT2Config(**sizes)).save_pretrained(folder / f"checkpoint-{step}")
        model_tokenizer().save_pretrained(folder / f"checkpoint-{step}")
        torch.save({"x": torch.zeros(1)}, folder / f"checkpoint-{step}" / "optimizer.pt")
    (folder / "runs").mkdir()
    torch.save({"x": torch.zeros(1)}, folder / "training_args.bin")
    return folder


def test_folders_of_saved_models(trained: Path, tmp_path: Path) -> None:
    out = Path(shutil.copytree(trained, tmp_path / "out"))
    for source in (out, str(out / "checkpoint-*")):
        series = ls.checkpoints(source)
        assert series.steps == (500, 1000, 1500)
        assert series.name == "out"
    saved = GPT2LMHeadModel.from_pretrained(out / "checkpoint-1000").eval()
    with torch.no_grad():
        torch.testing.assert_close(series.load(1000, "cpu")(TOKENS), saved(TOKENS).logits)
    assert len({series.hash(step) for step in series}) == 3
    with pytest.raises(ValueError, match=r"config is for files of weights"):
        ls.checkpoints(out, config=CONFIG)
    with pytest.raises(ValueError, match=r"backend='hooked' cannot load folders of saved models"):
        ls.checkpoints(out, backend="hooked")
    path = out / "checkpoint-1000" / "tokenizer.json"
    values = json.loads(path.read_text())
    path.write_text(json.dumps(values | {"truncation": {"max_length": 5}}))  # no other tokenizer
    assert len(ls.checkpoints(out)) == 3
    tokens = values["model"]["vocab"]
    first, second = list(tokens)[:2]
    tokens[first], tokens[second] = tokens[second], tokens[first]
    path.write_text(json.dumps(values))
    with pytest.raises(ValueError, match=r"step 1000 .*: another tokenizer \(tokenizer.json\)"):
        ls.checkpoints(out)


def test_folders_that_are_not_complete_or_other(trained: Path, tmp_path: Path) -> None:
    out = Path(shutil.copytree(trained, tmp_path / "out"))
    (out / "checkpoint-1000" / "config.json").unlink()  # killed while it was written
    with pytest.raises(
        ValueError, match=r"step 1000: .* holds no config.json, so it is no saved mo"
    ):
        ls.checkpoints(out)
    with pytest.warns(CheckpointWarning, match="step 1000"):
        assert ls.checkpoints(out, skip_broken=True).steps == (500, 1500)
    (out / "checkpoint-2000").mkdir()  # and this one before it was begun
    with pytest.warns(CheckpointWarning, match="2 of 4 .* step 1000: .*; step 2000: "):
        assert ls.checkpoints(out, skip_broken=True).steps == (500, 1500)
    (out / "checkpoint-2000").rmdir()
    shutil.copy(out / "checkpoint-500" / "config.json", out / "checkpoint-1000")
    (out / "checkpoint-1000" / "model.safetensors").unlink()
    with pytest.raises(ValueError, match=r"step 1000: .* holds no weights"):
        ls.checkpoints(out)
    shutil.copy(out / "checkpoint-500" / "model.safetensors", out / "checkpoint-1000")
    config = json.loads((out / "checkpoint-1000" / "config.json").read_text())
    (out / "checkpoint-1000" / "config.json").write_text(
        json.dumps(config | {"scale_attn_by_inverse_layer_idx": True})
    )
    with pytest.raises(
        ValueError, match=r"config.json: scale_attn_by_inverse_layer_idx is True, False in most"
    ):
        ls.checkpoints(out)


def test_a_shard_that_is_missing_is_named(trained: Path, tmp_path: Path) -> None:
    out = Path(shutil.copytree(trained, tmp_path / "out"))
    folder = out / "checkpoint-500"
    weights = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    names = list(weights)
    index = {}
    for place, part in enumerate((names[::2], names[1::2])):
        shard = f"model-0000{place + 1}-of-00002.safetensors"
        save_file({name: weights[name] for name in part}, folder / shard)
        index |= dict.fromkeys(part, shard)
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": index}))
    assert ls.checkpoints(out).steps == (500, 1000, 1500)  # shapes are those of all shards
    (folder / "model-00002-of-00002.safetensors").unlink()
    with pytest.raises(ValueError, match=r"step 500: .* lacks the file 'model-00002-of-00002.safe"):
        ls.checkpoints(out)


def tiny_at(step: int) -> Any:
    model: Any = native()
    model.embed.weight.data.fill_(step)
    return model


def test_a_function_of_the_step() -> None:
    torch.manual_seed(3)
    before = torch.get_rng_state()
    series = ls.checkpoints(tiny_at, steps=[2, 30])
    assert series.name == "tiny_at"
    assert float(series.load(30).embed.weight.detach().mean()) == 30
    assert torch.equal(torch.get_rng_state(), before)
    assert pickle.loads(pickle.dumps(series)) == series
    assert series.hash(2) == weights_hash(adapt(tiny_at(2)))
    for steps in (None, {2: "a"}):
        with pytest.raises(
            ValueError, match=r"steps must be a list of steps where source is a fun"
        ):
            ls.checkpoints(tiny_at, steps=steps)


def test_functions_that_cannot_travel() -> None:
    generator = (step for step in range(3))
    with pytest.raises(TypeError, match="source: the function cannot be sent to another process"):
        ls.checkpoints(lambda step: next(generator), steps=[1, 2])


def test_functions_that_return_other_models_are_found_by_check() -> None:
    def load(step: int) -> Any:
        return native(d_vocab=60) if step == 3 else native()

    wrong = ls.checkpoints(load, steps=[1, 2, 3]).check()
    assert list(wrong) == [3]
    assert "embed.weight is [60, 16], [50, 16] in most" in wrong[3]


class Hub:
    """Stands in for TransformerLens's loaders: records what it is asked for."""

    def __init__(self) -> None:
        self.asked: list[tuple[str, dict[str, Any]]] = []

    def __call__(self, name: str, **options: Any) -> Any:
        self.asked.append((name, options))
        return tiny_at(options.get("checkpoint_value", 1))


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> Hub:
    found = Hub()
    monkeypatch.setattr(shipped, "_transformer_lens_loader", lambda name, backend: found)
    return found


def test_checkpoints_that_transformer_lens_knows(hub: Hub) -> None:
    series = ls.checkpoints("pythia-70m")
    assert series.steps[:12] == (0, 1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1000)
    assert len(series) == 154
    assert series.unit == "step"
    assert not hub.asked
    series.load(512, "cpu")
    (name, options), = hub.asked  # fmt: skip
    assert name == "pythia-70m"
    assert options["checkpoint_value"] == 512
    assert ls.checkpoints("stanford-crfm/alias-gpt2-small-x21", steps=[0, 100]).steps == (0, 100)
    with pytest.raises(ValueError, match=r"has no checkpoint 3 \(nearest: 2\)"):
        ls.checkpoints("pythia-70m", steps=[3])


def test_revisions_of_the_hub(hub: Hub) -> None:
    revisions = {1000: "step1000-tokens4B", 2000: "step2000-tokens8B"}
    series = ls.checkpoints("nobody/olmo", steps=revisions)
    assert series.steps == (1000, 2000)
    assert series.source(1000).label == "nobody/olmo at step1000-tokens4B"
    series.load(2000, "cpu")
    assert hub.asked[0][0] == "nobody/olmo"
    assert hub.asked[0][1]["revision"] == "step2000-tokens8B"
    with pytest.raises(ValueError, match=r"backend='hooked' loads no revisions"):
        ls.checkpoints("nobody/olmo", steps=revisions, backend="hooked")
    with pytest.raises(ValueError, match=r"steps must rise; 1000 comes after 2000"):
        ls.checkpoints("nobody/olmo", steps={2000: "b", 1000: "a"})


def test_names_without_known_checkpoints() -> None:
    with pytest.raises(
        ValueError, match=r"'nobody/nothing' is no folder, file, pattern or shipped model with "
        r"checkpoints \(attn-2l, gelu-4l\), and TransformerLens knows .* steps=\{1000: 'step1000'",
    ):  # fmt: skip
        ls.checkpoints("nobody/nothing")
    with pytest.raises(ValueError, match=r"no model or folder 'atn-2l'; did you mean 'attn-2l'"):
        ls.checkpoints("atn-2l")


def test_labels_in_tokens_and_labels_that_cannot_be_listed(monkeypatch: pytest.MonkeyPatch) -> None:
    def labels(name: str) -> tuple[list[int], str]:
        if name == "offline":
            raise ConnectionResetError("no route")
        return [2_000_000_000, 1_000_000_000, 2_000_000_000], "token"

    place = (
        "transformer_lens.loading_from_pretrained"
        if shipped.has_hooked_transformer()
        else "transformer_lens.tools.model_registry.checkpoints"
    )
    module = ModuleType(place)
    module.get_checkpoint_labels = labels  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, place, module)
    series = ls.checkpoints("solu-1l")
    assert series.unit == "token"
    assert repr(series) == "<Checkpoints 'solu-1l': 2, tokens 1000000000 to 2000000000>"
    with pytest.raises(OSError, match=r"checkpoints of 'offline' cannot be listed \(no route\)"):
        ls.checkpoints("offline")
