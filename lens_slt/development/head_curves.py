"""Curves of heads over checkpoints as plain arrays, with errors that could have been."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import xarray as xr
from numpy.typing import NDArray

from lens_slt.arguments import choice
from lens_slt.arrays import FloatArray
from lens_slt.development.curves import CHECKPOINT
from lens_slt.models.names import head_place, is_head
from lens_slt.schema import require
from lens_slt.statistics import error_of_mean

WEIGHT_REFINED = "llc"  # the refinement of the sampling distribution; others have a probe's name
LEAST_BLOCKS = 6  # that tell how errors go together, or one of a difference


@dataclass(frozen=True)
class HeadCurves:
    """rLLCs of heads over checkpoints, in one or several refinements.

    Without ``blocks`` errors are independent. With them they go together as the blocks do, over
    checkpoints, heads and refinements; their sizes are those of ``se``.
    """

    steps: FloatArray  # [checkpoint], rising
    heads: tuple[str, ...]
    refinements: tuple[str, ...]
    values: FloatArray  # [refinement, head, checkpoint]
    se: FloatArray  # likewise
    blocks: FloatArray | None = None  # [block, refinement, head, checkpoint]

    def __post_init__(self) -> None:
        shape = (len(self.refinements), len(self.heads), len(self.steps))
        for name in ("values", "se"):
            array = getattr(self, name)
            if array.shape != shape:
                raise ValueError(
                    f"{name} must have the shape {shape}: refinements, heads, checkpoints; "
                    f"got {array.shape}"
                )
            self._refuse_gaps(name, array)
        if (self.se < 0).any():
            raise ValueError("se must not be negative")
        if len(self.steps) < 2 or (np.diff(self.steps) <= 0).any() or self.steps[0] < 0:
            raise ValueError(
                "steps must be at least two, from 0 on, and rise; got "
                f"{np.asarray(self.steps).tolist()}"
            )
        if self.blocks is not None and self.blocks.shape[1:] != shape:
            raise ValueError(
                f"blocks must have the shape (block, *{shape}); got {self.blocks.shape}"
            )

    def _refuse_gaps(self, name: str, array: FloatArray) -> None:
        bad = np.argwhere(~np.isfinite(array))
        if len(bad):
            r, h, t = bad[0]
            raise ValueError(
                f"{name}: {self.heads[h]} at step {self.steps[t]:g} has no {self.refinements[r]} "
                f"({len(bad)} values are missing): leave such checkpoints or heads out of the "
                "refined LLCs, as curves.dropna('checkpoint', subset=['llc']) does"
            )

    @property
    def x(self) -> FloatArray:
        """log(step + 1)."""
        return np.log1p(np.asarray(self.steps, dtype=float))

    @property
    def layers(self) -> np.ndarray:
        """Layer of each head."""
        return np.array([head_place(head)[0] for head in self.heads])

    def noise(self, n: int, generator: np.random.Generator) -> FloatArray:
        """Errors that could have been: ``[n, refinement, head, checkpoint]``."""
        if self.blocks is None or len(self.blocks) < LEAST_BLOCKS:
            return self.se * generator.normal(size=(n, *self.se.shape))
        apart = self.blocks - self.blocks.mean(0)
        spread = np.sqrt((apart**2).sum(0))
        unit = np.divide(apart, spread, out=np.zeros_like(apart), where=spread > 0)
        drawn = np.tensordot(generator.normal(size=(n, len(unit))), unit, 1)
        return np.asarray(drawn * self.se)

    def means_over_heads(self, groups: Mapping[str, NDArray[np.int_]]) -> HeadCurves:
        """Means over groups of heads, ``name → indices``, as curves of their own.

        Without blocks their errors are those of means of independent values.
        """
        share = np.zeros((len(groups), len(self.heads)))
        for row, members in zip(share, groups.values(), strict=True):
            row[members] = 1 / len(members)
        blocks = None if self.blocks is None else share @ self.blocks
        if blocks is not None and len(blocks) >= LEAST_BLOCKS:
            se = error_of_mean(blocks)
        else:
            se = np.sqrt(share**2 @ self.se**2)
        alone = share.max(1, initial=0) == 1
        se[:, alone] = self.se[:, share[alone].argmax(1)]
        return replace(self, heads=tuple(groups), values=share @ self.values, se=se, blocks=blocks)


def read_head_curves(development: Any, refinements: Sequence[str] | None = None) -> HeadCurves:
    """The heads' curves of what ``develop`` or ``join_checkpoints`` returned.

    Args:
        development: a DataTree of :func:`lens_slt.develop`, or curves of
            :func:`lens_slt.refined_llc` or :func:`lens_slt.pattern_llc` (their contrasts).
        refinements: ``"llc"`` and names of probes, or patterns; by default all that are there.

    Raises:
        TypeError, ValueError: another result, no curves, no heads, an unknown refinement, gaps.
    """
    found = _with_probes(refined_curves(development, "development", also=("pattern_llc",)))
    heads = [str(name) for name in found["component"].values if is_head(str(name))]
    if not heads:
        raise ValueError("development has no heads among its components")
    found = found.sel(component=heads)
    probes = [str(name) for name in found["probe"].values] if "probe_llc" in found else []
    known = (WEIGHT_REFINED, *probes) if WEIGHT_REFINED in found else tuple(probes)
    refinements = known if refinements is None else tuple(refinements)
    if not refinements:
        raise ValueError(f"refinements must name some of {', '.join(known)}")
    for i, name in enumerate(refinements):
        choice(f"refinements[{i}]", name, known)

    def stacked(own: str, of_probe: str) -> FloatArray:
        arrays = [
            found[own] if name == WEIGHT_REFINED else found[of_probe].sel(probe=name)
            for name in refinements
        ]
        order = ("block", "component", CHECKPOINT)[0 if own == "blocks" else 1 :]
        return np.stack(
            [array.transpose(*order).values.astype(float) for array in arrays], len(order) - 2
        )

    has_blocks = all(
        ("blocks" if name == WEIGHT_REFINED else "probe_blocks") in found for name in refinements
    )
    return HeadCurves(
        found[CHECKPOINT].values.astype(float), tuple(heads), refinements,
        stacked("llc", "probe_llc"), stacked("se", "probe_se"),
        stacked("blocks", "probe_blocks") if has_blocks else None,
    )  # fmt: skip


def _with_probes(found: xr.Dataset) -> xr.Dataset:
    """Contrasts on patterns in the place of values of probes."""
    if "contrast" not in found:
        return found
    names = {"contrast": "probe_llc", "contrast_se": "probe_se", "blocks": "probe_blocks"}
    return found[list(names)].rename({**names, "pattern": "probe"})


def refined_curves(development: Any, argument: str, also: tuple[str, ...] = ()) -> xr.Dataset:
    """Curves of refined LLCs, of a sweep or as they are; or of ``also`` another result."""
    if isinstance(development, xr.DataTree):
        development = require(development, "development", argument=argument, leading=(CHECKPOINT,))
        development = development["refined_llc"].to_dataset()
    found = require(development, "refined_llc", *also, argument=argument, leading=(CHECKPOINT,))
    if CHECKPOINT not in found.dims:
        raise ValueError(
            f"{argument} must be curves over checkpoints, from ls.develop(…) or "
            "ls.join_checkpoints(…); got refined LLCs of one"
        )
    return found


def node_of(development: Any, name: str) -> xr.Dataset | None:
    """Another result of the same sweep, if it is there."""
    if isinstance(development, xr.DataTree) and name in development.children:
        return development[name].to_dataset()
    return None
