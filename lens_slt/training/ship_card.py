"""Model card and training curve of the shipped models, from what their training runs recorded."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import xarray as xr

from lens_slt.circuits.hypothesis import THROUGH
from lens_slt.training.ship_circuits import SITUATIONS, Circuits, Effect, Stage

WIDTH, HEIGHT = 760, 420
LEFT, RIGHT, TOP, BOTTOM = 56, 190, 28, 48
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00")
LEAST_SCORE = 0.2  # of a head that is listed
MOST_ROWS = 12  # of a table of effects


@dataclass(frozen=True)
class Trained:
    """One trained model: how it was trained and what it has become."""

    name: str
    recipe: dict[str, Any]
    curve: list[dict[str, float]]
    parameters: int
    first: float  # loss on the first half of random tokens said twice
    second: float  # loss on the second half
    transition: int | None  # step at which induction formed
    scores: xr.Dataset  # of behaviour_scores
    circuits: Circuits | None
    stages: list[Stage]  # of the checkpoints


def training_figure(models: list[Trained]) -> str:
    """Training curves as an SVG drawing."""
    last = max(point["step"] for model in models for point in model.curve)
    top = math.ceil(max(max(p["first"], p["loss"]) for model in models for p in model.curve))
    plot_width, plot_height = WIDTH - LEFT - RIGHT, HEIGHT - TOP - BOTTOM

    def x(step: float) -> float:
        return LEFT + plot_width * step / max(last, 1)

    def y(loss: float) -> float:
        return TOP + plot_height * (1 - loss / top)

    def line(model: Trained, key: str, style: str) -> str:
        points = " ".join(f"{x(p['step']):.1f},{y(p[key]):.1f}" for p in model.curve)
        return f'<polyline fill="none" {style} points="{points}"/>'

    parts = [_axes(x, y, last, top)]
    labels = []
    for model, colour in zip(models, COLOURS, strict=False):
        parts.append(line(model, "second", f'stroke="{colour}" stroke-width="1.6"'))
        labels.append((f"{model.name}, second half", colour, ""))
    main = models[0]
    parts.append(line(main, "first", 'stroke="#555" stroke-dasharray="5 3"'))
    parts.append(line(main, "loss", 'stroke="#555"'))
    labels += [
        (f"{main.name}, first half", "#555", "5 3"),
        (f"{main.name}, training loss", "#555", ""),
    ]
    for model, colour in zip(models, COLOURS, strict=False):
        for stage in model.stages:
            tick = f"M{x(stage.step):.1f} {y(0):.1f}v-7"
            parts.append(f'<path d="{tick}" stroke="{colour}" stroke-width="0.8"/>')
    for row, (text, colour, dash) in enumerate(labels):
        height, start = TOP + 14 + 18 * row, WIDTH - RIGHT + 12
        parts.append(
            f'<path d="M{start} {height}h18" stroke="{colour}" stroke-dasharray="{dash}" '
            f'stroke-width="1.6"/><text x="{start + 24}" y="{height + 4}">{text}</text>'
        )
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" '
        f'font-family="sans-serif" font-size="11">\n<rect width="100%" height="100%" '
        f'fill="#fff"/>\n' + "\n".join(parts) + "\n</svg>\n"
    )


def _axes(x: Callable[[float], float], y: Callable[[float], float], last: float, top: int) -> str:
    parts = [f'<path d="M{x(0)} {y(top)}V{y(0)}H{x(last)}" stroke="#000" fill="none"/>']
    for loss in range(top + 1):
        parts.append(f'<text x="{x(0) - 8}" y="{y(loss) + 4:.1f}" text-anchor="end">{loss}</text>')
    spacing = 2000 if last > 4000 else 500
    for step in range(0, int(last) + 1, spacing):
        parts.append(f'<text x="{x(step):.1f}" y="{y(0) + 16}" text-anchor="middle">{step}</text>')
    middle = (x(0) + x(last)) / 2
    parts.append(f'<text x="{middle:.1f}" y="{HEIGHT - 10}" text-anchor="middle">step</text>')
    parts.append(
        f'<text x="{LEFT}" y="16">loss in nats; halves are those of random tokens said twice; '
        "ticks: kept checkpoints</text>"
    )
    return "\n".join(parts)


def model_card(models: list[Trained], size: int) -> str:
    """The model card in Markdown; ``size`` in bytes."""
    return f"{_what_they_are(models)}{_what_they_do(models)}{_how_made(models[0].recipe, size)}"


def _what_they_are(models: list[Trained]) -> str:
    return f"""# The shipped models

Small transformers that come with lens_slt, so that everything works without a network.
`{models[0].name}` is the default: two layers of attention with an induction circuit. `gelu-4l` has
all that a usual language model has: four layers, MLPs, biases, learned positions.

| model | layers | seed | parameters | steps | loss | first half | second half | induction at |
|---|---|---|---|---|---|---|---|---|
{_lines(map(_row, models))}

`loss` is the running mean of the training loss, in nats per token. `first half` and `second half`
are the losses on random tokens said twice; `induction at` is the step from which the second half
costs more than 2 nats less than the first.

![training curves](training-curve.svg)

## Architecture

`attn-…`: attention-only, d_model 128, 8 heads a layer of 16 dimensions, rotary positions (adjacent
pairs), LayerNorm without parameters, no biases. `gelu-4l`: d_model 96, 6 heads a layer of 16
dimensions, MLPs of 384 neurons with GELU (exact), learned positions, LayerNorm with weights and
biases, biases everywhere but in the unembedding. All: context 128 tokens, vocabulary 512, embedding
and unembedding not tied. The same weights give the same logits as a HookedTransformer and as a
native TransformerBridge.

