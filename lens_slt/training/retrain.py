"""Train a checkpoint further on data of one's own choice, to see what that choice does."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from copy import deepcopy
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from lens_slt.arguments import integer, location, number, typed
from lens_slt.arrays import FloatArray
from lens_slt.data.weights import weighted_tokens
from lens_slt.json_files import read_json
from lens_slt.models.adapter import AdaptedModel, adapt, model_logits, trainable, weights_hash
from lens_slt.models.checkpoints import Checkpoints, checkpoints
from lens_slt.models.shipped_files import step_file
from lens_slt.progress import track
from lens_slt.sampling.folder import occupy
from lens_slt.sampling.randomness import derived_generator
from lens_slt.torch_state import plain_torch
from lens_slt.training.saver import CheckpointSaver, saved_weights

DESCRIPTION, STATE = "retraining.json", "retraining.pt"

Trainer = Callable[[Any, Iterator[Tensor], Callable[[int, Any], Any]], Any]


@dataclass(frozen=True)
class Optimisation:
    """AdamW with a linear warm-up, of the shipped models' recipe; optimiser states begin at zero.

    Attributes:
        batch_size: sequences.
        warmup: steps over which the learning rate rises.

    Example:
        >>> import lens_slt as ls
        >>> ls.Optimisation(learning_rate=3e-4).warmup
        50
    """

    batch_size: int = 32
    learning_rate: float = 1e-3
    betas: tuple[float, float] = (0.9, 0.98)
    weight_decay: float = 0.01
    warmup: int = 50

    def __post_init__(self) -> None:
        integer("batch_size", self.batch_size, at_least=1)
        integer("warmup", self.warmup, at_least=0)
        number("learning_rate", self.learning_rate, above=0)
        number("weight_decay", self.weight_decay, at_least=0)


@typed
@plain_torch
def retrain(
    model: Any,
    tokens: Any,
    weights: Any = None,
    *,
    steps: int,
    path: str | Path,
    start: int = 0,
    save_at: Sequence[int] | None = None,
    optimisation: Optimisation = Optimisation(),
    trainer: Trainer | None = None,
    pad_id: int | None = None,
    seed: int = 0,
    progress: bool = True,
) -> Checkpoints:
    """Train a copy of a model further, on sequences drawn with given weights.

    Two runs with one seed and other weights share their randomness: a place in a batch holds the
    same sequence in both unless their weights say otherwise. So what differs between them is due
    to the weights, not to the order of the data.

    Args:
        model: HookedTransformer or TransformerBridge; it comes back as it was. A wrapped Hugging
            Face model is refused: its own Trainer keeps checkpoints.
        tokens: the data, ``[sequence, position]``.
        weights: how often each sequence is drawn, ``[sequence]``, at least 0; the scale does not
            matter. A mapping from steps of the run to weights changes them from that step on:
            ``{0: usual, 500: without_repeats, 1000: usual}``. None: all alike.
        steps: updates.
        path: folder for the checkpoints, in full precision. A run that was interrupted goes on from
            the last one; a finished one is read.
        start: the step of ``model``, from which checkpoints count.
        save_at: steps to save, counted as the checkpoints are; ``start`` and the last always are.
            None: 16 of them, evenly.
        optimisation: of the plain loop.
        trainer: a training loop of your own, ``trainer(model, batches, save)``: ``batches`` gives
            tokens ``[sequence, position]`` for every update, ``save(step, model)``, called before
            each update and after the last with steps from 0, keeps checkpoints. It trains ``model``
            in place, and begins anew where it was interrupted. A run in the folder is known by the
            trainer's name, not by what it does.
        pad_id: the padding token; it does not count in the loss.
        seed: of the batches.
        progress: show a bar with the time left.

    Returns:
        :func:`lens_slt.checkpoints` of the folder, for :func:`lens_slt.develop`.

    Raises:
        ValueError, TypeError: anything wrong with the arguments, before training; a folder with
            another run.
        FloatingPointError: the loss is no number any more.

    Example:
        >>> import lens_slt as ls, tempfile
        >>> model = ls.load_model("attn-1l")
        >>> tokens = ls.load_tokens("code", n_sequences=8, length=16)
        >>> run = ls.retrain(model, tokens, steps=2, path=tempfile.mkdtemp(), progress=False)
        >>> run.steps
        (0, 1, 2)
    """
    folder = location("path", path)
    ids, token_weight, windows, saved, about = prepare_retraining(
        model, tokens, weights, steps=steps, path=folder, start=start, save_at=save_at,
        optimisation=optimisation, trainer=trainer, pad_id=pad_id, seed=seed,
    )  # fmt: skip
    adapted = adapt(deepcopy(model))
    draws = _Draws(windows, optimisation.batch_size, seed)
    lock = occupy(folder)
    try:
        check_folder(folder, about)
        note_in_folder(folder, about)
        if not step_file(folder, start + steps).exists():
            saver = CheckpointSaver(folder, saved, extra=0, precision="full")
            if trainer is not None:
                batches = (ids[draws.at(step)] for step in range(steps))
                trainer(adapted.module, batches, lambda at, one: saver(start + at, one))
                _check_saved(folder, start + steps)
            else:
                run = _Loop(adapted, ids, token_weight, draws, optimisation, folder)
                run.go(saver, start, steps, progress)
    finally:
        if lock is not None:
            lock.release()
    return checkpoints(folder)


def prepare_retraining(
    model: Any, tokens: Any, weights: Any, *, steps: int, path: Path, seed: int, start: int = 0,
    save_at: Sequence[int] | None = None, optimisation: Optimisation = Optimisation(),
    trainer: Trainer | None = None, pad_id: int | None = None,
) -> tuple[Tensor, Tensor, dict[int, FloatArray], list[int], dict[str, Any]]:  # fmt: skip
    """Tokens, what counts of them, weights from a step on, steps to save, and a description.

    Refuses what :func:`retrain` does, before any work; writes nothing.
    """
    integer("steps", steps, at_least=1)
    integer("start", start, at_least=0)
    integer("seed", seed, at_least=0)
    adapted = adapt(model)
    saved_weights(adapted.module)  # says which models have none
    ids, token_weight, _ = weighted_tokens(
        tokens, d_vocab=adapted.d_vocab, d_vocab_out=adapted.d_vocab_out, n_ctx=adapted.n_ctx,
        model=model, pad_id=pad_id,
    )  # fmt: skip
    windows = _windows(weights, len(ids), steps)
    saved = _steps_to_save(save_at, start, steps)
    about = _description(adapted, ids, token_weight, windows, saved, optimisation, seed, trainer)
    check_folder(path, about)
    return ids, token_weight, windows, saved, about


class _Loop:
    """The plain loop: it can be interrupted after any checkpoint."""

    def __init__(
        self, adapted: AdaptedModel, ids: Tensor, weight: Tensor, draws: _Draws,
        optimisation: Optimisation, folder: Path,
    ) -> None:  # fmt: skip
        self.adapted, self.ids, self.weight, self.draws = adapted, ids, weight, draws
        self.optimisation, self.file = optimisation, folder / STATE
        parameters = {id(leaf.parameter): leaf.parameter for leaf in adapted.leaves.values()}
        self.parameters = list(parameters.values())
        self.optimizer = torch.optim.AdamW(
            self.parameters, lr=optimisation.learning_rate, betas=optimisation.betas,
            weight_decay=optimisation.weight_decay,
        )  # fmt: skip

    def go(self, saver: CheckpointSaver, start: int, steps: int, progress: bool) -> None:
        first = self._resumed()
        with trainable(self.adapted), track("retraining", steps, progress) as done:
            for step in range(first, steps):
                if saver(start + step, self.adapted.module) is not None:
                    self._keep(step)
                self._update(step)
                done(step + 1)
        saver(start + steps, self.adapted.module)
        self.file.unlink(missing_ok=True)

    def _update(self, step: int) -> None:
        o = self.optimisation
        for group in self.optimizer.param_groups:
            group["lr"] = o.learning_rate * min(1.0, (step + 1) / max(o.warmup, 1))
        rows = self.draws.at(step)
        ids, weight = (x[rows].to(self.adapted.device) for x in (self.ids, self.weight))
        logits = model_logits(self.adapted, ids[:, :-1])
        each = F.cross_entropy(logits.transpose(1, 2), ids[:, 1:], reduction="none")
        loss = (each * weight.to(each)).sum() / weight.to(each).sum()
        if not bool(loss.isfinite()):
            raise FloatingPointError(
                f"the loss is {loss.item()} at update {step}: train with a lower learning_rate "
                f"than {o.learning_rate:g}"
            )
        self.optimizer.zero_grad()
        loss.backward()
        self.optimizer.step()

    def _keep(self, step: int) -> None:
        """The state to go on from, beside the checkpoint of this step."""
        hidden = self.file.with_suffix(".tmp")
        weights = [parameter.detach() for parameter in self.parameters]
        torch.save(
            {"step": step, "weights": weights, "optimizer": self.optimizer.state_dict()}, hidden
        )
        os.replace(hidden, self.file)

    def _resumed(self) -> int:
        if not self.file.exists():
            return 0
        kept = torch.load(self.file, weights_only=True, map_location=self.adapted.device)
        with torch.no_grad():
            for parameter, value in zip(self.parameters, kept["weights"], strict=True):
                parameter.copy_(value)
        self.optimizer.load_state_dict(kept["optimizer"])
        return int(kept["step"])


@dataclass(frozen=True)
class _Draws:
    """Which sequences every batch holds."""

    windows: dict[int, FloatArray]  # weights from a step on
    batch_size: int
    seed: int

    def at(self, step: int) -> Tensor:
        """Places ``[batch]``, each the winner of an exponential race.

        All sequences run with rates that are their weights, and with the same luck for all weights:
        a place changes only where a sequence overtakes because its weight has changed.
        """
        weight = self.windows[max(first for first in self.windows if first <= step)]
        generator = derived_generator("cpu", self.seed, step, "batch")
        luck = torch.empty(self.batch_size, len(weight), dtype=torch.float64)
        return (luck.exponential_(generator=generator) / torch.from_numpy(weight)).argmin(1)


def _windows(weights: Any, n: int, steps: int) -> dict[int, FloatArray]:
    given = weights if isinstance(weights, Mapping) else {0: weights}
    found: dict[int, FloatArray] = {}
    for first, one in given.items():
        name = f"weights[{first!r}]" if isinstance(weights, Mapping) else "weights"
        integer("a key of weights", first, at_least=0, at_most=steps - 1)
        value = np.ones(n) if one is None else np.asarray(one, dtype=np.float64)
        if value.shape != (n,) or not np.isfinite(value).all() or (value < 0).any():
            raise ValueError(
                f"{name} must hold {n} finite numbers ≥ 0, one for every sequence; got shape "
                f"{value.shape}" + (f", from {np.nanmin(value):g}" if value.size else "")
            )
        if not value.any():
            raise ValueError(f"{name} leaves no sequence: at least one must be above 0")
        found[int(first)] = value
    if 0 not in found:
        raise ValueError(f"weights must say what holds from step 0; it begins at {min(found)}")
    return found


def _steps_to_save(save_at: Sequence[int] | None, start: int, steps: int) -> list[int]:
    last = start + steps
    if save_at is None:
        save_at = [start + round(i * steps / 15) for i in range(16)]
    for i, step in enumerate(save_at):
        integer(f"save_at[{i}]", step, at_least=start, at_most=last)
    return sorted({start, *save_at, last})


def _description(
    adapted: AdaptedModel, ids: Tensor, weight: Tensor, windows: dict[int, FloatArray],
    saved: list[int], optimisation: Optimisation, seed: int, trainer: Any,
) -> dict[str, Any]:  # fmt: skip
    """What makes two retrainings the same."""
    digest = hashlib.sha256(ids.contiguous().numpy().tobytes())
    digest.update(weight.contiguous().numpy().tobytes())
    weights = hashlib.sha256()
    for first, value in sorted(windows.items()):
        weights.update(f"{first}".encode() + value.tobytes())
    return {
        "model": weights_hash(adapted), "tokens": digest.hexdigest(),
        "weights": weights.hexdigest(), "saved": saved, "seed": seed,
        "optimisation": json.loads(json.dumps(asdict(optimisation))),
        "trainer": "" if trainer is None else getattr(trainer, "__qualname__", repr(trainer)),
    }  # fmt: skip


def check_folder(folder: Path, about: dict[str, Any]) -> None:
    """ValueError where something else runs in the folder."""
    file = folder / DESCRIPTION
    if file.exists():
        there = read_json(file)
        apart = [key for key, value in about.items() if there.get(key) != value]
        if apart:
            raise ValueError(
                f"path: {str(folder)!r} holds another retraining ({', '.join(apart)} differ); use "
                "another path"
            )
        return
    if any(folder.glob("step-*.safetensors")):
        raise ValueError(
            f"path: {str(folder)!r} holds checkpoints of another run; use another path"
        )


def note_in_folder(folder: Path, about: dict[str, Any]) -> None:
    """What runs in it."""
    file = folder / DESCRIPTION
    if file.exists():
        return
    hidden = file.with_suffix(".tmp")
    hidden.write_text(json.dumps(about, indent=1), "utf-8")
    os.replace(hidden, file)


def _check_saved(folder: Path, last: int) -> None:
    if not step_file(folder, last).exists():
        raise ValueError(
            "trainer ended without its last checkpoint: call save(step, model) before every update "
            "and once after the last, with steps from 0"
        )
