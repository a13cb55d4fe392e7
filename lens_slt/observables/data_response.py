r"""How observables answer to the weight of every sequence of the data.

Let the loss be the weighted mean L_h = Σ_j (1 + h_j)·p_j·ℓ_j / Σ_j (1 + h_j)·p_j over candidates,
p_j being the share of the predicted tokens that sequence j has (1/N where all are of one length).
Under the local posterior ∝ exp(−nβ·L_h − …), to first order in h,

.. math:: ∂E[φ]/∂h_j = −nβ·p_j·Cov(φ, ℓ_j − L).

Structural susceptibilities: Baker et al. 2025 (arXiv 2504.18274); their inversion: Patterning
(arXiv 2601.13548).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import xarray as xr
from numpy.typing import NDArray

from lens_slt.arguments import typed
from lens_slt.arrays import BoolArray, FloatArray
from lens_slt.observables.per_token import ProbeReader, open_probe
from lens_slt.observables.response import Shift, shift_weight
from lens_slt.sampling.result import component_names, dataset, one_component, settings_of
from lens_slt.sampling.spread import pseudo_of
from lens_slt.schema import require, stamped
from lens_slt.statistics import error_of_mean

LEAST_BLOCKS = 4  # of draws, for a standard error and two halves


@typed
def data_response(
    draws: xr.DataTree,
    candidates: str,
    observables: Mapping[str, Any],
    *,
    groups: Any = None,
    component: str | None = None,
) -> xr.Dataset:
    """First-order change of observables per relative change of each candidate sequence's weight.

    Args:
        draws: from :func:`lens_slt.sample`, on the data that the candidates stand for.
        candidates: the probe that holds them.
        observables: by name, a :class:`lens_slt.Shift`: the mean loss of a probe's chosen
            predictions, such as those of a pattern; or the name of a probe, for its mean loss.
        groups: labels ``[sequence]`` of the candidates, such as domains. The response is then the
            mean of each group's, which has less noise: all of a group are weighted alike.
        component: whose posterior; ``full`` by default where it was sampled. The response of one
            head alone is how it would answer with all else frozen.

    Returns:
        Dataset over (observable, sequence): ``response`` ∂E[φ]/∂h_j in nats, h_j being the
        relative change of the sequence's weight, and its standard error ``se``; ``blocks``, the
        jackknife's values over blocks of draws; ``group_size (sequence)``, how many share a value
        and its error; ``tokens (sequence, position)``, the predicted
        ones, 0 where there is none.

    Raises:
        ValueError: no such probe or component, weights of another shape, fewer than four blocks of
            draws, or no chain that can be used.

    Example:
        >>> import lens_slt as ls
        >>> model = ls.load_model("attn-1l")
        >>> data = ls.load_tokens("mix", n_sequences=8, length=16)
        >>> code = ls.load_tokens("code", n_sequences=4, length=16)
        >>> draws = ls.sample(
        ...     model,
        ...     data,
        ...     "L0H0",
        ...     settings=ls.Settings(draws=40, batch_size=8),
        ...     probes={"data": data, "code": code},
        ...     progress=False,
        ... )
        >>> ls.data_response(draws, "data", {"code": "code"})["response"].dims
        ('observable', 'sequence')
    """
    draws = require(draws, "draws", argument="draws")
    everything = component is None and "full" in component_names(draws)
    component = one_component(draws, "full" if everything else component)
    if not observables:
        raise ValueError("observables must name at least one")
    reader = open_probe(draws, candidates)
    if reader.n_blocks < LEAST_BLOCKS:
        raise ValueError(
            f"draws: {reader.n_draws(component)} of {component} at the probe make "
            f"{reader.n_blocks} blocks, {LEAST_BLOCKS} are needed: sample more draws"
        )
    counts, _ = reader.weights(component)
    alive: BoolArray = np.asarray(counts.any(1))
    if not alive.any():
        raise ValueError(f"draws: no chain of {component} can be used")
    each, share = _sequence_losses(reader, component)
    n_draws = each.shape[1]
    phi = [_observed(draws, one, name, component)[:, :n_draws] for name, one in observables.items()]
    delta = each - (each @ share)[..., None]
    scale = -settings_of(draws).n_beta * share
    series = np.stack(phi)[:, alive], delta[alive], counts[alive]
    whole = np.ones(n_draws, dtype=bool)
    left_out = [scale * _covariance(*series, kept) for kept in reader.left_out(component)]
    value: FloatArray = np.asarray(scale * _covariance(*series, whole))
    blocks: FloatArray = pseudo_of(value, np.array(left_out))
    sizes: FloatArray = np.ones(each.shape[-1])
    if groups is not None:
        place, sizes = _groups(groups, each.shape[-1])
        value, blocks = _pooled(value, place), _pooled(blocks, place)
    tokens = np.where(reader.real, reader.probe["tokens"].values, 0)
    over = ("observable", "sequence")
    data = xr.Dataset(
        {
            "response": (over, value),
            "se": (over, error_of_mean(blocks)),
            "blocks": (("block", *over), blocks),
            "tokens": (("sequence", "position"), tokens),
            "group_size": ("sequence", sizes),
        },
        coords={"observable": list(observables), "sequence": np.arange(each.shape[-1])},
        attrs={
            **draws.attrs, "component": component, "candidates": candidates,
            "certificate": str(
                dataset(draws, "health")["certificate"].sel(component=component).values
            ),
        },
    )  # fmt: skip
    return stamped(data, "data_response")


def _groups(groups: Any, n: int) -> tuple[NDArray[np.int_], FloatArray]:
    """The group of every candidate, and its size."""
    labels = np.asarray(groups)
    if labels.shape != (n,):
        raise ValueError(
            f"groups must hold a label for each of the {n} candidates; got shape {labels.shape}"
        )
    _, place, sizes = np.unique(labels, return_inverse=True, return_counts=True)
    return place, sizes[place].astype(float)


def _pooled(values: FloatArray, place: NDArray[np.int_]) -> FloatArray:
    """Values ``[…, sequence]`` as the means of their groups."""
    member = np.equal.outer(place, np.arange(place.max() + 1)).astype(float)
    return np.asarray((values @ (member / member.sum(0)))[..., place])


def _sequence_losses(reader: ProbeReader, component: str) -> tuple[FloatArray, FloatArray]:
    """Mean loss of every candidate ``[chain, draw, sequence]``, and its share of the tokens."""
    weight = np.where(reader.real, reader.probe["weight"].values, 0.0)
    each = weight.sum(1)
    if not each.all():
        raise ValueError(
            f"candidates: sequence {int(np.argmin(each))} of {reader.name!r} has no token that "
            "counts; leave it out"
        )
    return reader.sequence_losses(component), each / each.sum()


def _observed(draws: xr.DataTree, observable: Any, name: str, component: str) -> FloatArray:
    """Mean loss of the chosen predictions ``[chain, draw]``."""
    shift = Shift(observable) if isinstance(observable, str) else observable
    if not isinstance(shift, Shift):
        raise TypeError(
            f"observables[{name!r}] must be a Shift or the name of a probe; got "
            f"{type(observable).__name__}"
        )
    reader = open_probe(draws, shift.probe)
    losses = reader.losses(component)
    return np.asarray(np.einsum("cdsp,sp->cd", losses, shift_weight(shift, reader)))


def _covariance(
    phi: FloatArray, delta: FloatArray, counts: FloatArray, kept: BoolArray
) -> FloatArray:
    """Weighted covariances ``[observable, sequence]`` over chains and the kept draws."""
    share = (counts[:, kept] / counts[:, kept].sum()).ravel()
    x = phi[:, :, kept].reshape(len(phi), -1)
    y = delta[:, kept].reshape(-1, delta.shape[-1])
    return np.asarray(((x - (x @ share)[:, None]) * share) @ (y - share @ y))
