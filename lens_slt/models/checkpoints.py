"""Checkpoints of one training run as one value: loaded one at a time, wherever they come from."""

from __future__ import annotations

import hashlib
import itertools
import json
import numbers
import os
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from copy import deepcopy
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from lens_slt.arguments import choice, integer, typed
from lens_slt.models.checkpoint_files import (
    broken_and_odd,
    find_files,
    is_pattern,
    is_place,
    odd_ones,
    run_name,
    steps_as_given,
    steps_by_name,
)
from lens_slt.models.checkpoint_labels import checkpoint_labels
from lens_slt.models.own_file import WEIGHT_FILES, plain_config
from lens_slt.models.shipped import BACKENDS, Backend
from lens_slt.models.shipped_files import SHIPPED_NAMES, misspelt, shipped_checkpoints
from lens_slt.models.source import CalledModel, Device, LoadedModel, ModelSource, refuse_unpicklable
from lens_slt.models.source_hash import source_hash

SERIES_CONFIG = "model-config.json"  # beside files of weights: the configuration of all of them
SERIES_TOKENIZER = "tokenizer"  # a folder beside them, where their model has one
_UNNAMED = ("custom", "native")  # TransformerLens's names of models without one
_MOST_NAMED = 6


class CheckpointWarning(UserWarning):
    """A checkpoint that is left out."""


@dataclass(frozen=True, repr=False)
class Checkpoints:
    """A training run: its steps, and where the model of each comes from.

    It holds no weights and pickles. Iteration gives the steps; made by :func:`checkpoints`.

    Attributes:
        name: of the run.
        steps: training steps, rising.
        sources: of the model at each step.
        unit: of the steps, "step" or "token".

    Example:
        >>> import lens_slt as ls
        >>> run = ls.checkpoints("attn-2l")
        >>> run.unit, run.nearest(1234), run.at([0, 2900]).steps
        ('step', 1000, (0, 2900))
    """

    name: str
    steps: tuple[int, ...]
    sources: tuple[ModelSource, ...]
    unit: str = "step"

    def __post_init__(self) -> None:
        _rising("steps", self.steps)
        if len(self.sources) != len(self.steps):
            raise ValueError(
                f"sources must be as many as steps, {len(self.steps)}; got {len(self.sources)}"
            )

    def __len__(self) -> int:
        return len(self.steps)

    def __iter__(self) -> Iterator[int]:
        return iter(self.steps)

    def __repr__(self) -> str:
        if len(self) == 1:
            return f"<Checkpoints {self.name!r}: {self.unit} {self.steps[0]}>"
        first, last = self.steps[0], self.steps[-1]
        return f"<Checkpoints {self.name!r}: {len(self)}, {self.unit}s {first} to {last}>"

    def source(self, step: int) -> ModelSource:
        """The source of the model at a step: it pickles, has a ``label``, and loads the model."""
        return self.sources[self._place("step", step)]

    def load(self, step: int, device: Device = None) -> Any:
        """The model at a step, in eval mode; nothing of it is kept here."""
        return self.source(step).load(device)

    def at(self, steps: Iterable[int]) -> Checkpoints:
        """The checkpoints at some of the steps, which have to rise.

        Raises ValueError for a step that is not there; :meth:`nearest` finds one that is.
        """
        steps = _rising("steps", steps)
        places = [self._place(f"steps[{i}]", step) for i, step in enumerate(steps)]
        return replace(self, steps=steps, sources=tuple(self.sources[i] for i in places))

    def nearest(self, step: float) -> int:
        """The step that is nearest to one; the earlier of two."""
        return min(self.steps, key=lambda known: abs(known - step))

    def hash(self, step: int) -> str:
        """What tells the weights at a step from others, as hexadecimal digits.

        Of files and folders it is the SHA-256 of their bytes; other models are loaded, and it is
        that of the names and values of their weights.
        """
        return source_hash(self.source(step))

    def check(self) -> dict[int, str]:
        """Load every checkpoint, one at a time: what is wrong with one, by step; {} if nothing is.

        That is: it cannot be loaded, its weights are not finite, or it has another architecture,
        vocabulary or tokenizer than most.
        """
        wrong: dict[int, str] = {}
        marks: dict[int, dict[str, Any]] = {}
        for step in self.steps:
            try:
                model = self.load(step, "cpu")
            except Exception as error:  # of whatever a loader raises, TransformerLens's or a user's
                wrong[step] = f"it cannot be loaded: {type(error).__name__}: {error}"
                continue
            marks[step] = model_marks(model)
            bad = [name for name, w in _named(model) if not torch.isfinite(w).all()]
            if bad:
                wrong[step] = f"weights that are not finite: {', '.join(bad[:_MOST_NAMED])}"
        return dict(sorted((odd_ones(marks) | wrong).items()))

    def _place(self, name: str, step: int) -> int:
        if step not in self.steps:
            raise ValueError(
                f"{name}: {self.name!r} has no checkpoint {step!r} (nearest: "
                f"{self.nearest(step)}). Its checkpoints: {_listed(self.steps)}"
            )
        return self.steps.index(step)


