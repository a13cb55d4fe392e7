"""``lens-slt susceptibility``: matrices of tokens by components, their modes and patterns."""

from __future__ import annotations

from typing import Any

from lens_slt.arguments import choice
from lens_slt.cli_commands import Susceptibility
from lens_slt.cli_runs import finish_run, sampled, show_structure, write_attention
from lens_slt.cli_support import load, settings_from, show_health
from lens_slt.cli_text import text_of, weighted_text
from lens_slt.observables.susceptibility import ESTIMATORS
from lens_slt.sampling.prepare import Probe
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
    probe, counts = _probe(options, model)
    tokens, weights = weighted_text(options, model, options.sequences, without=[probe])
    names = [options.components, "full"][: 2 if options.estimator == "two_posterior" else 1]
    drawn = sampled(
        options, model, tokens, names, NOT_IN_IT, settings=settings, weights=weights,
        probes={PROBE: Probe(probe, weights=counts)},
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


def _probe(options: Susceptibility, model: Any) -> tuple[Any, Any]:
    """Sequences that the matrix has rows of; ``--positions`` are of ``--data`` alone."""
    if options.probe is None:
        return weighted_text(options, model, options.probe_sequences, seed=1)
    return text_of(options, model, options.probe_sequences, source=options.probe, seed=1), None
