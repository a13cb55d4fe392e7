"""Array types shared by the package, and labelled arrays on disk."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

import numpy as np
import xarray as xr
from numpy.typing import NDArray

FloatArray = NDArray[np.floating[Any]]
BoolArray = NDArray[np.bool_]


def write_zarr(
    dataset: xr.Dataset, path: Path, group: str | None = None, mode: Literal["w", "a"] = "w"
) -> None:
    """Write a dataset to a Zarr group; what was there is replaced, or kept with ``mode="a"``.

    Strings become those of variable length: those of fixed length are not in Zarr's specification.
    """
    plain = _with_strings(dataset, "UO", object)
    plain.to_zarr(path, group=group, mode=mode, consolidated=False)


def read_zarr(path: Path, group: str | None = None) -> xr.Dataset:
    """What :func:`write_zarr` wrote; numbers stay on disk until they are read."""
    stored = xr.open_zarr(path, group=group, chunks=None, consolidated=False)
    return _with_strings(stored, "TO", str)


def _with_strings(dataset: xr.Dataset, kinds: str, dtype: type) -> xr.Dataset:
    words: dict[Any, Any] = {
        key: (value.dims, np.array(value.values.tolist(), dtype=dtype), value.attrs)
        for key, value in dataset.variables.items()
        if value.dtype.kind in kinds
    }
    coords = {key: value for key, value in words.items() if key in dataset.coords}
    data = {key: value for key, value in words.items() if key not in dataset.coords}
    return dataset.assign_coords(coords).assign(data)
