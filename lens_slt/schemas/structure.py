"""Modes, patterns, clusters and maps of tokens, and what models have in common."""

from __future__ import annotations

import xarray as xr

from lens_slt.schemas.declare import TOKEN, Schema, over, with_interval

SCHEMAS = (
    Schema(
        "modes", "modes", attrs=("quantity",),
        needed=over("mode token", "score") | over("mode component", "loading")
        | over("mode", "explained") | TOKEN | over("token", "base_loss"),
        optional=over("mode component", "loading_low loading_high")
        | over("mode", "explained_low explained_high angle subspace_angle verdict")
        | over("token", "text"),
    ),
    Schema(
        "patterns", "label_patterns", kind=xr.DataArray,
        needed=over("pattern sequence position", "patterns") | over("pattern", "pattern"),
        optional=over("sequence position", "token_id"),
    ),
    Schema(
        "enrichment", "enrichment", attrs=("quantity",),
        needed=over("mode|component pattern", "auc low high p q")
        | over("pattern", "n_tokens n_sequences"),
    ),
    Schema(
        "pattern_llc", "pattern_llc",
        needed=over("component pattern", "llc se contrast contrast_se")
        | over("block component pattern", "blocks") | over("pattern", "n_tokens"),
    ),
    Schema(
        "clusters", "clusters",
        needed=over("token", "cluster sequence position")
        | over("label", "label size n_sequences conductance reference beyond_chance"),
        optional=over("token", "token_id") | over("label", "probability seed_token"),
    ),
    Schema(
        "cluster_summary", "cluster_summary",
        needed=over("label", "size") | over("label component", "mean")
        | over(
            "label pattern",
            "count share share_outside odds_ratio odds_low odds_high p q p_token",
        ),
    ),
    Schema(
        "cluster_stability", "cluster_stability",
        needed=over("", "rand information n_both")
        | over("label", "jaccard match jaccard_chance"),
    ),
    Schema(
        "token_map", "token_map",
        needed=over("token axis", "map") | over("token", "sequence position"),
        optional=over("token", "token_id pattern"),
    ),
    Schema(
        "map_stability", "map_stability",
        needed=over("token", "jaccard sequence position") | over("", "agreement chance"),
        optional=over("token", "token_id"),
    ),
    Schema(
        "match", "match", attrs=("kinds", "least", "level"),
        needed=over(
            "component",
            f"partner {with_interval('similarity')} p stability runner_up verdict",
        )
        | over("component other", "similarities") | over("other", "other_verdict"),
    ),
    Schema(
        "match_family", "match_family", attrs=("n_links", "conflicts"),
        needed=over("group model_name", "member similarity")
        | over("group", "n_models agreement"),
    ),
)  # fmt: skip
