"""The main figure and the table of every result: what a notebook shows, and ``lens_slt.plot``."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import plotly.graph_objects as go
from rich.table import Table

from lens_slt.calibration import Calibration
from lens_slt.circuits.hypothesis import CircuitHypothesis
from lens_slt.circuits.trial import Trial
from lens_slt.development.curves import CHECKPOINT
from lens_slt.observables.refined_llc import refined_llc
from lens_slt.report import page
from lens_slt.report.plots import plot_calibration, plot_rllc
from lens_slt.report.plots_circuits import plot_circuit, plot_evidence, plot_faithfulness
from lens_slt.report.plots_development import (
    CURVES,
    plot_construction,
    plot_curves,
    plot_differences,
    plot_sublosses,
)
from lens_slt.report.plots_generalisation import (
    plot_generalisation,
    plot_log_likelihood,
    plot_wbic,
)
from lens_slt.report.plots_heads import (
    plot_behaviour,
    plot_composition,
    plot_directions,
    plot_edges,
    plot_effects,
    plot_shares,
)
from lens_slt.report.plots_locality import plot_locality, plot_moved_directions, plot_weight_change
from lens_slt.report.plots_maps import plot_map, plot_stability
from lens_slt.report.plots_match import (
    plot_match,
    plot_match_family,
    plot_mean_attention,
    plot_transfer,
)
from lens_slt.report.plots_modes import plot_enrichment, plot_modes, plot_pattern_llc
from lens_slt.report.plots_observables import plot_observables, plot_response
from lens_slt.report.plots_patterning import plot_data_response, plot_patterning
from lens_slt.report.plots_phases import plot_crossing, plot_limit, plot_phase_diagram
from lens_slt.report.plots_retrainings import plot_patterning_check, plot_retrainings
from lens_slt.report.plots_spectrum import (
    plot_curvatures,
    plot_density_of_states,
    plot_multiplicity,
    plot_spectrum,
)
from lens_slt.report.plots_stages import plot_stages, plot_transitions
from lens_slt.report.plots_structure_over_time import (
    plot_critical,
    plot_mode_development,
    plot_pattern_influence,
)
from lens_slt.report.plots_tokens import (
    plot_cluster_summary,
    plot_clusters,
    plot_influence,
    plot_matrix,
    plot_patterns,
)
from lens_slt.report.plots_traces import plot_all_traces
from lens_slt.report.plots_trajectories import (
    plot_differentiation,
    plot_migration,
    plot_trajectories,
)
from lens_slt.report.tables import calibration_table, health_summary, notes, rllc_table
from lens_slt.report.tables_circuits import behaviour_table, evidence_table
from lens_slt.report.tables_match import match_table, transfer_table
from lens_slt.report.tables_modes import modes_table, reliability_table
from lens_slt.report.tables_patterning import patterning_check_table, patterning_table
from lens_slt.report.tables_phases import crossing_table, diagram_table
from lens_slt.report.tables_spectrum import (
    curvatures_table,
    density_table,
    multiplicity_table,
    spectrum_table,
)
from lens_slt.schema import name_of, require
from lens_slt.schemas import SCHEMAS

CURVES_OF_RESULT = "curves"  # of any result over checkpoints
# with a figure of their own
OVER_CHECKPOINTS = ("construction", "development", "differences", "spectrum")

FIGURES: dict[str, Callable[[Any], go.Figure]] = {
    CURVES_OF_RESULT: plot_curves,
    "draws": plot_all_traces,
    "refined_llc": plot_rllc,
    "refined_observable": plot_observables,
    "response": plot_response,
    "log_likelihood": plot_log_likelihood,
    "generalisation": plot_generalisation,
    "wbic": plot_wbic,
    "per_token_llc": plot_matrix,
    "susceptibility": plot_matrix,
    "modes": plot_modes,
    "enrichment": plot_enrichment,
    "pattern_llc": plot_pattern_llc,
    "patterns": plot_patterns,
    "token_map": plot_map,
    "map_stability": lambda found: plot_stability(maps={"the two": found}),
    "clusters": plot_clusters,
    "cluster_summary": plot_cluster_summary,
    "cluster_stability": lambda found: plot_stability(clusters={"the two": found}),
    "influence": plot_influence,
    "effects": plot_effects,
    "composition_scores": plot_composition,
    "composition_by_component": plot_directions,
    "composition_on_tokens": plot_shares,
    "behaviour_scores": plot_behaviour,
    "edge_attribution": plot_edges,
    "faithfulness_curve": plot_faithfulness,
    "development": plot_curves,
    "sublosses": plot_sublosses,
    "differences": plot_differences,
    "construction": plot_construction,
    "stages": plot_stages,
    "transitions": plot_transitions,
    "crossing": plot_crossing,
    "phase_diagram": plot_phase_diagram,
    "limit_llc": plot_limit,
    "spectrum": plot_spectrum,
    "multiplicity": plot_multiplicity,
    "curvatures": plot_curvatures,
    "density_of_states": plot_density_of_states,
    "critical_checkpoints": plot_critical,
    "head_trajectories": plot_trajectories,
    "differentiation": plot_differentiation,
    "migration": plot_migration,
    "mode_development": plot_mode_development,
    "pattern_influence": plot_pattern_influence,
    "locality": plot_locality,
    "weight_change": plot_weight_change,
    "moved_directions": plot_moved_directions,
    "match": plot_match,
    "match_family": plot_match_family,
    "transfer": plot_transfer,
    "retrainings": plot_retrainings,
    "developmental_ablation": plot_retrainings,
    "patterning_check": plot_patterning_check,
    "data_response": plot_data_response,
    "patterning": plot_patterning,
    "attention_patterns": plot_mean_attention,
    "trial": plot_evidence,
    "hypothesis": plot_circuit,
    "calibration": plot_calibration,
}
TABLES: dict[str, Callable[[Any], Table]] = {
    "refined_llc": rllc_table,
    "per_token_llc": reliability_table,
    "susceptibility": reliability_table,
    "modes": modes_table,
    "behaviour_scores": behaviour_table,
    "crossing": crossing_table,
    "phase_diagram": diagram_table,
    "spectrum": spectrum_table,
    "multiplicity": multiplicity_table,
    "curvatures": curvatures_table,
    "density_of_states": density_table,
    "match": match_table,
    "transfer": transfer_table,
    "patterning": patterning_table,
    "patterning_check": patterning_check_table,
    "trial": evidence_table,
    "calibration": calibration_table,
}
STYLE = (  # what a table has on a report page, for the front ends of notebooks
    "<style>.lens-slt td, .lens-slt th {text-align: left} "
    ".lens-slt .number {text-align: right; white-space: nowrap} "
    ".lens-slt caption {caption-side: bottom; text-align: left; white-space: pre-line}</style>"
)
_CLASSES = {Trial: "trial", CircuitHypothesis: "hypothesis", Calibration: "calibration"}


def plot(result: Any) -> go.Figure:
    """The main figure of any result of lens_slt.

    Args:
        result: any Dataset, DataArray or DataTree that a function of lens_slt measured (its
            attribute ``result`` says which), of one checkpoint or of several where they are joined;
            a hypothesis, a trial, a calibration.

    Raises:
        TypeError: anything else.
        ValueError: a result of which something was selected away.

    Example:
        >>> import lens_slt as ls
        >>> labels = ls.label_patterns(ls.load_tokens("mix", n_sequences=2, length=16))
        >>> ls.plot(labels).layout.title.text
        'Patterns of the tokens'
    """
    kind = kind_of(result)
    if kind not in FIGURES:
        named = getattr(result, "attrs", {}).get("result")
        if named in SCHEMAS:
            require(result, named, argument="result")
        raise TypeError(
            f"result must be what a function of lens_slt returned, such as draws or refined LLCs; "
            f"got {type(result).__name__}"
        )
    return FIGURES[kind](result)


def kind_of(result: Any) -> str:
    """Which whole result this is, "" for what is none; the rest is an array like others.

    Of a result over checkpoints it is "curves".
    """
    for one, kind in _CLASSES.items():
        if isinstance(result, one):
            return kind
    name = name_of(result, leading=(CHECKPOINT,))
    if name in OVER_CHECKPOINTS or name == name_of(result):
        return name
    return CURVES_OF_RESULT if name in CURVES else ""


def table_of(result: Any) -> str:
    """The table of a result as HTML, "" for results without."""
    kind = kind_of(result)
    if kind == "draws":
        llc = refined_llc(result.drop_nodes("probes", errors="ignore"))
        words = page.paragraph(f"Health: {health_summary(llc)}")
        return words + page.table(rllc_table(llc, notes(result)))
    words = page.paragraph(str(result)) if kind in ("trial", "hypothesis") else ""
    return words + (page.table(TABLES[kind](result)) if kind in TABLES else "")


def display_result(result: Any) -> None:
    """Show a result in IPython: its table, its main figure, its arrays; other arrays as ever."""
    from IPython.display import HTML, display

    if kind_of(result) not in FIGURES:
        display({"text/plain": repr(result), "text/html": result._repr_html_()}, raw=True)
        return
    words = table_of(result)
    if words:
        display(HTML(f'<div class="lens-slt">{STYLE}{words}</div>'))
    display(plot(result))
    if not isinstance(result, tuple(_CLASSES)):
        arrays = page.fold("The labelled arrays", result._repr_html_())
        display({"text/plain": repr(result), "text/html": arrays}, raw=True)
