"""Put trained weights into the package: ``python -m lens_slt.models.ship --runs runs``.

Reads the folders that :mod:`lens_slt.models.train` wrote, copies the final weights of every model
and checkpoints of the first one, and writes the model card with its training curve.
"""

from __future__ import annotations

import argparse
import json
import math
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from lens_slt.data.tokenizer import BOS_ID
from lens_slt.models.ship_card import Trained, model_card, training_figure
from lens_slt.models.shipped import ALIASES, SHIPPED, SHIPPED_FOLDER, build_model, read_weights
from lens_slt.models.train import repeat_losses, shipped_architecture

WITH_CHECKPOINTS = SHIPPED[0]
TRAINING, CARD, FIGURE = "training.json", "MODEL_CARD.md", "training-curve.svg"
MOST_BYTES = 40 * 10**6
MOST_CHECKPOINTS = 32
PER_DECADE = 4
AROUND_TRANSITION = 600  # steps before and after it that are kept densely
TRANSITION = 2.0  # nats by which the second half of a repeat becomes cheaper


@dataclass(frozen=True)
class HeadScores:
    """Attention of every head ``[layer, head]`` on random tokens said twice."""

    previous: Tensor  # share that goes to the token before
    prefix: Tensor  # share, in the second half, that goes to the token after the earlier copy


def head_scores(model: Any, sequences: int = 16, seed: int = 7) -> HeadScores:
    """Previous-token and prefix-matching scores of every head."""
    half = (model.cfg.n_ctx - 1) // 2
    generator = torch.Generator().manual_seed(seed)
    segment = torch.randint(1, model.cfg.d_vocab, (sequences, half), generator=generator)
    tokens = torch.cat([torch.full((sequences, 1), BOS_ID), segment, segment], dim=1)
    with torch.no_grad():
        _, cache = model.run_with_cache(
            tokens.to(model.cfg.device), names_filter=lambda name: name.endswith("hook_pattern")
        )
    layers = range(model.cfg.n_layers)
    patterns = torch.stack([cache["pattern", layer].mean(0) for layer in layers]).cpu()
    previous = patterns.diagonal(-1, dim1=-2, dim2=-1).mean(-1)
    prefix = patterns.diagonal(1 - half, dim1=-2, dim2=-1)[..., 1:].mean(-1)
    return HeadScores(previous, prefix)


def transition_step(curve: list[dict[str, float]]) -> int | None:
    """First step at which the second half of a repeat costs two nats less than the first."""
    for point in curve:
        if point["first"] - point["second"] > TRANSITION:
            return int(point["step"])
    return None


def choose_checkpoints(steps: list[int], transition: int | None) -> list[int]:
    """Log-spaced steps, the first and the last, and dense ones around the transition."""
    steps = sorted(steps)
    if not steps:
        return []

    def nearest(target: float) -> int:
        return min(steps, key=lambda step: abs(step - target))

    decades = math.log10(max(steps[-1], 1))
    targets = [10 ** (i / PER_DECADE) for i in range(int(decades * PER_DECADE) + 1)]
    spaced = {nearest(target) for target in targets} | {steps[0], steps[-1]}
    if transition is None:
        return sorted(spaced)[-MOST_CHECKPOINTS:]
    near = [step for step in steps if abs(step - transition) <= AROUND_TRANSITION]
    near.sort(key=lambda step: abs(step - transition))
    room = max(0, MOST_CHECKPOINTS - len(spaced))
    return sorted(spaced | set([step for step in near if step not in spaced][:room]))


def ship(runs: Path, target: Path = SHIPPED_FOLDER) -> list[str]:
    """Copy what the training runs hold into ``target``; returns the names that were skipped."""
    skipped = []
    for name in SHIPPED:
        path = _weights_file(name, target)
        folder, run = path.with_suffix(""), runs / path.stem
        checkpoints = _steps(run)
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
        if name == WITH_CHECKPOINTS:
            for step in choose_checkpoints(list(checkpoints), transition_step(training["curve"])):
                shutil.copyfile(checkpoints[step], folder / checkpoints[step].name)
        print(f"{name}: weights of step {last}, {len(_steps(folder))} checkpoints")
    return skipped


def is_finished(training: dict[str, Any], last: int) -> bool:
    """Whether ``last`` is the step at which this run had to end."""
    recipe, formed = training["recipe"], transition_step(training["curve"])
    end = recipe["most_steps"]
    if formed is not None:
        end = min(end, formed + recipe["settle"] + recipe["decay"])
    return last == end


def write_card(target: Path = SHIPPED_FOLDER) -> None:
    """Write the model card and the training curve of the models that ``target`` holds."""
    models = [_describe(name, target) for name in SHIPPED if _weights_file(name, target).is_file()]
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


def _describe(name: str, target: Path) -> Trained:
    path = _weights_file(name, target)
    folder = path.with_suffix("")
    training = json.loads((folder / TRAINING).read_text(encoding="utf-8"))
    weights = read_weights(path)
    model = build_model(weights, name, "auto", torch.device("cpu"))
    arch = shipped_architecture(model.cfg.n_layers)
    first, second = repeat_losses(arch, weights, arch.n_ctx)
    scores = head_scores(model)
    return Trained(
        name=name, recipe=training["recipe"], curve=training["curve"],
        parameters=sum(tensor.numel() for tensor in weights.values()), first=first, second=second,
        transition=transition_step(training["curve"]), checkpoints=sorted(_steps(folder)),
        previous=scores.previous, prefix=scores.prefix,
    )  # fmt: skip


def _weights_file(name: str, target: Path) -> Path:
    return target / f"{ALIASES.get(name, name)}.safetensors"


def _steps(run: Path) -> dict[int, Path]:
    paths = run.glob("step-*.safetensors")
    return {int(path.stem.removeprefix("step-")): path for path in paths}


def _size(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


if __name__ == "__main__":
    main()
