"""Keep checkpoints of a training run: at scheduled steps, and more of them where the loss bends."""

from __future__ import annotations

import json
import os
from bisect import bisect_right
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, get_args

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from lens_slt.arguments import choice, integer, location, typed
from lens_slt.json_files import plain_fields, read_json
from lens_slt.models.checkpoints import SERIES_CONFIG, SERIES_TOKENIZER
from lens_slt.models.own_file import plain_config, without_buffers
from lens_slt.models.shipped_files import step_file
from lens_slt.training.schedule import LossCurve, checkpoint_schedule, least_bend

Precision = Literal["half", "full"]
CANDIDATES = 8  # steps that are tried for every checkpoint that is kept where the loss bends
SCHEDULE, BEND = "schedule", "bend"
_NOT_OF_CONFIG = ("device", "init_weights", "seed", "n_devices")
_NONE_IS_A_CHOICE = ("normalization_type",)  # None is the default of all others that may be None


@dataclass(frozen=True)
class Kept:
    """One checkpoint in the folder."""

    why: str
    loss: tuple[float, float] | None
    """Mean around it and standard error, as far as it was known when it was saved."""
    size: int
    """Bytes."""


class CheckpointSaver:
    """A callback of a training loop that saves its model at scheduled steps, and where loss bends.

    Call it before every update, with the loss of the batch at these weights, and once after the
    last. A checkpoint of the schedule is saved at the first call at or after its step, and stays.
    Beyond them ``extra`` steps are kept where the loss bends: candidates, eight times as many and
    spaced evenly in log(step), are saved as they come, and when there are more than ``extra`` the
    one goes without which the loss curve, drawn through what is kept, changes least: its triangle
    with its neighbours, in nats × decades of steps, beyond two standard errors of the loss around
    it, is the smallest. So the choice is made with the loss after a step known, and on a curve
    without bends they end evenly spaced. ``saver.kept`` and every file's metadata say why it is
    there.

    Files are ``step-000100.safetensors``, each written under another name first, so that no kill
    leaves half of one. The configuration (``model-config.json``) and the tokenizer lie beside them,
    and ``lens_slt.checkpoints(folder)`` reads all. A saver on a folder that holds some goes on with
    them; steps after the one from which training goes on are written again.

    Args:
        folder: made if it is not there.
        schedule: steps that rise, such as those of :func:`checkpoint_schedule`; the last is the
            last of the run.
        extra: how many checkpoints more where the loss bends; 0 for none.
        precision: ``half`` saves float16 (float32 where a tensor has values that float16 has not),
            ``full`` saves tensors as they are.
        most_bytes: of all files together. The schedule has to fit; extra checkpoints go if not.
        config: as for :func:`lens_slt.load_model`, where the model has none (a state dict).

    Raises ValueError for a schedule that falls or repeats, at the first call where ``most_bytes``
    is too little for the schedule, for steps that do not rise, and for a folder of another model.

    Example:
        >>> import lens_slt as ls, tempfile
        >>> model = ls.load_model("attn-1l")
        >>> folder = tempfile.mkdtemp() + "/run"
        >>> saver = ls.CheckpointSaver(folder, ls.checkpoint_schedule(20, n=4), extra=2)
        >>> for step in range(21):
        ...     path = saver(step, model, loss=6.0 / (1 + step))  # then update the model
        >>> ls.checkpoints(folder).steps == tuple(saver.kept) and len(saver.kept)
        6
    """

    @typed
    def __init__(
        self,
        folder: str | Path,
        schedule: Sequence[int],
        *,
        extra: int = 16,
        precision: Precision = "half",
        most_bytes: int | None = None,
        config: Any = None,
    ) -> None:
        integer("extra", extra, at_least=0)
        choice("precision", precision, get_args(Precision))
        if most_bytes is not None:
            integer("most_bytes", most_bytes, at_least=1)
        self.folder = location("folder", folder)
        self.schedule = _checked_schedule(schedule)
        self.extra, self.precision, self.most_bytes = extra, precision, most_bytes
        self._config = None if config is None else _plain(plain_config(config))
        self._candidates = _candidates(self.schedule, extra)
        self._curve = LossCurve()
        self._last = -1
        self.folder.mkdir(parents=True, exist_ok=True)
        self._kept = _kept_before(self.folder)

    @property
    def kept(self) -> dict[int, str]:
        """The steps in the folder and why each is there: "schedule" or "bend"."""
        return {step: one.why for step, one in sorted(self._kept.items())}

    def __call__(
        self, step: int, model: nn.Module | Mapping[str, Tensor], loss: Any = None
    ) -> Path | None:
        """Look at a step, and save the model or state dict if it is one to keep.

        ``loss`` is of the batch at these weights, in nats; without any, only the schedule is kept.
        Returns the file that was written, if one was.
        """
        integer("step", step, at_least=self._last + 1, note="steps rise from call to call")
        before, self._last = self._last, step
        if loss is not None:
            self._curve.add(step, float(loss.detach() if isinstance(loss, Tensor) else loss))
        if _due(self.schedule, before, step):
            why = SCHEDULE
        elif loss is not None and _due(self._candidates, before, step):
            why = BEND
        else:
            return None
        path = self._save(step, model, why)
        self._thin()
        return path if step in self._kept else None

    def __repr__(self) -> str:
        bends = [step for step, why in self.kept.items() if why == BEND]
        where = f" (steps {bends[0]} to {bends[-1]})" if bends else ""
        size = sum(one.size for one in self._kept.values()) / 1e6
        return (
            f"<CheckpointSaver {str(self.folder)!r}: {len(self._kept) - len(bends)} by schedule, "
            f"{len(bends)} where the loss bends{where}, {size:.3g} MB>"
        )

    def _save(self, step: int, model: nn.Module | Mapping[str, Tensor], why: str) -> Path:
        self._write_config(model)
        loss = self._curve.at(step)
        noted = {"step": str(step), "why": why, "loss": json.dumps(loss)}
        path = step_file(self.folder, step)
        save_weights(saved_weights(model), path, self.precision, noted)
        self._kept[step] = Kept(why, loss, path.stat().st_size)
        needed = self._kept[step].size * len(self.schedule)
        if self.most_bytes is not None and needed > self.most_bytes:
            path.unlink()
            del self._kept[step]
            raise ValueError(
                f"most_bytes: the {len(self.schedule)} steps of the schedule need {needed} bytes; "
                f"got {self.most_bytes}. Schedule fewer, allow more"
                + (', or save precision="half"' if self.precision == "full" else "")
            )
        return path

    def _write_config(self, model: Any) -> None:
        """Once, beside the files; ValueError where there is one of another model."""
        config = self._config or _config_of(model)
        if config is None:
            return
        path = self.folder / SERIES_CONFIG
        if path.is_file():
            if (there := read_json(path)) != config:
                apart = [key for key in {**there, **config} if there.get(key) != config.get(key)]
                raise ValueError(
                    f"folder: {str(self.folder)!r} holds checkpoints of another model "
                    f"({', '.join(apart[:4])} differ); give a new folder"
                )
            return
        tokenizer = getattr(_unwrapped(model), "tokenizer", None)
        if tokenizer is not None:
            tokenizer.save_pretrained(self.folder / SERIES_TOKENIZER)
        hidden = path.with_suffix(".tmp")
        hidden.write_text(json.dumps(config, indent=1), "utf-8")
        os.replace(hidden, path)

    def _thin(self) -> None:
        """Remove what is too much, of the checkpoints that are there for bends."""
        while (bends := [s for s, one in self._kept.items() if one.why == BEND]) and (
            len(bends) > self.extra or self._too_large()
        ):
            steps = sorted(self._kept)
            loss = {step: self._curve.at(step) or one.loss for step, one in self._kept.items()}
            gone = least_bend(steps, bends, loss)
            gone = bends[-1] if gone is None else gone
            step_file(self.folder, gone).unlink(missing_ok=True)
            del self._kept[gone]

    def _too_large(self) -> bool:
        """Whether what is there, and what of the schedule is to come, is more than allowed."""
        if self.most_bytes is None:
            return False
        sizes = [one.size for one in self._kept.values()]
        to_come = len(self.schedule) - bisect_right(self.schedule, self._last)
        return sum(sizes) + to_come * max(sizes) > self.most_bytes


