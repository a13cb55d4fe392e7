"""Where a model comes from: a description that travels to another process and loads it there.

A source is frozen, pickles, and holds no model: a name or file for :func:`lens_slt.load_model`, a
function of the caller's, or a folder that :func:`lens_slt.models.saved.save_source` wrote of a
model in memory.
"""

from __future__ import annotations

import contextlib
import functools
import io
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import torch

from lens_slt.arguments import integer, typed
from lens_slt.models.own_file import plain_config
from lens_slt.models.shipped import Backend, load_model
from lens_slt.models.validation import kind_of
from lens_slt.torch_state import kept_random_state

LARGEST_FUNCTION = 2**24  # bytes, pickled; more than that is a model or data inside

Device = torch.device | str | None


@runtime_checkable
class ModelSource(Protocol):
    """Loads one model, wherever it is called."""

    @property
    def label(self) -> str:
        """A few words for progress and messages."""
        ...

    def load(self, device: Device = None) -> Any:
        """The model, in eval mode; the caller's random state does not move."""
        ...


@dataclass(frozen=True)
class LoadedModel:
    """Arguments of :func:`lens_slt.load_model`: a name, a folder, or a file with its config."""

    name: str
    checkpoint: int | None = None
    revision: str | None = None
    config: Any = None
    backend: Backend = "auto"

    @property
    def label(self) -> str:
        name = Path(self.name).name if self.config is not None else self.name
        if self.checkpoint is not None:
            return f"{name} at step {self.checkpoint}"
        return name if self.revision is None else f"{name} at {self.revision}"

    def load(self, device: Device = None) -> Any:
        # TransformerLens prints while it loads: standard output is for results, also of workers.
        with contextlib.redirect_stdout(io.StringIO()):
            return load_model(
                self.name, config=self.config, checkpoint=self.checkpoint, revision=self.revision,
                backend=self.backend, device=device,
            )  # fmt: skip


@dataclass(frozen=True)
class CalledModel:
    """A function of the caller's that returns the model, of a training step where there is one."""

    function: Callable[..., Any]
    step: int | None = None

    @property
    def label(self) -> str:
        inner = self.function
        while isinstance(inner, functools.partial):
            inner = inner.func
        name = getattr(inner, "__name__", type(inner).__name__)
        return name if self.step is None else f"{name} at step {self.step}"

    def load(self, device: Device = None) -> Any:
        with kept_random_state():
            model = self.function() if self.step is None else self.function(self.step)
        kind_of(model)
        return (model if device is None else model.to(device)).eval()


@typed
def model_source(
    origin: Any,
    *,
    config: Any = None,
    checkpoint: int | None = None,
    revision: str | None = None,
    backend: Backend = "auto",
) -> ModelSource:
    """Describe a model so that other processes and machines can load it.

    Args:
        origin: a name, folder or file of weights as for :func:`lens_slt.load_model` (files have to
            be where the workers run, too), or a function that returns a model; with ``checkpoint``
            it is called with that step. It has to pickle, and to load the model rather than to
            hold it.
        config, checkpoint, revision, backend: as for :func:`lens_slt.load_model`.

    Returns:
        A value with ``label`` and ``load(device=None)``; :func:`lens_slt.sample` takes it for a
        model.

    Raises:
        TypeError, ValueError: no name, path or function; a function that does not pickle.

    Example:
        >>> import lens_slt as ls
        >>> ls.model_source("attn-2l", checkpoint=300).label
        'attn-2l at step 300'
    """
    if isinstance(origin, str | Path):
        if config is not None:
            config = plain_config(config)
        return LoadedModel(_absolute(origin), checkpoint, revision, config, backend)
    if not callable(origin) or isinstance(origin, torch.nn.Module):
        raise TypeError(
            "origin must be a name, a path or a function that returns a model; got "
            f"{type(origin).__name__}"
        )
    for name, value in (("config", config), ("revision", revision)):
        if value is not None:
            raise ValueError(f"{name} must be None where origin is a function; got {value!r}")
    if checkpoint is not None:
        integer("checkpoint", checkpoint, at_least=0)
    refuse_unpicklable("origin", origin)
    return CalledModel(origin, checkpoint)


def refuse_unpicklable(name: str, function: Any) -> None:
    """Raise TypeError or ValueError for a function that cannot, or should not, be sent away."""
    import cloudpickle

    try:
        size = len(cloudpickle.dumps(function))
    except Exception as error:  # whatever the things say that a function holds
        raise TypeError(
            f"{name}: the function cannot be sent to another process ({error}); make what it needs "
            "inside it, or define it in a module"
        ) from error
    if size > LARGEST_FUNCTION:
        raise ValueError(
            f"{name}: the function carries {size / 2**20:.0f} MiB with it; let it load the model "
            "when it is called instead of holding it"
        )


def _absolute(model: str | Path) -> str:
    """A file or folder by its whole path: workers may run elsewhere. Names stay."""
    path = Path(model).expanduser()
    return str(path.resolve()) if path.exists() else str(model)
