r"""Heads by what they do: where they attend, and what they write into the logits.

``MEANINGS`` says what is averaged in each score. A direct contribution is what a head adds to a
logit through the residual stream alone, the size of the last norm held, less what it adds to all
logits on average (which changes no prediction). In ``copying`` the norms before the heads and
before the unembedding are folded in and the unembedding is centred; MLPs are left out, also the
first one, which in models such as GPT-2 acts as part of the embedding. Where what heads write is
not read off W_O and W_U (a norm after the attention, a cap on logits) the last five scores are NaN
and the attribute ``why_no_writes`` says why.

``head_type`` is the first of ``TYPES`` that holds.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import torch
import xarray as xr
from torch import Tensor

from lens_slt.arguments import integer, typed
from lens_slt.arrays import FloatArray
from lens_slt.circuits.attention import attention_pattern
from lens_slt.circuits.replacements import context
from lens_slt.circuits.writes import Writes, array_of, copying, writes_of
from lens_slt.data.checks import check_tokens
from lens_slt.data.ngrams import ngram_counts
from lens_slt.data.patterns import label_patterns
from lens_slt.data.weights import weighted_tokens
from lens_slt.models.adapter import AdaptedModel, adapt
from lens_slt.models.components import head_names
from lens_slt.models.padding import warn_of_padding
from lens_slt.models.stream import Stream
from lens_slt.schema import stamped
from lens_slt.statistics import ratio_of_sums
from lens_slt.torch_state import plain_torch

ATTENTION = ("previous_token", "current_token", "first_token", "duplicate_token", "prefix_matching")
DIRECT = ("induction", "ngram", "skip_gram")
SCORES = (*ATTENTION, *DIRECT, "copying")
MEANINGS: dict[str, str] = {
    "previous_token": "attention to the previous token, over all positions but the first",
    "current_token": "attention to the token itself, over the same positions",
    "first_token": "attention to position 0, over the same positions (where sinks rest)",
    "duplicate_token": (
        "attention to the earlier occurrence of the token, on random tokens said twice"
    ),
    "prefix_matching": "attention to the token after it, on the same (Olsson et al. 2022)",
    "induction": "direct contribution to the logit of the token that repeats, on the same",
    "ngram": (
        "direct contribution to the logit of the next token where it continues an n-gram of the"
        " tokens (pattern ngram) and no earlier part of its sequence"
    ),
    "skip_gram": (
        "the same where it continues a skip-gram; with ngram what Wang et al. 2024 (arXiv "
        "2410.02984) call multigrams"
    ),
    "copying": (
        "Σλ/Σ|λ| of the eigenvalues λ of W_E·W_V·W_O·W_U (Elhage et al. 2021): 1 where "
        "attending to a token raises its own logit, −1 where it lowers it"
    ),
    "written_share": (
        "RMS of what the head adds to the residual stream, beyond its mean over tokens, over "
        "that of the stream that its layer reads"
    ),
}
"""Scores, each with what is averaged."""
TYPES: dict[str, str] = {
    "dead": "written_share is under 0.01: whatever it attends to, nothing comes of it",
    "previous token": "previous_token is at least 0.5",
    "current token": "current_token is at least 0.5",
    "induction": "prefix_matching is at least 0.3 and copying above 0, where that is known",
    "first token": "first_token is at least 0.5",
    "multigram": "ngram + skip_gram is more than 1 nat, and 3 standard errors, above zero",
    "copying": "copying is at least 0.7",
    "other": "none of these",
}
"""Types of heads, each with its rule."""

ATTENDS = {  # types by attention: which score, and the least of it
    "previous token": ("previous_token", 0.5), "current token": ("current_token", 0.5),
    "induction": ("prefix_matching", 0.3), "first token": ("first_token", 0.5),
}  # fmt: skip
DEAD = 0.01  # share of the stream that a dead head writes less than
SHARE_OF = 16  # sequences that this is measured on

SEGMENT = 50  # random tokens that are said twice, by default
ENTRIES = 2**19  # of one head's attention that are held at a time

Detector = Callable[[Tensor], Tensor]  # tokens [1, position] → [query, key], 1 where it counts


@typed
@plain_torch
def behaviour_scores(
    model: Any,
    tokens: Any = None,
    *,
    n_random: int = 16,
    length: int | None = None,
    seed: int = 0,
    weights: Any = None,
    mask: Any = None,
    pad_id: int | None = None,
) -> xr.Dataset:
    """What every head attends to and writes, and a type for it, by the rules of this module.

    Args:
        model: a HookedTransformer or TransformerBridge.
        tokens: int ``[sequence, position]``: typical text, for the scores that are not about random
            tokens. Without it attention is measured on random tokens, and ``ngram`` and
            ``skip_gram`` are NaN. They need a text that is large enough to count n-grams in.
        n_random: sequences of random tokens: a BOS token (where the model has one) and a segment of
            tokens that all differ, said twice.
        length: tokens of that segment; by default 50, fewer where the context is short.
        seed: of the random tokens.
        weights, mask, pad_id: which predictions of ``tokens`` count, as in :func:`lens_slt.sample`;
            weights above zero count alike.

    Returns:
        Dataset over component (the heads): the scores and ``{score}_se``, their standard errors
        over sequences (``copying`` has none, it is a property of the weights); ``head_type``.

    Raises:
        TypeError, ValueError: no such model or tokens (as :func:`lens_slt.sample`); bad arguments;
            a model whose attention pattern cannot be read.

    Example:
        >>> import lens_slt as ls
        >>> scores = ls.behaviour_scores(ls.load_model("attn-2l"))
        >>> scores["head_type"].sel(component=["L0H2", "L1H2"]).values.tolist()
        ['previous token', 'induction']
    """
    adapted = adapt(model)
    random = _random_tokens(adapted, n_random, length, seed)
    half = random.shape[1] - _segment(adapted, length)
    labels: dict[str, Tensor] = {}
    if tokens is None:
        text = random[:, :half]
        queries = torch.ones_like(text, dtype=torch.bool)
    else:
        text, real, queries = _counted(adapted, tokens, weights, mask, pad_id)
        labels = _multigrams(adapted, text, real)
        labels = {name: chosen & queries[:, :-1] for name, chosen in labels.items()}
    queries[:, 0] = False
    again = (torch.arange(random.shape[1]) >= half).expand(random.shape)
    stream = Stream(adapted, random)
    writes, why_no_writes = writes_of(stream)
    measured = _measure(adapted, writes, text, ATTENTION[:3], queries, labels)
    measured |= _measure(
        adapted, writes, random, ATTENTION[3:], again, {"induction": again[:, :-1]}
    )
    nothing = (np.full(adapted.n_layers * adapted.n_heads, np.nan),) * 2
    found: dict[str, tuple[str, Any]] = {}
    for name in (*ATTENTION, *DIRECT):
        value, se = measured[name].mean() if name in measured else nothing
        found[name], found[f"{name}_se"] = ("component", value), ("component", se)
    found["copying"] = ("component", nothing[0] if writes is None else copying(stream, writes))
    share = nothing[0]
    if writes is not None:  # an induction head writes nothing where nothing is said twice
        some, there = (random, torch.ones_like(random)) if tokens is None else (text, real)
        there = there[:SHARE_OF].bool()
        seen = _observe(adapted, some[:SHARE_OF], {}, there)
        share = array_of(writes.share(seen.z[:, there.to(seen.z.device)], seen.spread))
    found["written_share"] = ("component", share)
    scores = xr.Dataset(
        found,
        coords={"component": head_names(adapted)},
        attrs={
            "text": "random" if tokens is None else "tokens",
            **{f"n_{name}": int(chosen.sum()) for name, chosen in labels.items()},
            "n_random": n_random,
            "length": random.shape[1] - half,
            "seed": seed,
            "why_no_writes": why_no_writes,
        },
    )
    scores = scores.assign(head_type=("component", _types(scores)))
    return stamped(scores, "behaviour_scores")


def _counted(
    adapted: AdaptedModel, tokens: Any, weights: Any, mask: Any, pad_id: int | None
) -> tuple[Tensor, Tensor, Tensor]:
    """Tokens, which of them are real, and which make a prediction that counts."""
    sizes: dict[str, Any] = dict(d_vocab=adapted.d_vocab, n_ctx=adapted.n_ctx, pad_id=pad_id)
    if weights is None and mask is None:
        text, real, shift = check_tokens(tokens, **sizes, model=adapted.module)
        queries = real.clone()
    else:
        text, weight, shift = weighted_tokens(
            tokens, **sizes, d_vocab_out=adapted.d_vocab_out, model=adapted.module,
            weights=weights, mask=mask,
        )  # fmt: skip
        counts = weight > 0
        queries = torch.cat([counts, torch.zeros_like(counts[:, :1])], 1)
        real = torch.from_numpy(context(queries.numpy()))
        real[:, 1:] |= counts
    warn_of_padding(adapted, text, shift, "tokens")
    return text, real, queries


@dataclass(frozen=True)
class _Sums:
    """Sums over the tokens of each sequence, and how many tokens they are over."""

    total: FloatArray  # [component, sequence]
    count: FloatArray  # [sequence]

    def mean(self) -> tuple[FloatArray, FloatArray]:
        """Mean over tokens and its standard error, whole sequences being the unit."""
        return ratio_of_sums(self.total, self.count)


def _segment(adapted: AdaptedModel, length: int | None) -> int:
    """Tokens that are said twice; one position is kept for a BOS token."""
    most = min((adapted.n_ctx - 1) // 2, adapted.d_vocab - 1)
    if length is None:
        return min(SEGMENT, most)
    why = f"said twice it must fit in n_ctx={adapted.n_ctx}, and its tokens must differ"
    integer("length", length, at_least=2, at_most=most, note=why)
    return length


def _random_tokens(adapted: AdaptedModel, n: int, length: int | None, seed: int) -> Tensor:
    """``n`` sequences of a segment of different random tokens said twice, behind a BOS token."""
    integer("n_random", n, at_least=2)
    integer("seed", seed, at_least=0)
    size = _segment(adapted, length)
    bos = getattr(getattr(adapted.module, "tokenizer", None), "bos_token_id", None)
    usable = torch.tensor([i for i in range(adapted.d_vocab) if i != bos])
    generator = torch.Generator().manual_seed(seed)
    rows = []
    for _ in range(n):
        chosen = usable[torch.randperm(len(usable), generator=generator)[:size]]
        start = chosen.new_tensor([] if bos is None else [bos])
        rows.append(torch.cat([start, chosen, chosen]))
    return torch.stack(rows)


def _multigrams(adapted: AdaptedModel, tokens: Tensor, real: Tensor) -> dict[str, Tensor]:
    """Predictions ``[sequence, position - 1]`` that continue an n-gram or skip-gram of the text.

    Those that repeat an earlier part of their own sequence are left out: induction does them too.
    """
    tokenizer = getattr(adapted.module, "tokenizer", None) or Textless(adapted.d_vocab)
    counts = ngram_counts(tokens, tokenizer, mask=real)
    patterns = label_patterns(tokens, tokenizer, mask=real, counts=counts)
    fresh = ~patterns.sel(pattern="induction").values
    return {
        name: torch.from_numpy(patterns.sel(pattern=name).values & fresh)
        for name in ("ngram", "skip_gram")
    }


@dataclass(frozen=True)
class Textless:
    """Stands in where a model has no tokenizer: n-grams are counted in ids, whatever they say."""

    vocab_size: int

    def decode(self, ids: list[int]) -> str:
        return "?"


def _first_token(tokens: Tensor) -> Tensor:
    return (torch.arange(tokens.shape[-1]) == 0).float().expand(tokens.shape[-1], -1)


def _detectors() -> dict[str, Detector]:
    """Where each behaviour attends.

    Of TransformerLens's detect_head the patterns serve: itself takes text, and averages all
    queries.
    """
    from transformer_lens import head_detector

    return {
        "previous_token": head_detector.get_previous_token_head_detection_pattern,
        "current_token": lambda tokens: torch.eye(tokens.shape[-1]),
        "first_token": _first_token,
        "duplicate_token": head_detector.get_duplicate_token_head_detection_pattern,
        "prefix_matching": head_detector.get_induction_head_detection_pattern,
    }


def _measure(
    adapted: AdaptedModel,
    writes: Writes | None,
    tokens: Tensor,
    scores: Sequence[str],
    queries: Tensor,
    predictions: dict[str, Tensor],
) -> dict[str, _Sums]:
    """Attention of some queries to what detectors point at, and direct contributions to logits.

    ``queries`` is ``[sequence, position]``, ``predictions`` holds ``[sequence, position - 1]``.
    """
    detect = _detectors()
    predictions = {} if writes is None else predictions
    parts: dict[str, list[FloatArray]] = {name: [] for name in (*scores, *predictions)}
    for rows in torch.arange(len(tokens)).split(max(1, ENTRIES // tokens.shape[1] ** 2)):
        where = {
            name: torch.stack([detect[name](row[None]) for row in tokens[rows]])
            * queries[rows, :, None]
            for name in scores
        }
        batch = tokens[rows].to(adapted.device)
        seen = _observe(adapted, batch, where)
        for name, attended in seen.attended.items():
            parts[name].append(array_of(attended))
        if writes is None:
            continue
        contribution = writes.to_next_token(seen.z, seen.final, batch)
        for name, chosen in predictions.items():
            parts[name].append(array_of((contribution * chosen[rows].to(contribution)).sum(-1)))
    counts = dict.fromkeys(scores, queries) | predictions
    return {
        name: _Sums(np.concatenate(part, axis=1), counts[name].sum(1).double().numpy())
        for name, part in parts.items()
    }


@dataclass(frozen=True)
class _Seen:
    """What one forward pass showed."""

    attended: dict[str, Tensor]  # [component, sequence], summed over queries
    z: Tensor  # [component, sequence, position, d_head]
    final: Tensor  # the last residual stream, [sequence, position, d_model]
    spread: Tensor  # mean square of the stream before each layer, beyond its mean, [layer]


def _observe(
    adapted: AdaptedModel, tokens: Tensor, where: dict[str, Tensor], real: Tensor | None = None
) -> _Seen:
    """Attention to ``where [sequence, query, key]``, and what the heads write.

    ``real [sequence, position]`` says which tokens the spread of the stream is over.
    """
    real = torch.ones_like(tokens, dtype=torch.bool) if real is None else real
    masks = {name: mask.to(adapted.device, adapted.dtype) for name, mask in where.items()}
    layers = range(adapted.n_layers)
    attended: dict[tuple[str, int], Tensor] = {}
    kept: dict[str, Tensor] = {}
    spread: dict[int, Tensor] = {}

    def look(pattern: Tensor, layer: int) -> None:
        for name, mask in masks.items():
            attended[name, layer] = torch.einsum("shqk,sqk->hs", pattern, mask)

    def keep(value: Tensor, hook: Any, name: str) -> None:
        kept[name] = value

    def measure(stream: Tensor, hook: Any, layer: int) -> None:
        stream = stream[real.to(stream.device)]
        spread[layer] = (stream - stream.mean(0)).square().sum(-1).mean()

    last = f"blocks.{adapted.n_layers - 1}.hook_resid_post"
    names = [last] + [f"blocks.{i}.attn.hook_{part}" for i in layers for part in "qkz"]
    hooks: list[tuple[str, Any]] = [(name, partial(keep, name=name)) for name in names]
    for i in layers:  # looked at on the spot: to keep all patterns takes much memory
        hooks.append((f"blocks.{i}.attn.hook_pattern", lambda x, hook, i=i: look(x, i)))
        hooks.append((f"blocks.{i}.hook_resid_pre", partial(measure, layer=i)))
    with torch.no_grad():
        tokens = tokens.to(adapted.device)
        adapted.module.run_with_hooks(tokens, fwd_hooks=hooks, return_type="logits")
        for i in layers:
            if any((name, i) not in attended for name in masks):
                q, k = (kept[f"blocks.{i}.attn.hook_{part}"] for part in "qk")
                look(attention_pattern(adapted, q, k), i)
    return _Seen(
        {name: torch.cat([attended[name, i] for i in layers]) for name in masks},
        torch.cat([kept[f"blocks.{i}.attn.hook_z"].permute(2, 0, 1, 3) for i in layers]),
        kept[last],
        torch.stack([spread[i] for i in layers]),
    )


def _types(scores: xr.Dataset) -> list[str]:
    """The first of ``TYPES`` that holds, for each head."""
    multigram = scores["ngram"] + scores["skip_gram"]
    noise = np.hypot(scores["ngram_se"], scores["skip_gram_se"])
    holds = {name: scores[score] >= least for name, (score, least) in ATTENDS.items()}
    holds["dead"] = scores["written_share"] < DEAD
    holds["induction"] &= ~(scores["copying"] <= 0)
    holds["multigram"] = (multigram > 1) & (multigram > 3 * noise)
    holds["copying"] = scores["copying"] >= 0.7
    return [
        next((name for name in TYPES if name in holds and bool(holds[name][i])), "other")
        for i in range(scores.sizes["component"])
    ]
