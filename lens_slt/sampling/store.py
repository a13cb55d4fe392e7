"""Where draws go: memory, or a Zarr group that survives a kill and resumes.

Recorded values are buffered for a block of steps, then written; after each block the chains' state
replaces the previous one atomically. After a kill the run continues from the last saved state and
overwrites what was written beyond it, so the result equals that of an uninterrupted run.
"""

from __future__ import annotations

import json
import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import zarr
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

BLOCK = 10  # draws per Zarr chunk, where they are small enough
LARGEST_CHUNK = 2**26  # bytes of one component's chunk
LARGEST_PENDING = 2**28  # bytes that are recorded before they are written
LARGEST_IN_MEMORY = 4 * 2**30
STATE_FILE = "state.safetensors"


@dataclass(frozen=True)
class ArraySpec:
    """One recorded array; its third dimension is the step or draw."""

    shape: tuple[int, ...]
    dims: tuple[str, ...]

    @property
    def n_bytes(self) -> int:
        """Size of the values."""
        return 4 * int(np.prod(self.shape))

    @property
    def chunks(self) -> tuple[int, ...]:
        """Shape of a Zarr chunk: one component, a few draws."""
        row = 4 * self.shape[1] * int(np.prod(self.shape[3:]))
        draws = max(1, min(BLOCK, self.shape[2], LARGEST_CHUNK // row))
        return (1, self.shape[1], draws, *self.shape[3:])


@dataclass
class DrawStore:
    """Arrays of one run, the values that are not yet written, and the state to resume from."""

    arrays: dict[str, Any]
    path: Path | None = None
    _pending: dict[tuple[str, int], tuple[int, list[np.ndarray]]] = field(default_factory=dict)
    _n_pending: int = 0  # bytes

    def put(self, name: str, component: int, index: int, values: Tensor | np.ndarray) -> None:
        """Record ``values [chain, …]`` of one component at draw ``index``."""
        start, rows = self._pending.setdefault((name, component), (index, []))
        if index != start + len(rows):  # a component began anew
            self._write(name, component)
            _, rows = self._pending.setdefault((name, component), (index, []))
        row = values if isinstance(values, np.ndarray) else values.detach().float().cpu().numpy()
        rows.append(row)
        self._n_pending += row.nbytes

    def is_full(self) -> bool:
        """Whether what is not yet written takes much memory."""
        return self._n_pending > LARGEST_PENDING

    def read(self, name: str, component: int, n: int) -> np.ndarray:
        """The first ``n`` recorded values ``[chain, draw, …]`` of one component."""
        self._write(name, component)
        return np.asarray(self.arrays[name][component][:, :n], dtype=np.float64)

    def clear(self, name: str, component: int, n: int) -> None:
        """Forget what one component recorded beyond its first ``n`` values."""
        self._write(name, component)
        if self.arrays[name].shape[2] > n:
            self.arrays[name][component, :, n:] = np.nan

    def save(self, state: dict[str, Tensor], about: dict[str, Any]) -> None:
        """Write what is buffered, then make ``state`` the one to resume from."""
        for name, component in list(self._pending):
            self._write(name, component)
        if self.path is None:
            return
        fresh = self.path / f"{STATE_FILE}.new"
        contiguous = {key: tensor.contiguous() for key, tensor in state.items()}
        save_file(contiguous, fresh, metadata={"about": json.dumps(about)})
        os.replace(fresh, self.path / STATE_FILE)

    def load_state(self) -> tuple[dict[str, Any], dict[str, Tensor]]:
        """What :meth:`save` was given last, ``about`` first; empty at the start."""
        if self.path is None or not (self.path / STATE_FILE).exists():
            return {}, {}
        with safe_open(self.path / STATE_FILE, "pt") as file:
            tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118, not a dict
        return read_about(self.path), tensors

    def _write(self, name: str, component: int) -> None:
        """Write the buffered values of one component; arrays grow as they have to.

        They are forgotten after they are written: an interrupt may come in between.
        """
        start, rows = self._pending.get((name, component), (0, []))
        if not rows:
            return
        end = start + len(rows)
        if end > self.arrays[name].shape[2]:
            self._grow(name, end)
        self.arrays[name][component, :, start:end] = np.stack(rows, axis=1)
        del self._pending[name, component]
        self._n_pending -= sum(row.nbytes for row in rows)

    def _grow(self, name: str, end: int) -> None:
        array = self.arrays[name]
        length = max(end, 2 * array.shape[2])
        shape = (*array.shape[:2], length, *array.shape[3:])
        if self.path is not None:
            array.resize(shape)
            return
        grown = np.full(shape, np.nan, np.float32)
        grown[:, :, : array.shape[2]] = array
        self.arrays[name] = grown


def open_store(
    path: str | Path | None, specs: dict[str, ArraySpec], identity: dict[str, Any]
) -> DrawStore:
    """A store in memory (``path`` None) or on disk, new or to be resumed.

    Raises as :func:`check_place`.
    """
    there = check_place(path, specs, identity)
    if path is None:
        arrays = {name: np.full(spec.shape, np.nan, np.float32) for name, spec in specs.items()}
        return DrawStore(arrays)
    path = Path(path)
    if there:
        group = zarr.open_group(path, mode="r+")
        return DrawStore({name: group[name] for name in specs}, path)
    path.mkdir(parents=True, exist_ok=True)
    group = zarr.create_group(path, attributes={"identity": identity})
    created = {}
    for name, spec in specs.items():
        created[name] = group.create_array(
            name, shape=spec.shape, chunks=spec.chunks, dtype="float32", fill_value=float("nan"),
            dimension_names=spec.dims,
        )  # fmt: skip
    return DrawStore(created, path)


def check_place(
    path: str | Path | None, specs: dict[str, ArraySpec], identity: dict[str, Any]
) -> bool:
    """Whether ``path`` holds draws of this very run; writes nothing.

    Raises ValueError if ``path`` holds draws of another model, data, component set or settings, and
    names what differs, and if without a path the draws would fill the memory.
    """
    if path is None:
        n_bytes = sum(spec.n_bytes for spec in specs.values())
        if n_bytes > LARGEST_IN_MEMORY:
            raise ValueError(
                f"probes: their per-token losses would take {n_bytes / 2**30:.1f} GiB of memory; "
                "give path= to stream them to disk, or use fewer probe tokens or a larger thin"
            )
        return False
    path = Path(path)
    if not path.exists() or not any(path.iterdir()):
        return False
    _check_identity(path, identity)
    return True


def read_about(path: str | Path) -> dict[str, Any]:
    """What is said about the state in ``path``, without reading it; empty if there is none."""
    file = Path(path) / STATE_FILE
    if not file.exists():
        return {}
    with safe_open(file, "pt") as state:
        return dict(json.loads(state.metadata()["about"]))


def read_identity(path: str | Path) -> dict[str, Any]:
    """What a stored run was: model, data, components, settings."""
    path = Path(path)
    if not (path / "zarr.json").exists():
        raise ValueError(f"path: {str(path)!r} holds no lens_slt draws")
    identity = zarr.open_group(path, mode="r").attrs.get("identity")
    if not isinstance(identity, dict):
        raise ValueError(f"path: {str(path)!r} holds a Zarr group, but no lens_slt draws")
    return dict(identity)


def _check_identity(path: Path, identity: dict[str, Any]) -> None:
    there = read_identity(path)
    here = json.loads(json.dumps(identity))
    differing = [key for key in here if key != "record" and there.get(key) != here[key]]
    if differing:
        what = "; ".join(_difference(key, there.get(key), here[key]) for key in differing)
        raise ValueError(
            f"path: {str(path)!r} holds the draws of another run ({what}); "
            "use another path, or delete it"
        )


def _difference(key: str, there: Any, here: Any) -> str:
    """What differs, by the names within where there are any."""
    if isinstance(there, dict) and isinstance(here, dict) and here:
        names = [name for name in {**there, **here} if there.get(name) != here.get(name)]
        return f"{key}: " + ", ".join(
            f"{name} {_short(there.get(name))} there, {_short(here.get(name))} here"
            for name in names
        )
    return f"{key}: {_short(there)} there, {_short(here)} here"


def _short(value: Any) -> str:
    text = json.dumps(value)
    return text if len(text) <= 60 else f"{text[:57]}…"
