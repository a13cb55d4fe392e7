"""How a schema is declared."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import xarray as xr

Dims = tuple[str, ...]


@dataclass(frozen=True)
class Schema:
    """What a result holds. More may be there.

    A variable of a tree is named with its group, ``posterior/paired_loss``; ``*`` is every group
    at that place. A dimension may be one of two, ``mode|component``. The one variable of a
    DataArray has the name of the result.
    """

    name: str
    made_by: str  # the function
    needed: Mapping[str, Dims]
    optional: Mapping[str, Dims] = field(default_factory=dict)
    attrs: Dims = ()  # that readers need
    kind: type = xr.Dataset
    version: int = 1
    of_a_run: bool = False  # one result of all checkpoints, whose dimension needs no choice

    @property
    def variables(self) -> dict[str, Dims]:
        """All that is declared."""
        return {**self.needed, **self.optional}


def over(dims: str, names: str) -> dict[str, Dims]:
    """Variables with the same dimensions; both as words."""
    return dict.fromkeys(names.split(), tuple(dims.split()))


TOKEN = over("token", "sequence position token_id")


def each(words: str, form: str) -> str:
    """Every word put into ``form``."""
    return " ".join(form.format(word) for word in words.split())


def with_interval(name: str) -> str:
    """A quantity and the ends of its interval."""
    return f"{name} {name}_low {name}_high"


def with_errors(words: str) -> str:
    """Quantities and their standard errors."""
    return each(words, "{0} {0}_se")
