"""Whether losses are those of the model as it stands, on the caller's own tokens.

:func:`~lens_slt.models.adapter.adapt` compares the fast path with the model on random tokens. What
those do not show is found here, on a few of the caller's sequences at full length: restarts of a
model whose later blocks read more than the stream, masks that it derives from padding, windows that
only long sequences reach, weights that are not where they seem to be.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from lens_slt.models.adapter import AdaptedModel, logit_tolerance, model_logits
from lens_slt.models.components import Component
from lens_slt.models.forward import Weights
from lens_slt.models.leaves import padding_token
from lens_slt.models.prefix import Batch
from lens_slt.models.suffix import (
    Group,
    ModuleSuffix,
    make_groups,
    plain_loss,
    prefix_for,
    runs_own_blocks,
)
from lens_slt.models.validation import hugging_face_config

MOST_SEQUENCES = 4
MOST_MOVED = 4  # groups whose losses are compared at other weights too
MOVE = 0.1  # of a component's root mean square weight
MOST_LOGITS = 2**26  # of one pass


def agreeing_groups(
    model: AdaptedModel,
    weights: Weights,
    components: list[Component],
    engine: str,
    batches: Sequence[Batch],
) -> tuple[AdaptedModel, list[Group]]:
    """Groups that compute what the model computes, by the fastest way that does.

    Args:
        model: from :func:`~lens_slt.models.adapter.adapt`.
        weights: canonical copies of its weights, on the compute device.
        components: to evaluate.
        engine: as for :func:`lens_slt.sample`.
        batches: sequences of the sampling tokens first, then of the probes (see
            :func:`most_padded`).

    Returns:
        The model, without its fast path or without restarts where those are wrong, and the reason
        in ``why_generic``; and the groups.

    Raises ValueError if the engine that was asked for, or every engine, departs from the model.
    """
    groups = make_groups(model, weights, components, engine)
    pieces = [piece for batch in batches for piece in _pieces(batch, model)]
    why = _disagreement(model, weights, groups, pieces)
    if not why:
        return model, groups
    if engine == "functional":
        raise ValueError(f"engine='functional' cannot run this model: {why}")
    if model.architecture is not None and engine == "auto":
        return agreeing_groups(
            replace(model, architecture=None, why_generic=why), weights, components, engine, batches
        )
    if model.restarts:
        return agreeing_groups(
            replace(model, restarts=False, why_generic=_both(model.why_generic, why)),
            weights, components, engine, batches,
        )  # fmt: skip
    raise ValueError(
        f"model: two passes over the same tokens differ ({why}); lens_slt needs a model that "
        "computes the same every time: remove hooks that change, dropout and other randomness"
    )


def most_padded(model: AdaptedModel, tokens: Tensor, weight: Tensor) -> Tensor:
    """At most four sequences ``[row]`` that tell most: those with padding first, then spread."""
    ids = torch.tensor(_padding_ids(model.module), device=tokens.device, dtype=tokens.dtype)
    padding = torch.isin(tokens[:, 1:], ids).sum(1) + (weight == 0).sum(1)
    n = min(MOST_SEQUENCES, len(tokens))
    spread = torch.arange(n, device=tokens.device) * len(tokens) // n
    padded = padding.argsort(descending=True, stable=True)[:n]
    chosen = torch.cat([padded[padding[padded] > 0], spread])
    return torch.tensor(list(dict.fromkeys(chosen.tolist()))[:n], device=tokens.device)


def check_reference(what: str, model: AdaptedModel, batch: Batch, ours: Tensor) -> None:
    """Raise ValueError where losses ``[N]`` of the fast path are not those of the model itself."""
    why = _difference(model, batch, ours)
    if why:
        raise ValueError(
            f"{what} cannot be used: on these tokens losses of the fast path differ from the "
            f"model's {why}"
        )


def _disagreement(
    model: AdaptedModel, weights: Weights, groups: list[Group], pieces: list[Batch]
) -> str:
    """Where the groups depart from whole passes of the model, in words; "" if nowhere."""
    own_blocks = runs_own_blocks(groups)
    for piece in pieces:
        if own_blocks:
            why = _restart_disagreement(model, weights, groups, piece)
        else:
            why = _difference(model, piece, prefix_for(model, weights, groups, piece).base_loss)
            why = why and f"on these tokens losses of the fast path differ from the model's {why}"
        if why:
            return why
    n = min(MOST_MOVED, len(groups))
    for group in (groups[i * len(groups) // n] for i in range(n)):
        component = group.components[0]
        own = ModuleSuffix(model, weights, component)
        row = _moved(own.star()[0])
        loss = _losses(model, weights, group, row, pieces[0])
        with own.written(row):
            why = _difference(model, pieces[0], loss)
        if why:
            return (
                f"on these tokens losses at other weights of {component.name} differ from the "
                f"model's {why}"
            )
    return ""


def _restart_disagreement(
    model: AdaptedModel, weights: Weights, groups: list[Group], piece: Batch
) -> str:
    """Where the model's own blocks, started again at each that is used, depart from it."""
    for layers in sorted({tuple(sorted(group.layers)) for group in groups}):
        group = next(group for group in groups if tuple(sorted(group.layers)) == layers)
        start = f"block {max(layers)}" if model.restarts else "the first block"
        try:
            star = ModuleSuffix(model, weights, group.components[0]).star()[0]
            why = _difference(model, piece, _losses(model, weights, group, star, piece))
        except Exception as error:  # whatever a block does that misses the blocks before it
            if not model.restarts:
                raise
            return f"its blocks cannot be started at {start} ({type(error).__name__}: {error})"
        if why:
            return f"on these tokens losses from {start} on differ from a whole pass {why}"
    return ""


