"""Where heads attend, as numbers."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
import xarray as xr
from torch import Tensor

from lens_slt.arguments import typed
from lens_slt.data.checks import check_tokens
from lens_slt.data.columns import moved_back
from lens_slt.models import forward
from lens_slt.models.adapter import AdaptedModel, adapt
from lens_slt.models.components import head_names, parse_components
from lens_slt.models.padding import warn_of_padding
from lens_slt.schema import stamped
from lens_slt.torch_state import plain_torch


@typed
@plain_torch
def attention_patterns(
    model: Any, tokens: Any, heads: str | Sequence[str] = "heads", *, pad_id: int | None = None
) -> xr.Dataset:
    """Where heads attend, by TransformerLens's ``hook_pattern``.

    Args:
        model: HookedTransformer or TransformerBridge; it comes back as it was.
        tokens: ``[sequence, position]``.
        heads: such as ``"L1H2"``, ``["L0H2", "L1H*"]`` or ``"heads"``.
        pad_id: id of the padding.

    Returns:
        Dataset: ``attention (component, sequence, query, key)``, in float32, rows sum to 1; NaN
        where the query is padding. ``token_id (sequence, query)``.

    Raises:
        TypeError, ValueError: no such model, heads or tokens (as :func:`lens_slt.sample`); a model
            whose attention pattern cannot be read.

    Example:
        >>> import lens_slt as ls
        >>> tokens = ls.load_tokens("mix", n_sequences=2, length=16)
        >>> found = ls.attention_patterns(ls.load_model("attn-1l"), tokens, "L0H0, L0H1")
        >>> found["attention"].dims
        ('component', 'sequence', 'query', 'key')
    """
    adapted = adapt(model)
    names = head_places(heads, adapted)
    ids, real, shift = check_tokens(
        tokens, d_vocab=adapted.d_vocab, n_ctx=adapted.n_ctx, model=adapted.module, pad_id=pad_id
    )
    warn_of_padding(adapted, ids, shift, "tokens")
    places, n = list(names.values()), ids.shape[1]
    found = np.full((len(places), *ids.shape, n), np.nan, dtype=np.float32)
    for i, row in enumerate(ids):
        length, first = int(real[i].sum()), int(shift[i])  # rows padded on the left were moved
        own = slice(first, first + length)
        by_layer = patterns_of(adapted, row[:length], places)
        for j, (layer, head) in enumerate(places):
            found[j, i, own, own] = by_layer[layer][head]
    data = xr.Dataset(
        {
            "attention": (("component", "sequence", "query", "key"), found),
            "token_id": (("sequence", "query"), moved_back(ids, shift).cpu().numpy()),
        },
        coords={"component": list(names)},
    )
    return stamped(data, "attention_patterns")


def head_places(spec: str | Sequence[str], adapted: AdaptedModel) -> dict[str, tuple[int, int]]:
    """Layer and index of every head, by name, in the order given."""
    try:
        components = parse_components(spec, adapted)
    except (TypeError, ValueError) as error:
        raise type(error)(str(error).replace("components:", "heads:", 1)) from None
    known = {name: divmod(place, adapted.n_heads) for place, name in enumerate(head_names(adapted))}
    for component in components:
        if component.name not in known:
            layer = min(component.layer, adapted.n_layers - 1)
            raise ValueError(
                f"heads: {component.name!r} is not one head; allowed are heads 'L{layer}H0', all "
                f"heads of a layer 'L{layer}H*', and 'heads'; did you mean 'L{layer}H*'?"
            )
    return {component.name: known[component.name] for component in components}


def patterns_of(
    adapted: AdaptedModel, row: Tensor, places: Sequence[tuple[int, int]]
) -> dict[int, np.ndarray]:
    """Attention ``[head, query, key]`` on one sequence, of the layers that are asked for."""
    layers = sorted({layer for layer, _ in places})
    hooks = [f"blocks.{i}.attn.hook_{part}" for i in layers for part in ("pattern", "q", "k")]
    with torch.no_grad():
        _, cache = adapted.module.run_with_cache(
            row[None].to(adapted.device), names_filter=hooks, return_type="logits"
        )
        found = {}
        for layer in layers:
            name = f"blocks.{layer}.attn.hook_"
            if f"{name}pattern" in cache:
                pattern = cache[f"{name}pattern"]
            else:  # OPT has none
                pattern = attention_pattern(adapted, cache[f"{name}q"], cache[f"{name}k"])
            found[layer] = pattern[0].double().cpu().numpy()
    return found


def attention_pattern(adapted: AdaptedModel, q: Tensor, k: Tensor) -> Tensor:
    """Attention ``[sequence, head, query, key]`` of models that do not show theirs (OPT)."""
    return attention_scores(adapted, q, k).softmax(-1)


def attention_scores(adapted: AdaptedModel, q: Tensor, k: Tensor) -> Tensor:
    """What attention is the softmax of, −∞ at later keys.

    Raises ValueError for models whose attention the fast path does not compute.
    """
    arch = adapted.architecture
    if arch is None:
        raise ValueError(
            f"model: {adapted.name} has no hook_pattern, and its attention cannot be computed in "
            f"another way ({adapted.why_generic})"
        )
    q, k = (forward.rotate(arch, x.transpose(1, 2)) for x in (q, k))
    k = k.repeat_interleave(q.shape[1] // k.shape[1], dim=1)
    scores = q @ k.transpose(-2, -1) / arch.attn_scale
    hidden = torch.ones_like(scores[0, 0], dtype=torch.bool).triu(1)
    return scores.masked_fill(hidden, -torch.inf)
