"""Put trained weights into the package: ``python -m lens_slt.training.ship --runs runs``.

Reads the folders that :mod:`lens_slt.training.train` wrote, copies the final weights of every model
and checkpoints of some, and writes the model card with the training curves and what ablations say.
"""

from __future__ import annotations

import argparse
import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import torch

from lens_slt.circuits.behaviour import behaviour_scores
from lens_slt.models.shipped import architecture_of, build_model, read_weights
from lens_slt.models.shipped_files import ALIASES, SHIPPED, SHIPPED_FOLDER, step_files
from lens_slt.training.ship_card import Trained, model_card, training_figure
from lens_slt.training.ship_circuits import SEQUENCES, circuits, stage
from lens_slt.training.train import TRANSITION, repeat_losses

WITH_CHECKPOINTS = {"attn-2l": 32, "gelu-4l": 22}  # at most so many
TRAINING, CARD, FIGURE = "training.json", "MODEL_CARD.md", "training-curve.svg"
MOST_BYTES = 45 * 10**6


def transition_step(curve: list[dict[str, float]]) -> int | None:
    """First step at which the second half of a repeat costs two nats less than the first."""
    for point in curve:
        if point["first"] - point["second"] > TRANSITION:
            return int(point["step"])
    return None


def choose_checkpoints(steps: list[int], curve: list[dict[str, float]], most: int) -> list[int]:
    """The first, the last, and between them those that leave the smallest gaps in what happens.

    That is measured in decades of steps, plus nats by which the training loss and the loss of
    repeated tokens have fallen: steps are log-spaced where little happens and dense in transitions.
    """
    if not steps:
        return []
    at = [point["step"] for point in curve]
    happened = np.log10(1 + np.array(steps, dtype=float))
    for loss in ("loss", "second"):
        lowest = np.minimum.accumulate([point[loss] for point in curve])
        happened -= np.interp(steps, at, lowest)
    place = dict(zip(steps, happened, strict=True))
    chosen = {min(steps), max(steps)}
    while len(chosen) < min(most, len(steps)):
        left = [step for step in steps if step not in chosen]
        chosen.add(max(left, key=lambda step: min(abs(place[step] - place[c]) for c in chosen)))
    return sorted(chosen)


def ship(runs: Path, target: Path = SHIPPED_FOLDER) -> list[str]:
    """Copy what the training runs hold into ``target``; returns the names that were skipped."""
    skipped = []
    for name in SHIPPED:
        path = _weights_file(name, target)
        folder, run = path.with_suffix(""), runs / path.stem
        checkpoints = step_files(run)
        if not checkpoints or not (run / TRAINING).is_file():
            print(f"{name}: skipped, {run} holds no training run")
            skipped.append(name)
            continue
        training = json.loads((run / TRAINING).read_text(encoding="utf-8"))
        last = max(checkpoints)
        if not is_finished(training, last):
            print(f"{name}: the run has not ended; its latest weights are taken")
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        shutil.copyfile(checkpoints[last], path)
        (folder / TRAINING).write_text(json.dumps(training), encoding="utf-8")
        if name in WITH_CHECKPOINTS:
            most = WITH_CHECKPOINTS[name]
            for step in choose_checkpoints(list(checkpoints), training["curve"], most):
                shutil.copyfile(checkpoints[step], folder / checkpoints[step].name)
        print(f"{name}: weights of step {last}, {len(step_files(folder))} checkpoints")
    return skipped


def is_finished(training: dict[str, Any], last: int) -> bool:
    """Whether ``last`` is the step at which this run had to end."""
    recipe, formed = training["recipe"], transition_step(training["curve"])
    end = recipe["most_steps"]
    if formed is not None:
        end = min(end, formed + recipe["settle"] + recipe["decay"])
    return last == end


def write_card(target: Path = SHIPPED_FOLDER, sequences: int = SEQUENCES) -> None:
    """Write the model card and the training curves of the models that ``target`` holds."""
    models = [
        _describe(name, target, sequences)
        for name in SHIPPED
        if _weights_file(name, target).is_file()
    ]
    (target / FIGURE).write_text(training_figure(models), encoding="utf-8")
    (target / CARD).write_text(model_card(models, _size(target)), encoding="utf-8")


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--runs", type=Path, required=True)
    ship(parser.parse_args().runs)
    write_card()
    size = _size(SHIPPED_FOLDER)
    print(f"{SHIPPED_FOLDER}: {size / 1e6:.1f} MB")
    if size > MOST_BYTES:
        raise SystemExit(f"more than {MOST_BYTES / 1e6:.0f} MB: keep fewer checkpoints")


def _describe(name: str, target: Path, sequences: int) -> Trained:
    path = _weights_file(name, target)
    folder = path.with_suffix("")
    training = json.loads((folder / TRAINING).read_text(encoding="utf-8"))
    weights, checkpoints = read_weights(path), sorted(step_files(folder).items())
    model = build_model(weights, name, "auto", torch.device("cpu"))
    first, second = repeat_losses(architecture_of(weights), weights, model.cfg.n_ctx)
    return Trained(
        name=name, recipe=training["recipe"], curve=training["curve"],
        parameters=sum(tensor.numel() for tensor in weights.values()), first=first, second=second,
        transition=transition_step(training["curve"]), scores=behaviour_scores(model),
        circuits=circuits(model, sequences) if name in WITH_CHECKPOINTS else None,
        stages=[stage(step, read_weights(file), sequences) for step, file in checkpoints],
    )  # fmt: skip


def _weights_file(name: str, target: Path) -> Path:
    return target / f"{ALIASES.get(name, name)}.safetensors"


def _size(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


if __name__ == "__main__":
    main()
