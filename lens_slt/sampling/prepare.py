"""Check what :func:`lens_slt.sample` is given, and build what it runs."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from lens_slt.arguments import choice
from lens_slt.data.checks import check_length, usable_device
from lens_slt.data.weights import weighted_tokens
from lens_slt.models import forward
from lens_slt.models.adapter import (
    AdaptedModel,
    adapt,
    attached_hooks,
    copy_weights,
    hooks_note,
)
from lens_slt.models.agreement import agreeing_groups, check_reference, most_padded
from lens_slt.models.components import Component, parse_components
from lens_slt.models.forward import Weights
from lens_slt.models.loss import ReferenceState
from lens_slt.models.observable import named_observables
from lens_slt.models.padding import warn_of_padding
from lens_slt.models.prefix import Batch
from lens_slt.models.processing import weight_processing
from lens_slt.models.restricted import checked_directions, noted, restricted
from lens_slt.models.suffix import Group, make_groups, prefix_for
from lens_slt.sampling.folder import SamplingWarning
from lens_slt.sampling.identity import run_identity
from lens_slt.sampling.presets import preset
from lens_slt.sampling.result import probe_specs, trace_specs
from lens_slt.sampling.settings import Settings
from lens_slt.sampling.store import ArraySpec
from lens_slt.sampling.target import HalfPrecision, TokenSet, TransformerTarget
from lens_slt.versions import versions


@dataclass(frozen=True)
class Probe:
    """Tokens whose per-token losses are recorded at each draw.

    Attributes:
        tokens: as for :func:`sample`.
        mask, pad_id, weights: as for :func:`sample`; the probe's mean loss is weighted, and tokens
            of weight 0 have NaN for a loss.
        observables: what is read off the logits beside the loss: one or several of
            :class:`lens_slt.LogitDifference`, ``Probability``, ``Accuracy``, ``Divergence``, or
            functions of logits ``[site, d_vocab]`` and :class:`lens_slt.Sites`; a mapping gives
            names. Their weighted mean over the predictions of each sequence is recorded.
        reference: a model. The recorded loss is then the Kullback–Leibler divergence of the sampled
            model from its predictions, which makes the refined LLC model-refined.

    Example:
        >>> import lens_slt as ls
        >>> model, text = ls.load_model("attn-1l"), ls.load_tokens("mix", n_sequences=8, length=16)
        >>> how = dict(settings=ls.Settings(draws=20, chains=2, steps_per_draw=1), progress=False)
        >>> probe = ls.Probe(text, reference=ls.load_model("attn-1l"))
        >>> draws = ls.sample(model, text, "L0H0", probes={"of": probe}, **how)
        >>> bool((ls.refined_llc(draws)["probe_llc"] > 0).all())  # a divergence cannot fall below 0
        True
    """

    tokens: Any
    mask: Any = None
    pad_id: int | None = None
    reference: Any = None
    weights: Any = None
    observables: Any = None


@dataclass(frozen=True)
class PreparedRun:
    """A run that can start: its arguments are checked and its target is built."""

    adapted: AdaptedModel
    components: list[Component]  # in the order that was asked for
    settings: Settings
    target: TransformerTarget
    specs: dict[str, ArraySpec]
    identity: dict[str, Any]
    record: dict[str, Any]
    engine: str
    directions: dict[str, Tensor] | None = None  # [direction, parameter] of every component

    @property
    def names(self) -> list[str]:
        """Components in the order of the arrays."""
        return [name for members in self.target.groups for name in members.names]


def prepare(
    model: Any,
    tokens: Any,
    components: str | Sequence[str],
    *,
    settings: Settings | str,
    probes: Mapping[str, Any] | None,
    weights: Any,
    mask: Any,
    pad_id: int | None,
    engine: str,
    device: torch.device | str | None,
    directions: Any = None,
) -> PreparedRun:
    """Check the arguments of :func:`sample` and build what it runs; raises as it does."""
    settings = preset(settings) if isinstance(settings, str) else settings
    adapted = adapt(model)
    chosen = parse_components(components, adapted)
    strides = settings.steps_per_draw
    for name in strides if isinstance(strides, Mapping) else ():
        choice("a component of steps_per_draw", name, [component.name for component in chosen])
    n_needed = None if settings.method.EXACT else settings.batch_size
    device = adapted.device if device is None else usable_device(device)
    if device != adapted.device and (adapted.architecture is None or engine == "modules"):
        raise ValueError(_other_device(device, adapted))
    data = _token_set(adapted, Probe(tokens, mask, pad_id, None, weights), "tokens", device)
    data = _with_weight(data, n_needed)
    settings = settings.for_data(len(data.tokens), data.tokens.shape[1] - 1)
    probe_sets = {
        name: _probe_set(adapted, name, probe, device) for name, probe in (probes or {}).items()
    }
    given = {name: w.to(device) for name, w in copy_weights(adapted).items()}
    adapted, groups = agreeing_groups(
        adapted, given, chosen, engine,
        [telling_batch(adapted, some) for some in (data, *probe_sets.values())],
    )  # fmt: skip
    if device != adapted.device and adapted.architecture is None:
        raise ValueError(_other_device(device, adapted))
    restriction = checked_directions(directions, groups)
    return assembled(
        adapted, given, chosen, groups, data, probe_sets, settings, engine, restriction
    )


def assembled(
    adapted: AdaptedModel,
    weights: Weights,
    components: list[Component],
    groups: list[Group],
    data: TokenSet,
    probes: dict[str, TokenSet],
    settings: Settings,
    engine: str,
    directions: dict[str, Tensor] | None = None,
) -> PreparedRun:
    """A run of components, in groups that evaluate them, on checked tokens."""
    target = _target(adapted, weights, groups, data, probes, settings, engine, directions)
    components = noted(components, target.suffixes)
    names = [name for members in target.groups for name in members.names]
    shapes = {name: (len(p.mask), p.mask.shape[1]) for name, p in probes.items()}
    recorded = {name: list(p.observables) for name, p in probes.items()}
    specs = trace_specs(len(names), settings)
    specs |= probe_specs(len(names), settings, shapes, recorded)
    identity = run_identity(target, target.base_losses, names, directions)
    record = _record(adapted, identity, target)
    return PreparedRun(
        adapted, components, settings, target, specs, identity, record, engine, directions
    )


def _other_device(device: torch.device, adapted: AdaptedModel) -> str:
    return (
        f"device: {device} is not the model's, {adapted.device}, and its own blocks must run this "
        f"job ({adapted.why_generic or 'engine=modules'}); move the model there"
    )


def telling_batch(adapted: AdaptedModel, data: TokenSet) -> Batch:
    """The few sequences on which what is computed is compared with the model itself."""
    index = most_padded(adapted, data.tokens, data.weight)
    return Batch(data.tokens[index], data.weight[index])


def _target(
    adapted: AdaptedModel,
    weights: Weights,
    groups: list[Group],
    data: TokenSet,
    probes: dict[str, TokenSet],
    settings: Settings,
    engine: str,
    directions: dict[str, Tensor] | None,
) -> TransformerTarget:
    drift = None
    if settings.drift_dtype == "bfloat16":
        if adapted.architecture is None or engine == "modules":
            raise ValueError(
                "drift_dtype='bfloat16' needs the functional forward pass, which this run does not "
                f"use: {adapted.why_generic or 'engine=modules'}"
            )
        half = {name: w.bfloat16() for name, w in weights.items()}
        components = [c for group in groups for c in group.components]
        halves = restricted(make_groups(adapted, half, components, engine), directions)
        drift = HalfPrecision(half, halves)
    groups = restricted(groups, directions)
    return TransformerTarget(adapted, weights, groups, data, probes, settings, drift)


def _token_set(adapted: AdaptedModel, tokens: Probe, name: str, device: torch.device) -> TokenSet:
    checked, weight, shift = weighted_tokens(
        tokens.tokens, d_vocab=adapted.d_vocab, d_vocab_out=adapted.d_vocab_out,
        n_ctx=adapted.n_ctx, name=name, model=adapted.module, weights=tokens.weights,
        mask=tokens.mask, pad_id=tokens.pad_id,
    )  # fmt: skip
    warn_of_padding(adapted, checked, shift, name)
    return TokenSet(checked.to(device), weight.to(device, adapted.dtype), shift)


def _with_weight(data: TokenSet, batch_size: int | None) -> TokenSet:
    """The sequences in which something counts; at least a batch of them."""
    some = data.mask.any(1)
    n, n_given = int(some.sum()), len(some)
    if batch_size is not None and n < batch_size:
        what = f"{n} sequence{'s' * (n != 1)}"
        if n < n_given:
            what += f" with a weight above 0, of {n_given}"
        raise ValueError(
            f"tokens has {what}, fewer than a batch of {batch_size}; pass more sequences or a "
            "smaller batch_size"
        )
    if n == n_given:
        return data
    return TokenSet(data.tokens[some], data.weight[some], data.shift[some.cpu()])


def _probe_set(adapted: AdaptedModel, name: str, probe: Any, device: torch.device) -> TokenSet:
    if not isinstance(name, str) or not name.isidentifier():
        raise ValueError(f"probes: {name!r} is not a name; use letters, digits and underscores")
    probe = probe if isinstance(probe, Probe) else Probe(probe)
    label = f"probes[{name!r}]"
    tokens = _token_set(adapted, probe, label, device)
    tokens = replace(tokens, observables=named_observables(probe.observables))
    if probe.reference is None:
        return tokens
    reference = adapt(probe.reference)
    for what, here, there in (
        ("predicts", adapted.d_vocab_out, reference.d_vocab_out),
        ("reads", adapted.d_vocab, reference.d_vocab),
    ):
        if here != there:
            raise ValueError(
                f"{label}.reference {what} {there} tokens, the model {here}: both need the same "
                "tokenizer"
            )
    check_length(tokens.tokens, reference.n_ctx, f"for its reference, {label}", unread=1)
    arch = reference.architecture
    if arch is None:
        raise ValueError(f"{label}.reference cannot be used: {reference.why_generic}")
    weights = {key: w.to(device) for key, w in copy_weights(reference).items()}
    with torch.no_grad():
        inputs = tokens.tokens[:, :-1]
        x = forward.run_from(arch, weights, 0, forward.embed(arch, weights, inputs))
    w_u, b_u = forward.unembedding(arch, weights)
    batch = telling_batch(reference, tokens)
    ours = prefix_for(reference, weights, [], batch).base_loss
    check_reference(f"{label}.reference", reference, batch, ours)
    return replace(tokens, reference=ReferenceState(x.flatten(0, 1), w_u, b_u))


def component_table(target: TransformerTarget, components: list[Component]) -> dict[str, list[Any]]:
    """Columns of the root that say what was sampled, in the order of ``components``."""
    paths = [group.path for group in target.suffixes for _ in group.components]
    sizes = [m.star.shape[1] for m in target.groups for _ in m.names]
    return {
        "n_parameters": sizes,
        "evaluated_by": paths,
        "layer": [c.layer for c in components],
        "shares_key_value_with": [" ".join(c.shares_key_value_with) for c in components],
        "note": [c.note for c in components],
    }


def _record(
    adapted: AdaptedModel, identity: dict[str, Any], target: TransformerTarget
) -> dict[str, Any]:
    base_loss, base_loss_se = target.base_loss()
    return {
        "model": adapted.name,
        "model_kind": adapted.kind,
        "model_hash": identity["model"],
        "tokens": " × ".join(map(str, target.data.tokens.shape)),
        "tokens_hash": identity["tokens"],
        "directions": identity["directions"],
        "base_loss": base_loss,
        "base_loss_se": base_loss_se,
        "uniform_loss": target.uniform_loss,
        "weight_processing": weight_processing(adapted),
        "why_generic": adapted.why_generic,
        "hooks": " ".join(attached_hooks(adapted)),
        "versions": " ".join(f"{package}={found}" for package, found in versions().items()),
    }


def warn_about(adapted: AdaptedModel) -> None:
    """Say what changes the meaning or the cost of a run; points at the caller of what calls it,
    which is ``typed``."""
    processing = weight_processing(adapted)
    if processing:
        warnings.warn(
            f"model: its weights were processed ({processing}), which changes the parametrisation "
            "and therefore refined LLCs; load it unprocessed to compare with published values",
            SamplingWarning,
            stacklevel=5,
        )
    note = hooks_note(adapted)
    if note:
        warnings.warn(note, SamplingWarning, stacklevel=5)
    elif adapted.why_generic:
        warnings.warn(
            f"model: running its own blocks, which is slower: {adapted.why_generic}",
            SamplingWarning,
            stacklevel=5,
        )
