"""Sample the local posterior of a model's components."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch
import xarray as xr

from lens_slt.arguments import choice, typed
from lens_slt.data.checks import check_length, usable_device
from lens_slt.data.columns import moved_back
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
from lens_slt.models.suffix import Group, make_groups, prefix_for
from lens_slt.progress import track
from lens_slt.sampling.course_table import course_table
from lens_slt.sampling.driver import run_chains
from lens_slt.sampling.folder import SamplingWarning, folder_of, read_description
from lens_slt.sampling.half_step import half_steps
from lens_slt.sampling.identity import run_identity
from lens_slt.sampling.presets import preset
from lens_slt.sampling.result import (
    Labels,
    draw_tree,
    open_draws,
    probe_specs,
    read_draws,
    trace_specs,
    write_labels,
)
from lens_slt.sampling.settings import Settings
from lens_slt.sampling.store import ArraySpec, DrawStore, open_store
from lens_slt.sampling.target import HalfPrecision, TokenSet, TransformerTarget
from lens_slt.torch_state import plain_torch


@dataclass(frozen=True)
class Probe:
    """Tokens whose per-token losses are recorded at each draw.

    Attributes:
        tokens: ``[sequence, position]``; all sequences of one length.
        mask, pad_id, weights: as for :func:`sample`; the probe's mean loss is weighted, and tokens
            of weight 0 have NaN for a loss.
        observables: what is read off the logits beside the loss: one or several of
            :class:`lens_slt.LogitDifference`, ``Probability``, ``Accuracy``, ``Divergence``, or
            functions of logits ``[site, d_vocab]`` and :class:`lens_slt.Sites`; a mapping gives
            names. Their weighted mean over the predictions of each sequence is recorded.
        reference: a model. The recorded loss is then the Kullback–Leibler divergence of the sampled
            model from its predictions, which makes the refined LLC model-refined.
    """

    tokens: Any
    mask: Any = None
    pad_id: int | None = None
    reference: Any = None
    weights: Any = None
    observables: Any = None


@typed
@plain_torch
def sample(
    model: Any,
    tokens: Any,
    components: str | Sequence[str] = "heads",
    *,
    settings: Settings | str = "default",
    probes: Mapping[str, Any] | None = None,
    weights: Any = None,
    mask: Any = None,
    pad_id: int | None = None,
    path: str | Path | None = None,
    engine: str = "auto",
    device: torch.device | str | None = None,
    progress: bool = True,
) -> xr.DataTree:
    """Sample each component's local posterior ∝ exp(−nβ·L_n(u*, v) − (γ/2)‖v − v*‖²).

    All components and chains advance in lock-step on shared minibatches. The model is read, never
    changed: weights, hooks, gradients, mode and random state are the same afterwards.

    Args:
        model: HookedTransformer or TransformerBridge, in evaluation mode.
        tokens: integer ``[sequence, position]`` that define L_n, with at most one position more
            than the model reads: the last token is only predicted. A tensor, an array, a list of
            lists (ragged ones are padded on the right), a ``BatchEncoding`` or a
            ``datasets.Dataset`` with ``input_ids`` (its ``attention_mask`` is used), that column of
            one, a text or a list of texts for the model's own tokenizer.
        components: names such as ``L1H3``, ``L0``, ``embed``, ``full``, ``L0H1+L1H3``, ``heads``;
            see :mod:`lens_slt.models.components`.
        settings: :class:`Settings`, or the name of a preset.
        probes: by name, token arrays or :class:`Probe`; their per-token losses are recorded.
        weights: how much each predicted token counts in the mean L_n = Σ weight·loss / Σ weight, at
            least 0: ``[sequence, position - 1]``, or ``[position - 1]`` for all sequences. The
            scale does not matter; sequences without any weight are left out.
        mask: tokens that count, ``[sequence, position]``: false at padding on either side, or true
            at the answers only. Whatever stands before a token that counts is read as its context,
            unless all that is hidden at the start of rows is one token id: that is padding on the
            left (a single one in every row is a BOS).
        pad_id: the padding token, at either end of rows, instead of ``mask``. Where every row
            begins with it, the last of each run is a BOS of the same id.
        path: folder that draws are streamed to; an interrupted run continues from there, and a
            finished one is read. Nobody else may write there meanwhile.
        engine: ``auto``, ``functional`` (no batched heads) or ``modules`` (the model's own blocks).
        device: where to compute; the model's device by default.
        progress: show a progress bar with the time left.

    Returns:
        Draws: see :mod:`lens_slt.sampling.result`.

    Raises:
        ValueError, TypeError: anything wrong with the arguments, before any work starts; a ``path``
            that holds another run, or one that was altered.
        OSError: ``path`` cannot be read or written, or another process writes there.
    """
    folder = None if path is None else folder_of(path)
    job = prepare(
        model, tokens, components, settings=settings, probes=probes, weights=weights, mask=mask,
        pad_id=pad_id, engine=engine, device=device,
    )  # fmt: skip
    warn_about(job.adapted)
    return run(job, folder, progress)


def run(job: Job, folder: Path | None, progress: bool = False) -> xr.DataTree:
    """What :func:`sample` does after it has prepared."""
    with open_store(folder, job.specs, {**job.identity, "record": job.record}) as store:
        if store.path is not None:
            _warn_of_versions(store.path, job.record["versions"])
        if store.path is None or not store.finished:
            return _sampled(job, store, progress)
        return open_draws(store.path)


def _sampled(job: Job, store: DrawStore, progress: bool) -> xr.DataTree:
    """Run to the end, from where the store stands, and label what was drawn."""
    target, settings = job.target, job.settings
    label = f"{len(job.names)} components × {settings.chains} chains"
    with track(label, 1, progress) as done:
        outcome = run_chains(target, settings, store, lambda book: done(*book.share))
        half = half_steps(target, settings, outcome, store)
    base = target.probe_base_losses()
    fixed = {
        name: {
            "base_loss": base[name].float().cpu().numpy(),
            "tokens": moved_back(probe.tokens, probe.shift)[:, 1:].cpu().numpy(),
            "weight": moved_back(probe.weight, probe.shift).float().cpu().numpy(),
        }
        | {
            f"base_{key}": values.float().cpu().numpy()
            for key, values in target.base_observables[name].items()
        }
        for name, probe in target.probes.items()
    }
    by_name = {c.name: c for c in job.components}
    chosen = [by_name[name] for name in job.names]
    labels = Labels(
        components=_component_table(target, chosen) | course_table(outcome, settings) | half,
        # Groups run layer by layer; the caller gets the order that was asked for.
        order=[c.name for c in job.components],
        probe_loss={
            name: "next-token" if probe.reference is None else "divergence"
            for name, probe in target.probes.items()
        },
        observables={name: list(probe.observables) for name, probe in target.probes.items()},
    )
    if store.path is None:
        return draw_tree(store.arrays, job.names, settings, job.record, labels, fixed)
    store.check()
    write_labels(store.path, labels, fixed)
    return read_draws(store.path)


@dataclass(frozen=True)
class Job:
    """A run that can start: its arguments are checked and its target is built."""

    adapted: AdaptedModel
    components: list[Component]  # in the order that was asked for
    settings: Settings
    target: TransformerTarget
    specs: dict[str, ArraySpec]
    identity: dict[str, Any]
    record: dict[str, Any]

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
) -> Job:
    """Check the arguments of :func:`sample` and build what it runs; raises as it does."""
    settings = preset(settings) if isinstance(settings, str) else settings
    adapted = adapt(model)
    chosen = parse_components(components, adapted)
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
    target = _target(adapted, given, groups, data, probe_sets, settings, engine)
    names = [name for members in target.groups for name in members.names]
    _check_steps_per_draw(settings, names)
    shapes = {name: (len(p.mask), p.mask.shape[1]) for name, p in probe_sets.items()}
    recorded = {name: list(p.observables) for name, p in probe_sets.items()}
    specs = trace_specs(len(names), settings)
    specs |= probe_specs(len(names), settings, shapes, recorded)
    identity = run_identity(target, target.base_losses, names)
    record = _record(adapted, identity, target)
    return Job(adapted, chosen, settings, target, specs, identity, record)


def _check_steps_per_draw(settings: Settings, names: list[str]) -> None:
    given = settings.steps_per_draw
    for name in given if isinstance(given, Mapping) else ():
        choice("a component of steps_per_draw", name, names)


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
        drift = HalfPrecision(half, make_groups(adapted, half, components, engine))
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


def _component_table(
    target: TransformerTarget, components: list[Component]
) -> dict[str, list[Any]]:
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
        "base_loss": base_loss,
        "base_loss_se": base_loss_se,
        "uniform_loss": target.uniform_loss,
        "weight_processing": weight_processing(adapted),
        "why_generic": adapted.why_generic,
        "hooks": " ".join(attached_hooks(adapted)),
        "versions": " ".join(
            f"{package}={_version(package)}"
            for package in ("lens-slt", "torch", "transformer-lens")
        ),
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


def _warn_of_versions(folder: Path, here: str) -> None:
    """Draws of other versions are the same to rounding at best."""
    there = read_description(folder)["identity"]["record"]["versions"]
    if there != here:
        warnings.warn(
            f"path: draws in {str(folder)!r} are from other versions: {there} there, {here} here",
            SamplingWarning,
            stacklevel=5,
        )


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "not installed"
