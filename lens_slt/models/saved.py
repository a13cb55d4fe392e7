"""A model in memory as a folder: configuration, every tensor and the tokenizer.

Another process rebuilds the same model from it. That it is the same is checked while it is saved:
its modules are of the same types, its tensors and its logits are equal to the last bit.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from lens_slt.arguments import location
from lens_slt.data.checks import usable_device
from lens_slt.json_files import plain_fields, read_json
from lens_slt.models.adapter import AdaptedModel, adapt, attached_hooks, model_logits, random_tokens
from lens_slt.models.own_file import known_config_keys, plain_config
from lens_slt.models.source import Device
from lens_slt.models.validation import named_modules
from lens_slt.torch_state import kept_random_state

RECORD, TENSORS, TOKENIZER = "model.json", "model.safetensors", "tokenizer"
HOOKED, NATIVE, WRAPPED = "HookedTransformer", "native TransformerBridge", "TransformerBridge"
_INSTEAD = (
    "; pass where it comes from instead: a name, a file of weights or a function that returns it "
    "(lens_slt.model_source)"
)
_NOT_REBUILT = ("device", "tokenizer_name", "init_weights", "seed")  # of a configuration
_OF_TOKENIZER = ("padding_side", "pad_token_id", "bos_token_id", "eos_token_id")


@dataclass(frozen=True)
class SavedModel:
    """A folder that :func:`save_source` wrote."""

    folder: str
    label: str

    def load(self, device: Device = None) -> Any:
        """The model as it was; on the device that it was on unless another is given."""
        return _rebuilt(Path(self.folder), device)


def save_source(model: Any, folder: str | Path) -> SavedModel:
    """Write a model to a folder, so that other processes can load the same.

    Raises:
        TypeError, ValueError: a model that cannot be sampled, or cannot be rebuilt from its
            configuration and tensors: hooks, a replaced ``forward``, modules or a tokenizer of the
            caller's, weights processed in place. The message says what to pass instead.
    """
    adapted = adapt(model)
    hooks = attached_hooks(adapted)
    if hooks:
        raise _cannot(f"hooks or functions of your own are attached at {', '.join(hooks)}")
    place = location("folder", folder).resolve()
    place.mkdir(parents=True, exist_ok=True)
    record = _record(adapted)
    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in _tensors(model)}
    save_file({name: tensor.clone() for name, tensor in tensors.items()}, place / TENSORS)
    tokenizer = getattr(model, "tokenizer", None)
    if tokenizer is not None:
        tokenizer.save_pretrained(place / TOKENIZER)
    (place / RECORD).write_text(json.dumps(record), "utf-8")
    try:
        again = _rebuilt(place, None)
    except Exception as error:  # whatever TransformerLens or transformers says of its own config
        raise _cannot(f"{type(error).__name__}: {error}") from error
    _check(adapted, again)
    return SavedModel(str(place), adapted.name)


def _cannot(why: str) -> ValueError:
    return ValueError(f"model: it cannot be rebuilt in another process ({why}){_INSTEAD}")


def _record(adapted: AdaptedModel) -> dict[str, Any]:
    """What a model is built of beside its tensors, as JSON."""
    model = adapted.module
    record = {
        "kind": _kind(adapted),
        "config": _plain(vars(model.cfg)),
        "device": str(adapted.device),
        "dtype": str(adapted.dtype).removeprefix("torch."),
    }
    if record["kind"] == WRAPPED:
        inner = model.original_model
        for thing in (inner, inner.config):
            if not type(thing).__module__.startswith("transformers."):
                where = f"{type(thing).__name__} of {type(thing).__module__}"
                raise _cannot(f"{where} is no class of transformers")
        record |= {
            "model_class": type(inner).__name__,
            "config_class": type(inner.config).__name__,
            "hf_config": json.loads(inner.config.to_json_string(use_diff=False)),
            "attention": inner.config._attn_implementation,
        }
    return record


def _kind(adapted: AdaptedModel) -> str:
    model = adapted.module
    if type(model).__name__ != adapted.kind:
        raise _cannot(f"it is a {type(model).__name__}, a class of your own")
    if adapted.kind == HOOKED:
        return HOOKED
    return NATIVE if type(model.original_model).__name__ == "NativeModel" else WRAPPED


def _plain(config: dict[str, Any]) -> dict[str, Any]:
    """The fields of a configuration that JSON can hold; what others do shows in the logits."""
    return plain_fields(
        {key: str(v) if isinstance(v, torch.dtype) else v for key, v in config.items()}
    )


def _rebuilt(folder: Path, device: Device) -> Any:
    record = read_json(folder / RECORD)
    target = usable_device(device or record["device"])
    with kept_random_state():
        build = {HOOKED: _hooked, NATIVE: _native, WRAPPED: _wrapped}[record["kind"]]
        model = build(record)
        if target.type != "cpu":
            model = model.to(target)
    for key, value in plain_config(record["config"]).items():
        setattr(model.cfg, key, value)
    model.cfg.device = str(target)
    if (folder / TOKENIZER).exists():
        from transformers import AutoTokenizer

        model.tokenizer = AutoTokenizer.from_pretrained(folder / TOKENIZER)
    _fill(model, load_file(folder / TENSORS))
    return model.eval()


def _hooked(record: dict[str, Any]) -> Any:
    from transformer_lens import HookedTransformer, HookedTransformerConfig

    return HookedTransformer(_config(HookedTransformerConfig, record))


def _native(record: dict[str, Any]) -> Any:
    from transformer_lens.config import TransformerBridgeConfig
    from transformer_lens.model_bridge import TransformerBridge

    config = _config(TransformerBridgeConfig, record)
    return TransformerBridge.boot_native(config, device="cpu", dtype=config.dtype)


def _config(kind: type, record: dict[str, Any]) -> Any:
    """A configuration of TransformerLens's, with fields that were set after it was made."""
    values = plain_config(record["config"])
    known = known_config_keys(kind)
    given = {key: value for key, value in values.items() if key in known}
    given |= {"device": "cpu", "tokenizer_name": None, "init_weights": False, "seed": None}
    config = kind(**given)
    for key, value in values.items():
        if key not in _NOT_REBUILT:
            setattr(config, key, value)
    return config