def save_weights(
    weights: Mapping[str, Tensor], path: Path, precision: Precision = "half",
    noted: Mapping[str, str] | None = None,
) -> None:  # fmt: skip
    """Write tensors as safetensors, whole or not at all.

    In half precision a tensor with values beyond float16 stays as it is.
    """
    tensors = {name: _stored(tensor.detach(), precision) for name, tensor in weights.items()}
    hidden = path.with_name(f".{path.name}.tmp")
    try:
        save_file(tensors, hidden, None if noted is None else dict(noted))
        os.replace(hidden, path)
    finally:
        hidden.unlink(missing_ok=True)


def _stored(tensor: Tensor, precision: Precision) -> Tensor:
    if precision == "half" and tensor.is_floating_point():
        half = tensor.half()
        if torch.equal(half.isfinite(), tensor.isfinite()):
            return half.cpu().contiguous().clone()
    return tensor.cpu().contiguous().clone()  # shared tensors cannot be saved


def saved_weights(model: nn.Module | Mapping[str, Tensor]) -> dict[str, Tensor]:
    """What is saved of a model; TypeError or ValueError where no checkpoint can be made of it."""
    if isinstance(model, nn.Module):
        inner = _unwrapped(model)
        wrapped = getattr(inner, "original_model", None)
        for one in (inner, wrapped):
            if any(base.__name__ == "PreTrainedModel" for base in type(one).__mro__):
                raise ValueError(
                    "model: it is, or wraps, a Hugging Face model, whose weights have other names; "
                    'save that with save_pretrained(f"{folder}/checkpoint-{step}"), which '
                    "lens_slt.checkpoints(folder) reads, too"
                )
        model = inner.state_dict()
    given = dict(model) if isinstance(model, Mapping) else {}
    tensors = {key: value for key, value in given.items() if isinstance(value, Tensor)}
    if not tensors:
        raise TypeError(f"model must be a model or a state dict; got {type(model).__name__}")
    return without_buffers(tensors)


