"""A phase: a region of weight space around a critical point, by its loss and its λ."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import xarray as xr

from lens_slt.arguments import choice, instance, integer, number, typed
from lens_slt.arrays import FloatArray
from lens_slt.circuits.pattern_masks import ALL
from lens_slt.development.curves import CHECKPOINT
from lens_slt.json_files import read_json
from lens_slt.sampling.certificate import CERTIFIED
from lens_slt.sampling.result import settings_of
from lens_slt.schema import require

GIVEN = "given"  # instead of a certificate: a number from elsewhere, such as a theorem
ERRORS_BELOW = 2.0  # standard errors below zero at which λ̂ says that the point is no minimum


@dataclass(frozen=True)
class Subloss:
    """The loss on one pattern of the data.

    Attributes:
        loss: mean over the pattern, in the unit of the phase's loss.
        share: of the data that is of the pattern, 0 to 1.
        se: standard error of ``loss``; None if it is not known, and then nothing crosses on it.
        blocks: the jackknife's values of ``loss`` over blocks of the data, if they are known.

    Example:
        >>> import lens_slt as ls
        >>> rare = ls.Subloss(loss=0.5, share=0.1)
        >>> one = ls.Phase("one", loss=0.2, llc=7, sublosses={"rare": rare})
        >>> one.sublosses["rare"].share
        0.1
    """

    loss: float
    share: float
    se: float | None = 0.0
    blocks: tuple[float, ...] = ()

    def __post_init__(self) -> None:
        number("loss", self.loss)
        number("share", self.share, above=0, below=1)
        if self.se is not None:
            number("se", self.se, at_least=0)


@dataclass(frozen=True)
class Phase:
    """What the free energy of a phase is made of, F = n·L + λ·log n − (m − 1)·log log n + c.

    Watanabe 2009, Algebraic Geometry and Statistical Learning Theory; Chen et al. 2023
    (arXiv 2310.06301) for phases.

    Attributes:
        name: of the phase.
        loss: L, the mean negative log likelihood per datum (for language models nats per token, and
            n counts tokens).
        llc: λ, the learning coefficient of the phase.
        loss_se, llc_se: standard errors.
        multiplicity: m; None if it is not known, and then 1 is used.
        constant: c, what of F does not grow with n; None if it is not known. With a prior density φ
            that is −log φ(w*) and more.
        certificate: of λ̂, ``certified`` or what else the sampler says; ``given`` for a λ from
            elsewhere.
        sublosses: by pattern.
        blocks: the jackknife's values of the loss over blocks of the data, the same for all phases
            of one diagram: their differences have less noise than the losses.
        data, architecture, component, setting: what the phase was measured on and of, and the nβ
            and γ of a λ̂ that is no limit; phases that say different things here are not compared.

    Example:
        >>> import lens_slt as ls
        >>> ls.Phase("5-gon", loss=0.06874, llc=7, constant=3.62417).free_energy(601).round(1)
        np.float64(89.7)
    """

    name: str
    loss: float
    llc: float
    loss_se: float = 0.0
    llc_se: float = 0.0
    multiplicity: int | None = None
    constant: float | None = None
    certificate: str = GIVEN
    sublosses: Mapping[str, Subloss] = field(default_factory=dict)
    blocks: tuple[float, ...] = ()
    data: str = ""
    architecture: str = ""
    component: str = ""
    setting: str = ""

    def __post_init__(self) -> None:
        instance("name", self.name, str)
        number("loss", self.loss)
        number("llc", self.llc)
        number("loss_se", self.loss_se, at_least=0)
        number("llc_se", self.llc_se, at_least=0)
        if self.multiplicity is not None:
            integer("multiplicity", self.multiplicity, at_least=1)
        if self.constant is not None:
            number("constant", self.constant)
        instance("sublosses", self.sublosses, Mapping[str, Subloss])

    def free_energy(self, n: float | FloatArray, loss: float | None = None) -> FloatArray:
        """F at n data, up to what phases share; unknown parts are left out.

        ``loss`` instead of the phase's, such as that of a shifted distribution.
        """
        log_n = np.log(np.asarray(n, dtype=float))
        logs = ((self.multiplicity or 1) - 1) * np.log(log_n)
        level = self.loss if loss is None else loss
        return np.asarray(n * level + self.llc * log_n - logs + (self.constant or 0.0))


@typed
def phase(
    llc: xr.Dataset,
    name: str,
    *,
    component: str | None = None,
    loss: float | None = None,
    loss_se: float = 0.0,
    multiplicity: int | None = None,
    constant: float | None = None,
    sublosses: Mapping[str, Subloss] | None = None,
) -> Phase:
    """A phase from a refined LLC, of a model, of a component or of a function.

    λ̂ of :func:`lens_slt.refined_llc` is taken at one nβ and γ, whose prior holds back every
    direction with nβ·h below γ; the λ of a free energy is the limit of large nβ/γ
    (:func:`lens_slt.limit_llc`). A component's phase is that of its weights with all others frozen.

    Args:
        llc: from :func:`lens_slt.refined_llc` or :func:`lens_slt.limit_llc`.
        name: of the phase.
        component: which, if there are several.
        loss: L at the given weights; by default that which the draws recorded.
        loss_se: its standard error, if the loss is given.
        multiplicity, constant, sublosses: as in :class:`lens_slt.Phase`.

    Raises:
        ValueError: no such component; no loss; no λ̂, or one that is negative: the weights are no
            critical point.

    Example:
        >>> import torch, lens_slt as ls
        >>> few = ls.Settings(n_beta=100, gamma=1, chains=2, draws=60)
        >>> draws = ls.sample_function(lambda w: w.square().sum(-1), torch.zeros(4), settings=few)
        >>> ls.phase(ls.refined_llc(draws), "bowl", loss=0.0).certificate
        'certified'
    """
    llc = require(llc, "refined_llc", "limit_llc", argument="llc")
    one = _component(llc, component)
    if loss is None:
        if "base_loss" not in llc.attrs:
            raise ValueError(
                "loss is missing: draws of a function do not know its value; give loss=, the mean "
                "loss at the given weights"
            )
        loss, loss_se = float(llc.attrs["base_loss"]), float(llc.attrs["base_loss_se"])
    return _of_row(
        one, name, loss=float(loss), loss_se=loss_se, multiplicity=multiplicity, constant=constant,
        sublosses=sublosses or {}, data=str(llc.attrs.get("tokens_hash", "")),
        setting=_setting(llc) if llc.attrs["result"] == "refined_llc" else "",
    )  # fmt: skip


@typed
def development_phases(
    curves: xr.DataTree,
    steps: Sequence[int],
    *,
    component: str | None = None,
    probe: str | None = None,
) -> list[Phase]:
    """Checkpoints of a run as phases: losses and sublosses of a probe, λ̂ of a component.

    Args:
        curves: from :func:`lens_slt.develop` or :func:`lens_slt.open_development`, with a probe.
        steps: of the checkpoints; each should lie on a plateau (:func:`lens_slt.stages`).
        component: whose λ̂; ``full``, if it was sampled, or the only one by default.
        probe: whose losses; the first by default.

    Raises:
        ValueError: no such checkpoint, component or probe; several components and no choice; λ̂
            negative at a checkpoint.

    Example:
        >>> import lens_slt as ls
        >>> run = ls.checkpoints("attn-2l").at([1000, 2900])
        >>> text = ls.load_tokens("mix", n_sequences=8, length=16)
        >>> how = dict(settings=ls.Settings(draws=12, chains=2), behaviour=False, progress=False)
        >>> curves = ls.develop(run, text, "L1H2", probes={"mix": text}, **how)
        >>> [one.name for one in ls.development_phases(curves, [1000, 2900])]
        ['step 1000', 'step 2900']
    """
    curves = require(curves, "development", argument="curves")
    if "sublosses" not in curves.children:
        raise ValueError("curves have no losses: give probes= to lens_slt.develop")
    llc, losses = (curves[node].to_dataset() for node in ("refined_llc", "sublosses"))
    there = [int(step) for step in llc[CHECKPOINT].values]
    probe = str(losses["probe"].values[0]) if probe is None else probe
    choice("probe", probe, [str(name) for name in losses["probe"].values])
    found = []
    for step in steps:
        if step not in there:
            raise ValueError(f"steps: {step} is none of the checkpoints {there}")
        own = losses.sel({CHECKPOINT: step, "probe": probe})
        known = np.isfinite(own["loss"].values)
        whole, rest = own.sel(pattern=ALL), own.isel(pattern=known)
        total = float(whole["n_tokens"])
        patterns = [str(p) for p in rest["pattern"].values if p != ALL]
        parts = {p: _subloss(rest.sel(pattern=p), total) for p in patterns}
        row = _component(llc.sel({CHECKPOINT: step}), component)
        found.append(
            _of_row(
                row, f"step {step}", loss=float(whole["loss"]), loss_se=float(whole["se"]),
                blocks=_blocks(whole), data=str(losses.attrs.get("tokens_hash", "")),
                setting=_setting(llc),
                sublosses={p: part for p, part in parts.items() if part is not None},
            )
        )  # fmt: skip
    return found


def read_phases(path: str | Path) -> list[Phase]:
    """Phases from a JSON file: a list of objects with the attributes of :class:`Phase`.

    Raises ValueError where it is none, naming the phase and the attribute.
    """
    rows = read_json(path)
    if not isinstance(rows, list) or not all(isinstance(row, dict) for row in rows):
        raise ValueError("phases must be a list of objects with name, loss and llc")
    found = []
    for i, row in enumerate(rows):
        try:
            given = {**row, "blocks": tuple(row.get("blocks", ()))}
            given["sublosses"] = {
                key: Subloss(**value) for key, value in row.get("sublosses", {}).items()
            }
            found.append(Phase(**given))
        except (TypeError, ValueError, AttributeError) as error:
            raise ValueError(f"phase {i + 1}: {error}") from None
    return found


def _component(llc: xr.Dataset, name: str | None) -> xr.Dataset:
    names = [str(one) for one in llc["component"].values]
    if name is None:
        name = names[0] if len(names) == 1 else "full" if "full" in names else None
    if name is None:
        raise ValueError(f"component is missing: choose one of {', '.join(names)}")
    choice("component", name, names)
    return llc.sel(component=name)


def _setting(llc: xr.Dataset) -> str:
    """At which λ̂ was measured."""
    settings = settings_of(llc)
    return f"nβ {settings.n_beta:g}, γ {settings.gamma:g}"


def _of_row(row: xr.Dataset, name: str, **rest: Any) -> Phase:
    """A phase from one component's refined LLC."""
    value, error = float(row["llc"]), float(row["se"])
    if not np.isfinite([value, error]).all():
        raise ValueError(f"{name}: no λ̂ ({row['verdict'].values!s}): no chain can be used")
    if value < -ERRORS_BELOW * error:
        raise ValueError(
            f"{name}: λ̂ = {value:.3g} ± {error:.2g} is negative: the loss falls as the weights "
            "move, so that they are no critical point and no phase: train on, or choose a "
            "checkpoint on a plateau"
        )
    return Phase(
        name, llc=value, llc_se=error, certificate=str(row["certificate"].values),
        architecture=f"{int(row['n_parameters'])} weights",
        component=str(row["component"].values), **rest,
    )  # fmt: skip


