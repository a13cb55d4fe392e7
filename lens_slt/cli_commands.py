"""The commands of ``lens-slt``: what each takes, and its help.

The work is in the module of the command, ``cli_NAME.py``, which is imported when it is run: help
and completion load no library that takes long. Defaults are the library's; a test compares them.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import typer

from lens_slt.cli_options import (
    CORPORA,
    ESTIMATORS,
    HOWS,
    PRESETS,
    BatchSize,
    Checkpoint,
    Components,
    Data,
    Device,
    Foreseen,
    Length,
    OfDraws,
    OfModel,
    OfPosterior,
    OfText,
    OfWeightedText,
    Options,
    Out,
    Resumed,
    Sampler,
    TargetSe,
    Trust,
    one_of,
    steps_of_model,
)
from lens_slt.models.shipped_files import SHIPPED
from lens_slt.report.files import DRAWS, SWEEP


@dataclass(frozen=True, kw_only=True)
class Demo(Resumed):
    """Refined LLC of every head of the shipped model, with error bars and health verdicts."""

    command = "demo"
    kept_in = DRAWS

    out: Out = Path("lens-slt-demo")
    seed: Annotated[int, typer.Option(help="Of all that is random but the choice of text.")] = 0
    draws: Annotated[int, typer.Option(help="Draws per chain.")] = 100
    sequences: Annotated[int, typer.Option(help="Sequences.")] = 512
    length: Annotated[int, typer.Option(help="Tokens per sequence.")] = 128


@dataclass(frozen=True, kw_only=True)
class Sampled(Resumed, OfModel, OfWeightedText, OfPosterior, Foreseen):
    """What commands on one model and its local posterior take."""

    kept_in = DRAWS

    checkpoint: Checkpoint = None


@dataclass(frozen=True, kw_only=True)
class Rllc(Sampled):
    """Refined LLCs of any components of any model on any tokens."""

    command = "rllc"

    components: Components = "heads"
    preset: Annotated[
        str | None,
        typer.Option(help="Published settings by name.", autocompletion=one_of(*PRESETS)),
    ] = None
    step_size: Annotated[
        float | None, typer.Option(help="ε; chosen for every component by default.")
    ] = None
    sampler: Sampler = None
    burn_in: Annotated[int | None, typer.Option(help="Draws' worth of steps before the first.")] = (
        None
    )
    probe: Annotated[
        list[str] | None, typer.Option(help="name=source, tokens for a data-refined column.")
    ] = None
    probe_sequences: Annotated[int, typer.Option(help="Sequences of every probe.")] = 16


@dataclass(frozen=True, kw_only=True)
class Susceptibility(Sampled):
    """Susceptibilities and per-token rLLCs of a probe's tokens, their modes and patterns."""

    command = "susceptibility"

    components: Components = "heads"
    probe: Annotated[
        str | None,
        typer.Option(
            help="Tokens of the matrix; other sequences of --data by default.",
            autocompletion=one_of(*CORPORA),
        ),
    ] = None
    probe_sequences: Annotated[int, typer.Option(help="Sequences of the probe.")] = 32
    estimator: Annotated[
        str,
        typer.Option(help="two_posterior or restricted.", autocompletion=one_of(*ESTIMATORS)),
    ] = "two_posterior"
    control: Annotated[bool, typer.Option("--control", help="nβ = 0: the prior alone.")] = False


@dataclass(frozen=True, kw_only=True)
class CrossCheck(Sampled):
    """Put circuit hypotheses on trial: ablations, path ablations, composition, statistics."""

    command = "cross-check"

    hypothesis: Annotated[
        str,
        typer.Option(
            help="A JSON file, a circuit such as 'L0H2->L1H2.K', or inferred.",
            autocompletion=one_of("inferred"),
        ),
    ] = "inferred"
    pattern: Annotated[
        str | None, typer.Option(help="Of a circuit that is written out, such as induction.")
    ] = None
    slt: Annotated[
        bool, typer.Option("--slt", help="Sample for a given hypothesis too, as evidence.")
    ] = False
    most: Annotated[int, typer.Option(help="Inferred hypotheses to try.")] = 6
    trial_sequences: Annotated[int, typer.Option(help="Sequences to ablate on.")] = 32
    probe_sequences: Annotated[int, typer.Option(help="Sequences that circuits come from.")] = 32
    how: Annotated[
        str,
        typer.Option(
            help="auto, mean, mean_position, resample, zero: what ablation puts in.",
            autocompletion=one_of(*HOWS),
        ),
    ] = "auto"
    least_effect: Annotated[float, typer.Option(help="Nats; less is no effect.")] = 0.05
    null_sets: Annotated[int, typer.Option(help="Random sets to compare with.")] = 60


@dataclass(frozen=True, kw_only=True)
class Report(Options):
    """Write report.html for a finished run or sweep: one file that opens offline."""

    command = "report"

    run: Annotated[Path, typer.Argument(help="Folder of a finished run or sweep.")]


@dataclass(frozen=True, kw_only=True)
class Calibrate(OfModel, OfWeightedText, OfDraws, Foreseen):
    """Choose nβ and γ for all components; writes settings.json for lens-slt rllc --settings."""

    command = "calibrate"

    out: Out
    components: Components = "heads"
    checkpoint: Checkpoint = None
    n_betas: Annotated[str, typer.Option(help="Inverse temperatures to begin with.")] = "10,30,100"
    gammas: Annotated[str, typer.Option(help="Localizations to begin with.")] = "100,300"
    sampler: Sampler = None


@dataclass(frozen=True, kw_only=True)
class Models(Options):
    """The models that come with the package, and their checkpoints."""

    command = "models"


