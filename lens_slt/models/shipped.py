"""The models that come with the package, and one loader for them and for TransformerLens's own."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, get_args

import torch
from safetensors.torch import load_file

from lens_slt.arguments import choice, integer, nearest, typed
from lens_slt.data.checks import usable_device
from lens_slt.data.tokenizer import VOCABULARY_SIZE, shipped_tokenizer
from lens_slt.models.forward import Architecture, Weights
from lens_slt.models.leaves import bridge_leaves
from lens_slt.models.own_file import WEIGHT_FILES, load_own
from lens_slt.models.shipped_files import (
    SHIPPED_LIST,
    SHIPPED_NAMES,
    misspelt,
    shipped_file,
)

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

Backend = Literal["auto", "hooked", "bridge"]
BACKENDS = get_args(Backend)


def shipped_architecture(n_layers: int, mlps: bool = False) -> Architecture:
    """Architecture of the shipped models: attention-only, or with ``mlps`` much like GPT-2's."""
    if mlps:
        return Architecture(
            n_layers=n_layers, d_model=96, n_heads=6, n_key_value_heads=6, d_head=16,
            d_vocab=VOCABULARY_SIZE, n_ctx=128, attn_scale=4.0, attn_only=False,
        )  # fmt: skip
    return Architecture(
        n_layers=n_layers, d_model=128, n_heads=8, n_key_value_heads=8, d_head=16,
        d_vocab=VOCABULARY_SIZE, n_ctx=128, attn_scale=4.0, norm="LNPre", final_norm="LNPre",
        positions="rotary", rotary_dim=16, rotary_adjacent_pairs=True,
    )  # fmt: skip


def architecture_of(weights: Weights) -> Architecture:
    """The shipped architecture that has these weights."""
    n_layers = 1 + max(int(key.split(".")[1]) for key in weights if key.startswith("blocks."))
    return shipped_architecture(n_layers, mlps="blocks.0.mlp.W_in" in weights)


@typed
def load_model(
    name: str | Path,
    *,
    config: Any = None,
    checkpoint: int | None = None,
    revision: str | None = None,
    backend: Backend = "auto",
    device: str | torch.device | None = None,
) -> Any:
    """Load a model, in eval mode and with unprocessed weights; the caller's RNG does not move.

    ``name`` is a shipped model, a folder that ``save_pretrained`` wrote, any name that
    TransformerLens knows, or a file of weights: .safetensors, or .pt and its like with a state
    dict. Such a file needs ``config``: a dict, a ``HookedTransformerConfig``, or the path of a JSON
    file; its names are those of TransformerLens (``blocks.0.attn.W_Q``), or of a native
    TransformerBridge; without any bias in it, biases are zero. ``checkpoint`` is a training step,
    ``revision`` a branch, tag or commit of the Hugging Face Hub, of which a TransformerBridge is
    made. The result is a HookedTransformer where TransformerLens has it and it knows the model,
    else a TransformerBridge; ``backend`` asks for one of them. Both give equal logits on the
    shipped models.

    Raises ValueError for a misspelt name, an unknown checkpoint, weights that do not fit the
    config (it names them), ImportError for ``hooked`` on TransformerLens 4, OSError where a model
    cannot be reached.

    Example:
        >>> import lens_slt as ls, torch, tempfile
        >>> mine = ls.load_model("attn-1l")  # any model that you trained
        >>> folder = tempfile.mkdtemp()
        >>> torch.save(mine.state_dict(), f"{folder}/mine.pt")
        >>> type(ls.load_model(f"{folder}/mine.pt", config=mine.cfg)) is type(mine)
        True
    """
    name = str(name)
    choice("backend", backend, BACKENDS)
    if checkpoint is not None:
        integer("checkpoint", checkpoint, at_least=0)
    if backend == "hooked" and not has_hooked_transformer():
        raise ImportError(
            "backend='hooked' needs HookedTransformer, which TransformerLens 4 removed; "
            "use backend='bridge'"
        )
    own = _own_file(name, config, checkpoint)
    if revision is not None:
        _check_revision(name, revision, checkpoint, backend, own)
        backend = "bridge"
    target = usable_device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
    with torch.random.fork_rng(devices=[target] if target.type == "cuda" else []):
        if own is not None:
            hooked = backend != "bridge" and has_hooked_transformer()
            model = load_own(own, config, hooked=hooked, device=target)
        elif name in SHIPPED_NAMES:
            model = build_model(shipped_weights(name, checkpoint), name, backend, target)
        elif Path(name).expanduser().is_dir():
            model = _load_folder(Path(name).expanduser(), checkpoint, backend, target)
        else:
            model = _load_by_name(name, checkpoint, revision, backend, target)
    return model.eval()


