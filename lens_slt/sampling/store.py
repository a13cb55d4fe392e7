"""Where draws go: memory, or a Zarr group that survives a kill and resumes.

Recorded values are buffered for a block of steps, then written; after each block the chains' state
replaces the previous one atomically. After a kill the run continues from the last saved state and
overwrites what was written beyond it, so the result equals that of an uninterrupted run.
"""

from __future__ import annotations

import json
import os
import uuid
from collections.abc import Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import zarr
from filelock import FileLock
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from lens_slt.sampling.folder import (
    DESCRIPTION,
    FORMAT,
    LOCK_FILE,
    PARTS,
    WHOLE,
    StoreError,
    changed,
    folder_of,
    in_words,
    occupy,
    read_description,
    write_description,
)
from lens_slt.sampling.identity import differences
from lens_slt.sampling.seal import DrawDigests, array_digest, state_digest

BLOCK = 10  # draws per Zarr chunk, where they are small enough
LARGEST_CHUNK = 2**26  # bytes of one component's chunk
LARGEST_PENDING = 2**28  # bytes that are recorded before they are written
LARGEST_IN_MEMORY = 4 * 2**30
STATE_FILE = "state.safetensors"
MOST_NAMED = 3  # of what is wrong with a run


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
    def row_bytes(self) -> int:
        """Size of one draw of one component."""
        return 4 * self.shape[1] * int(np.prod(self.shape[3:]))

    @property
    def chunks(self) -> tuple[int, ...]:
        """Shape of a Zarr chunk: one component, a few draws."""
        draws = max(1, min(BLOCK, self.shape[2], LARGEST_CHUNK // self.row_bytes))
        return (1, self.shape[1], draws, *self.shape[3:])


@dataclass
class DrawStore:
    """Arrays of one run, the values that are not yet written, and the state to resume from.

    One on disk holds the folder's lock until it is closed; use it as a context manager.
    """

    arrays: dict[str, Any]
    path: Path | None = None
    run_id: str = ""  # in the folder's description
    components: list[str] = field(default_factory=list)
    finished: bool = False  # nothing is left to do; the arrays are not open
    lock: FileLock | None = None
    _pending: dict[tuple[str, int], tuple[int, list[np.ndarray]]] = field(default_factory=dict)
    _n_pending: int = 0  # bytes
    _digests: DrawDigests = field(default_factory=DrawDigests)

    def __enter__(self) -> DrawStore:
        return self

    def __exit__(self, *error: object) -> None:
        if self.lock is not None:
            self.lock.release()

    def put(self, name: str, component: int, index: int, values: Tensor | np.ndarray) -> None:
        """Record ``values [chain, …]`` of one component at draw ``index``."""
        start, rows = self._pending.setdefault((name, component), (index, []))
        if index != start + len(rows):  # a component began anew
            self._write([(name, component)])
            _, rows = self._pending.setdefault((name, component), (index, []))
        row = values if isinstance(values, np.ndarray) else values.detach().float().cpu().numpy()
        if self.path is not None:
            self._digests.put((name, component), index, row)
        rows.append(row)
        self._n_pending += row.nbytes

    def is_full(self) -> bool:
        """Whether what is not yet written takes much memory."""
        return self._n_pending > LARGEST_PENDING

    def read(self, name: str, component: int, n: int) -> np.ndarray:
        """The first ``n`` recorded values ``[chain, draw, …]`` of one component."""
        self._write([(name, component)])
        return np.asarray(self.arrays[name][component][:, :n], dtype=np.float64)

    def clear(self, name: str, component: int, n: int) -> None:
        """Forget what one component recorded beyond its first ``n`` values."""
        self._write([(name, component)])
        if self.arrays[name].shape[2] > n:
            with self._in_words():
                self.arrays[name][component, :, n:] = np.nan

    def save(
        self,
        state: dict[str, Tensor],
        about: dict[str, Any],
        counts: Mapping[str, list[int]] | None = None,
    ) -> None:
        """Write what is buffered, then make ``state`` the one to resume from.

        Args:
            counts: by array, how many values of every component belong to this state.
        """
        self._write(list(self._pending))
        if self.path is None:
            return
        recorded = {name: [n, self._digests.of(name, n)] for name, n in (counts or {}).items()}
        text = json.dumps({**about, "recorded": recorded})
        fresh = self.path / f"{STATE_FILE}.new"
        contiguous = {key: tensor.contiguous() for key, tensor in state.items()}
        described = {"about": text, "digest": state_digest(state, text)}
        with self._in_words():
            save_file(contiguous, fresh, metadata=described)
            os.replace(fresh, self.path / STATE_FILE)

    def load_state(self) -> tuple[dict[str, Any], dict[str, Tensor]]:
        """What :meth:`save` was given last, ``about`` first; empty at the start.

        Raises ValueError if the state, or a draw that belongs to it, is not as it was written.
        """
        if self.path is None or not (self.path / STATE_FILE).exists():
            return {}, {}
        about, state = read_state(self.path)
        self._digests = check_draws(self.path, self.arrays, self.components, about["recorded"])
        return about, state

    def check(self) -> None:
        """StoreError if the folder is no longer this run's."""
        if self.path is None or not self.run_id:
            return
        files = [self.path / DESCRIPTION, *(self.path / name / DESCRIPTION for name in self.arrays)]
        whole = all(file.exists() for file in files)
        if not whole or self.run_id not in files[0].read_text("utf-8", errors="replace"):
            raise StoreError(
                f"path: {str(self.path)!r} was deleted or replaced while draws were written there, "
                "and what was in it is lost; delete what is left of it and sample again"
            )

    def _in_words(self) -> AbstractContextManager[None]:
        return nullcontext() if self.path is None else in_words(self.path, "save draws to")

    def _write(self, keys: list[tuple[str, int]]) -> None:
        """Write the buffered values of some components; arrays grow as they have to.

        They are forgotten after they are written: an interrupt may come in between.
        """
        with self._in_words():
            self.check()
            for key in keys:
                self._write_one(key)

    def _write_one(self, key: tuple[str, int]) -> None:
        name, component = key
        start, rows = self._pending.get(key, (0, []))
        if not rows:
            return
        end = start + len(rows)
        if end > self.arrays[name].shape[2]:
            self._grow(name, end)
        self.arrays[name][component, :, start:end] = np.stack(rows, axis=1)
        del self._pending[key]
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
    """A store in memory (``path`` None) or on disk: new, to be resumed, or finished.

    A folder belongs to the run as soon as its lock is in it, and a run is there once its first
    state is: what a kill leaves before is made anew. Nobody else's file is ever removed.

    Raises as :func:`check_place`, and StoreError if the folder cannot be written or another process
    writes there.
    """
    there = check_place(path, specs, identity)
    if path is None:
        arrays = {name: np.full(spec.shape, np.nan, np.float32) for name, spec in specs.items()}
        return DrawStore(arrays)
    folder = folder_of(path)
    if there and is_finished(folder):  # may be read where nothing can be written
        return DrawStore({}, folder, finished=True)
    lock = occupy(folder)
    try:
        there = check_place(folder, specs, identity)  # another process may have ended meanwhile
        if there and is_finished(folder):
            return DrawStore({}, folder, finished=True, lock=lock)
        if not there:
            return replace(new_store(folder, specs, identity), lock=lock)
        return replace(_opened(folder, specs, identity), lock=lock)
    except BaseException:
        if lock is not None:
            lock.release()
        raise


def new_store(folder: Path, specs: dict[str, ArraySpec], identity: dict[str, Any]) -> DrawStore:
    """A store without draws in a folder that the caller keeps others out of."""
    with in_words(folder, "write to"):
        _create(folder, specs, identity)
        return _opened(folder, specs, identity)


def _opened(folder: Path, specs: dict[str, ArraySpec], identity: dict[str, Any]) -> DrawStore:
    with in_words(folder, "write to"):
        run_id = read_description(folder)["run_id"]
        arrays = open_arrays(folder, list(specs), mode="r+")
    return DrawStore(arrays, folder, run_id, list(identity.get("components", ())))


def check_place(
    path: str | Path | None, specs: dict[str, ArraySpec], identity: dict[str, Any]
) -> bool:
    """Whether ``path`` holds draws of this very run, in one piece; writes nothing.

    Raises ValueError if ``path`` holds draws of another model, data, component set or settings, and
    names what differs; if it holds something else, or a run that was altered; and if without a path
    the draws would fill the memory.
    """
    if path is None:
        n_bytes = sum(spec.n_bytes for spec in specs.values())
        if n_bytes > LARGEST_IN_MEMORY:
            raise ValueError(
                f"probes: their per-token losses would take {n_bytes / 2**30:.1f} GiB of memory; "
                "give path= to stream them to disk, or use fewer probe tokens or a larger thin"
            )
        return False
    folder = folder_of(path)
    with in_words(folder, "read"):
        files = {file.name for file in folder.iterdir()} if folder.exists() else set()
    parts = PARTS in files
    if DESCRIPTION not in files and files <= {LOCK_FILE, PARTS, f"{DESCRIPTION}.new"}:
        if not parts or not (folder / PARTS / WHOLE / DESCRIPTION).exists():
            return False
        about = read_description(folder / PARTS / WHOLE)
    else:
        about = read_description(folder)
    if STATE_FILE not in files and "labels" not in about and not parts:
        return False  # killed before anything was kept
    found = differences(about["identity"], json.loads(json.dumps(identity)))
    if found:
        raise ValueError(
            f"path: {str(folder)!r} holds the draws of another run ({'; '.join(found)}); "
            "use another path, or delete it"
        )
    return STATE_FILE in files and (not parts or "labels" in about)


def is_finished(folder: Path) -> bool:
    """Whether a stored run has reached its end, and its result has been labelled."""
    return "labels" in read_description(folder)


def read_about(path: str | Path) -> dict[str, Any]:
    """What is said about the state in ``path``, without reading it; empty if there is none."""
    folder = folder_of(path)
    file = folder / STATE_FILE
    if not file.exists():
        return {}
    with in_words(folder, "read"), safe_open(file, "pt") as state:
        return dict(json.loads((state.metadata() or {}).get("about", "{}")))


def open_arrays(folder: Path, names: list[str], mode: Literal["r", "r+"]) -> dict[str, Any]:
    """Arrays of a stored run; ValueError if one is missing."""
    with in_words(folder, "read"):
        group = zarr.open_group(folder, mode=mode)
        missing = [name for name in names if name not in group]
        if missing:
            raise changed(folder, f"{', '.join(missing)} {'are' if missing[1:] else 'is'} missing")
        return {name: group[name] for name in names}


def check_draws(
    folder: Path,
    arrays: Mapping[str, Any],
    components: list[str],
    recorded: Mapping[str, tuple[list[int], list[str]]],
) -> DrawDigests:
    """The digests of all draws of a state; ValueError names those that are not as written."""
    found = DrawDigests()
    wrong = []
    for name, (counts, digests) in recorded.items():
        try:
            found.read(name, arrays[name], counts)
        except StoreError:
            raise
        except Exception as error:  # whatever a codec says of bytes that it did not write
            raise changed(folder, f"{name} cannot be read ({error})") from error
        now = found.of(name, counts)
        wrong += [
            f"{name} of {component}"
            for component, here, there in zip(components, now, digests, strict=True)
            if here != there
        ]
    if wrong:
        more = f" and {len(wrong) - MOST_NAMED} more" if len(wrong) > MOST_NAMED else ""
        raise changed(folder, f"{', '.join(wrong[:MOST_NAMED])}{more}")
    return found


def check_finished(folder: Path, components: list[str], fixed: Mapping[str, str]) -> None:
    """ValueError names what of a finished run is not as it was written.

    Args:
        components: in the order of the arrays.
        fixed: digests of arrays that are no draws.
    """
    if not (folder / STATE_FILE).exists():
        raise changed(folder, f"{STATE_FILE} is missing")
    recorded = read_state(folder)[0]["recorded"]
    arrays = open_arrays(folder, [*recorded, *fixed], "r")
    check_draws(folder, arrays, components, recorded)
    with in_words(folder, "read"):
        wrong = [name for name in fixed if array_digest(np.asarray(arrays[name])) != fixed[name]]
    if wrong:
        raise changed(folder, ", ".join(wrong))


def read_state(folder: Path) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """The state of a stored run and what is said about it; ValueError if it was altered."""
    try:
        with safe_open(folder / STATE_FILE, "pt") as file:
            state = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118, not a dict
            described = file.metadata() or {}
    except SafetensorError as error:
        raise changed(folder, f"{STATE_FILE} cannot be read ({error})") from error
    text = described.get("about", "")
    if state_digest(state, text) != described.get("digest"):
        raise changed(folder, f"the state of the chains in {STATE_FILE}")
    return dict(json.loads(text)), state


def _create(folder: Path, specs: dict[str, ArraySpec], identity: dict[str, Any]) -> None:
    """Describe a new run in a folder that is locked, and make its arrays."""
    write_description(folder, {"format": FORMAT, "run_id": uuid.uuid4().hex, "identity": identity})
    group = zarr.open_group(folder, mode="r+")
    for name, spec in specs.items():
        group.create_array(
            name, shape=spec.shape, chunks=spec.chunks, dtype="float32", fill_value=float("nan"),
            dimension_names=spec.dims, overwrite=True,
        )  # fmt: skip