@dataclass(frozen=True, kw_only=True)
class Develop(Resumed, OfModel, OfText, OfDraws, Foreseen):
    """How structure formed over training: stages, losses of patterns, heads, circuits."""

    command = "develop"
    kept_in = SWEEP

    data: Data = "mix"
    length: Length = 128
    batch_size: BatchSize = 8
    components: Components = "heads"
    steps: Annotated[
        str | None, typer.Option(help="Training steps with commas; by default as time allows.")
    ] = None
    minutes: Annotated[
        float | None,
        typer.Option(help="That sampling may take; by default 15, or what the least takes."),
    ] = None
    parallel: Annotated[
        str | None,
        typer.Option(help="Processes, or dask or ray; by default one a core, four at most."),
    ] = None
    reference: Annotated[
        str | None,
        typer.Option(
            help="Shipped, a folder or a TransformerLens name: λ̂ is refined by its predictions.",
            autocompletion=one_of(*SHIPPED),
        ),
    ] = None
    hypothesis: Annotated[
        str,
        typer.Option(
            help="A circuit such as 'L0H2->L1H2.K', inferred, or none.",
            autocompletion=one_of("inferred", "none"),
        ),
    ] = "inferred"
    pattern: Annotated[str, typer.Option(help="Of a circuit that is written out.")] = "induction"
    probe_sequences: Annotated[int, typer.Option(help="Sequences of the probe.")] = 24


@dataclass(frozen=True, kw_only=True)
class Match(Resumed, OfText, OfDraws):
    """Which head is which, by rLLCs and attention; circuits on trial in the other model."""

    command = "match"
    kept_in = ""

    model: Annotated[
        str,
        typer.Option(
            help="A shipped model, a folder, or a TransformerLens name.",
            autocompletion=one_of(*SHIPPED),
        ),
    ]
    other: Annotated[
        str,
        typer.Option(
            help="Another such, with the same tokenizer.", autocompletion=one_of(*SHIPPED)
        ),
    ]
    components: Components = "heads"
    checkpoint: Annotated[
        int | None,
        typer.Option(help="Training step of --model.", autocompletion=steps_of_model),
    ] = None
    other_checkpoint: Annotated[int | None, typer.Option(help="Training step of --other.")] = None
    hypotheses: Annotated[
        list[str] | None,
        typer.Option(help="Circuits of --model to carry over, as L0H2->L1H2.K, or a JSON file."),
    ] = None
    pattern: Annotated[str, typer.Option(help="Of circuits that are given as text.")] = "induction"
    device: Device = None
    probe_sequences: Annotated[int, typer.Option(help="Sequences that are matched on.")] = 48
    target_se: TargetSe = None


@dataclass(frozen=True, kw_only=True)
class Pattern(Resumed, OfModel, OfText, OfDraws):
    """Which weights of the data bring about a wished change, and do they?"""

    command = "pattern"
    kept_in = DRAWS

    probe: Annotated[list[str], typer.Option(help="name=source, tokens whose loss is observed.")]
    wish: Annotated[list[str], typer.Option(help="name=change of that loss in nats: code=-0.05.")]
    component: Annotated[str, typer.Option(help="Whose posterior answers.")] = "full"
    strength: Annotated[float, typer.Option(help="Of the change; negative is its opposite.")] = 1.0
    hold_others: Annotated[bool, typer.Option(help="Other observables are to stay.")] = False
    probe_sequences: Annotated[int, typer.Option(help="Sequences of every probe.")] = 32
    verify: Annotated[
        int | None, typer.Option(help="Retrain for so many steps over a ladder of strengths.")
    ] = None
    n_seeds: Annotated[int, typer.Option(help="Seeds of the retrainings.")] = 3
    parallel: Annotated[
        int | None,
        typer.Option(help="Processes for the retrainings; by default one a core, four at most."),
    ] = None
    checkpoint: Checkpoint = None
    target_se: TargetSe = None


@dataclass(frozen=True, kw_only=True)
class Phases(Options):
    """Phases by loss and λ, and the numbers of data at which one replaces the next."""

    command = "phases"

    source: Annotated[
        Path, typer.Argument(help="Folder of lens-slt develop, or a JSON file of phases.")
    ]
    steps: Annotated[
        str | None, typer.Option(help="Of a folder: training steps of the phases, with commas.")
    ] = None
    component: Annotated[
        str | None, typer.Option(help="Of a folder: whose λ̂; full by default.")
    ] = None
    pattern: Annotated[str | None, typer.Option(help="Cross on the data of this pattern.")] = None
    out: Annotated[
        Path | None, typer.Option(help="Folder for the crossings and a page with their figures.")
    ] = None
    trust: Trust = False


@dataclass(frozen=True, kw_only=True)
class Spectrum(Resumed, OfModel, OfWeightedText, OfDraws):
    """λ̂ over nβ and γ: a regularised curvature spectrum; directions by curvature; λ and m."""

    command = "spectrum"
    kept_in = "rungs"

    components: Components = "heads"
    steps: Annotated[
        str | None, typer.Option(help="Training steps with commas; the last by default.")
    ] = None
    n_betas: Annotated[str, typer.Option(help="Inverse temperatures of the rungs.")] = (
        "3,10,30,100,300"
    )
    gammas: Annotated[str, typer.Option(help="Localizations of the rungs.")] = "200"
    target_se: TargetSe = None
    trust: Trust = False


COMMANDS: tuple[type[Options], ...] = (
    Demo, Rllc, Susceptibility, CrossCheck, Report, Calibrate, Models, Develop, Match, Pattern,
    Phases, Spectrum,
)  # fmt: skip