@typed
def checkpoints(
    source: Any,
    *,
    steps: Sequence[int] | Mapping[int, str] | None = None,
    config: Any = None,
    backend: Backend = "auto",
    skip_broken: bool = False,
) -> Checkpoints:
    """The checkpoints of a training run, of which nothing is loaded yet.

    Args:
        source: where they are. A shipped model (``"attn-2l"``, ``"gelu-4l"``); a folder, or a
            pattern such as ``"run/step-*.pt"``, of files of weights (as for
            :func:`lens_slt.load_model`) or of saved models (``checkpoint-500/`` of Hugging Face's
            Trainer); a folder that a :class:`lens_slt.CheckpointSaver` wrote; a name of which
            TransformerLens knows the checkpoints (``"EleutherAI/pythia-70m"``,
            ``"stanford-crfm/…"``); any other name on the Hugging Face Hub; or a function of a step
            that returns the model, which has to pickle.
        steps: of a function, its steps. Of a model on the Hub, a dict step → revision, such as
            ``{1000: "step1000"}``. Of files whose names do not tell it, a dict step → file name.
            Else the steps to take of those that there are, all if None. They have to rise.
        config: of files of weights, as for :func:`lens_slt.load_model`; it need not be given where
            ``model-config.json`` lies beside them.
        backend: as for :func:`lens_slt.load_model`.
        skip_broken: leave out files that cannot be read, with a warning that names them, instead
            of raising an error that does.

    The step of a file is the number that varies in the names; where several do, the one after
    "step". Of files, shapes of weights, configuration and tokenizers are compared here, without
    loading any; :meth:`Checkpoints.check` loads one after another.

    Raises:
        FileNotFoundError, ValueError, OSError: nothing there; names that tell no steps, or one
            twice; steps that repeat, fall, or are not there; a broken file; files of another
            architecture or tokenizer than the others; labels that cannot be looked up.

    Example:
        >>> import lens_slt as ls
        >>> run = ls.checkpoints("attn-2l")
        >>> run
        <Checkpoints 'attn-2l': 29, steps 0 to 5300>
        >>> run.at([0, 1000, run.nearest(5000)]).steps
        (0, 1000, 5300)
        >>> type(run.load(1000)) is type(ls.load_model("attn-2l"))
        True
    """
    choice("backend", backend, BACKENDS)
    if isinstance(steps, Mapping):
        steps = dict(zip(_rising("steps", steps), steps.values(), strict=True))
    elif steps is not None:
        steps = _rising("steps", steps)
    if callable(source) and not isinstance(source, torch.nn.Module):
        return _called(source, steps, config)
    if not isinstance(source, str | os.PathLike):
        raise TypeError(
            "source must be a name, a folder, a pattern or a function step → model; got "
            f"{type(source).__name__}"
        )
    name = os.fspath(source)
    if name in SHIPPED_NAMES:
        _refuse(config=config)
        found = shipped_checkpoints(name)
        if not found:
            raise ValueError(f"source: {name!r} has its final weights only, no checkpoints")
        run = {step: LoadedModel(name, checkpoint=step, backend=backend) for step in found}
        return _selected(name, run, steps)
    if is_place(name):
        return _from_files(name, steps, config, backend, skip_broken)
    return _from_hub(name, steps, config, backend)