def _wrapped(record: dict[str, Any]) -> Any:
    import transformers
    from transformer_lens.model_bridge.sources._bridge_builder import build_bridge_from_module

    config = getattr(transformers, record["config_class"]).from_dict(record["hf_config"])
    config._attn_implementation = record["attention"]
    inner = getattr(transformers, record["model_class"])(config)
    inner = inner.to(getattr(torch, record["dtype"])).eval()
    return build_bridge_from_module(
        inner, architecture=record["config"]["architecture"], hf_config=config,
        model_name=record["config"].get("model_name") or "external",
    )  # fmt: skip


def _tensors(model: nn.Module) -> Iterator[tuple[str, Tensor]]:
    """Every parameter and buffer once, by the first name at which it is found."""
    seen: set[int] = set()
    for name, module in named_modules(model):
        for own in (module._parameters, module._buffers):
            for key, tensor in own.items():
                if isinstance(tensor, Tensor) and id(tensor) not in seen:
                    seen.add(id(tensor))
                    yield f"{name}.{type(module).__name__}.{key}", tensor


def _fill(model: nn.Module, tensors: dict[str, Tensor]) -> None:
    places = dict(_tensors(model))
    if set(places) != set(tensors):
        apart = sorted(set(places) ^ set(tensors))
        raise ValueError(f"its modules are others than its configuration makes: {apart[0]}")
    with torch.no_grad():
        for name, place in places.items():
            if place.shape != tensors[name].shape or place.dtype != tensors[name].dtype:
                there = f"{tensors[name].dtype} {list(tensors[name].shape)}"
                raise ValueError(f"{name} is {there}, not as its configuration says")
            place.copy_(tensors[name])


def _check(adapted: AdaptedModel, again: Any) -> None:
    """ValueError unless a rebuilt model is the same."""
    model = adapted.module
    types = [
        [(name, type(module)) for name, module in named_modules(one)] for one in (model, again)
    ]
    if types[0] != types[1]:
        apart = next((a for a, b in zip(*types, strict=False) if a != b), types[0][-1])
        raise _cannot(f"its module {apart[0]!r} is another than its configuration makes")
    ours, theirs = (getattr(one, "tokenizer", None) for one in (model, again))
    for key in _OF_TOKENIZER:
        if getattr(ours, key, None) != getattr(theirs, key, None):
            raise _cannot(f"its tokenizer has another {key} when it is loaded again")
    tokens = random_tokens(adapted)
    with torch.no_grad():
        given, found = model_logits(adapted, tokens), again(tokens, return_type="logits")
    if not torch.equal(given, found):
        gap = float((given - found).abs().max())
        raise _cannot(f"what is rebuilt has logits that differ by up to {gap:.2g}")
