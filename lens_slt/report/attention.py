"""Attention patterns of chosen heads on one sequence, shown by CircuitsVis."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from torch import Tensor

from lens_slt.arguments import integer, typed
from lens_slt.circuits.attention import head_places, patterns_of
from lens_slt.data.checks import check_tokens
from lens_slt.models.adapter import adapt
from lens_slt.models.padding import warn_of_padding
from lens_slt.structure.contexts import visible_text
from lens_slt.text import script_data
from lens_slt.torch_state import plain_torch

if TYPE_CHECKING:
    from circuitsvis.utils.render import RenderedHTML

DECIMALS = 5  # of what is written into the page


@typed
@plain_torch
def show_attention(
    model: Any,
    tokens: Any,
    heads: str | Sequence[str] | None = None,
    *,
    sequence: int = 0,
    tokenizer: Any = None,
    pad_id: int | None = None,
) -> RenderedHTML:
    """Where heads attend on one sequence: one heat map a head, the chosen one large, from 0 to 1.

    The patterns are the model's own, read through TransformerLens's ``hook_pattern``. CircuitsVis
    draws them with JavaScript, which is in the output: nothing is fetched. ``str()`` of the result
    is the same HTML.

    Args:
        model: HookedTransformer or TransformerBridge; it comes back as it was.
        tokens: ``[sequence, position]``. The page has 1.3 MB and grows with heads × positions²: 16
            heads on 128 tokens make 2 MB more.
        heads: such as ``"L1H2"``, ``"L0H2, L1H2"``, ``["L0H2", "L1H*"]`` or ``"heads"``; all by
            default, in the order asked for.
        sequence: which row of ``tokens``.
        tokenizer: needs ``decode``; by default the model's. Without any, token ids are shown.
        pad_id: id of the padding, which is not shown.

    Returns:
        CircuitsVis's ``RenderedHTML``, which a notebook displays.

    Raises:
        TypeError, ValueError: no such model, heads or tokens (as :func:`lens_slt.sample`); a
            sequence that is not there; a model whose attention pattern cannot be read.

    Example:
        >>> import lens_slt as ls
        >>> model, text = ls.load_model("attn-1l"), ls.load_tokens("mix", n_sequences=8, length=16)
        >>> "L0H2" in str(ls.show_attention(model, text, "L0H2"))
        True
    """
    adapted = adapt(model)
    names = head_places("heads" if heads is None else heads, adapted)
    ids, real, shift = check_tokens(
        tokens, d_vocab=adapted.d_vocab, n_ctx=adapted.n_ctx, model=adapted.module, pad_id=pad_id
    )
    warn_of_padding(adapted, ids, shift, "tokens")
    there = f"tokens has {len(ids)} sequence{'s' * (len(ids) > 1)}"
    integer("sequence", sequence, at_least=0, at_most=len(ids) - 1, note=there)
    row = ids[sequence, : int(real[sequence].sum())]
    patterns = patterns_of(adapted, row, list(names.values()))
    shown = [patterns[layer][head] for layer, head in names.values()]
    return _page(
        attention=[pattern.round(DECIMALS).tolist() for pattern in shown],
        tokens=_words(row, getattr(model, "tokenizer", None) if tokenizer is None else tokenizer),
        attentionHeadNames=list(names),
        maxValue=1.0,
        minValue=0.0,
    )


def _page(**props: Any) -> RenderedHTML:
    """CircuitsVis's heat maps of heads, with its script in the page.

    CircuitsVis writes what it is given into the script as it is, so that a token could end the
    script: it gets a mark, in whose place the data are put.
    """
    from circuitsvis.utils.render import RenderedHTML, render_local

    class Page(RenderedHTML):
        def _repr_html_(self) -> str:  # CircuitsVis's own asks a web site whether it is online
            return str(self.local_src)

        def __repr__(self) -> str:  # where no page can be shown
            return "attention patterns, an interactive page that a notebook shows"

    mark = "lens_slt puts the data here"
    html = render_local("AttentionHeads", mark=mark)
    html = html.replace(json.dumps({"mark": mark}), script_data(props))
    return Page(html, html)


def _words(row: Tensor, tokenizer: Any) -> list[str]:
    """What each token says, its id where nothing can tell."""
    if tokenizer is None:
        return [str(token) for token in row.tolist()]
    return visible_text(row.cpu().numpy(), tokenizer).tolist()
