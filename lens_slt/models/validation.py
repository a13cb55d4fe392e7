"""What makes a model unfit for sampling, and the words that say so."""

from __future__ import annotations

from collections.abc import Iterator
from importlib.metadata import version
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from lens_slt.models.leaves import Leaf

HALF = (torch.float16, torch.bfloat16)
DROPOUT_SETTINGS = (
    "attn_pdrop",
    "embd_pdrop",
    "resid_pdrop",
    "dropout",
    "attention_dropout",
    "hidden_dropout",
    "attention_probs_dropout_prob",
    "hidden_dropout_prob",
    "dropout_p",
)
# Packages of layers whose weights are not what the forward pass multiplies with.
QUANTISED = (
    "bitsandbytes", "quantiz", "torchao", "auto_gptq", "gptqmodel", "awq", "hqq", "quanto", "eetq",
)  # fmt: skip
RECURRENT = ("mamba", "rwkv", "ssm", "zamba", "bamba", "jamba", "recurrent", "xlstm")
# Architectures whose logits TransformerLens's bridge gets wrong before a version.
WRONG_BEFORE = {
    "CohereForCausalLM": (4, 2),
    "Cohere2ForCausalLM": (4, 2),
    "HunYuanDenseV1ForCausalLM": (4, 2),
}
HOW_TO_WRAP = (
    "TransformerBridge.boot_transformers(name, hf_model=model), or load it as a HookedTransformer"
)


def kind_of(model: object) -> str:
    """``"HookedTransformer"`` or ``"TransformerBridge"``; TypeError for anything else."""
    bases = [base.__name__ for base in type(model).__mro__]
    for kind in ("HookedTransformer", "TransformerBridge"):
        if kind in bases:
            return kind
    name = type(model).__name__
    if name in ("HookedEncoder", "HookedEncoderDecoder", "HookedAudioEncoder"):
        raise TypeError(
            f"model: {name} is not a causal language model; lens_slt needs a HookedTransformer or "
            "a TransformerBridge that predicts the next token"
        )
    if "PreTrainedModel" in bases:
        raise TypeError(f"model: {name} is a plain Hugging Face model; wrap it with {HOW_TO_WRAP}")
    raise TypeError(
        f"model: expected a HookedTransformer or a TransformerBridge, got {name}; a Hugging Face "
        f"model is wrapped with {HOW_TO_WRAP}"
    )


def every_module(model: nn.Module) -> Iterator[nn.Module]:
    """Modules of the model, and of the Hugging Face model that a bridge keeps beside its own."""
    return (module for _, module in named_modules(model))