def refuse_single(checkpoints: Checkpoints) -> None:
    """Raise ValueError where there is no course of training to follow."""
    if len(checkpoints) < 2:
        raise ValueError(f"checkpoints must be at least two; got {checkpoints!r}")


def model_marks(model: Any) -> dict[str, Any]:
    """What models at all checkpoints of a run have in common: architecture and tokenizer."""
    tokenizer = getattr(model, "tokenizer", None)
    vocabulary = None
    if tokenizer is not None:
        text = json.dumps(sorted(tokenizer.get_vocab().items()))
        vocabulary = {"vocabulary": hashlib.sha256(text.encode()).hexdigest()}
    return {
        "type": type(model).__name__,
        "shapes": {name: list(w.shape) for name, w in _named(model)},
        "tokenizer": vocabulary,
    }


def _named(model: Any) -> list[tuple[str, Tensor]]:
    """Weights by the names that a bridge shows."""
    return [(k.replace("._original_component", ""), w) for k, w in model.named_parameters()]


def _called(function: Callable[[int], Any], steps: Any, config: Any) -> Checkpoints:
    _refuse(config=config)
    if steps is None or isinstance(steps, Mapping):
        raise ValueError(f"steps must be a list of steps where source is a function; got {steps!r}")
    refuse_unpicklable("source", function)
    sources = tuple(CalledModel(function, step) for step in steps)
    return Checkpoints(CalledModel(function).label, tuple(steps), sources)


def _from_files(
    name: str, steps: Any, config: Any, backend: Backend, skip_broken: bool
) -> Checkpoints:
    if not is_pattern(name) and not Path(name).expanduser().exists():
        raise FileNotFoundError(f"source: there is no file or folder {name!r}")
    if isinstance(steps, Mapping):
        paths = steps_as_given(name, steps)
    else:
        paths = steps_by_name(find_files(name))
        if steps is not None:
            paths = {step: paths[_known(name, step, list(paths))] for step in steps}
    broken, odd = broken_and_odd(paths)
    if broken:
        _report_broken(broken, len(paths), skip_broken)
    if odd:
        step, why = next(iter(odd.items()))
        raise ValueError(
            f"source: {len(odd)} of {len(paths)} are not of the same run as the others, first "
            f"step {step} ({str(paths[step])!r}): {why}; give a pattern or steps= that leaves "
            "them out"
        )
    paths = {step: path for step, path in paths.items() if step not in broken}
    folders = {path.is_dir() for path in paths.values()}
    if folders == {True}:
        _refuse(config=config)
        if backend == "hooked":
            raise ValueError(
                "backend='hooked' cannot load folders of saved models; use backend='bridge'"
            )
        sources = {step: LoadedModel(str(path), backend=backend) for step, path in paths.items()}
        return _selected(run_name(name), sources, None)
    values = _config_beside(config, list(paths.values()))
    if values.get("model_name") in (None, *_UNNAMED):  # else every step has the name of its file
        values["model_name"] = run_name(name)
    sources = {
        step: LoadedModel(str(path), config=values, backend=backend) for step, path in paths.items()
    }
    return _selected(run_name(name), sources, None)


