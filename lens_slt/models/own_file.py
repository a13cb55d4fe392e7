"""A model of one's own: a file of weights and the configuration that they belong to."""

from __future__ import annotations

import dataclasses
import inspect
import warnings
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import load_file
from torch import Tensor, nn

from lens_slt.arguments import did_you_mean, instance, location
from lens_slt.data.tokenizer import TokenizerWarning
from lens_slt.json_files import read_json
from lens_slt.models.leaves import bridge_leaves, hooked_leaves

WEIGHT_FILES = (".pt", ".pth", ".bin", ".ckpt", ".safetensors")
_WRAPPERS = ("state_dict", "model_state_dict", "model")  # what training scripts put weights under
_PREFIXES = ("module.", "_orig_mod.", "model.")  # of parallel, compiled and Lightning modules
_BUFFERS = (
    "mask",
    "IGNORE",
    "rotary_sin",
    "rotary_cos",
    "alibi",
)  # no weights: the config has them
_DORMANT = ("yarn_", "NTK_")  # numbers of a 3.9 config that mean nothing unless these are used
_HOOKED_ONLY = dict.fromkeys(
    (
        "use_qk_norm", "use_local_attn", "scale_attn_by_inverse_layer_idx", "parallel_attn_mlp",
        "post_embedding_ln", "use_normalization_before_and_after", "use_NTK_by_parts_rope",
        "num_experts",
    ),
    False,
)  # fmt: skip
_MOST_NAMED = 6


def load_own(path: Path, config: Any, *, hooked: bool, device: torch.device) -> nn.Module:
    """A model with the weights of a file, under TransformerLens's names.

    Args:
        path: of a state dict (``torch.save(model.state_dict(), path)``) or safetensors.
        config: a dict, the path of a JSON file, or a ``HookedTransformerConfig``.
        hooked: whether to make a HookedTransformer; otherwise a native TransformerBridge, as also
            where the weights have a bridge's own names.
        device: of the model.

    Raises FileNotFoundError, TypeError, ValueError: the message says what of the file or the
    configuration does not fit.
    """
    given = weights_of(path)
    bridge_names = "embed.weight" in given
    values = plain_config(config)
    values |= {"device": str(device), "init_weights": False, "seed": None}
    if values.get("model_name", "custom") == "custom":
        values["model_name"] = path.stem
    hooked = hooked and not bridge_names
    if not hooked and not bridge_names:
        _refuse_other_forms(values)
    model = _made(values, hooked)
    if bridge_names:
        _write(given, dict(model.state_dict().items()), path)
        return model
    given = {key.replace("._W_", ".W_").replace("._b_", ".b_"): w for key, w in given.items()}
    leaves = hooked_leaves(model) if hooked else bridge_leaves(model)
    places = {name: leaf.view(leaf.parameter.detach()) for name, leaf in leaves.items()}
    bias = None if hooked else getattr(model.unembed, "bias", None)
    if isinstance(bias, Tensor):
        bias.detach().zero_()
        if "unembed.b_U" in given:
            places["unembed.b_U"] = bias.detach()
    if not any(".b_" in key for key in given):  # a file of a model that has no biases
        given |= {k: torch.zeros_like(place) for k, place in places.items() if ".b_" in k}
    no_bias = [k for k, w in given.items() if k not in places and ".b_" in k and not w.any()]
    _write({key: w for key, w in given.items() if key not in no_bias}, places, path)
    return model


def _refuse_other_forms(values: Mapping[str, Any]) -> None:
    """Raise ValueError where a native bridge would compute something else than HookedTransformer,
    whose names the weights have."""
    neutral = dict(_HOOKED_ONLY)
    if values.get("positional_embedding_type") == "rotary":
        neutral["rotary_adjacent_pairs"] = True
    for key, value in neutral.items():
        if bool(values.get(key)) != value:
            raise ValueError(
                f"config: {key}={values.get(key, False)!r} is not computed by a native "
                f"TransformerBridge (only {value!r} is); load it as a HookedTransformer, on "
                "TransformerLens before 4.0"
            )


def weights_of(path: Path, *, shapes_only: bool = False) -> dict[str, Tensor]:
    """The tensors of a file by name, without what wraps them and without buffers.

    With ``shapes_only`` they are on torch's ``meta`` device: of safetensors, and of what
    ``torch.save`` writes, only the description is read. Raises ValueError for what is no such file.
    """
    try:
        if path.suffix == ".safetensors":
            found: Any = _described(path) if shapes_only else load_file(path)
        else:
            place = "meta" if shapes_only else "cpu"
            mapped = shapes_only and zipfile.is_zipfile(path)  # other files are of an old format
            found = torch.load(path, map_location=place, weights_only=True, mmap=mapped)
    except (FileNotFoundError, PermissionError, MemoryError):
        raise
    except Exception as error:  # a damaged pickle raises whatever it comes to
        why = str(error).strip().split("\n")[0] or "it ends too early"
        raise ValueError(
            f"{str(path)!r} cannot be read as weights: {why[:200]}. Save them with "
            "torch.save(model.state_dict(), path); whole pickled models are not loaded, as they "
            "can run code"
        ) from error
    for key in _WRAPPERS:
        if isinstance(found, Mapping) and isinstance(found.get(key), Mapping):
            found = found[key]
    tensors = isinstance(found, Mapping) and {
        str(key): value for key, value in found.items() if isinstance(value, Tensor)
    }
    if not tensors:
        what = ", ".join(map(str, found)) if isinstance(found, Mapping) else type(found).__name__
        raise ValueError(
            f"{str(path)!r} holds no state dict, names with tensors, but: {what[:200]}"
        )
    for prefix in _PREFIXES:
        if all(key.startswith(prefix) for key in tensors):
            tensors = {key.removeprefix(prefix): value for key, value in tensors.items()}
    return without_buffers(tensors)


