"""Which head or MLP holds each pattern's tokens at the end of a run, and when it took them up."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import xarray as xr
from scipy import stats

from lens_slt.arrays import FloatArray
from lens_slt.development.curves import CHECKPOINT, join_checkpoints
from lens_slt.development.develop import open_checkpoint
from lens_slt.development.folder import read_patterns
from lens_slt.development.transitions import transitions
from lens_slt.models.names import is_head, is_mlp
from lens_slt.statistics import CONFIDENCE
from lens_slt.structure.pattern_llc import pattern_llc

MOST_PATTERNS = 3  # that are shown at once
HALF = 0.5  # of what is held at the end, that was taken up at one time


@dataclass(frozen=True)
class Holder:
    """The head or MLP that holds a pattern at the end, and whether surely more than any other."""

    component: str
    most: bool


def pattern_curves(folder: Path, probe: str, steps: list[int]) -> xr.Dataset:
    """:func:`lens_slt.pattern_llc` of a sweep's matrices, over its checkpoints."""
    labels = read_patterns(folder)[probe]
    matrices = {step: open_checkpoint(folder, step)[f"per_token_llc/{probe}"] for step in steps}
    return join_checkpoints({step: pattern_llc(one, labels) for step, one in matrices.items()})


def holders(curves: xr.Dataset) -> dict[str, Holder]:
    """The head or MLP that holds most beyond other tokens at the end, by pattern, the surest first.

    Patterns that it does not surely hold beyond others are left out: the lower limits are those of
    all components and patterns together (Bonferroni), as it is the largest of them.
    """
    last = curves.isel({CHECKPOINT: -1}).transpose(..., "component", "pattern")
    worker = [is_head(str(name)) or is_mlp(str(name)) for name in last["component"].values]
    last = last.isel(component=np.flatnonzero(worker))
    contrast = last["contrast"].values
    known = np.isfinite(contrast)
    if not known.any():
        return {}
    level = 1 - (1 - CONFIDENCE) / known.sum()
    width = float(stats.t.ppf(level, curves.sizes["block"] - 1))
    least = contrast - width * last["contrast_se"].values
    names, found = last["component"].values, {}
    best = np.where(known, contrast, -np.inf).argmax(0)
    for i in np.argsort(-np.nan_to_num(least[best, range(len(best))], nan=-np.inf), kind="stable"):
        if least[best[i], i] > 0:
            beyond = last["blocks"].values[:, best[i], i, None] - last["blocks"].values[:, :, i]
            most = _all_clear(np.delete(beyond, best[i], 1), width)
            found[str(last["pattern"].values[i])] = Holder(str(names[best[i]]), most)
    return found


def taken_up(curves: xr.Dataset, seed: int) -> xr.Dataset:
    """Transitions of what each pattern's holder holds, named ``PATTERN in COMPONENT``.

    A pattern whose holder has no contrast at some checkpoint is left out. Raises ValueError where
    nothing is held, or checkpoints are too few.
    """
    held = holders(curves)
    if not held:
        raise ValueError("no head or MLP holds a pattern beyond other tokens")
    each = {curve_name(p, h): curves.sel(pattern=p, component=h.component) for p, h in held.items()}
    each = {name: one for name, one in each.items() if np.isfinite(one["contrast"]).all()}
    if not each:
        raise ValueError("no head or MLP that holds a pattern has a contrast at every checkpoint")
    joined = {
        key: xr.concat([one[key].reset_coords(drop=True) for one in each.values()], "observable")
        .assign_coords(observable=list(each))
        for key in ("contrast", "contrast_se", "blocks")
    }  # fmt: skip
    return transitions(
        joined["contrast"], se=joined["contrast_se"], blocks=joined["blocks"], seed=seed
    )


def curve_name(pattern: str, holder: Holder) -> str:
    """The name of what a holder holds on its pattern, over checkpoints."""
    return f"{pattern} in {holder.component}"


def held_at_first(curves: xr.Dataset, pattern: str, holder: Holder) -> bool:
    """Whether half of what is held at the end was held at the first checkpoint."""
    contrast = curves["contrast"].sel(pattern=pattern, component=holder.component).values
    return bool(contrast[0] >= HALF * contrast[-1])


def rise_of(
    curves: xr.Dataset, found: xr.Dataset, pattern: str, holder: Holder
) -> xr.Dataset | None:
    """The one transition, of those :func:`taken_up` found, by which a pattern was taken up.

    That is the largest rise, where it is at least half of what is held at the end and begins after
    the first checkpoint: None where there is none.
    """
    name = curve_name(pattern, holder)
    if name not in found["observable"].values or held_at_first(curves, pattern, holder):
        return None
    one = found.sel(observable=name)
    if not (one["change"] > 0).any():
        return None
    largest = one.isel(transition=int(one["change"].argmax("transition")))
    end = float(curves["contrast"].sel(pattern=pattern, component=holder.component)[-1])
    is_whole = float(largest["change"]) >= HALF * end and np.isfinite(largest["midpoint"])
    return largest if is_whole else None


def _all_clear(beyond: FloatArray, width: float) -> bool:
    """Whether the means of differences ``[block, other]`` are all surely above 0."""
    beyond = beyond[:, np.isfinite(beyond).all(0)]
    error = beyond.std(0, ddof=1) / len(beyond) ** 0.5
    return bool((beyond.mean(0) > width * error).all())