def _blocks(own: xr.Dataset) -> tuple[float, ...]:
    if "blocks" not in own or not np.isfinite(own["blocks"].values).all():
        return ()
    return tuple(own["blocks"].values.tolist())


def _subloss(own: xr.Dataset, total: float) -> Subloss | None:
    share = float(own["n_tokens"]) / total
    if not 0 < share < 1:
        return None
    error = float(own["se"])
    return Subloss(float(own["loss"]), share, error if np.isfinite(error) else None, _blocks(own))


def check_phases(phases: Sequence[Phase], trust: bool) -> list[str]:
    """Refuse phases that cannot be compared; what is not known about them, in words.

    Raises:
        ValueError: fewer than two, names twice, other data, architectures, components or settings,
            λ̂ that is not certified.
    """
    if len(phases) < 2:
        raise ValueError(f"phases must be at least two; got {len(phases)}")
    names = [one.name for one in phases]
    if len(set(names)) < len(names):
        raise ValueError(f"phases must have different names; got {names}")
    for what, why in (
        ("data", "losses of different data do not belong into one free energy"),
        ("architecture", "λ and constants of different models do not belong into one free energy"),
        ("component", "a free energy has one set of weights"),
        ("setting", "λ̂ depends on nβ and γ"),
    ):
        there = {getattr(one, what): one.name for one in phases if getattr(one, what)}
        if len(there) > 1:
            (one, first), (other, second) = list(there.items())[:2]
            raise ValueError(
                f"phases must have the same {what}; {first!r} has {one[:20]!r}, {second!r} "
                f"{other[:20]!r}: {why}"
            )
    doubtful = [one for one in phases if one.certificate not in (CERTIFIED, GIVEN)]
    if doubtful and not trust:
        words = ", ".join(f"{one.name!r} is {one.certificate}" for one in doubtful)
        raise ValueError(
            f"λ̂ must be certified; {words}: sample on (more draws, a smaller step), or give "
            "trust=True to use it all the same"
        )
    return _unknown(phases, doubtful)


def _unknown(phases: Sequence[Phase], doubtful: Sequence[Phase]) -> list[str]:
    """What a reader has to know of these phases."""
    said = [f"λ̂ of {one.name} is {one.certificate}" for one in doubtful]
    if any(one.constant is None for one in phases):
        said.append(
            "constant terms are not known and taken as equal (shift_per_constant says how far a "
            "difference would move a crossing)"
        )
    if any(one.multiplicity is None for one in phases):
        said.append("multiplicities are not known and taken as 1")
    where = {one.setting for one in phases} - {""}
    if where:
        said.append(
            f"λ̂ at {', '.join(sorted(where))} counts no direction softer than γ/nβ: these are "
            "phases of the local posterior there (limit_llc gives λ)"
        )
    part = {one.component for one in phases} - {"", "full", "function"}
    if part:
        said.append(
            f"λ̂ is that of {', '.join(sorted(part))} with all other weights frozen: the free "
            "energy of its weights, not of the model"
        )
    return said
