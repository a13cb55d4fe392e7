"""Ladders of nβ and γ: the settings of every rung, and the draws of a model at all of them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import xarray as xr
from numpy.typing import NDArray

from lens_slt.arguments import numbers, typed
from lens_slt.arrays import BoolArray, FloatArray
from lens_slt.progress import track
from lens_slt.sampling.folder import folder_of
from lens_slt.sampling.result import component_names, dataset, n_draws, settings_of
from lens_slt.sampling.sample import sample
from lens_slt.sampling.settings import Settings
from lens_slt.sampling.spread import draw_weights
from lens_slt.schema import require
from lens_slt.torch_state import plain_torch

N_BETAS = (3.0, 10.0, 30.0, 100.0, 300.0)
GAMMAS = (200.0,)
LEAST_UNITS = 4  # that tell an error by their differences
Parts = NDArray[np.int_]  # numbers of the parts that draws belong to
OWN = ("n_beta", "gamma", "seed", "steps_per_draw", "step_size")  # what rungs differ in


@typed
def ladder(
    n_betas: Sequence[float] = N_BETAS,
    gammas: Sequence[float] = GAMMAS,
    settings: Settings | None = None,
) -> list[Settings]:
    """Settings of every pair of nβ and γ, for :func:`lens_slt.sample` or ``sample_function``.

    Every rung has a seed of its own, so that errors of rungs are independent, which depends on its
    nβ and γ alone, so that rungs can be added to a ladder. All record the loss on the whole set,
    which the variance of the loss needs.

    Args:
        n_betas, gammas: inverse temperatures and localizations, above 0.
        settings: of every rung, apart from ``n_beta``, ``gamma``, ``seed`` and ``full_loss``.

    Example:
        >>> import torch, lens_slt as ls
        >>> short = ls.Settings(draws=40, chains=2)
        >>> rungs = [
        ...     ls.sample_function(lambda w: w.square().sum(-1), torch.zeros(3), settings=one)
        ...     for one in ls.ladder([1, 10], [1], short)
        ... ]
        >>> ls.spectrum(rungs)["llc"].dims
        ('n_beta', 'gamma', 'component')
    """
    settings = settings or Settings()
    pairs = [
        (n_beta, gamma)
        for gamma in numbers("gammas", gammas, above=0)
        for n_beta in numbers("n_betas", n_betas, above=0)
    ]
    return [
        settings.but(n_beta=b, gamma=g, seed=_seed(settings.seed, b, g), full_loss=True)
        for b, g in pairs
    ]


def _seed(seed: int, n_beta: float, gamma: float) -> int:
    """Of one rung."""
    words = np.array([n_beta, gamma], dtype=np.float64).view(np.uint32)
    return int(np.random.SeedSequence([seed, *words.tolist()]).generate_state(1)[0])


@typed
@plain_torch
def sample_ladder(
    model: Any,
    tokens: Any,
    components: str | Sequence[str] = "heads",
    *,
    n_betas: Sequence[float] = N_BETAS,
    gammas: Sequence[float] = GAMMAS,
    settings: Settings | None = None,
    weights: Any = None,
    mask: Any = None,
    pad_id: int | None = None,
    path: str | Path | None = None,
    device: torch.device | str | None = None,
    progress: bool = True,
    parallel: Any = None,
) -> list[xr.DataTree]:
    """Draws of a model's components at every pair of nβ and γ, for :func:`lens_slt.spectrum`.

    Args:
        n_betas, gammas, settings: as for :func:`lens_slt.ladder`.
        path: folder with one run for every rung; finished rungs are read.
        model, tokens, components, weights, mask, pad_id, device, parallel: as for
            :func:`lens_slt.sample`.
        progress: show a bar over rungs.

    Raises:
        ValueError, TypeError: as :func:`lens_slt.sample`.

    Example:
        >>> import lens_slt as ls
        >>> model, text = ls.load_model("attn-1l"), ls.load_tokens("mix", n_sequences=8, length=16)
        >>> few = ls.Settings(draws=12, chains=2)
        >>> grid = dict(n_betas=[10, 30], gammas=[200], settings=few)
        >>> rungs = ls.sample_ladder(model, text, "L0H0", **grid, progress=False)
        >>> ls.spectrum(rungs)["llc"].sizes
        Frozen({'n_beta': 2, 'gamma': 1, 'component': 1})
    """
    rungs = ladder(n_betas, gammas, settings)
    folder = None if path is None else folder_of(path)
    found = []
    with track("rungs", len(rungs), progress) as done:
        for one in rungs:
            place = (
                None if folder is None else folder / f"n_beta_{one.n_beta:g}_gamma_{one.gamma:g}"
            )
            found.append(
                sample(
                    model, tokens, components, settings=one, weights=weights, mask=mask,
                    pad_id=pad_id, path=place, device=device, progress=False, parallel=parallel,
                )
            )  # fmt: skip
            done(len(found))
    return found


@dataclass(frozen=True)
class Losses:
    """Paired losses on the whole set of one component at one rung, of chains that count.

    Attributes:
        loss: ΔL, ``[chain, draw]``.
        weight: of the draws; 1 except for samplers that weight them.
        unit: ``[chain]``, equal for the two chains of an antithetic pair.
    """

    loss: FloatArray
    weight: FloatArray
    unit: NDArray[np.int_]

    def parts(self, n_blocks: int, n_units: int) -> list[Parts]:
        """Numbers of the parts ``[chain, draw]`` that a jackknife leaves out one by one.

        Blocks of draws, of all chains at once, and groups of units: chains that share minibatches
        are alike at the same draw, and draws of one chain at different ones. The larger error
        counts. One unit has blocks only.
        """
        chains, draws = self.loss.shape
        block = np.repeat(
            np.arange(n_blocks), np.diff(np.linspace(0, draws, n_blocks + 1, dtype=int))
        )
        found = [np.broadcast_to(block, (chains, draws))]
        if n_units >= LEAST_UNITS:
            _, place = np.unique(self.unit, return_inverse=True)
            group = place * n_units // (place.max() + 1)
            found.append(np.broadcast_to(group[:, None], (chains, draws)))
        return found

    @property
    def n_units(self) -> int:
        """Independent chains, or pairs of them."""
        return len(set(self.unit.tolist()))


def check_rungs(rungs: Sequence[xr.DataTree], least: int) -> list[Settings]:
    """The settings of rungs; ValueError where they do not belong together."""
    for one in rungs:
        require(one, "draws", argument="rungs")
    if len(rungs) < least:
        raise ValueError(f"rungs must be at least {least}; got {len(rungs)}")
    settings = [settings_of(one) for one in rungs]
    pairs = [(s.n_beta, s.gamma) for s in settings]
    twice = next((pair for pair in pairs if pairs.count(pair) > 1), None)
    if twice is not None:
        raise ValueError(f"rungs must differ in nβ or γ; two have nβ {twice[0]:g}, γ {twice[1]:g}")
    check_same(rungs, [component_names(one) for one in rungs])
    return settings


def check_same(
    rungs: Sequence[xr.DataTree] | Sequence[xr.Dataset], names: Sequence[Sequence[str]]
) -> None:
    """Refuse rungs of other components (``names``), models or tokens."""
    for one, own in zip(rungs[1:], names[1:], strict=True):
        if list(own) != list(names[0]):
            raise ValueError(
                f"rungs must be of the same components; got {', '.join(names[0])} and "
                f"{', '.join(own)}"
            )
        told = (("model_hash", "models"), ("tokens_hash", "tokens"), ("directions", "directions"))
        for key, words in told:
            if (one.attrs.get(key) or "") != (rungs[0].attrs.get(key) or ""):
                raise ValueError(f"rungs are of different {words}")


def losses_on_all(draws: xr.DataTree, component: str) -> Losses:
    """Losses on the whole set; ValueError where only those on minibatches were recorded."""
    settings = settings_of(draws)
    posterior = dataset(draws, "posterior").sel(component=component)
    n = n_draws(draws, component)
    used: BoolArray = dataset(draws, "health")["used"].sel(component=component).values.astype(bool)
    traces = {
        str(key): posterior[key].values[:, :n].astype(np.float64)
        for key in ("paired_loss", "full_loss") if key in posterior
    }  # fmt: skip
    whole = traces.get("full_loss", traces["paired_loss"] if settings.method.EXACT else None)
    if whole is None:
        raise ValueError(
            f"rungs: nβ {settings.n_beta:g}, γ {settings.gamma:g} has losses on minibatches only; "
            "sample with the settings of lens_slt.ladder, or full_loss=True"
        )
    weight = (
        draw_weights(whole, traces["paired_loss"], used, settings)
        if used.any() else np.ones_like(whole[used])
    )  # fmt: skip
    unit = np.arange(len(used)) // (2 if settings.antithetic else 1)
    return Losses(whole[used], weight, unit[used])
