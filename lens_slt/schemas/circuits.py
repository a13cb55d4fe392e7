"""Behaviours, composition, interventions and circuits."""

from __future__ import annotations

from lens_slt.schemas.declare import Schema, each, over

_BEHAVIOUR = (
    "previous_token current_token first_token duplicate_token prefix_matching induction ngram "
    "skip_gram"
)

SCHEMAS = (
    Schema(
        "behaviour_scores", "behaviour_scores",
        needed=over("component", f"{_BEHAVIOUR} copying written_share head_type"),
        optional=over("component", each(_BEHAVIOUR, "{}_se")),
    ),
    Schema(
        "attention_patterns", "attention_patterns",
        needed=over("component sequence query key", "attention")
        | over("sequence query", "token_id"),
    ),
    Schema(
        "composition_scores", "composition_scores", attrs=("chance_score",),
        needed=over(
            "source target through",
            "score z_random p_random q_random z_rotation p_rotation q_rotation",
        ),
    ),
    Schema(
        "composition_on_tokens", "composition_on_tokens", attrs=("n_positions", "left_out"),
        needed=over("source target through", "share se") | over("target", "drive"),
    ),
    Schema(
        "composition_by_component", "composition_by_component", attrs=("edge", "score"),
        needed=over(
            "direction",
            "singular_value squared_score expected_squared_score share expected_share",
        ),
    ),
    Schema(
        "edge_attribution", "edge_attribution",
        needed=over("source target through", "effect"),
    ),
    Schema(
        "effects", "ablate", attrs=("intervention", "model", "metric", "units", "cost_sign"),
        needed=over("sequence position", "effect token_id"),
        optional=over("sequence position", "base_loss loss"),  # where that is the metric
    ),
    Schema(
        "faithfulness_curve", "faithfulness_curve",
        needed=over("size", "faithfulness low high") | over("random_ranking size", "random")
        | over("", "cpr cmd cpr_p cmd_p"),
    ),
    Schema(
        "transfer", "transfer", attrs=("n_circuits", "transfer_rate", "chance_rate", "p"),
        needed=over("circuit", "original mapped verdict reason chance n_maps n_possible")
        | over("circuit map", "map_circuit map_verdict"),
    ),
)  # fmt: skip
