"""What makes two runs the same: what is computed, on which tokens, of what, how, and with what.

The model is known by its weights, its configuration, its hooks, the engine that evaluates it, and
its losses on the caller's own tokens: equal weights may be another model (rope scaling, attention
scale, soft caps, a hook that edits). Losses are kept as numbers and compared within a tolerance,
because another number of threads or another CPU rounds otherwise; so are a reference model's
predictions.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from lens_slt.json_files import plain_fields
from lens_slt.models.adapter import AdaptedModel, attached_hooks, weights_hash
from lens_slt.models.loss import ReferenceState
from lens_slt.models.validation import hugging_face_config
from lens_slt.sampling.target import TokenSet, TransformerTarget

MOST_NUMBERS = 1024  # predictions that are kept of a token set, evenly chosen
TOLERANCE, RELATIVE_TOLERANCE = 1e-3, 1e-4  # of a loss in nats
PREDICTIONS = "predictions"
PARTIAL = ("config",)  # of which only what both sides know is compared
NOT_COMPARED = ("record",)
MOST_NAMED = 4  # of what differs within one part

# Where from, what for and under which name; hooks that only show values.
_TRANSFORMER_LENS = """
device n_devices seed init_mode init_weights initializer_range model_name tokenizer_name dtype
tokenizer_prepends_bos default_prepend_bos default_padding_side original_architecture n_params
from_checkpoint checkpoint_index checkpoint_label_type checkpoint_value trust_remote_code
use_attn_result use_attn_in use_split_qkv_input use_hook_mlp_in use_hook_tokens load_in_4bit
"""
_HUGGING_FACE = """
_name_or_path name_or_path transformers_version torch_dtype architectures use_cache _commit_hash
_attn_implementation _attn_implementation_internal attn_implementation output_attentions
output_hidden_states return_dict id2label label2id problem_type tokenizer_class
"""
HARMLESS = frozenset((_TRANSFORMER_LENS + _HUGGING_FACE).split())


def run_identity(
    target: TransformerTarget,
    losses: tuple[Tensor, Tensor],
    names: list[str],
    directions: Mapping[str, Tensor] | None = None,
) -> dict[str, Any]:
    """What a run computes.

    Args:
        losses: at the given weights ``[sequence, position]``, and how much each counts.
        names: the components, in the order of the arrays.
        directions: in which each may move; None is all.
    """
    model, probes = target.model, target.probes
    return {
        "model": weights_hash(model),
        "config": configuration(model),
        "hooks": attached_hooks(model),
        "engine": sorted({group.path for group in target.suffixes}),
        PREDICTIONS: {
            "losses on tokens": _losses(*losses),
            **{
                f"reference of probe {name}": _reference(probe, probe.reference)
                for name, probe in probes.items()
                if probe.reference is not None
            },
            **{
                f"{observable} of probe {name}": _numbers(_some(values[values.isfinite()]))
                for name, observables in target.base_observables.items()
                for observable, values in observables.items()
            },
        },
        "tokens": token_hash(target.data),
        "components": names,
        "directions": _directions(directions, names),
        "probes": {name: token_hash(probe) for name, probe in probes.items()},
        "observables": {name: list(probe.observables) for name, probe in probes.items()},
        "settings": target.settings.as_dict(),
    }


def configuration(model: AdaptedModel) -> dict[str, Any]:
    """Fields of the model's configuration that may change what it computes, as plain values."""
    found = _plain_fields(vars(model.module.cfg))
    inner = hugging_face_config(model.module)
    if inner is not None and hasattr(inner, "to_dict"):
        found |= {f"hf.{key}": value for key, value in _plain_fields(inner.to_dict()).items()}
    return found


