"""``lens-slt susceptibility``: matrices of tokens by components, their modes and patterns."""

from __future__ import annotations

from lens_slt.arguments import choice
from lens_slt.cli_commands import Susceptibility
from lens_slt.cli_runs import finish_run, sampled, show_structure, write_attention
from lens_slt.cli_support import (
    load,
    load_data,
    settings_from,
    show_health,
    weighted_text,
    without_padding,
)
from lens_slt.observables.susceptibility import ESTIMATORS
from lens_slt.structure.overview import read_structure

NOT_IN_IT = "loading the model, matrices, modes and figures"
PROBE = "probe"


def run(options: Susceptibility) -> None:
    """Sample with a probe, and show what its matrices hold."""
    choice("estimator", options.estimator, ESTIMATORS)
    if options.control and options.n_beta is not None:
        raise ValueError(
            f"--control samples at nβ = 0, --n-beta says {options.n_beta:g}; leave one of them out"
        )
    settings = settings_from(options, n_beta=0.0 if options.control else options.n_beta)
    model = load(options)
    source = options.probe or options.data
    skip = options.probe_sequences if source == options.data else 0
    tokens, weights = weighted_text(options, model, options.sequences, skip=skip)
    probe = load_data(source, model, options.probe_sequences, options.length, options.bos, seed=1)
    probe = without_padding(probe, options.pad_id)
    names = [options.components, "full"][: 2 if options.estimator == "two_posterior" else 1]
    drawn = sampled(
        options, model, tokens, names, NOT_IN_IT, settings=settings, probes={PROBE: probe},
        weights=weights,
    )  # fmt: skip
    if drawn is None:
        return
    views = read_structure(
        drawn.draws, PROBE, probe, tokenizer=model.tokenizer, estimator=options.estimator,
        folder=options.out,
    )  # fmt: skip
    show_health(options, drawn.llc)
    structure = show_structure(options, views)
    write_attention(options, model, probe)
    finish_run(options, drawn, f"Structure of {options.model}", options.data, structure)