def without_buffers(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Those that are weights."""
    return {key: value for key, value in tensors.items() if key.split(".")[-1] not in _BUFFERS}


def _described(path: Path) -> dict[str, Tensor]:
    """Tensors without values, as the header of a safetensors file describes them."""
    with safe_open(path, framework="pt") as file:
        shapes = {key: file.get_slice(key).get_shape() for key in file.keys()}  # noqa: SIM118
    return {key: torch.empty(shape, device="meta") for key, shape in shapes.items()}


def plain_config(config: Any) -> dict[str, Any]:
    """A configuration, a dict or the path of a JSON file, as keyword arguments."""
    if isinstance(config, str | Path):
        config = read_json(location("config", config))
    if not isinstance(config, Mapping) and hasattr(config, "to_dict"):
        config = config.to_dict()
    instance("config", config, Mapping)
    values = {str(key): value for key, value in config.items()}
    dtype = values.get("dtype")
    if isinstance(dtype, str):
        values["dtype"] = getattr(torch, dtype.removeprefix("torch."), None)
        if not isinstance(values["dtype"], torch.dtype):
            raise ValueError(
                f"config: dtype must be one of torch's, such as float32; got {dtype!r}"
            )
    return values


def _made(values: dict[str, Any], hooked: bool) -> Any:
    """An untrained model of a configuration."""
    tokenizer, why = _tokenizer(values)
    if why:
        values = {**values, "tokenizer_name": None}
        warnings.warn(f"config: {why}", TokenizerWarning, stacklevel=5)
    if hooked:
        from transformer_lens import HookedTransformer, HookedTransformerConfig

        _check_keys(values, known_config_keys(HookedTransformerConfig))
        return _try(
            lambda: HookedTransformer(HookedTransformerConfig(**values), tokenizer=tokenizer)
        )
    from transformer_lens.config import TransformerBridgeConfig
    from transformer_lens.model_bridge import TransformerBridge

    known = known_config_keys(TransformerBridgeConfig)
    values = {k: value for k, value in values.items() if k in known or not _dormant(k, value)}
    _check_keys(values, known)
    return _try(
        lambda: TransformerBridge.boot_native(
            TransformerBridgeConfig(**values),
            tokenizer=tokenizer,
            device=values["device"],
            model_name=values["model_name"],
        )
    )


def _tokenizer(values: Mapping[str, Any]) -> tuple[Any, str]:
    """The tokenizer that a configuration names, or why there is none."""
    name = values.get("tokenizer_name")
    if name is None:
        return None, ""
    from transformers import AutoTokenizer

    try:
        return AutoTokenizer.from_pretrained(name), ""
    except (OSError, ValueError) as error:
        reason = str(error).strip().split("\n")[0][:200]
        return None, f"its tokenizer {name!r} cannot be loaded, and the model has none: {reason}"


def _dormant(key: str, value: Any) -> bool:
    """Whether an entry of a HookedTransformerConfig changes nothing, so that others can skip it."""
    plain = value is None or value is False or (key == "rotary_scaling_factor" and value == 1)
    return plain or key.startswith(_DORMANT)


def _try(make: Any) -> Any:
    try:
        return make()
    except (TypeError, ValueError, AssertionError, KeyError, NotImplementedError) as error:
        raise ValueError(f"config: TransformerLens makes no model of it: {error}") from error


def known_config_keys(kind: Any) -> set[str]:
    """What a configuration of TransformerLens's is made of."""
    known = set(inspect.signature(kind).parameters) - {"kwargs"}
    return known | {field.name for field in dataclasses.fields(kind) if field.init}


def _check_keys(values: Mapping[str, Any], known: set[str]) -> None:
    for key in values:
        if key not in known:
            hint = did_you_mean(key, known)
            raise ValueError(f"config: TransformerLens knows no {key!r}{hint}")


def _write(given: Mapping[str, Tensor], places: Mapping[str, Tensor], path: Path) -> None:
    """Copy every weight to its place; ValueError where one is missing, left over or misshapen."""
    problems = []
    missing = [name for name in places if name not in given]
    spare = [name for name in given if name not in places]
    shapes = [
        f"{name} is {list(given[name].shape)} in the file, {list(place.shape)} by the config"
        for name, place in places.items()
        if name in given and given[name].shape != place.shape
    ]
    for words, names in (
        ("the file lacks", missing), ("the config has no place for", spare), ("shapes:", shapes),
    ):  # fmt: skip
        if names:
            more = f" and {len(names) - _MOST_NAMED} more" * (len(names) > _MOST_NAMED)
            problems.append(f"{words} {', '.join(names[:_MOST_NAMED])}{more}")
    if problems:
        raise ValueError(f"{str(path)!r} does not fit its config: {'; '.join(problems)}")
    with torch.no_grad():
        for name, place in places.items():
            place.copy_(given[name])