def token_hash(data: TokenSet) -> str:
    """Of tokens and their weights."""
    digest = hashlib.sha256()
    for values in (data.tokens, data.weight):
        digest.update(f"{values.dtype} {tuple(values.shape)}\n".encode())
        digest.update(values.cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()


def differences(there: Mapping[str, Any], here: Mapping[str, Any]) -> list[str]:
    """What tells two identities apart, in words; both as they are read from JSON.

    Predictions are looked at only where all else is the same: they differ with most of it.
    """
    found = []
    for key in here:
        if key in (*NOT_COMPARED, PREDICTIONS):
            continue
        stored, own = there.get(key, ""), here[key]  # runs of before knew no directions
        if key in PARTIAL and isinstance(stored, dict):
            both = sorted(set(stored) & set(own))
            stored, own = ({name: side[name] for name in both} for side in (stored, own))
        if stored != own:
            found.append(_difference(key, stored, own))
    return found or _prediction_differences(there.get(PREDICTIONS, {}), here.get(PREDICTIONS, {}))


def _directions(directions: Mapping[str, Tensor] | None, names: list[str]) -> str:
    """How many directions components may move in, and which; "" is all."""
    if directions is None:
        return ""
    digest = hashlib.sha256()
    for name in names:
        digest.update(directions[name].float().cpu().contiguous().numpy().tobytes())
    return f"{len(directions[names[0]])} directions {digest.hexdigest()[:12]}"


def _losses(loss: Tensor, weight: Tensor) -> list[float]:
    """The mean of every sequence, and losses of tokens that count."""
    means = (loss * weight).sum(1) / weight.sum(1)
    return _numbers(means) + _numbers(_some(loss[weight > 0]))


def _reference(probe: TokenSet, reference: ReferenceState) -> list[float]:
    """Log-probabilities that the reference gives to tokens that count."""
    rows = _some(probe.mask.flatten().nonzero().flatten())
    targets = probe.tokens[:, 1:].flatten()[rows]
    return _numbers(reference.log_probs(rows).gather(1, targets[:, None]).flatten())


def _some(values: Tensor) -> Tensor:
    """At most ``MOST_NUMBERS`` of them, evenly chosen."""
    n = min(len(values), MOST_NUMBERS)
    return values[torch.arange(n, device=values.device) * len(values) // max(n, 1)]


def _numbers(values: Tensor) -> list[float]:
    return [float(f"{value:.7g}") for value in values.detach().cpu().double().tolist()]


def _plain_fields(fields: Mapping[str, Any]) -> dict[str, Any]:
    """Without what is harmless, and objects: what they compute shows in the predictions."""
    return plain_fields({key: value for key, value in fields.items() if key not in HARMLESS})


def _prediction_differences(
    there: Mapping[str, list[float]], here: Mapping[str, list[float]]
) -> list[str]:
    found = []
    for name, values in here.items():
        stored = there.get(name)
        if stored is None or len(stored) != len(values):
            found.append(f"{name}: another number of predictions")
            continue
        apart = [
            (_gap(a, b), a, b)
            for a, b in zip(stored, values, strict=True)
            if not _gap(a, b) <= TOLERANCE + RELATIVE_TOLERANCE * abs(b)
        ]
        if apart:
            gap, a, b = max(apart, key=lambda one: one[0])
            found.append(
                f"{name}: {len(apart)} of {len(values)} differ, by up to {gap:.2g} nats "
                f"({a:.5g} there, {b:.5g} here)"
            )
    return found


def _gap(a: float, b: float) -> float:
    if a == b or (math.isnan(a) and math.isnan(b)):
        return 0.0
    gap = abs(a - b)
    return gap if math.isfinite(gap) else math.inf


def _difference(key: str, there: Any, here: Any) -> str:
    """What differs, by the names within where there are any."""
    if not (isinstance(there, dict) and isinstance(here, dict) and here):
        return f"{key}: {_short(there)} there, {_short(here)} here"
    names = [name for name in {**there, **here} if there.get(name) != here.get(name)]
    said = [
        f"{name} {_short(there.get(name))} there, {_short(here.get(name))} here"
        for name in names[:MOST_NAMED]
    ]
    if len(names) > MOST_NAMED:
        said.append(f"and {len(names) - MOST_NAMED} more")
    return f"{key}: {', '.join(said)}"


def _short(value: Any) -> str:
    text = json.dumps(value)
    return text if len(text) <= 60 else f"{text[:57]}…"
