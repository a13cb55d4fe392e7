"""The demonstration: every head of the shipped model, from nothing to a table with error bars."""

from __future__ import annotations

from pathlib import Path

import xarray as xr
from torch import Tensor

from lens_slt.arrays import write_zarr
from lens_slt.circuits.attention import attention_patterns
from lens_slt.circuits.behaviour import behaviour_scores
from lens_slt.circuits.propose import propose_circuits
from lens_slt.circuits.slt_evidence import evidence_of
from lens_slt.circuits.trial import Trial, cross_check
from lens_slt.data.patterns import label_patterns
from lens_slt.data.tokens import load_tokens
from lens_slt.models.shipped import load_model
from lens_slt.report.files import ATTENDED
from lens_slt.sampling.prepare import Probe
from lens_slt.sampling.sample import sample
from lens_slt.sampling.settings import Settings
from lens_slt.structure.overview import View, read_structure

MODEL, REFERENCE = "attn-2l", "attn-1l"
SEQUENCES, PROBE_SEQUENCES, LENGTH = 512, 8, 128
DRAWS = 100
SETTINGS = Settings(draws=DRAWS, batch_size=8, thin=4)  # nβ 30, γ 200, 4 chains
STRUCTURE, STRUCTURE_SEQUENCES = "structure", 24  # the probe that modes are read from
TRIAL_SEQUENCES, HYPOTHESES = 32, 3
WHAT = (
    "Refined local learning coefficients (rLLC, λ̂) of all 16 heads of the shipped two-layer "
    f"model {MODEL!r} (trained on the Python standard library): for each head, its weights are "
    "sampled near their trained values, with everything else frozen, and λ̂ is the mean rise of "
    "the loss times nβ. 'full' are all weights of the model together. Then modes: which heads "
    "respond together, on which tokens. Then circuits: what the draws suggest, put on trial with "
    "ablations on other text."
)
HOW_TO_READ = (
    "How to read it: λ̂ has no unit. It measures how tightly the loss holds a head's weights in "
    "place: the higher, the more the head has learned that the loss depends on. ± is one standard "
    "error, of the sampling and nothing else. 'code' and 'prose' are the same draws with the rise "
    "of the loss on other tokens (data-refined): a head that stands out in one column works "
    "for that kind of text. 'vs attn 1l' replaces the loss by the divergence from a one-layer "
    "model's predictions (model-refined); it is low, or below zero, where the head does what a "
    "one-layer model does not. Compare values within the table only: all depend on nβ and γ."
)
HOW_TO_READ_MODES = (
    "How to read it: rows of a matrix are tokens, columns heads; an entry says how much the loss "
    "of one token depends on one head. A mode is a pattern over heads that goes with a pattern "
    "over tokens. The first is what all heads share. Look for one further down that tells "
    "induction tokens from others (AUC far from 0.5): its loadings name the heads that take part. "
    "Verdict and angle say whether the mode comes back when draws and sequences are resampled. In "
    "susceptibilities a low value is expression, in rLLCs a high one."
)

HOW_TO_READ_CIRCUITS = (
    "How to read it: hypotheses come from the draws (heads that hold more on a pattern's tokens "
    "than on others like them) and from what drives these heads' attention on the same text "
    "(edges); nothing was ablated for them. The trial then ablates, on text that was not sampled: "
    "supported is what held in every test that votes, contradicted what failed in at least one. "
    "Green holds, red fails."
)


def demo_settings(draws: int = DRAWS, seed: int = 0) -> Settings:
    """The demonstration's settings with another number of draws or another seed."""
    return SETTINGS.but(draws=draws, seed=seed, thin=min(SETTINGS.thin, max(draws, 1)))


def run_demo(
    path: Path, settings: Settings, *, sequences: int, length: int, progress: bool
) -> tuple[xr.DataTree, dict[str, View]]:
    """Sample the demonstration's draws into ``path``, or continue those that are there.

    Beside them come matrices with their modes, and where heads attend on one sequence.
    """
    model = load_model(MODEL)
    structure = _structure_tokens(length)
    tokens = _sampled_tokens(sequences, length)

    def few(source: str) -> Tensor:
        return load_tokens(source, n_sequences=PROBE_SEQUENCES, length=length, without=tokens)

    probes = {
        "code": few("code"),
        "prose": few("prose"),
        "vs_attn_1l": Probe(few("mix"), reference=load_model(REFERENCE)),
        STRUCTURE: structure,
    }
    draws = sample(
        model, tokens, ["heads", "full"], settings=settings, probes=probes, path=path,
        progress=progress,
    )  # fmt: skip
    write_zarr(attention_patterns(model, structure[:1]), path.parent / ATTENDED)
    return draws, read_structure(draws, STRUCTURE, structure, folder=path.parent)


def run_trials(
    views: dict[str, View], *, sequences: int, length: int, progress: bool
) -> tuple[list[Trial], xr.Dataset]:
    """Circuits that the modes and per-token rLLCs shown suggest, tried on other text; heads by
    behaviour."""
    model = load_model(MODEL)
    probe = _structure_tokens(length)
    slt = evidence_of(views["llc"], label_patterns(probe, model.tokenizer))
    hypotheses = propose_circuits(slt, model, probe, most=HYPOTHESES)
    known = [probe, _sampled_tokens(sequences, length)]
    tokens = load_tokens("mix", n_sequences=TRIAL_SEQUENCES, length=length, seed=2, without=known)
    trials = cross_check(model, tokens, hypotheses, slt=slt, progress=progress)
    return trials, behaviour_scores(model, tokens)


def _structure_tokens(length: int) -> Tensor:
    """The probe that modes are read from."""
    return load_tokens("mix", n_sequences=STRUCTURE_SEQUENCES, length=length, seed=1)


def _sampled_tokens(sequences: int, length: int) -> Tensor:
    """The text of the loss."""
    known = _structure_tokens(length)
    return load_tokens("mix", n_sequences=sequences, length=length, without=known)
