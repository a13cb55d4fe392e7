"""Matrices of tokens and components, checked and put on one scale."""

from __future__ import annotations

import numpy as np
import xarray as xr

from lens_slt.arrays import FloatArray
from lens_slt.observables.per_token import SUMMARIES, errors_of
from lens_slt.schema import require
from lens_slt.schemas import MATRICES

TERMS = ("mean_term", "covariance_term")  # of a susceptibility, which blocks do not tell
CONSTANT = 1e-12  # of the largest value: a column that varies less is constant


def values_of(matrix: xr.Dataset) -> FloatArray:
    """Values ``[token, component]`` of a matrix from ``susceptibility`` or ``per_token_llc``.

    Raises TypeError or ValueError where ``matrix`` is something else, holds NaN, or has fewer
    tokens than components.
    """
    matrix = require(matrix, *MATRICES, argument="matrix")
    values = matrix[matrix.attrs["quantity"]].values.T.astype(np.float64)
    names = matrix["component"].values
    bad = ~np.isfinite(values)
    if bad.any():
        worst = [str(name) for name, n in zip(names, bad.sum(0), strict=True) if n]
        raise ValueError(
            f"matrix has {int(bad.sum())} values that are not finite, in {', '.join(worst[:8])}: "
            "leave these components out with matrix.sel(component=[…])"
        )
    if values.shape[0] < values.shape[1]:
        raise ValueError(
            f"matrix has {values.shape[0]} tokens for {values.shape[1]} components; at least as "
            "many tokens as components are needed: use a larger probe"
        )
    return values


def standardized(matrix: xr.Dataset, *, centre_rows: bool = False) -> FloatArray:
    """Columns with mean 0 and standard deviation 1, ``[token, component]``.

    The scale of a column of susceptibilities is arbitrary (an unknown factor per component), so
    nothing may compare columns before this.

    Args:
        matrix: from ``susceptibility`` or ``per_token_llc``.
        centre_rows: also take away each token's mean over the components, which removes what all
            components share.

    Raises ValueError for NaN, constant columns, or fewer tokens than components.
    """
    values = values_of(matrix)
    spread = values.std(0)
    constant = spread <= CONSTANT * np.abs(values).max(initial=0.0)
    if constant.any():
        names = matrix["component"].values
        which = ", ".join(str(name) for name, flag in zip(names, constant, strict=True) if flag)
        raise ValueError(
            f"matrix: the column of {which} is constant over tokens and has no scale: leave it out"
        )
    return scaled(values, np.ones(len(values)), centre_rows)


def scaled(values: FloatArray, weight: FloatArray, centre_rows: bool) -> FloatArray:
    """Columns of ``values [token, component]`` standardised with a weight for each token.

    Nothing is checked: a column without spread stays zero.
    """
    weight = weight / weight.sum()
    x = values - weight @ values
    spread = np.sqrt(weight @ x**2)
    x = x / np.where(spread > 0, spread, 1)
    return x - x.mean(1, keepdims=True) if centre_rows else x


def halves(matrix: xr.Dataset) -> tuple[xr.Dataset, xr.Dataset]:
    """The matrix from the first half of the draws and from the second, to see what comes back.

    Each is the mean of its half of the matrix's ``blocks``, which for susceptibilities are
    pseudo-values: equal to the estimate from that half up to terms of second order. It has those
    blocks, and errors and summaries made of them; the two terms of a susceptibility are NaN.

    Raises ValueError where ``matrix`` was made with ``keep_blocks=False`` or of too few draws.

    Example:
        >>> import lens_slt as ls
        >>> model, text = ls.load_model("attn-1l"), ls.load_tokens("mix", n_sequences=8, length=16)
        >>> how = dict(settings=ls.Settings(draws=20, chains=2, steps_per_draw=1), progress=False)
        >>> draws = ls.sample(model, text, "L0H0, L0H1, L0H2", probes={"mix": text}, **how)
        >>> first, second = ls.halves(ls.per_token_llc(draws))
        >>> first["llc"].dims
        ('component', 'token')
    """
    matrix = require(matrix, *MATRICES, argument="matrix")
    if "blocks" not in matrix or matrix.sizes["block"] < 2:
        raise ValueError(
            "matrix has no blocks to halve: make it with keep_blocks=True and of four draws or more"
        )
    n = matrix.sizes["block"] // 2
    return (
        _half(matrix, matrix["blocks"].isel(block=slice(0, n))),
        _half(matrix, matrix["blocks"].isel(block=slice(n, None))),
    )


def _half(matrix: xr.Dataset, blocks: xr.DataArray) -> xr.Dataset:
    """The matrix of some of its blocks, with errors and summaries of these alone."""
    dims = ("component", "token")
    blocks = blocks.transpose("block", *dims)
    every = blocks.values.astype(np.float64)
    value, nothing = every.mean(0), np.full(matrix.sizes["component"], np.nan)
    summaries = dict.fromkeys(SUMMARIES, nothing) | {"mean": value.mean(1)}
    se = np.full_like(value, np.nan)
    if len(every) > 1:
        early = every[: len(every) // 2].mean(0), every[len(every) // 2 :].mean(0)
        found = [errors_of(*one) for one in zip(every.swapaxes(0, 1), *early, strict=True)]
        se = np.stack([of_token for of_token, _ in found])
        summaries |= {key: np.array([one[key] for _, one in found]) for key in found[0][1]}
    quantity = str(matrix.attrs["quantity"])
    unknown = {name: (dims, se * np.nan) for name in TERMS if name in matrix}
    known = {quantity: (dims, value), "se": (dims, se)}
    known |= {key: ("component", of_one) for key, of_one in summaries.items()}
    kept = {"blocks": blocks} if len(every) > 1 else {}
    return matrix.drop_dims("block").assign(unknown | known | kept)
