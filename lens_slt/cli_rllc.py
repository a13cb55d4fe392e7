"""``lens-slt rllc``: refined LLCs of components."""

from __future__ import annotations

from lens_slt.cli_commands import Rllc
from lens_slt.cli_runs import finish_run, sampled, show_rllc, write_attention
from lens_slt.cli_support import load, parse_probes, settings_from
from lens_slt.cli_text import text_of, weighted_text

NOT_IN_IT = "loading the model, tables and figures"


def run(options: Rllc) -> None:
    """Sample, and show λ̂ of every component."""
    settings, sources = settings_from(options), parse_probes(options.probe or [])
    model = load(options)
    probes = {
        name: text_of(options, model, options.probe_sequences, source=source, seed=1)
        for name, source in sources.items()
    }
    tokens, weights = weighted_text(
        options, model, options.sequences, without=list(probes.values())
    )
    drawn = sampled(
        options, model, tokens, options.components, NOT_IN_IT, settings=settings, probes=probes,
        weights=weights,
    )  # fmt: skip
    if drawn is not None:
        write_attention(options, model, tokens)
        title = f"Refined LLCs of {options.model}"
        finish_run(options, drawn, title, options.data, show_rllc(options, drawn))
