"""Sample the local posterior of a model's components."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
import xarray as xr

from lens_slt.arguments import typed
from lens_slt.models.source import ModelSource
from lens_slt.sampling.folder import folder_of
from lens_slt.sampling.jobs import backend_options
from lens_slt.sampling.parallel import goes_in_parallel, run_parallel
from lens_slt.sampling.prepare import prepare, warn_about
from lens_slt.sampling.run import run
from lens_slt.sampling.settings import Settings
from lens_slt.torch_state import plain_torch


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
    directions: Any = None,
    progress: bool = True,
    parallel: Any = None,
) -> xr.DataTree:
    """Sample each component's local posterior ∝ exp(−nβ·L_n(u*, v) − (γ/2)‖v − v*‖²).

    All components and chains advance in lock-step on shared minibatches. The model is read, never
    changed: weights, hooks, gradients, mode and random state are the same afterwards.

    Args:
        model: HookedTransformer or TransformerBridge, in evaluation mode; or where it comes from,
            a :func:`lens_slt.model_source`.
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
        directions: orthonormal ones in which each component may move, as the array of
            :func:`lens_slt.moved_directions` or by component ``[direction, parameter]``; None: all.
            λ̂ is then that of the restricted model, of as many parameters as there are directions.
        progress: show a progress bar with the time left.
        parallel: run groups of components in other processes: their number, ``"dask"`` for the
            active ``distributed.Client``, ``"ray"``, or None and an active
            ``joblib.parallel_config``. Every process computes with one thread; the draws are
            those of a run with one thread here (``torch.set_num_threads(1)``), to the last bit.
            Workers load the model anew; where that cannot be, give its source for ``model``.
            On several machines ``path`` has to be on a disk that all of them see.

    Returns:
        Draws: see :mod:`lens_slt.sampling.result`.

    Raises:
        ValueError, TypeError: anything wrong with the arguments, before any work starts; a ``path``
            that holds another run, or one that was altered.
        OSError: ``path`` cannot be read or written, or another process writes there.

    Example:
        >>> import lens_slt as ls
        >>> model, text = ls.load_model("attn-1l"), ls.load_tokens("mix", n_sequences=8, length=16)
        >>> few = ls.Settings(draws=20, chains=2, steps_per_draw=1)
        >>> draws = ls.sample(model, text, "L0H0, L0H1", settings=few, progress=False)
        >>> draws["posterior"]["paired_loss"].sizes
        Frozen({'component': 2, 'chain': 2, 'draw': 20})
    """
    folder = None if path is None else folder_of(path)
    backend_options(parallel)  # a backend that is not installed is said before work starts
    source = model if isinstance(model, ModelSource) else None
    given = model if source is None else source.load(device)
    job = prepare(
        given, tokens, components, settings=settings, probes=probes, weights=weights, mask=mask,
        pad_id=pad_id, engine=engine, device=device, directions=directions,
    )  # fmt: skip
    warn_about(job.adapted)
    if not goes_in_parallel(folder, parallel):
        return run(job, folder, progress)
    target = job.target.data.tokens.device
    free = device is None or str(device) == "cuda"  # any of the GPUs of a worker
    where = "cuda" if free and target.type == "cuda" else str(target)
    return run_parallel(job, source, folder, parallel, device=where, progress=progress)