def named_modules(model: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    """As :func:`every_module`, with their names."""
    seen: set[int] = set()
    for root in (model, _underlying(model)):
        for name, module in root.named_modules() if isinstance(root, nn.Module) else ():
            if id(module) not in seen:
                seen.add(id(module))
                yield name.replace("._original_component", ""), module


def hugging_face_config(model: nn.Module) -> Any:
    """Configuration of the wrapped Hugging Face model, or None."""
    return getattr(_underlying(model), "config", None)


def refuse_unsupported(model: Any) -> None:
    """Raise ValueError for models whose computation lens_slt does not cover."""
    cfg, hf_config = model.cfg, hugging_face_config(model)
    name = str(getattr(cfg, "architecture", None) or getattr(cfg, "original_architecture", ""))
    if getattr(hf_config, "is_encoder_decoder", False) or hasattr(model, "encoder_blocks"):
        raise ValueError(
            f"model: {name} is an encoder-decoder; lens_slt covers decoder-only language models"
        )
    if (getattr(cfg, "attention_dir", None) or "causal") != "causal":
        raise ValueError(
            f"model: attention is {cfg.attention_dir}; lens_slt covers causal (next-token) models, "
            "set attention_dir='causal'"
        )
    experts = getattr(cfg, "num_experts", None) or getattr(hf_config, "num_local_experts", None)
    if experts:
        raise ValueError(
            f"model: {name or 'this model'} is a mixture of {experts} experts; lens_slt covers "
            "models with one MLP per layer"
        )
    if any(word in name.lower() for word in RECURRENT):
        raise ValueError(f"model: {name} is a state-space model; lens_slt covers transformers")
    right_from = WRONG_BEFORE.get(name)
    if right_from is not None and _transformer_lens_version() < right_from:
        raise ValueError(
            f"model: TransformerLens before {'.'.join(map(str, right_from))} computes other logits "
            f"than Hugging Face for {name}; install a newer transformer-lens"
        )
    if getattr(hf_config, "scale_attn_weights", True) is False:
        raise ValueError(
            f"model: {name} has scale_attn_weights=False, which TransformerLens's bridge ignores: "
            "it computes other logits than Hugging Face"
        )
    if "blocks" not in model._modules:
        raise ValueError(f"model: {name} has no 'blocks'; lens_slt covers plain transformer stacks")
    for layer, block in enumerate(model.blocks):
        if "attn" not in block._modules:
            raise ValueError(f"model: block {layer} has no attention; lens_slt covers transformers")
    _refuse_quantised(model, cfg, hf_config)
    _refuse_sharded(model, cfg)
    _refuse_dropout(model, hf_config)


def refuse_unfit_weights(leaves: dict[str, Leaf]) -> None:
    """Raise ValueError for half-precision weights and weights that are not finite numbers."""
    for name, leaf in leaves.items():
        if leaf.parameter.is_inference():
            raise ValueError(
                f"model: {name} was made under torch.inference_mode() and cannot be trained or "
                "sampled; build or load the model outside of it"
            )
    _refuse_shared(leaves)
    for name, leaf in leaves.items():
        dtype = leaf.parameter.dtype
        if dtype in HALF:
            raise ValueError(
                f"model: {name} is {dtype}; sampling needs float32 (steps are smaller than half "
                "precision resolves), call model.float() first"
            )
        if dtype not in (torch.float32, torch.float64):
            raise ValueError(f"model: {name} is {dtype}; sampling needs float32 or float64 weights")
    dtypes = {leaf.parameter.dtype for leaf in leaves.values()}
    if len(dtypes) > 1:
        raise ValueError(
            f"model: weights have several dtypes ({', '.join(sorted(map(str, dtypes)))}); call "
            "model.float() first"
        )
    for name, leaf in leaves.items():
        if not bool(torch.isfinite(leaf.parameter.detach()).all()):
            raise ValueError(
                f"model: {name} contains {_what_is_wrong(leaf.parameter)}; load or train the model "
                "again before sampling"
            )


def _refuse_shared(leaves: dict[str, Leaf]) -> None:
    """Raise ValueError where two names mean the same memory: moving one would move the other."""
    owner: dict[int, str] = {}
    for name, leaf in leaves.items():
        first = owner.setdefault(leaf.parameter.data_ptr(), name)
        if first != name:
            raise ValueError(
                f"model: {first} and {name} share their values; lens_slt samples components one "
                "by one and needs a copy for each, except for an unembedding that is the same "
                "parameter as the embedding"
            )


def _what_is_wrong(tensor: Tensor) -> str:
    bad = tensor.detach()
    return "NaN" if bool(torch.isnan(bad).any()) else "infinite values"


def _refuse_quantised(model: nn.Module, cfg: Any, hf_config: Any) -> None:
    advice = "load the model without quantisation, in float32"
    for name in ("load_in_4bit", "load_in_8bit"):
        if getattr(cfg, name, False):
            raise ValueError(f"model: weights are quantised ({name}=True); {advice}")
    if getattr(hf_config, "quantization_config", None) is not None:
        raise ValueError(f"model: weights are quantised (quantization_config); {advice}")
    for path, module in named_modules(model):
        kind = type(module)
        if any(package in kind.__module__.lower() for package in QUANTISED):
            raise ValueError(
                f"model: {path} is a {kind.__name__} of {kind.__module__.split('.')[0]}, which is "
                f"quantised; {advice}"
            )
        if parametrize.is_parametrized(module):
            raise ValueError(
                f"model: {path} computes its weights from others (torch.nn.utils.parametrize); "
                "make them plain weights with parametrize.remove_parametrizations"
            )
        for name, parameter in module.named_parameters(recurse=False):
            if not parameter.is_floating_point() or type(parameter.data) is not Tensor:
                what = parameter.dtype if type(parameter.data) is Tensor else type(parameter.data)
                raise ValueError(f"model: {path}.{name} is {what}; {advice}")


def _refuse_sharded(model: nn.Module, cfg: Any) -> None:
    devices = sorted(
        {str(p.device) for module in every_module(model) for p in module.parameters(recurse=False)}
    )
    if "meta" in devices:
        raise ValueError(
            "model: some weights are on the meta device (no values, or offloaded); load the whole "
            "model on one device"
        )
    if len(devices) > 1 or (getattr(cfg, "n_devices", 1) or 1) > 1:
        raise ValueError(
            f"model: weights are spread over {', '.join(devices)}; load the model on one device "
            "(n_devices=1, no device_map)"
        )


def _refuse_dropout(model: nn.Module, hf_config: Any) -> None:
    advice = "call model.eval() first, dropout would blur every loss difference"
    for module in every_module(model):
        if not module.training:
            continue
        if isinstance(module, nn.modules.dropout._DropoutNd) and module.p > 0:
            raise ValueError(f"model: dropout is active (p={module.p}); {advice}")
        if type(module).__name__ == "HookPoint" or module.__class__.__module__.startswith("torch."):
            continue
        for name in DROPOUT_SETTINGS:
            value = module.__dict__.get(name)
            if isinstance(value, float) and value > 0:
                raise ValueError(f"model: dropout is active ({name}={value}); {advice}")
    if not getattr(_underlying(model), "training", False):
        return
    for name in DROPOUT_SETTINGS:
        value = getattr(hf_config, name, None)
        if isinstance(value, float) and value > 0:
            raise ValueError(f"model: dropout is active ({name}={value}); {advice}")


def _transformer_lens_version() -> tuple[int, ...]:
    return tuple(int(part) for part in version("transformer-lens").split(".")[:2])


def _underlying(model: nn.Module) -> nn.Module | None:
    if kind_of(model) == "HookedTransformer":
        return None
    return cast(nn.Module, model.original_model)
