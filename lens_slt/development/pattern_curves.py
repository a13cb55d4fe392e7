"""Which component holds each pattern's tokens at the end of a run, and when it took them up."""

from __future__ import annotations

from pathlib import Path

import xarray as xr
from scipy import stats

from lens_slt.development.curves import CHECKPOINT, join_checkpoints
from lens_slt.development.develop import open_checkpoint
from lens_slt.development.folder import read_patterns
from lens_slt.development.transitions import transitions
from lens_slt.statistics import CONFIDENCE
from lens_slt.structure.pattern_llc import pattern_llc

MOST_PATTERNS = 3  # that are shown at once


def pattern_curves(folder: Path, probe: str, steps: list[int]) -> xr.Dataset:
    """:func:`lens_slt.pattern_llc` of a sweep's matrices, over its checkpoints."""
    labels = read_patterns(folder)[probe]
    matrices = {step: open_checkpoint(folder, step)[f"per_token_llc/{probe}"] for step in steps}
    return join_checkpoints({step: pattern_llc(one, labels) for step, one in matrices.items()})


def holders(curves: xr.Dataset) -> dict[str, str]:
    """The component that holds most beyond other tokens at the end, by pattern, the surest first.

    Patterns that it does not surely hold beyond others are left out: the lower limits are those of
    all components together (Bonferroni), as it is the largest of them.
    """
    last = curves.isel({CHECKPOINT: -1})
    last = last.sel(pattern=last["contrast"].notnull().any("component"))
    level = 1 - (1 - CONFIDENCE) / curves.sizes["component"]
    half = stats.t.ppf(level, curves.sizes["block"] - 1) * last["contrast_se"]
    most = last["contrast"].idxmax("component")
    least = (last["contrast"] - half).sel(component=most).reset_coords(drop=True)
    least = least.sortby(-least)
    return {
        str(pattern): str(most.sel(pattern=pattern).values)
        for pattern in least["pattern"].values[least.values > 0]
    }


def taken_up(curves: xr.Dataset, seed: int) -> xr.Dataset:
    """Transitions of what each pattern's holder holds, named ``PATTERN in COMPONENT``.

    Raises ValueError where nothing is held, or checkpoints are too few.
    """
    held = holders(curves)
    if not held:
        raise ValueError("no component holds a pattern beyond other tokens")
    curve, error = (
        xr.concat(
            [curves[key].sel(pattern=p, component=c).drop_vars(["pattern", "component"])
             for p, c in held.items()],
            "observable",
        ).assign_coords(observable=[f"{p} in {c}" for p, c in held.items()])
        for key in ("contrast", "contrast_se")
    )  # fmt: skip
    return transitions(curve, se=error, seed=seed)