def _unwrapped(model: Any) -> Any:
    """The model within what ``torch.compile`` and parallel training put around it."""
    for name in ("module", "_orig_mod"):
        model = getattr(model, name, model)
    return model


def _config_of(model: Any) -> dict[str, Any] | None:
    config = getattr(_unwrapped(model), "cfg", None)
    return None if config is None else _plain(plain_config(config))


def _plain(values: Mapping[str, Any]) -> dict[str, Any]:
    """The entries of a configuration that JSON can hold and that decide what is computed."""
    found = {}
    for key, value in values.items():
        if key in _NOT_OF_CONFIG or (value is None and key not in _NONE_IS_A_CHOICE):
            continue
        value = str(value) if isinstance(value, torch.dtype) else value
        value = value.item() if hasattr(value, "item") else value  # NumPy's numbers
        found[key] = value
    return plain_fields(found)


def _checked_schedule(schedule: Sequence[int]) -> list[int]:
    steps = list(schedule)
    if not steps:
        raise ValueError("schedule must hold at least one step; got none")
    last = -1
    for place, step in enumerate(steps):
        integer(f"schedule[{place}]", step, at_least=last + 1, note="steps rise")
        last = step
    return steps


def _candidates(schedule: list[int], extra: int) -> list[int]:
    """Steps that are tried, evenly in log(step), beside those of the schedule."""
    last = schedule[-1]
    if extra == 0 or last == 0:
        return []
    tried = checkpoint_schedule(last, n=min(last + 1, CANDIDATES * extra + 2), spacing="log")
    return sorted(set(tried) - set(schedule))


def _due(steps: list[int], before: int, step: int) -> bool:
    """Whether one of the steps lies after ``before`` and not after ``step``."""
    return bisect_right(steps, step) > bisect_right(steps, before)


def _kept_before(folder: Path) -> dict[int, Kept]:
    """The checkpoints that a saver has left in a folder."""
    found: dict[int, Kept] = {}
    for path in sorted(folder.glob("step-*.safetensors")):
        try:
            with safe_open(path, framework="pt") as file:
                noted = file.metadata() or {}
            step, loss = int(noted["step"]), json.loads(noted["loss"])
        except (SafetensorError, KeyError, ValueError) as error:
            raise ValueError(
                f"folder: {str(path)!r} is no checkpoint of this class ({error}); remove it or "
                "give another folder"
            ) from error
        found[step] = Kept(noted["why"], None if loss is None else tuple(loss), path.stat().st_size)
    return found
