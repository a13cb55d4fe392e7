"""Where roles stand in tokens."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor

from lens_slt.arguments import did_you_mean
from lens_slt.arrays import BoolArray
from lens_slt.circuits.replacements import moved_places, places
from lens_slt.circuits.roles import BUT, EVERYWHERE, check_role, role_names


class RoleMasks:
    """Positions of roles.

    Args:
        roles: positions of each role: bool ``[sequence, position]`` or ints ``[sequence]`` or
            ``[sequence, place]``.
        real: bool ``[sequence, position]``: inputs that are no padding.
        shift: ``[sequence]``, by which the caller's rows were moved to the left.

    Raises ValueError, naming the role, for a name that is none and positions that do not fit.
    """

    def __init__(self, roles: Mapping[str, Any] | None, real: BoolArray, shift: Tensor) -> None:
        self._masks: dict[str, Tensor] = {}
        for role, given in (roles or {}).items():
            if BUT in role:
                raise ValueError(f"roles: {role!r} is no name of a role: '{BUT}' stands for 'not'")
            check_role(role, "roles")
            name = f"roles[{role!r}]"
            found = places(moved_places(given, shift, name), real, name)
            if found is None:
                raise ValueError(f"{name} must be positions; got None")
            self._masks[role] = found

    def __call__(self, role: str) -> Tensor | None:
        """Bool ``[sequence, position]`` of a role; None for everywhere."""
        if role == EVERYWHERE:
            return None
        found = torch.stack([self._masks[name] for name in role_names(role)]).any(0)
        return ~found if role.startswith(BUT) else found

    def check(self, roles: Iterable[str]) -> None:
        """Raise ValueError for roles of which no positions are known."""
        for name in sorted({name for role in roles for name in role_names(role)}):
            if name not in self._masks:
                there = ", ".join(sorted(self._masks)) or "none"
                raise ValueError(
                    f"roles has no {name!r}, which is named here; it has {there}"
                    f"{did_you_mean(name, self._masks)} (pass roles={{{name!r}: positions}}, one "
                    "for each sequence, such as prompts.roles)"
                )

    def check_apart(self, roles: Iterable[str]) -> None:
        """Raise ValueError where two of some roles have a position in common."""
        names = sorted({name for role in roles for name in role_names(role)})
        for i, one in enumerate(names):
            for other in names[i + 1 :]:
                both = torch.nonzero(self._masks[one] & self._masks[other])
                if len(both):
                    raise ValueError(
                        f"roles {one!r} and {other!r} have a position in common, in sequence "
                        f"{int(both[0, 0])}: what is kept at one would be ablated at the other; "
                        "name roles that are apart"
                    )