"""


def _what_they_do(models: list[Trained]) -> str:
    return f"""## Heads

Of `behaviour_scores`. Previous-token score: share of attention on the token before.
Prefix-matching score: share, in the second half of random tokens said twice, on the token that
followed the earlier copy. Heads where neither reaches {LEAST_SCORE} are left out.

| model | head | previous token | prefix matching |
|---|---|---|---|
{_lines(row for model in models for row in _head_rows(model))}

## Circuits, by intervention

By how much the loss rises, in nats, where the output of a head or MLP is replaced by its mean at
every position; ± is the standard error over sequences. Repeats: the second half of random tokens
said twice. Induction in text: tokens of Python and its documentation that repeat an earlier part of
their sequence. Paths are direct ones, from what a head writes to the Q, K or V of another; what
passes through MLPs or heads in between stays.

{_lines(_circuits(model.name, model.circuits) for model in models if model.circuits)}
## Transitions

Of the checkpoints: loss on text, and on both halves of random tokens said twice; the heads with the
largest previous-token and prefix-matching scores.

{_lines(_stages(model) for model in models if model.stages)}
"""


def _how_made(recipe: dict[str, Any], size: int) -> str:
    return f"""## Data

The source of Python's standard library ({recipe["code_share"]:.0%}) and its documentation (the
language reference and the long docstrings), as installed with Python. The tokenizer is a byte-level
BPE of 512 entries trained on the same text. No part was held out. Of every batch
{recipe["repeat_share"]:.1%} are segments of {recipe["shortest_period"]} to
{recipe["longest_period"]} tokens repeated to the end of the context, half of them random tokens.

## Recipe

`python -m lens_slt.training.train`: AdamW, learning rate {recipe["learning_rate"]}, betas
{recipe["betas"][0]} and {recipe["betas"][1]}, weight decay {recipe["weight_decay"]}, batch
{recipe["batch"]} × {recipe["length"]} tokens, warm-up {recipe["warmup"]} steps,
{recipe["settle"]} steps at the full rate after induction has formed (at most
{recipe["most_steps"]} steps in all), then {recipe["decay"]} steps of linear decay. Every model's
`training.json` holds its recipe and its whole curve.

## Files

Half precision, {size / 1e6:.1f} MB in all.

## Limits

Made to study: they know a vocabulary of 512 and one kind of text, and the repeats were made to grow
induction, so how early and how strongly it grew says nothing about natural text. They
are not of use as language models.

## Licence

MIT, as the rest of lens_slt. The training text is Python's own, under the PSF licence.
"""


def _lines(rows: Iterable[str]) -> str:
    return "\n".join(rows)


def _row(model: Trained) -> str:
    end = model.curve[-1]
    cells = (
        f"`{model.name}`", model.recipe["n_layers"], model.recipe["seed"], model.parameters,
        int(end["step"]), f"{end['loss']:.3f}", f"{model.first:.2f}", f"{model.second:.2f}",
        "never" if model.transition is None else f"step {model.transition}",
    )  # fmt: skip
    return _cells(cells)


def _cells(cells: Iterable[Any]) -> str:
    return f"| {' | '.join(map(str, cells))} |"


def _head_rows(model: Trained) -> list[str]:
    columns = [model.scores[name].values for name in ("previous_token", "prefix_matching")]
    return [
        _cells((f"`{model.name}`", head, f"{previous:.2f}", f"{prefix:.2f}"))
        for head, previous, prefix in zip(model.scores["component"].values, *columns, strict=True)
        if max(previous, prefix) >= LEAST_SCORE
    ]


def _circuits(name: str, found: Circuits) -> str:
    """Tables of the components and of the paths that matter most."""
    rows = [
        (component, found.head_types.get(component, "MLP"), *effects.values())
        for component, effects in _ranked(found.components)
    ]
    if found.induction_heads is not None:
        rows.append(("all induction heads", "induction", *found.induction_heads.values()))
    parts = [f"### `{name}`", "", "The components with the largest effects."]
    parts += _table(("component", "type", *SITUATIONS), rows)
    if found.edges:
        parts.append("The paths into induction heads with the largest effects, on repeats.")
        parts += _table(
            ("path", "source", "effect"),
            [
                (edge, found.head_types[edge.source], effect)
                for edge, effect in list(found.edges.items())[:MOST_ROWS]
            ],
        )
        parts.append("All paths from one head into the later induction heads at once, on repeats.")
        parts += _table(
            ("source", "type", *THROUGH),
            [
                (source, found.head_types[source], *effects.values())
                for source, effects in _ranked(found.together)
            ],
        )
    return _lines(parts)


def _table(head: Sequence[str], rows: Iterable[Iterable[Any]]) -> list[str]:
    return ["", _cells(head), "|" + "---|" * len(head), *map(_cells, rows), ""]


def _ranked(found: dict[str, dict[str, Effect]]) -> list[tuple[str, dict[str, Effect]]]:
    """The names with the largest effect in any column."""
    largest = {name: max(one.mean for one in effects.values()) for name, effects in found.items()}
    return sorted(found.items(), key=lambda item: -largest[item[0]])[:MOST_ROWS]


def _stages(model: Trained) -> str:
    heads = ("previous token", "prefix matching")
    table = _table(
        ("step", "text", "first half", "second half", *heads), map(_stage_row, model.stages)
    )
    return _lines([f"### `{model.name}`", *table])


def _stage_row(stage: Stage) -> list[str]:
    losses = (f"{loss:.2f}" for loss in (stage.text, stage.first, stage.second))
    heads = (f"{head} {score:.2f}" for head, score in (stage.previous, stage.prefix))
    return [str(stage.step), *losses, *heads]