def shipped_weights(name: str, checkpoint: int | None = None) -> Weights:
    """Float32 weights of a shipped model under TransformerLens's names."""
    return read_weights(shipped_file(name, checkpoint))


def read_weights(path: Path) -> Weights:
    """Float32 weights from a half-precision file of the training script."""
    return {key: tensor.float() for key, tensor in load_file(path).items()}


def model_tokenizer() -> PreTrainedTokenizerFast:
    """The shipped tokenizer as TransformerLens wants it: it prepends the BOS token itself."""
    tokenizer = shipped_tokenizer()
    tokenizer.init_kwargs["name_or_path"] = "lens-slt"  # both backends read it
    tokenizer.add_bos_token = True
    return tokenizer


def tokenizer_of(record: Mapping[Any, Any]) -> PreTrainedTokenizerFast | None:
    """The tokenizer of the model in the record of a run, its ``attrs``; None if not shipped."""
    return shipped_tokenizer() if str(record.get("model")) in SHIPPED_NAMES else None


def build_model(weights: Weights, name: str, backend: Backend, device: torch.device) -> Any:
    """A model of the shipped architecture with these weights, in eval mode."""
    config = _config(architecture_of(weights), name, device)
    hooked = backend != "bridge" and has_hooked_transformer()
    return (build_hooked if hooked else build_bridge)(config, weights, model_tokenizer()).eval()


def has_hooked_transformer() -> bool:
    """Whether this TransformerLens still has HookedTransformer (before 4.0)."""
    try:
        from transformer_lens import HookedTransformer  # noqa: F401
    except ImportError:
        return False
    return True


def build_hooked(config: dict[str, Any], weights: Weights, tokenizer: Any = None) -> Any:
    """A HookedTransformer with these weights and zero elsewhere."""
    from transformer_lens import HookedTransformer, HookedTransformerConfig

    model = HookedTransformer(HookedTransformerConfig(**config), tokenizer=tokenizer)
    with torch.no_grad():
        for key, parameter in model.named_parameters():
            parameter.copy_(weights[key]) if key in weights else parameter.zero_()
    return model


def build_bridge(config: dict[str, Any], weights: Weights, tokenizer: Any = None) -> Any:
    """A native TransformerBridge with these weights and zero elsewhere."""
    from transformer_lens.config import TransformerBridgeConfig
    from transformer_lens.model_bridge import TransformerBridge

    bridge = TransformerBridge.boot_native(
        TransformerBridgeConfig(**config), tokenizer=tokenizer,
        device=config["device"], model_name=config["model_name"],
    )  # fmt: skip
    with torch.no_grad():
        for parameter in bridge.parameters():
            parameter.zero_()
        for key, leaf in bridge_leaves(bridge).items():
            if key in weights:
                leaf.view(leaf.parameter).copy_(weights[key])
    return bridge


def _config(arch: Architecture, name: str, device: torch.device) -> dict[str, Any]:
    config: dict[str, Any] = dict(
        model_name=name, n_layers=arch.n_layers, d_model=arch.d_model, n_heads=arch.n_heads,
        d_head=arch.d_head, d_vocab=arch.d_vocab, n_ctx=arch.n_ctx, attn_only=arch.attn_only,
        normalization_type=arch.norm, eps=arch.norm_eps, positional_embedding_type=arch.positions,
        init_weights=False, device=str(device),
    )  # fmt: skip
    if not arch.attn_only:
        config |= dict(d_mlp=4 * arch.d_model, act_fn=arch.activation)
    if arch.positions == "rotary":
        config |= dict(
            rotary_dim=arch.rotary_dim, rotary_base=int(arch.rotary_base),
            rotary_adjacent_pairs=arch.rotary_adjacent_pairs,
        )  # fmt: skip
    return config


