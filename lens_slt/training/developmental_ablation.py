"""What fails to form when a part of the data is left out over a window of training."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import xarray as xr

from lens_slt.arguments import integer, typed
from lens_slt.schema import stamped
from lens_slt.torch_state import plain_torch
from lens_slt.training.retrainings import Measure, check_measured, later, reached, retrainings

WITH_ALL = "nothing left out"


@typed
@plain_torch
def developmental_ablation(
    model: Any,
    tokens: Any,
    without: Any,
    measure: Measure | Mapping[str, Any],
    levels: Mapping[str, float],
    windows: Sequence[tuple[int, int]],
    *,
    steps: int,
    path: str | Path,
    seeds: Sequence[int] = (0, 1, 2),
    parallel: Any = None,
    progress: bool = True,
    **options: Any,
) -> xr.Dataset:
    """Leave some sequences out over windows of training, and see what forms late or never.

    Beside every window stands a run with all data, of the same seed. For everything about such a
    run beyond single values, such as its refined LLCs and stages, call :func:`lens_slt.develop` on
    ``lens_slt.checkpoints(f"{path}/{run}/seed-{seed}")``.

    Args:
        model: the checkpoint to begin with.
        tokens: the data, ``[sequence, position]``.
        without: bool ``[sequence]``, those to leave out, such as the sequences in which a pattern
            occurs.
        measure: as for :func:`lens_slt.retrainings`.
        levels: by name, the value from which on something has formed.
        windows: (first update, update after the last one) of each, between 0 and ``steps``.
        steps: updates of every run.
        path: folder of the retrainings; finished ones are not repeated.
        seeds: of the batches.
        parallel, progress: as for :func:`lens_slt.retrainings`.
        **options: of :func:`lens_slt.retrain`.

    Returns:
        Dataset over (checkpoint, run, seed, observable): ``value``; the first run has all data, the
        others are called by their windows. Over (level, run, seed): ``step`` from which on the
        level is reached for good, NaN if it is not at the end; ``delay`` against the run with all
        data, ∞ where only that one reaches it and −∞ where only this one does. Over (level, run):
        ``formed``, the share of seeds that reach it; ``mean_delay`` over seeds in which both do,
        and its standard error ``mean_delay_se``.

    Raises:
        ValueError: windows outside of the run, ``without`` that holds no sequence or all of them,
            levels of what is not measured; what :func:`lens_slt.retrainings` refuses.

    Example:
        >>> import lens_slt as ls, tempfile
        >>> model, text = ls.load_model("attn-1l"), ls.load_tokens("mix", n_sequences=8, length=16)
        >>> probes, levels = {"text": ls.Probe(text)}, {"text": 2.0}
        >>> without, windows = [True] + 7 * [False], [(0, 1)]
        >>> where = dict(steps=2, path=tempfile.mkdtemp(), seeds=[0], progress=False)
        >>> given = (without, probes, levels, windows)
        >>> found = ls.developmental_ablation(model, text, *given, **where)
        >>> found["delay"].dims
        ('level', 'run', 'seed')
    """
    runs = _schedules(without, windows, steps)
    check_measured(model, measure, levels=levels)
    found = retrainings(
        model, tokens, runs, measure, steps=steps, path=path, seeds=seeds, parallel=parallel,
        progress=progress, **options,
    )  # fmt: skip
    step = reached(found, levels)["step"].rename(observable="level")
    delay = step.copy(data=later(step.values, step.values[:, :1]))
    known = delay.where(np.isfinite(delay))
    data = found.assign(
        step=step, delay=delay, formed=step.notnull().mean("seed"),
        mean_delay=known.mean("seed"),
        mean_delay_se=known.std("seed", ddof=1) / known.count("seed") ** 0.5,
    )  # fmt: skip
    data.attrs |= {f"level of {name}": float(level) for name, level in levels.items()}
    return stamped(data, "developmental_ablation")


def _schedules(without: Any, windows: Sequence[tuple[int, int]], steps: int) -> dict[str, Any]:
    """Weights from a step on, of the run with all data and of every window."""
    out = np.asarray(without)
    if out.dtype != bool or out.ndim != 1 or not out.any() or out.all():
        raise ValueError(
            "without must be bools [sequence] that leave out some sequences and not all; got "
            f"{out.dtype} of shape {out.shape}"
            + (f", {int(out.sum())} of {out.size} true" if out.dtype == bool else "")
        )
    if not windows:
        raise ValueError("windows must hold at least one; got none")
    kept = (~out).astype(float)
    runs: dict[str, Any] = {WITH_ALL: None}
    for i, (first, end) in enumerate(windows):
        integer(f"windows[{i}][0]", first, at_least=0, at_most=steps - 1)
        integer(f"windows[{i}][1]", end, at_least=first + 1, at_most=steps)
        schedule = {0: np.ones(len(out)), first: kept}
        runs[f"{first}-{end}"] = schedule | ({end: np.ones(len(out))} if end < steps else {})
    return runs
