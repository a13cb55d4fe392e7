"""Curves over checkpoints, and models that are trained."""

from __future__ import annotations

import xarray as xr

from lens_slt.schemas.declare import TOKEN, Schema, each, over, with_interval

SCHEMAS = (
    Schema(
        "development", "develop", kind=xr.DataTree, of_a_run=True,
        attrs=("run", "unit", "settings"),
        needed=over("component", "refined_llc/llc refined_llc/se"),
    ),
    Schema(
        "sublosses", "develop", attrs=("tokens_hash",),
        needed=over("probe pattern", "loss se n_tokens"),
        optional=over("block probe pattern", "blocks") | over("probe pattern", "n_blocks"),
    ),
    Schema("differences", "compare", attrs=("compared", "differs", "left_out"), needed={}),
    Schema(
        "stages", "stages", attrs=("flat", "level"),
        needed=over("component", "n_stages staged noise")
        | over("component boundary", with_interval("boundary_step") + " support")
        | over("component stage", "start end trend probability type")
        | over("component stage", with_interval("slope"))
        | over("component step", with_interval("fit")),
        optional=over("component stage", with_interval("loss_change"))
        | over("component stage pattern", with_interval("subloss_change")),
    ),
    Schema(
        "transitions", "transitions", attrs=("level",),
        needed=over(
            "observable transition",
            " ".join(map(with_interval, ("begin", "midpoint", "end", "change"))) + " share",
        ) | over("observable", "n_transitions staged")
        | over("observable step", with_interval("fit")),
    ),
    Schema(
        "critical_checkpoints", "critical_checkpoints", attrs=("level",),
        needed=over("critical", with_interval("at_step"))
        | over("critical observable", with_interval("share"))
        | over("step", with_interval("speed")) | over("observable", "moves"),
    ),
    Schema(
        "head_trajectories", "head_trajectories", of_a_run=True,
        attrs=("verdict",),
        needed=over("component", "cluster sure") | over("component other_component", "together")
        | over("label", "size") | over("label refinement", "centre centre_se")
        | over("variant component", "variant_cluster")
        | over("variant", "stability silhouette method scaling scope")
        | over("variant other_variant", "agreement") | over("", "p_noise p_continuum"),
        optional=over("component", "head_type") | over("variant", "variant_type_ari")
        | over("", "type_ari type_ari_low type_ari_high type_p type_p_in_layers"),
    ),
    Schema(
        "differentiation", "differentiation", of_a_run=True,
        attrs=("against",),
        needed=over(
            "component refinement",
            "step step_low step_high support side verdict excess excess_se p band_low "
            "band_high",
        ) | over("component", "first_refinement"),
    ),
    Schema(
        "migration", "migration", of_a_run=True,
        attrs=("verdict", "probe", "before_step", "after_step"),
        needed=over(
            "component", "llc se before after change change_low change_high p word"
        ),
        optional=over(
            "when component pattern", "effect effect_se affected_share affected_share_se"
        ) | over("pattern", "token_share") | over(
            "component pattern",
            "effect_change effect_change_se effect_change_low effect_change_high "
            "effect_change_p effect_word",
        ),
    ),
    Schema(
        "mode_development", "mode_development", of_a_run=True,
        attrs=("quantity",),
        needed=over("mode", "step step_low step_high support verdict")
        | over(
            "mode", "angle correlation loading_span_angle token_span_angle explained",
        )
        | over("mode component", "loading") | over("mode token", "score") | TOKEN,
        optional=over("mode", "angle_low angle_high correlation_low correlation_high"),
    ),
    Schema(
        "pattern_influence", "pattern_influence", of_a_run=True,
        needed=over(
            "query source",
            "influence se correlation correlation_se effect flips peak peak_low peak_high "
            "peak_ratio",
        ),
    ),
    Schema(
        "construction", "construction", of_a_run=True,
        attrs=("run", "unit", "units", "least_effect", "sequences", "level"),
        needed=over("part context", f"effect {each('se low high', 'effect_{}')}")
        | over("part", "behaviour behaviour_se head_type behaves_as behaves_least")
        | over("part", f"alone {each('se low high share', 'alone_{}')}")
        | over("part", "composition composition_q share share_se verdict reasons")
        | over("part criterion", "onset onset_low onset_high")
        | over("part", "kind circuit piece pattern"),
    ),
    Schema(
        "locality", "locality", attrs=("gain", "gain_se", "n_weights", "target"),
        needed=over("ranking share", "kept kept_low kept_high")
        | over("ranking", "smallest_share smallest_share_low smallest_share_high")
        | over("", "null_kept"),
    ),
    Schema(
        "weight_change", "weight_change",
        needed=over("component matrix", "norm relative_norm stable_rank random_stable_rank"),
    ),
    Schema(
        "moved_directions", "moved_directions", attrs=("rank", "random"),
        needed=over("component direction parameter", "directions")
        | over("component", "captured") | over("component direction", "matrix"),
    ),
    Schema(
        "patterning", "patterning",
        attrs=("strength", "clipped", "effective_sequences", "component", "certificate"),
        needed=over("sequence", "weight change")
        | over("observable", "wish predicted predicted_se side_effect"),
    ),
    Schema(
        "retrainings", "retrainings", of_a_run=True, attrs=("path",),
        needed=over("run seed observable", "value"),
    ),
    Schema(
        "developmental_ablation", "developmental_ablation", of_a_run=True, attrs=("path",),
        needed=over("run seed observable", "value")
        | over("level run seed", "step delay")
        | over("level run", "formed mean_delay mean_delay_se"),
    ),
    Schema(
        "patterning_check", "verify_patterning", of_a_run=True,
        attrs=("steps", "path", "strength"),
        needed=over("kind strength seed observable", "change")
        | over("seed observable", "usual")
        | over("level kind strength seed", "sooner")
        | over("strength observable", "predicted predicted_se realised realised_se")
        | over("observable", with_interval("slope") + " wish")
        | over("kind strength", "share share_se excess excess_se z p corrected_p")
        | over("strength", "clipped effective_sequences"),
    ),
)  # fmt: skip