def _own_file(name: str, config: Any, checkpoint: int | None) -> Path | None:
    """The file of weights that a name is; None for another name."""
    path = Path(name).expanduser()
    if path.suffix not in WEIGHT_FILES and (config is None or not path.is_file()):
        if config is not None:
            raise ValueError(
                f"config is for files of weights ({', '.join(WEIGHT_FILES)}); {name!r} is none"
            )
        return None
    if not path.is_file():
        raise FileNotFoundError(f"there is no file {name!r}")
    if path.suffix not in WEIGHT_FILES:
        raise ValueError(f"{name!r} must be a file of weights: {', '.join(WEIGHT_FILES)}")
    if config is None:
        raise ValueError(
            f"{name!r} is a file of weights and needs config=, the model's HookedTransformerConfig "
            "as a dict, as a JSON file or as it is (--config FILE on the command line)"
        )
    if checkpoint is not None:
        raise ValueError(f"checkpoint must be None for a file of weights; got {checkpoint!r}")
    return path


def _load_folder(
    folder: Path, checkpoint: int | None, backend: Backend, device: torch.device
) -> Any:
    if checkpoint is not None:
        raise ValueError(f"checkpoint must be None for a model folder; got {checkpoint!r}")
    if backend == "hooked":
        raise ValueError("backend='hooked' cannot load a model folder; use backend='bridge'")
    if not (folder / "config.json").is_file():
        raise FileNotFoundError(f"{folder} holds no config.json, so it is no saved model")
    from transformer_lens.model_bridge import TransformerBridge

    return TransformerBridge.boot_transformers(str(folder), device=device)


def _check_revision(
    name: str, revision: str, checkpoint: int | None, backend: Backend, own: Path | None
) -> None:
    """Raise ValueError where a revision means nothing."""
    if own is not None or name in SHIPPED_NAMES or Path(name).expanduser().is_dir():
        raise ValueError(
            f"revision is for models of the Hugging Face Hub, {name!r} is none; got {revision!r}"
        )
    if checkpoint is not None:
        raise ValueError(
            f"revision and checkpoint both say which weights; got {revision!r} and {checkpoint!r}"
        )
    if backend == "hooked":
        raise ValueError(
            f"backend='hooked' cannot load a revision; use backend='bridge' for {revision!r}"
        )


def _load_by_name(
    name: str,
    checkpoint: int | None,
    revision: str | None,
    backend: Backend,
    device: torch.device,
) -> Any:
    if hint := misspelt(name):
        raise ValueError(f"there is no model {name!r}{hint} {SHIPPED_LIST}")
    options: dict[str, Any] = {"device": device}
    if checkpoint is not None:
        options["checkpoint_value"] = checkpoint
    if revision is not None:
        options["revision"] = revision
    load = _transformer_lens_loader(name, backend)
    try:
        return load(name, **options)
    except OSError as error:
        reason = str(error).strip().split("\n")[0]
        raise OSError(
            f"{name!r} is not a shipped model, and TransformerLens could not load it from the "
            f"Hugging Face Hub ({reason}). Without a network use a shipped model. "
            f"{SHIPPED_LIST} The nearest name is {nearest(name, SHIPPED_NAMES, 0)!r}."
        ) from error


def _transformer_lens_loader(name: str, backend: Backend) -> Callable[..., Any]:
    """TransformerLens's loader of unprocessed weights for a model it knows by this name."""
    if backend != "bridge" and has_hooked_transformer():
        from transformer_lens import HookedTransformer
        from transformer_lens.loading_from_pretrained import get_official_model_name

        try:
            get_official_model_name(name)
            return HookedTransformer.from_pretrained_no_processing
        except ValueError:
            if backend == "hooked":
                raise ValueError(
                    f"HookedTransformer knows no model {name!r}; use backend='bridge' for other "
                    f"models of the Hugging Face Hub. {SHIPPED_LIST}"
                ) from None
    from transformer_lens.model_bridge import TransformerBridge

    return TransformerBridge.boot_transformers
