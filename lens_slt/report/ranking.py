"""The order of heads by λ̂, as far as errors let it be known."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import xarray as xr

from lens_slt.report.run_results import heads_of

CLEAR = 2.0  # joint standard errors


@dataclass(frozen=True)
class Place:
    """Where a head stands: ranks ``first`` to ``last`` cannot be told apart from its own."""

    name: str
    value: float
    error: float
    first: int
    last: int

    @property
    def words(self) -> str:
        """The rank as text."""
        return str(self.first) if self.first == self.last else f"{self.first}–{self.last}"


def ranking(llc: xr.Dataset) -> list[Place]:
    """All single heads with a λ̂, the largest first.

    Two heads have different ranks where their λ̂ differ by more than two joint standard errors.
    """
    heads = llc.sel(component=heads_of(llc["component"]))
    heads = heads.isel(component=np.isfinite(heads["llc"].values))
    value, error = (heads[key].values.astype(float) for key in ("llc", "se"))
    error = np.nan_to_num(error)
    gap = value[:, None] - value[None, :]
    clear = CLEAR * np.hypot(error[:, None], error[None, :])
    below, above = (gap > clear).sum(1), (gap < -clear).sum(1)
    return [
        Place(
            str(heads["component"].values[i]), float(value[i]), float(error[i]),
            int(above[i]) + 1, len(value) - int(below[i]),
        )
        for i in np.argsort(-value, kind="stable")
    ]  # fmt: skip
