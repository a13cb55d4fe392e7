"""The folder of a run: what it says about itself, who writes there, and errors as sentences."""

from __future__ import annotations

import errno
import json
import os
import stat
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout
from safetensors import SafetensorError

from lens_slt.arguments import location
from lens_slt.sampling.seal import altered, sealed

FORMAT = 2  # of the folder; 1 had no digests
DESCRIPTION = "zarr.json"  # of the root group
LOCK_FILE = "lens-slt.lock"
PARTS = "parts"  # of a run that is sampled in parallel, until they are joined
WHOLE = "whole"  # within: what they have in common
DRAWS_FOLDER = "draws.zarr"  # within the folder of a command's results
NO_LOCKS = (errno.ENOLCK, errno.ENOSYS, errno.ENOTSUP, errno.EOPNOTSUPP)  # of some network disks
AGAIN = "then call again with the same arguments: everything up to the last save is kept"
ADVICE = {
    errno.ENOSPC: f"free some space, {AGAIN}",
    errno.EDQUOT: f"free some space, {AGAIN}",
    errno.EACCES: "use a folder that you may read and write, or change its permissions",
    errno.EPERM: "use a folder that you may read and write, or change its permissions",
    errno.EROFS: "use a folder on a disk that can be written",
    errno.ENOTDIR: "a part of this path is a file; use another path",
    errno.EEXIST: "something that is no folder is in the way; use another path",
    errno.ENAMETOOLONG: "use a shorter path",
}


class SamplingWarning(UserWarning):
    """Something about a run that changes what its numbers mean or cost."""


class StoreError(OSError):
    """The folder of a run cannot be read or written, in a sentence that says what to do."""


class DamagedRun(ValueError):
    """The folder of a run is not as it was written."""


def folder_of(path: object) -> Path:
    """The folder that a ``path`` argument means; ``~`` is expanded.

    Raises TypeError, ValueError or StoreError where no folder can be.
    """
    folder = location("path", path)
    try:
        mode = folder.stat().st_mode
    except FileNotFoundError:
        return folder
    except OSError as error:
        raise _in_words(error, folder, "look at") from error
    if not stat.S_ISDIR(mode):
        raise ValueError(
            f"path: {str(folder)!r} is a file; give a folder, of an earlier run or a new one"
        )
    return folder


@contextmanager
def in_words(folder: Path, doing: str) -> Iterator[None]:
    """Errors of files within become a :class:`StoreError`: what, where, why, what to do."""
    try:
        yield
    except StoreError:
        raise
    except (OSError, SafetensorError) as error:
        raise _in_words(error, folder, doing) from error


def holds_run(folder: Path) -> bool:
    """Whether a folder says that it is a run's, in whatever format."""
    try:
        return isinstance(_attributes(folder).get("identity"), dict)
    except (OSError, ValueError):
        return False


def read_description(folder: Path) -> dict[str, Any]:
    """What a folder says about its run: ``identity`` and, at its end, ``labels``.

    Raises ValueError where there is no run, one in another format, or one that was altered.
    """
    there = f"path: {str(folder)!r}"
    with in_words(folder, "read"):
        try:
            found = _attributes(folder)
        except (FileNotFoundError, NotADirectoryError):
            raise ValueError(f"{there} holds no lens_slt draws") from None
        except ValueError as error:
            raise DamagedRun(
                f"{there}: its {DESCRIPTION} is damaged ({error}); restore the folder from a copy, "
                "or delete it"
            ) from None
    if not isinstance(found.get("identity"), dict):
        raise ValueError(f"{there} holds a Zarr group, but no lens_slt draws")
    version = found.get("format", 1)
    if version != FORMAT:
        newer = isinstance(version, int) and version > FORMAT
        raise ValueError(
            f"{there} was written by {'a newer' if newer else 'an older'} version of lens_slt "
            f"(format {version}; this version reads format {FORMAT}): "
            + ("install that one" if newer else "use another path, or delete it")
        )
    wrong = altered(found)
    if wrong:
        raise changed(folder, f"{', '.join(wrong)} in {DESCRIPTION}")
    return found


def write_description(folder: Path, about: dict[str, Any]) -> None:
    """Replace what a folder says about its run, at once."""
    record = {"zarr_format": 3, "node_type": "group", "attributes": sealed(about)}
    fresh = folder / f"{DESCRIPTION}.new"
    with in_words(folder, "write"):
        fresh.write_text(json.dumps(record), "utf-8")
        os.replace(fresh, folder / DESCRIPTION)


def changed(folder: Path, what: str) -> DamagedRun:
    """The error of a run that is not as it was written."""
    return DamagedRun(
        f"path: {str(folder)!r} was altered or damaged after it was written: {what}; restore the "
        "folder from a copy, or delete it and sample again"
    )


def occupy(folder: Path) -> FileLock | None:
    """Create the folder, if need be, and keep other writers out of it until the lock is released.

    The lock is the operating system's: it ends with the process, however that ends. Where the disk
    has none, a warning says so and None is returned.
    """
    for above in folder.resolve().parents:
        if holds_run(above):
            raise ValueError(
                f"path: {str(folder)!r} lies inside the draws in {str(above)!r}; use another path"
            )
    with in_words(folder, "write to"):
        folder.mkdir(parents=True, exist_ok=True)
        lock = FileLock(folder / LOCK_FILE, timeout=0)
        try:
            lock.acquire()
        except Timeout:
            raise StoreError(
                f"path: another run is writing to {str(folder)!r}, in this process or another; "
                "wait until it has ended, or use another path"
            ) from None
        except (NotImplementedError, OSError) as error:
            if isinstance(error, OSError) and error.errno not in NO_LOCKS:
                raise
            warnings.warn(
                f"path: the disk of {str(folder)!r} has no locks; see to it that no two processes "
                "write there",
                SamplingWarning,
                stacklevel=4,
            )
            return None
    return lock


def _attributes(folder: Path) -> dict[str, Any]:
    record = json.loads((folder / DESCRIPTION).read_text("utf-8"))
    found = record.get("attributes", {}) if isinstance(record, dict) else {}
    return dict(found) if isinstance(found, dict) else {}


def _in_words(error: Exception, folder: Path, doing: str) -> StoreError:
    number = getattr(error, "errno", None)
    why = getattr(error, "strerror", None) or str(error)
    if "No space left" in why:  # of safetensors, which has no numbers
        number = errno.ENOSPC
    advice = ADVICE.get(number or 0, "see to the disk or use another path")
    return StoreError(f"path: cannot {doing} {str(folder)!r}: {why}; {advice}")
