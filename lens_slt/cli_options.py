"""Options that several commands of ``lens-slt`` take: their type and their help."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

Model = Annotated[
    str,
    typer.Option(
        "--model", help="A shipped model, a folder, a file of weights, or a TransformerLens name."
    ),
]
Config = Annotated[
    Path | None, typer.Option(help="JSON of the HookedTransformerConfig of a file of weights.")
]
Checkpoint = Annotated[int | None, typer.Option(help="Training step of the weights.")]
Data = Annotated[
    str,
    typer.Option("--data", help="code, prose, mix, a text file, a token array, or hf:NAME."),
]
Components = Annotated[str, typer.Option(help="Such as heads, layers, full, or L0H1,L1H3.")]
Out = Annotated[
    Path,
    typer.Option(
        "--out",
        help="Folder for results; a run continues from it.",
        callback=lambda path: path.expanduser(),
    ),
]
Sequences = Annotated[int | None, typer.Option(help="How many; 256 by default, arrays whole.")]
Length = Annotated[int | None, typer.Option(help="Tokens per sequence.")]
Bos = Annotated[bool, typer.Option(help="Begin sequences of text with a BOS token.")]
PadId = Annotated[int | None, typer.Option(help="Padding token at either end; -1: no padding.")]
Positions = Annotated[
    str | None,
    typer.Option(
        help="Predicted tokens of --data that count: last, a file of weights or of a mask, or a "
        "column of an hf: data set with token ids."
    ),
]
Device = Annotated[str | None, typer.Option(help="cpu, cuda, …; the model's by default.")]
Json = Annotated[bool, typer.Option("--json", help="One JSON object on standard output.")]
DryRun = Annotated[
    bool, typer.Option("--dry-run", help="Say how long it takes and what it needs; write nothing.")
]
Seed = Annotated[int | None, typer.Option(help="Everything random follows from it.")]
Chains = Annotated[int | None, typer.Option(help="Chains per component.")]
Draws = Annotated[
    int | None, typer.Option(help="Draws per chain; by default 200, more where λ̂ needs them.")
]
TargetSe = Annotated[
    float | None,
    typer.Option("--target-se", help="Stop every component at this relative error of λ̂: 0.03."),
]
BatchSize = Annotated[int | None, typer.Option(help="Sequences per minibatch.")]
Sampler = Annotated[str | None, typer.Option(help="lm, sgld, rmsprop_sgld, pcn or importance.")]
