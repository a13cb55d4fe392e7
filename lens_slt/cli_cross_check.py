"""``lens-slt cross-check``: circuits on trial, those that are given or those that draws suggest."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from lens_slt.circuits.behaviour import behaviour_scores
from lens_slt.circuits.hypothesis import CircuitHypothesis, circuit
from lens_slt.circuits.pattern_masks import every_prediction
from lens_slt.circuits.propose import propose_circuits
from lens_slt.circuits.slt_evidence import SltEvidence, evidence_of
from lens_slt.circuits.trial import cross_check
from lens_slt.circuits.trial_cost import trial_seconds
from lens_slt.cli_commands import CrossCheck
from lens_slt.cli_runs import (
    Run,
    finish_run,
    sampled,
    show_structure,
    show_trials,
    write_attention,
)
from lens_slt.cli_support import (
    circuits_of,
    load,
    settings_from,
    show_estimate,
    show_health,
    with_enough_tokens,
)
from lens_slt.cli_text import weighted_text
from lens_slt.data.inputs import read_inputs
from lens_slt.data.patterns import label_patterns
from lens_slt.sampling.prepare import Probe
from lens_slt.structure.overview import read_structure

INFERRED, PROBE = "inferred", "probe"
LIKELY = circuit("L0H0 -> L1H0.K", "induction")  # about as large as what is inferred


@dataclass(frozen=True)
class Suggested:
    """What draws say of circuits: evidence, None where no chain can be used, and circuits."""

    run: Run
    evidence: SltEvidence | None
    circuits: list[CircuitHypothesis]
    record: dict[str, Any]


def run(options: CrossCheck) -> None:
    """Infer circuits if none is given, and put them on trial."""
    given = None
    if options.hypothesis != INFERRED:
        given = circuits_of("hypothesis", options.hypothesis, options.pattern)
    settings = settings_from(options)
    model = load(options)
    tokens, weights = weighted_text(options, model, options.trial_sequences, seed=2)
    not_in_it = _not_in_it(options, model, tokens, given) if options.dry_run else ""
    found = None
    if options.slt or given is None:
        found = _suggested(options, model, tokens, settings, given is None, not_in_it)
    elif options.dry_run:
        show_estimate(options, None, not_in_it)
    if options.dry_run:
        return
    if given is None:
        given = found.circuits if found is not None else []
        if options.positions is None:  # else everything that counts is one pattern
            given = with_enough_tokens(options, given, tokens, model)
    trials = cross_check(
        model, tokens, given, slt=None if found is None else found.evidence, how=options.how,
        weights=weights, least_effect=options.least_effect, n_null=options.null_sets,
        seed=options.seed or 0, progress=not options.quiet,
    )  # fmt: skip
    behaviour = behaviour_scores(model, tokens, weights=weights)
    drawn, parts = (None, []) if found is None else (found.run, [found.record])
    parts.append(show_trials(options, trials, behaviour, drawn))
    finish_run(options, drawn, f"Circuits of {options.model} on trial", options.data, *parts)


def _suggested(
    options: CrossCheck, model: Any, tried: Any, settings: Any, propose: bool, not_in_it: str
) -> Suggested | None:
    """Sample on other text than that of the trials, and read circuits off the draws; None where
    only the cost was asked for."""
    probe, counts = weighted_text(options, model, options.probe_sequences, seed=1, without=[tried])
    tokens, weights = weighted_text(options, model, options.sequences, without=[tried, probe])
    drawn = sampled(
        options, model, tokens, "heads", not_in_it, settings=settings, weights=weights,
        probes={PROBE: Probe(probe, weights=counts)},
    )  # fmt: skip
    if drawn is None:
        return None
    show_health(options, drawn.llc)
    write_attention(options, model, probe)
    views = read_structure(
        drawn.draws, PROBE, probe, tokenizer=model.tokenizer, folder=options.out, maps=False
    )
    record = show_structure(options, views)
    if not views:
        return Suggested(drawn, None, [], record)
    if options.positions is not None:  # everything that counts is one pattern
        labels = every_prediction(read_inputs(probe).ids)
    else:
        labels = label_patterns(probe, model.tokenizer)
    evidence = evidence_of(views["llc"], labels)
    circuits = []
    if propose:
        circuits = propose_circuits(evidence, model, probe, most=options.most, weights=counts)
    return Suggested(drawn, evidence, circuits, record)


def _not_in_it(
    options: CrossCheck, model: Any, tokens: Any, given: list[CircuitHypothesis] | None
) -> str:
    """What the command does beside sampling, and how long the trials take."""
    likely = given or [LIKELY] * options.most
    runs, seconds = trial_seconds(model, tokens, likely, options.null_sets)
    trials = f"the trials (up to {runs} runs of the model, {seconds:.0f} s)"
    return f"loading the model, tables and figures, and {trials}"
