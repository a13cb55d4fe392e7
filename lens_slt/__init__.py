"""Singular learning theory for TransformerLens models.

Ten lines::

    import lens_slt as ls

    model = ls.load_model("attn-2l")  # or any HookedTransformer / TransformerBridge
    tokens = ls.load_tokens("mix", n_sequences=512)  # or your own [sequence, position] integers
    probes = {p: ls.load_tokens(p, n_sequences=8, without=tokens) for p in ("code", "prose")}

    short = ls.Settings(draws=160, batch_size=8, thin=4)  # short
    draws = ls.sample(model, tokens, "heads", settings=short, probes=probes)
    table = ls.refined_llc(draws)  # xarray.Dataset over component (and probe)
    print(table[["llc", "se", "verdict"]].to_pandas().to_string())  # with a verdict in words
    print(table["probe_llc"].to_pandas())  # data-refined, per probe
    ls.write_report(draws, "report.html")  # all of it as one page that opens offline

Every name below is loaded on its first use: PyTorch, TransformerLens and what draws figures take
seconds.
"""

import ast
import sys
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

__version__: str  # of the installed package

if TYPE_CHECKING:  # also read by _homes
    from lens_slt.calibration import Calibration, calibrate
    from lens_slt.circuits.attention import attention_patterns
    from lens_slt.circuits.attribution import edge_attribution
    from lens_slt.circuits.behaviour import behaviour_scores
    from lens_slt.circuits.composition import composition_by_component, composition_scores
    from lens_slt.circuits.composition_on_tokens import composition_on_tokens
    from lens_slt.circuits.exchange import read_circuit, write_circuit
    from lens_slt.circuits.faithfulness import faithfulness_curve
    from lens_slt.circuits.graph import circuit_graph, to_dot
    from lens_slt.circuits.hypothesis import (
        CircuitHypothesis,
        Edge,
        circuit,
        read_hypotheses,
        write_hypotheses,
    )
    from lens_slt.circuits.interventions import (
        ablate,
        ablate_path,
        affected_tokens,
        keep_only,
        knock_in,
    )
    from lens_slt.circuits.planted import hard_suite, plant, planted_suite
    from lens_slt.circuits.propose import propose_circuits
    from lens_slt.circuits.replacements import Ablation
    from lens_slt.circuits.slt_evidence import SltEvidence, read_slt_evidence
    from lens_slt.circuits.transfer import Transfer, transfer
    from lens_slt.circuits.trial import Trial, cross_check
    from lens_slt.circuits.trial_file import read_trials
    from lens_slt.data.patterns import bracket_depth, label_patterns, ngram_counts
    from lens_slt.data.prompts import Prompts, make_prompts
    from lens_slt.data.tokens import load_tokens
    from lens_slt.development.alignment import mode_development
    from lens_slt.development.compare import compare
    from lens_slt.development.construction import construction
    from lens_slt.development.construction_table import construction_table
    from lens_slt.development.critical import critical_checkpoints
    from lens_slt.development.curves import join_checkpoints
    from lens_slt.development.develop import develop, open_checkpoint, open_development
    from lens_slt.development.differentiation import differentiation
    from lens_slt.development.locality import locality
    from lens_slt.development.migration import migration
    from lens_slt.development.moved_directions import moved_directions
    from lens_slt.development.overview import DevelopmentView, read_development
    from lens_slt.development.pattern_influence import pattern_influence
    from lens_slt.development.plan import DevelopmentPlan, plan_development
    from lens_slt.development.stages import stages
    from lens_slt.development.trajectories import head_trajectories
    from lens_slt.development.transitions import transitions
    from lens_slt.development.weight_change import weight_change
    from lens_slt.models.checkpoints import Checkpoints, checkpoints
    from lens_slt.models.observable import (
        Accuracy,
        Divergence,
        LogitDifference,
        Probability,
        Sites,
    )
    from lens_slt.models.shipped import load_model
    from lens_slt.models.shipped_files import shipped_checkpoints
    from lens_slt.models.source import model_source
    from lens_slt.observables.data_response import data_response
    from lens_slt.observables.generalisation import generalisation, wbic
    from lens_slt.observables.influence import attribute, influence
    from lens_slt.observables.log_likelihood import log_likelihood
    from lens_slt.observables.per_token_llc import per_token_llc
    from lens_slt.observables.refined_llc import refined_llc
    from lens_slt.observables.refined_observable import refined_observable
    from lens_slt.observables.response import Shift, response
    from lens_slt.observables.susceptibility import susceptibility
    from lens_slt.phases.curvatures import curvatures
    from lens_slt.phases.density import density_of_states
    from lens_slt.phases.diagram import phase_diagram
    from lens_slt.phases.free_energy import crossing
    from lens_slt.phases.ladder import ladder, sample_ladder
    from lens_slt.phases.limit import limit_llc
    from lens_slt.phases.multiplicity import multiplicity
    from lens_slt.phases.phase import Phase, Subloss, development_phases, phase
    from lens_slt.phases.spectrum import spectrum
    from lens_slt.report.attention import show_attention
    from lens_slt.report.paper import paper_evidence, paper_modes, paper_rllc
    from lens_slt.report.plots import plot_calibration, plot_rllc, plot_rllc_map
    from lens_slt.report.plots_circuits import plot_circuit, plot_evidence, plot_faithfulness
    from lens_slt.report.plots_development import (
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
    from lens_slt.report.plots_locality import (
        plot_locality,
        plot_moved_directions,
        plot_weight_change,
    )
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
    from lens_slt.report.plots_traces import plot_all_traces, plot_traces
    from lens_slt.report.plots_trajectories import (
        plot_differentiation,
        plot_migration,
        plot_trajectories,
    )
    from lens_slt.report.report import write_report
    from lens_slt.report.show import plot
    from lens_slt.sampling.estimate import Estimate, estimate
    from lens_slt.sampling.functions import sample_function
    from lens_slt.sampling.prepare import Probe
    from lens_slt.sampling.presets import PRESETS, preset
    from lens_slt.sampling.result import open_draws
    from lens_slt.sampling.sample import sample
    from lens_slt.sampling.settings import Settings
    from lens_slt.structure.cluster_summary import cluster_summary
    from lens_slt.structure.clusters import cluster_stability, clusters
    from lens_slt.structure.contexts import contexts, top_tokens
    from lens_slt.structure.maps import map_stability, token_map
    from lens_slt.structure.match import match
    from lens_slt.structure.match_family import match_family
    from lens_slt.structure.modes import modes
    from lens_slt.structure.pattern_enrichment import enrichment
    from lens_slt.structure.pattern_llc import pattern_llc
    from lens_slt.structure.standardize import halves
    from lens_slt.training.developmental_ablation import developmental_ablation
    from lens_slt.training.patterning import patterning
    from lens_slt.training.retrain import Optimisation, retrain
    from lens_slt.training.retrainings import reached, retrainings
    from lens_slt.training.saver import CheckpointSaver
    from lens_slt.training.schedule import checkpoint_schedule
    from lens_slt.training.verify_patterning import verify_patterning

__all__ = [
    "PRESETS", "Ablation", "Accuracy", "Calibration", "CheckpointSaver", "Checkpoints",
    "CircuitHypothesis", "DevelopmentPlan", "DevelopmentView", "Divergence", "Edge", "Estimate",
    "LogitDifference", "Optimisation", "Phase", "Probability", "Probe", "Prompts", "Settings",
    "Shift", "Sites", "SltEvidence", "Subloss", "Transfer", "Trial", "ablate", "ablate_path",
    "affected_tokens", "attention_patterns", "attribute", "behaviour_scores", "bracket_depth",
    "calibrate", "checkpoint_schedule", "checkpoints", "circuit", "circuit_graph",
    "cluster_stability", "cluster_summary", "clusters", "compare", "composition_by_component",
    "composition_on_tokens", "composition_scores", "construction", "construction_table", "contexts",
    "critical_checkpoints", "cross_check", "crossing", "curvatures", "data_response",
    "density_of_states", "develop", "development_phases", "developmental_ablation",
    "differentiation", "edge_attribution", "enrichment", "estimate", "faithfulness_curve",
    "generalisation", "halves", "hard_suite", "head_trajectories", "influence", "join_checkpoints",
    "keep_only", "knock_in", "label_patterns", "ladder", "limit_llc", "load_model", "load_tokens",
    "locality", "log_likelihood", "make_prompts", "map_stability", "match", "match_family",
    "migration", "mode_development", "model_source", "modes", "moved_directions", "multiplicity",
    "ngram_counts", "open_checkpoint", "open_development", "open_draws", "paper_evidence",
    "paper_modes", "paper_rllc", "pattern_influence", "pattern_llc", "patterning", "per_token_llc",
    "phase", "phase_diagram", "plan_development", "plant", "planted_suite", "plot",
    "plot_all_traces", "plot_behaviour", "plot_calibration", "plot_circuit", "plot_cluster_summary",
    "plot_clusters", "plot_composition", "plot_construction", "plot_critical", "plot_crossing",
    "plot_curvatures", "plot_curves", "plot_data_response", "plot_density_of_states",
    "plot_differences", "plot_differentiation", "plot_directions", "plot_edges", "plot_effects",
    "plot_enrichment", "plot_evidence", "plot_faithfulness", "plot_generalisation",
    "plot_influence", "plot_limit", "plot_locality", "plot_log_likelihood", "plot_map",
    "plot_match", "plot_match_family", "plot_matrix", "plot_mean_attention", "plot_migration",
    "plot_mode_development", "plot_modes", "plot_moved_directions", "plot_multiplicity",
    "plot_observables", "plot_pattern_influence", "plot_pattern_llc", "plot_patterning",
    "plot_patterning_check", "plot_patterns", "plot_phase_diagram", "plot_response",
    "plot_retrainings", "plot_rllc", "plot_rllc_map", "plot_shares", "plot_spectrum",
    "plot_stability", "plot_stages", "plot_sublosses", "plot_traces", "plot_trajectories",
    "plot_transfer", "plot_transitions", "plot_wbic", "plot_weight_change", "preset",
    "propose_circuits", "reached", "read_circuit", "read_development", "read_hypotheses",
    "read_slt_evidence", "read_trials", "refined_llc", "refined_observable", "response", "retrain",
    "retrainings", "sample", "sample_function", "sample_ladder", "shipped_checkpoints",
    "show_attention", "spectrum", "stages", "susceptibility", "to_dot", "token_map", "top_tokens",
    "transfer", "transitions", "verify_patterning", "wbic", "weight_change", "write_circuit",
    "write_hypotheses", "write_report",
]  # fmt: skip


def _homes() -> dict[str, str]:
    """The module of every public name, read off the imports above."""
    tree = ast.parse(Path(__file__).read_text("utf-8"))
    return {
        alias.name: node.module
        for node in ast.walk(tree)
        if isinstance(node, ast.ImportFrom) and node.module and node.module.startswith("lens_slt.")
        for alias in node.names
    }


if not TYPE_CHECKING:  # for a type checker every name would exist
    _HOMES = _homes()

    def __getattr__(name: str) -> Any:
        if name == "__version__":
            value: Any = import_module("lens_slt.versions").version_of("lens-slt")
        elif name in _HOMES:
            value = getattr(import_module(_HOMES[name]), name)
        else:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        globals()[name] = value
        return value

    def __dir__() -> list[str]:
        return sorted({*globals(), *__all__, "__version__"})


def _show_in_notebooks() -> None:
    """In IPython, results show their table and main figure, and a session is told to restart."""
    ipython = sys.modules.get("IPython")
    shell = ipython.get_ipython() if ipython is not None else None
    if shell is not None:
        import_module("lens_slt.versions").warn_of_restart()
        import_module("lens_slt.report.notebook").register(shell)


_show_in_notebooks()
