"""What a run gave, and what is asked of it all over the report."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import xarray as xr

from lens_slt.circuits.trial import Trial
from lens_slt.development.overview import DevelopmentView
from lens_slt.models.names import is_head
from lens_slt.structure.overview import View

ATTENTION = "attention_patterns"
MOST_PAGES = 200  # heads with a page of their own


@dataclass(frozen=True)
class RunResults:
    """What a run gave; what is None or empty has no section."""

    draws: xr.DataTree | None = None
    views: Mapping[str, View] = field(default_factory=dict)
    trials: Sequence[Trial] = ()
    behaviour: xr.Dataset | None = None
    others: Sequence[xr.Dataset] = ()  # results of any other function
    development: DevelopmentView | None = None  # of the same model

    @property
    def is_empty(self) -> bool:
        """Whether there is nothing."""
        rest = (self.views, self.trials, self.others)
        return self.draws is None and self.behaviour is None and not any(rest)

    @property
    def attention(self) -> xr.Dataset | None:
        """Where heads attend, the first that is there."""
        found = (one for one in self.others if one.attrs.get("result") == ATTENTION)
        return next(found, None)


def heads_of(names: xr.DataArray) -> list[str]:
    """The single heads among components."""
    return [str(name) for name in names.values if is_head(str(name))]
