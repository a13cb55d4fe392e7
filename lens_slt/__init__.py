"""Singular learning theory for TransformerLens models."""

from lens_slt.calibration import Calibration, calibrate
from lens_slt.data.patterns import bracket_depth, label_patterns, ngram_counts
from lens_slt.data.tokens import load_tokens
from lens_slt.models.shipped import load_model, shipped_checkpoints
from lens_slt.observables.influence import attribute, influence
from lens_slt.observables.per_token_llc import per_token_llc
from lens_slt.observables.refined_llc import refined_llc
from lens_slt.observables.susceptibility import susceptibility
from lens_slt.sampling.functions import sample_function
from lens_slt.sampling.presets import PRESETS, preset
from lens_slt.sampling.sample import Probe, sample
from lens_slt.sampling.settings import Settings
from lens_slt.structure.cluster_summary import cluster_summary
from lens_slt.structure.clusters import cluster_stability, clusters
from lens_slt.structure.contexts import contexts, top_tokens
from lens_slt.structure.maps import map_stability, token_map
from lens_slt.structure.modes import modes
from lens_slt.structure.pattern_enrichment import enrichment
from lens_slt.structure.standardize import halves

__all__ = [
    "PRESETS",
    "Calibration",
    "Probe",
    "Settings",
    "attribute",
    "bracket_depth",
    "calibrate",
    "cluster_stability",
    "cluster_summary",
    "clusters",
    "contexts",
    "enrichment",
    "halves",
    "influence",
    "label_patterns",
    "load_model",
    "load_tokens",
    "map_stability",
    "modes",
    "ngram_counts",
    "per_token_llc",
    "preset",
    "refined_llc",
    "sample",
    "sample_function",
    "shipped_checkpoints",
    "susceptibility",
    "token_map",
    "top_tokens",
]