def _report_broken(broken: Mapping[int, str], n: int, skip: bool) -> None:
    said = "; ".join(f"step {step}: {why}" for step, why in list(broken.items())[:_MOST_NAMED])
    if len(broken) > _MOST_NAMED:
        said += f"; and {len(broken) - _MOST_NAMED} more"
    if not skip or len(broken) == n:
        advice = "; skip_broken=True goes on without" if len(broken) < n else ""
        raise ValueError(f"source: {len(broken)} of {n} checkpoints are broken. {said}{advice}")
    warnings.warn(
        f"{len(broken)} of {n} checkpoints are broken and left out. {said}",
        CheckpointWarning, stacklevel=5,
    )  # fmt: skip


def _config_beside(config: Any, paths: Sequence[Path]) -> dict[str, Any]:
    """The configuration of files, as it is given or lies beside them."""
    if config is None:
        beside = paths[0].parent / SERIES_CONFIG
        if not beside.is_file():
            raise ValueError(
                f"config must be given for files of weights: a HookedTransformerConfig as a dict, "
                f"as a JSON file or as it is; there is no {SERIES_CONFIG} in {str(beside.parent)!r}"
            )
        config = beside
    values = deepcopy(plain_config(config))
    tokenizer = paths[0].parent / SERIES_TOKENIZER
    if values.get("tokenizer_name") is None and tokenizer.is_dir():
        values["tokenizer_name"] = str(tokenizer)
    return values


def _from_hub(name: str, steps: Any, config: Any, backend: Backend) -> Checkpoints:
    _refuse(config=config)
    if hint := misspelt(name):
        raise ValueError(f"source: there is no model or folder {name!r}{hint}")
    if isinstance(steps, Mapping):
        if backend == "hooked":
            raise ValueError(
                "backend='hooked' loads no revisions of the Hugging Face Hub; use backend='bridge'"
            )
        sources = {
            step: LoadedModel(name, revision=r, backend=backend) for step, r in steps.items()
        }
        return _selected(name, sources, None)
    labels, unit = checkpoint_labels(name)
    run = {step: LoadedModel(name, checkpoint=step, backend=backend) for step in labels}
    return _selected(name, run, steps, unit)


def _selected(
    name: str, sources: Mapping[int, ModelSource], steps: Any, unit: str = "step"
) -> Checkpoints:
    """A run of these sources, or of some of its steps."""
    if isinstance(steps, Mapping):
        raise ValueError(
            f"steps must be a list of steps of {name!r}, not a dict: its checkpoints are known"
        )
    rising = dict(sorted(sources.items()))
    run = Checkpoints(name, tuple(rising), tuple(rising.values()), unit)
    return run if steps is None else run.at(steps)


def _known(name: str, step: int, known: Sequence[int]) -> int:
    if step not in known:
        raise ValueError(
            f"steps: {name!r} has no checkpoint {step} by its file names, which say "
            f"{_listed(sorted(known))}; files of other steps are given as a dict step → file name"
        )
    return step


def _rising(name: str, steps: Iterable[Any]) -> tuple[int, ...]:
    """Steps as plain integers; ValueError unless they are integers from 0 that rise."""
    found = [
        int(s) if isinstance(s, numbers.Integral) and not isinstance(s, bool) else s for s in steps
    ]
    if not found:
        raise ValueError(f"{name} must hold at least one step; got none")
    for place, step in enumerate(found):
        integer(f"{name}[{place}]", step, at_least=0)
    for before, after in itertools.pairwise(found):
        if after <= before:
            what = "repeats" if after == before else f"comes after {before}"
            raise ValueError(f"{name} must rise; {after} {what}: sort them, each once")
    return tuple(found)


def _refuse(**config: Any) -> None:
    for name, value in config.items():
        if value is not None:
            raise ValueError(f"{name} is for files of weights ({', '.join(WEIGHT_FILES)})")


def _listed(steps: Sequence[int]) -> str:
    if len(steps) <= 40:
        return ", ".join(map(str, steps))
    return f"{', '.join(map(str, steps[:20]))}, … {steps[-1]} ({len(steps)})"