def _losses(
    model: AdaptedModel, weights: Weights, group: Group, row: Tensor, piece: Batch
) -> Tensor:
    """Per-token losses ``[N]`` of a group's first component at one vector of its weights.

    Another pass comes in between, lest a block reads what it remembers of this very batch.
    """
    prefix = prefix_for(model, weights, [group], piece)
    others = Batch(piece.tokens.flip(1), piece.weight)
    _whole(model, others)
    first = group.suffix.of((0,))
    loss, _ = first.losses(row[None, None].to(prefix.base_loss), prefix, gradient=False)
    return loss[0, 0]


def _difference(model: AdaptedModel, batch: Batch, ours: Tensor) -> str:
    logits = _whole(model, batch)
    there = Batch(batch.tokens.to(model.device), batch.weight.to(model.device))
    theirs = plain_loss(logits, there)
    counts = (batch.weight.flatten() > 0).to(theirs.device)
    difference = (ours.detach().to(theirs) - theirs).abs()[counts]
    if bool((difference <= logit_tolerance(logits)).all()):
        return ""
    return f"by {float(difference.max()):.2g} nats"


def _whole(model: AdaptedModel, batch: Batch) -> Tensor:
    with torch.no_grad():
        return model_logits(model, batch.inputs.to(model.device)).flatten(0, 1)


def _padding_ids(module: Any) -> list[int]:
    """Tokens from which a model may derive masks and positions."""
    config, tokenizer = hugging_face_config(module), getattr(module, "tokenizer", None)
    found = [padding_token(module)]
    for source in (config, tokenizer, module.cfg):
        found += [getattr(source, name, None) for name in ("pad_token_id", "bos_token_id")]
    return sorted({int(one) for one in found if isinstance(one, int) and one >= 0})


def _pieces(batch: Batch, model: AdaptedModel) -> Iterator[Batch]:
    """Parts of a batch whose logits fit in memory."""
    each = max(1, MOST_LOGITS // (batch.inputs.shape[1] * model.d_vocab_out))
    for start in range(0, len(batch.tokens), each):
        rows = slice(start, start + each)
        yield Batch(batch.tokens[rows], batch.weight[rows])


def _moved(star: Tensor) -> Tensor:
    noise = torch.randn(star.shape, generator=torch.Generator().manual_seed(0)).to(star)
    size = float(star.pow(2).mean().sqrt())
    return star + MOVE * (size or 1.0) * noise


def _both(first: str, second: str) -> str:
    return f"{first}; {second}" if first else second
