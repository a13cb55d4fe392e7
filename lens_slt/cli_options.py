"""Options that several commands of ``lens-slt`` take: their types, help, completion and groups."""

from __future__ import annotations

import time
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Annotated, Any, ClassVar

import typer

from lens_slt.models.shipped_files import SHIPPED, shipped_checkpoints

# What can be completed; tests hold it against the library, which is not loaded for that.
CORPORA = ("code", "mix", "prose")
COMPONENTS = ("full", "heads", "layers")
PRESETS = ("baker2025", "default", "wang2024")
SAMPLERS = ("importance", "lm", "pcn", "rmsprop_sgld", "sgld")
ESTIMATORS = ("restricted", "two_posterior")
HOWS = ("auto", "mean", "mean_position", "resample", "zero")


def one_of(*words: str) -> Any:
    """The completion of an option whose values are words."""
    return lambda incomplete: [word for word in words if word.startswith(incomplete)]


def steps_of_model(ctx: typer.Context, incomplete: str) -> list[str]:
    """The completion of a training step: the checkpoints of the shipped model that was named."""
    model = ctx.params.get("model")
    steps = shipped_checkpoints(model) if model in SHIPPED else []
    return [str(step) for step in steps if str(step).startswith(incomplete)]


Model = Annotated[
    str,
    typer.Option(
        "--model", help="A shipped model, a folder, a file of weights, or a TransformerLens name.",
        autocompletion=one_of(*SHIPPED),
    ),
]  # fmt: skip
Config = Annotated[
    Path | None, typer.Option(help="JSON of the HookedTransformerConfig of a file of weights.")
]
Checkpoint = Annotated[
    int | None, typer.Option(help="Training step of the weights.", autocompletion=steps_of_model)
]
Data = Annotated[
    str,
    typer.Option(
        "--data", help="code, prose, mix, a text file, a token array, or hf:NAME.",
        autocompletion=one_of(*CORPORA),
    ),
]  # fmt: skip
Components = Annotated[
    str,
    typer.Option(
        help="Such as heads, layers, full, or L0H1,L1H3.", autocompletion=one_of(*COMPONENTS)
    ),
]
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
        "column of an hf: data set with token ids.",
        autocompletion=one_of("last"),
    ),
]
Device = Annotated[str | None, typer.Option(help="cpu, cuda, …; the model's by default.")]
Json = Annotated[bool, typer.Option("--json", help="One JSON object on standard output.")]
Quiet = Annotated[
    bool,
    typer.Option("--quiet", help="Nothing on standard error but warnings and errors."),
]
DryRun = Annotated[
    bool, typer.Option("--dry-run", help="Say how long it takes and what it needs; write nothing.")
]
Seed = Annotated[int | None, typer.Option(help="Of all that is random but the choice of text.")]
Chains = Annotated[int | None, typer.Option(help="Chains per component.")]
Draws = Annotated[
    int | None, typer.Option(help="Draws per chain; by default 200, more where λ̂ needs them.")
]
TargetSe = Annotated[
    float | None,
    typer.Option("--target-se", help="Stop every component at this relative error of λ̂: 0.03."),
]
BatchSize = Annotated[int | None, typer.Option(help="Sequences per minibatch.")]
Sampler = Annotated[
    str | None,
    typer.Option(
        help="lm, sgld, rmsprop_sgld, pcn or importance.", autocompletion=one_of(*SAMPLERS)
    ),
]
SettingsFile = Annotated[Path | None, typer.Option(help="settings.json from lens-slt calibrate.")]
NBeta = Annotated[float | None, typer.Option(help="Inverse temperature nβ.")]
Gamma = Annotated[float | None, typer.Option(help="Localization γ.")]
Thin = Annotated[int | None, typer.Option(help="Probes at every thin-th draw.")]
Trust = Annotated[bool, typer.Option(help="Use λ̂ that is not certified.")]


@dataclass(frozen=True, kw_only=True)
class Options:
    """What a command was given. Subclasses are commands: their docstring is the help."""

    command: ClassVar[str]

    quiet: Quiet = False
    as_json: Json = False
    began: float = field(default_factory=time.monotonic, init=False)

    @property
    def kept(self) -> Path | None:
        """The folder that a command goes on from after an interruption."""
        return None

    def as_dict(self) -> dict[str, Any]:
        """What changes the result, as plain values."""
        names = [one.name for one in fields(self) if one.init]
        given = {name: getattr(self, name) for name in names if name not in ("quiet", "as_json")}
        return {
            name: str(value) if isinstance(value, Path) else value for name, value in given.items()
        }


@dataclass(frozen=True, kw_only=True)
class Resumed(Options):
    """A command that writes into a folder and goes on from what lies there."""

    kept_in: ClassVar[str]

    out: Out

    @property
    def kept(self) -> Path:
        return self.out / self.kept_in


@dataclass(frozen=True, kw_only=True)
class OfModel(Options):
    """Which model."""

    model: Model
    config: Config = None
    device: Device = None


@dataclass(frozen=True, kw_only=True)
class OfText(Options):
    """Which tokens."""

    data: Data
    sequences: Sequences = None
    length: Length = None
    bos: Bos = True
    pad_id: PadId = None


@dataclass(frozen=True, kw_only=True)
class OfWeightedText(OfText):
    """Which tokens, and which of them count."""

    positions: Positions = None


@dataclass(frozen=True, kw_only=True)
class OfDraws(Options):
    """How much is sampled; options that have the name of a setting are that setting."""

    chains: Chains = None
    draws: Draws = None
    batch_size: BatchSize = None
    seed: Seed = None


@dataclass(frozen=True, kw_only=True)
class OfPosterior(OfDraws):
    """Which local posterior is sampled, and how much."""

    settings: SettingsFile = None
    n_beta: NBeta = None
    gamma: Gamma = None
    target_se: TargetSe = None
    thin: Thin = None


@dataclass(frozen=True, kw_only=True)
class Foreseen(Options):
    """A command that can say what it takes instead of being run."""

    dry_run: DryRun = False
