"""Digests of what a run wrote, by which alterations are found and named.

Every recorded draw has a digest of its own, and those of the first n draws make that of an array's
first n: so it is known at every save without reading anything back, also after a draw was recorded
that the saved state does not know yet, or after a component began anew.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor

SIZE = 16  # bytes of a digest
AT_A_TIME = 2**26  # bytes that are read back at once

Key = tuple[str, int]  # array, component


class DrawDigests:
    """Digests of every recorded draw, by array and component."""

    def __init__(self) -> None:
        self._draws: dict[Key, bytearray] = {}

    def put(self, key: Key, index: int, row: np.ndarray) -> None:
        """Note draw ``index``; what was noted beyond it belongs to an attempt that was given up."""
        self._draws.setdefault(key, bytearray())[SIZE * index :] = _draw_digest(row)

    def of(self, name: str, counts: list[int]) -> list[str]:
        """Digest of the first draws of every component of an array."""
        draws = (self._draws.get((name, i), bytearray())[: SIZE * n] for i, n in enumerate(counts))
        return [_hex(part) for part in draws]

    def read(self, name: str, array: Any, counts: list[int]) -> None:
        """Note the first draws of every component as they are stored."""
        for i, n in enumerate(counts):
            index = 0
            for rows in stored(array, i, n):
                for row in np.moveaxis(rows, 1, 0):
                    self.put((name, i), index, row)
                    index += 1


def sealed(about: Mapping[str, Any]) -> dict[str, Any]:
    """A description with the digests of its parts."""
    plain = json.loads(json.dumps({key: about[key] for key in about if key != "digests"}))
    return {**plain, "digests": {key: _of_json(part) for key, part in _parts(plain).items()}}


def altered(about: Mapping[str, Any]) -> list[str]:
    """Names of the parts of a description that are not as they were sealed."""
    digests = about.get("digests")
    digests = digests if isinstance(digests, dict) else {}
    parts = _parts({key: part for key, part in about.items() if key != "digests"})
    return [
        key
        for key in {**parts, **digests}
        if key not in parts or digests.get(key) != _of_json(parts[key])
    ]


def state_digest(state: Mapping[str, Tensor], about: str) -> str:
    """Of a run's state and of the text that goes with it."""
    found = hashlib.blake2b(about.encode(), digest_size=SIZE)
    for key in sorted(state):
        tensor = state[key].detach().cpu()
        found.update(f"{key} {tensor.dtype} {tuple(tensor.shape)}".encode())
        flat = tensor.flatten().clone(memory_format=torch.contiguous_format)
        found.update(flat.view(torch.uint8).numpy().data)
    return found.hexdigest()


def array_digest(values: np.ndarray) -> str:
    """Of a whole array, with its shape and type."""
    return _hex(f"{values.dtype.str} {values.shape}".encode() + values.tobytes())


def _parts(about: Mapping[str, Any]) -> dict[str, Any]:
    own = {key: part for key, part in about.items() if key != "identity"}
    return {**about["identity"], **own}


def _draw_digest(row: np.ndarray) -> bytes:
    values = np.array(row, dtype="<f4", order="C")
    values[np.isnan(values)] = np.nan  # Zarr does not keep which NaN it was
    return hashlib.blake2b(values.tobytes(), digest_size=SIZE).digest()


def stored(array: Any, component: int, n: int) -> Iterator[np.ndarray]:
    """The first ``n`` draws ``[chain, draw, …]`` of a component, a part at a time."""
    row = 4 * array.shape[1] * int(np.prod(array.shape[3:]))
    step = max(1, AT_A_TIME // row)
    for start in range(0, n, step):
        yield np.asarray(array[component, :, start : min(n, start + step)])


def _of_json(value: Any) -> str:
    return _hex(json.dumps(value, sort_keys=True).encode())


def _hex(text: bytes | bytearray) -> str:
    return hashlib.blake2b(text, digest_size=SIZE).hexdigest()
