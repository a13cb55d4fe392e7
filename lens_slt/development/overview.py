"""Everything that is read off a sweep over checkpoints, and why a part could not be read."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cache
from typing import Any

import numpy as np
import xarray as xr

from lens_slt.arguments import typed
from lens_slt.circuits.pattern_masks import ALL
from lens_slt.development.alignment import mode_development
from lens_slt.development.cells import KEPT
from lens_slt.development.critical import critical_checkpoints
from lens_slt.development.curves import CHECKPOINT
from lens_slt.development.differentiation import differentiation
from lens_slt.development.folder import source_of
from lens_slt.development.migration import migration
from lens_slt.development.pattern_curves import pattern_curves, taken_up
from lens_slt.development.pattern_influence import pattern_influence
from lens_slt.development.stages import stages
from lens_slt.development.trajectories import head_trajectories
from lens_slt.development.transitions import transitions
from lens_slt.progress import track
from lens_slt.schema import require

FULL = "full"
TOGETHER = "all together"  # what components hold, added up
FEWEST_TOKENS = 50  # of a pattern whose subloss is looked at


_UNKNOWN = {  # what a view may lack, where its name does not say it
    "critical": "no critical checkpoints", "held": "what heads hold on patterns is not known",
    "taken_up": "which head took a pattern up is not known",
    "influence": "no influence between patterns", "construction": "no circuit was followed back",
}  # fmt: skip


def unknown(name: str) -> str:
    """In words that a field of :class:`DevelopmentView` could not be read."""
    return _UNKNOWN.get(name, f"no {name}")


def refusals(view: DevelopmentView) -> list[str]:
    """What could not be read and why, each reason once."""
    by_reason: dict[str, list[str]] = {}
    for name, why in view.refused.items():
        by_reason.setdefault(why, []).append(unknown(name))
    return [f"{', '.join(names)}: {why}" for why, names in by_reason.items()]


@dataclass(frozen=True)
class DevelopmentView:
    """What curves over checkpoints say; what cannot be read is None, and ``refused`` says why.

    Attributes:
        curves: from :func:`lens_slt.develop`.
        stages: of the model (``full``, or all components together) and of every component.
        transitions: of the sublosses of patterns, named ``PROBE PATTERN``.
        critical: where sublosses and refined LLCs change fastest.
        trajectories, differentiation: of heads.
        migration: of multigrams by λ̂, where a probe has a reference.
        held: rLLCs on the tokens of patterns, of the first probe, where a folder has the matrices.
        taken_up: transitions of what the head or MLP holds that holds a pattern at the end.
        modes: of the per-token rLLCs of the first probe, where there is one.
        influence: between patterns, where draws were kept: of ``full``, or of the component with
            the largest λ̂ at the end, :attr:`influential`.
        construction: of circuits, from :func:`lens_slt.construction`.

    Example:
        >>> import lens_slt as ls
        >>> run = ls.checkpoints("attn-2l").at([1000, 2900])
        >>> text = ls.load_tokens("mix", n_sequences=8, length=16)
        >>> how = dict(settings=ls.Settings(draws=12, chains=2), behaviour=False, progress=False)
        >>> curves = ls.develop(run, text, "L1H2", **how)
        >>> view = ls.read_development(curves, progress=False)
        >>> view.curves is curves, "stages" in view.refused, view.stages
        (True, True, None)
    """

    curves: xr.DataTree
    stages: xr.Dataset | None = None
    transitions: xr.Dataset | None = None
    critical: xr.Dataset | None = None
    trajectories: xr.Dataset | None = None
    differentiation: xr.Dataset | None = None
    migration: xr.Dataset | None = None
    held: xr.Dataset | None = None
    taken_up: xr.Dataset | None = None
    modes: xr.Dataset | None = None
    influence: xr.Dataset | None = None
    construction: xr.Dataset | None = None
    refused: dict[str, str] = field(default_factory=dict)

    @property
    def influential(self) -> str:
        """Whose draws influence is read off."""
        return _largest(self.curves["refined_llc"].to_dataset())


@typed
def read_development(
    development: xr.DataTree,
    *,
    construction: xr.Dataset | None = None,
    seed: int = 0,
    progress: bool = True,
) -> DevelopmentView:
    """Everything that curves over checkpoints say, as far as what was measured goes.

    Args:
        development: from :func:`lens_slt.develop`.
        construction: of its circuits, from :func:`lens_slt.construction`.
        seed: of what is resampled.
        progress: show a bar.

    Example:
        >>> import lens_slt as ls
        >>> run = ls.checkpoints("attn-2l").at([1000, 2900])
        >>> text = ls.load_tokens("mix", n_sequences=8, length=16)
        >>> how = dict(settings=ls.Settings(draws=12, chains=2), behaviour=False, progress=False)
        >>> curves = ls.develop(run, text, "L1H2", **how)
        >>> view = ls.read_development(curves, progress=False)
        >>> sorted(view.refused)
        ['critical', 'differentiation', 'stages', 'trajectories', 'transitions']
    """
    development = require(development, "development", argument="development", leading=(CHECKPOINT,))
    llc = development["refined_llc"].to_dataset()
    losses, errors = _sublosses(development)
    whole = with_whole(llc)
    everything = _loss(losses)
    parts: dict[str, Callable[[], Any]] = {
        "stages": lambda: stages(whole, loss=everything, sublosses=losses, seed=seed),
        "transitions": lambda: transitions(_needed(losses), se=errors, seed=seed),
        "critical": lambda: critical_checkpoints(_needed(losses), se=errors, seed=seed),
        "trajectories": lambda: head_trajectories(development, seed=seed),
        "differentiation": lambda: differentiation(development, seed=seed),
    }
    parts |= _of_more(development, seed)
    found: dict[str, Any] = {}
    refused: dict[str, str] = {}
    with track("reading curves", len(parts), progress) as done:
        for i, (name, read) in enumerate(parts.items()):
            try:
                found[name] = read()
            except ValueError as error:  # too few checkpoints, heads or tokens for this
                refused[name] = str(error)
            done(i + 1)
    if refused.get("taken_up") == refused.get("held"):  # for the same reason, which is said once
        refused.pop("taken_up", None)
    return DevelopmentView(development, construction=construction, refused=refused, **found)


def _of_more(development: xr.DataTree, seed: int) -> dict[str, Callable[[], Any]]:
    """What can be read where probes were recorded, and where draws were kept."""
    parts: dict[str, Callable[[], Any]] = {}
    llc, children = development["refined_llc"].to_dataset(), development.children
    read = list(children["per_token_llc"].children) if "per_token_llc" in children else []
    folder = source_of(development)
    if "probe" in llc.dims and {str(name) for name in llc["probe"].values} - set(read):
        parts["migration"] = lambda: migration(development, seed=seed)
    if read:
        node = development[f"per_token_llc/{read[0]}"].to_dataset()
        matrices = {int(step): node.sel({CHECKPOINT: step}) for step in node[CHECKPOINT].values}
        parts["modes"] = lambda: (  # a folder has the blocks of draws too
            mode_development(matrices, seed=seed)
            if folder is None
            else mode_development(folder, read[0], seed=seed)
        )
    if read and folder is not None:
        steps = [int(step) for step in llc[CHECKPOINT].values]
        held = cache(lambda: pattern_curves(folder, read[0], steps))
        parts |= {"held": held, "taken_up": lambda: taken_up(held(), seed)}
    if read and folder is not None and any(folder.glob(f"step-*/{KEPT}")):
        parts["influence"] = lambda: pattern_influence(
            development, component=_largest(llc), probe=read[0], seed=seed
        )
    return parts


def _largest(llc: xr.Dataset) -> str:
    """``full``, or the component with the largest λ̂ at the last checkpoint."""
    names = [str(name) for name in llc["component"].values]
    if FULL in names:
        return FULL
    return names[int(np.nan_to_num(llc["llc"].isel({CHECKPOINT: -1}).values, nan=-np.inf).argmax())]


def with_whole(llc: xr.Dataset) -> xr.Dataset:
    """Curves with λ̂ of the whole in front: that of ``full``, or the sum over components."""
    curves = llc[["llc", "se", "blocks"]].drop_vars("probe", errors="ignore")
    if FULL in llc["component"].values:
        rest = [str(name) for name in llc["component"].values if name != FULL]
        return curves.sel(component=[FULL, *rest])
    blocks = curves["blocks"].sum("component")
    se = blocks.std("block", ddof=1) / blocks.sizes["block"] ** 0.5
    total = xr.Dataset({"llc": curves["llc"].sum("component"), "se": se, "blocks": blocks})
    total = total.expand_dims(component=[TOGETHER])
    return xr.concat(
        [total.transpose(CHECKPOINT, "block", "component"), curves], "component",
        join="override", combine_attrs="drop",
    )  # fmt: skip


def _sublosses(development: xr.DataTree) -> tuple[xr.DataArray | None, xr.DataArray | None]:
    """Losses of all patterns with tokens enough, ``[checkpoint, pattern]``, and their errors."""
    if "sublosses" not in development.children:
        return None, None
    found = development["sublosses"].to_dataset()
    flat = found[["loss", "se", "n_tokens"]].stack(place=("probe", "pattern"))
    enough = (flat["n_tokens"] >= FEWEST_TOKENS).all(CHECKPOINT)
    flat = flat.sel(place=enough.values)
    several = found.sizes["probe"] > 1
    names = [
        f"{probe} {pattern}" if several else pattern for probe, pattern in flat["place"].values
    ]
    flat = flat.drop_vars(["place", "probe", "pattern"]).rename(place="pattern")
    flat = flat.assign_coords(pattern=names)
    return flat["loss"], flat["se"]


def _needed(losses: xr.DataArray | None) -> xr.DataArray:
    if losses is None:
        raise ValueError("there are no sublosses: develop(…, probes=…) records them")
    return losses


def _loss(losses: xr.DataArray | None) -> xr.DataArray | None:
    """The loss of all tokens of the first probe."""
    if losses is None:
        return None
    names = [str(name) for name in losses["pattern"].values]
    whole = next((name for name in names if name.split(" ")[-1] == ALL), None)
    return None if whole is None else losses.sel(pattern=whole, drop=True)
