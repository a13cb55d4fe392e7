"""The schema of every result: its variables, their dimensions in order, and its version.

A result is what a function of lens_slt returns as an :class:`xarray.Dataset`, ``DataArray`` or
``DataTree``. Its attribute ``result`` is its name in :data:`SCHEMAS`, ``schema`` the version of the
schema it was made by. Any result may carry :data:`LEADING` dimensions in front, for several
checkpoints or models at once. :mod:`lens_slt.schema` holds results to them.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import xarray as xr

LEADING = ("checkpoint", "model")
MATRICES = ("per_token_llc", "susceptibility")  # of tokens × components

Dims = tuple[str, ...]


@dataclass(frozen=True)
class Schema:
    """What a result holds. More may be there.

    A variable of a tree is named with its group, ``posterior/paired_loss``; ``*`` is every group
    at that place. A dimension may be one of two, ``mode|component``. The one variable of a
    DataArray has the name of the result.
    """

    name: str
    made_by: str  # the function
    needed: Mapping[str, Dims]
    optional: Mapping[str, Dims] = field(default_factory=dict)
    attrs: Dims = ()  # that readers need
    kind: type = xr.Dataset
    version: int = 1
    of_a_run: bool = False  # one result of all checkpoints, whose dimension needs no choice

    @property
    def variables(self) -> dict[str, Dims]:
        """All that is declared."""
        return {**self.needed, **self.optional}


def over(dims: str, names: str) -> dict[str, Dims]:
    """Variables with the same dimensions; both as words."""
    return dict.fromkeys(names.split(), tuple(dims.split()))


_TOKEN = over("token", "sequence position token_id")
_ROOT = (
    "n_parameters n_draws step_size steps_per_draw curvature prior_loss prior_loss_se choice "
    "bias bias_se"
)
_CERTIFICATE = "certificate why defect defect_se defect_share defect_share_se"
_BEHAVIOUR = (
    "previous_token current_token first_token duplicate_token prefix_matching induction ngram "
    "skip_gram"
)


def _each(words: str, form: str) -> str:
    """Every word put into ``form``."""
    return " ".join(form.format(word) for word in words.split())


def _with_error(names: str) -> str:
    """Quantities and their standard errors."""
    return f"{names} {_each(names, '{}_se')}"


def _with_interval(name: str) -> str:
    """A quantity and the ends of its interval."""
    return f"{name} {name}_low {name}_high"


def _with_errors(words: str) -> str:
    """Quantities and their standard errors."""
    return _each(words, "{0} {0}_se")


def _matrix(name: str, quantities: str) -> Schema:
    """Of tokens × components."""
    return Schema(
        name, name, attrs=("quantity", "probe"),
        needed=over("component token", f"{quantities} se") | _TOKEN | over("token", "base_loss")
        | over("component", "split_half reliability mean mean_se rms_se verdict"),
        optional=over("block component token", "blocks") | over("component", "step_size n_draws"),
    )  # fmt: skip


_SPECTRUM = "llc se certificate why prior_loss " + _with_errors(
    "variance gap identity stiffness effective_directions"
)
SCHEMAS: dict[str, Schema] = {
    schema.name: schema
    for schema in (
        Schema(
            "draws", "sample", kind=xr.DataTree, attrs=("settings",),
            needed=over("component", _ROOT)
            | over(
                "component chain draw",
                "posterior/paired_loss posterior/squared_distance posterior/step_loss "
                "posterior/virial posterior/defect",
            )
            | over("component chain interval", "burn_in/paired_loss")
            | over("component chain", "health/verdict health/used")
            | over("component", "health/rhat health/summary")
            | over("component", _each(_CERTIFICATE, "health/{}"))
            | over("component chain draw sequence position", "probes/*/paired_loss")
            | over("sequence position", "probes/*/base_loss probes/*/tokens probes/*/weight"),
            optional=over("component chain draw", "posterior/full_loss"),
        ),
        Schema(
            "refined_llc", "refined_llc", attrs=("settings",),
            needed=over("component", "llc se mean_paired_loss ess rhat chains_used verdict")
            | over("component", f"{_CERTIFICATE} {_ROOT}"),
            optional=over("component probe", "probe_llc probe_se probe_text_se")
            | over("block component", "blocks") | over("block component probe", "probe_blocks"),
        ),
        Schema(
            "refined_observable", "refined_observable", attrs=("settings", "probe"),
            needed=over("component observable", "expectation shift se text_se")
            | over("observable", "base") | over("component", "certificate verdict"),
        ),
        Schema(
            "log_likelihood", "log_likelihood", kind=xr.DataArray,
            attrs=("n_beta", "gamma", "n_tokens", "antithetic"),
            needed=over("component chain draw observation", "log_likelihood")
            | over("observation", "base") | over("component chain", "used")
            | over("component chain draw", "squared_distance"),
        ),
        Schema(
            "generalisation", "generalisation", attrs=("n_beta", "gamma"),
            needed=over("component", _with_error(
                "bayes_training_loss gibbs_training_loss functional_variance singular_fluctuation "
                "waic bayes_generalisation_loss gibbs_generalisation_loss"
            ))
            | over("component", "waic_observation_se bayes_generalisation_loss_observation_se")
            | over("component", "large_variance k_hat correction"),
        ),
        Schema(
            "wbic", "wbic", attrs=("n_beta", "gamma"),
            needed=over("component", _with_error("wbic llc") + " k_hat correction"),
        ),
        Schema(
            "response", "response", attrs=("observable", "shift"),
            needed=over(
                "component strength",
                "first first_se second second_se predicted predicted_se reweighted reweighted_se "
                "ess reliable",
            ) | over("component", "certificate"),
        ),
        _matrix("per_token_llc", "llc"),
        _matrix("susceptibility", "chi mean_term covariance_term"),
        Schema(
            "modes", "modes", attrs=("quantity",),
            needed=over("mode token", "score") | over("mode component", "loading")
            | over("mode", "explained") | _TOKEN | over("token", "base_loss"),
            optional=over("mode component", "loading_low loading_high")
            | over("mode", "explained_low explained_high angle subspace_angle verdict")
            | over("token", "text"),
        ),
        Schema(
            "enrichment", "enrichment", attrs=("quantity",),
            needed=over("mode|component pattern", "auc low high p q")
            | over("pattern", "n_tokens n_sequences"),
        ),
        Schema(
            "development", "develop", kind=xr.DataTree, of_a_run=True,
            attrs=("run", "unit", "settings"),
            needed=over("component", "refined_llc/llc refined_llc/se"),
        ),
        Schema(
            "sublosses", "develop", attrs=("tokens_hash",),
            needed=over("probe pattern", "loss se n_tokens"),
            optional=over("block probe pattern", "blocks"),
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
            | over("mode component", "loading") | over("mode token", "score") | _TOKEN,
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
            needed=over("part context", f"effect {_each('se low high', 'effect_{}')}")
            | over("part", "behaviour behaviour_se head_type behaves_as behaves_least")
            | over("part", f"alone {_each('se low high share', 'alone_{}')}")
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
            "attention_patterns", "attention_patterns",
            needed=over("component sequence query key", "attention")
            | over("sequence query", "token_id"),
        ),
        Schema(
            "data_response", "data_response", attrs=("component", "candidates", "certificate"),
            needed=over("observable sequence", "response se")
            | over("block observable sequence", "blocks") | over("sequence position", "tokens")
            | over("sequence", "group_size"),
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
            attrs=("steps", "path"),
            needed=over("kind strength seed observable", "change")
            | over("seed observable", "usual")
            | over("level kind strength seed", "sooner")
            | over("strength observable", "predicted predicted_se realised realised_se")
            | over("observable", _with_interval("slope") + " wish")
            | over("kind strength", "share share_se excess excess_se z p")
            | over("strength", "clipped effective_sequences"),
        ),
        Schema(
            "match", "match", attrs=("kinds", "least", "level"),
            needed=over(
                "component",
                f"partner {_with_interval('similarity')} p stability runner_up verdict",
            )
            | over("component other", "similarities") | over("other", "other_verdict"),
        ),
        Schema("differences", "compare", attrs=("compared", "differs", "left_out"), needed={}),
        Schema(
            "patterns", "label_patterns", kind=xr.DataArray,
            needed=over("pattern sequence position", "patterns") | over("pattern", "pattern"),
            optional=over("sequence position", "token_id"),
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
            "transfer", "transfer", attrs=("n_circuits", "transfer_rate", "chance_rate", "p"),
            needed=over("circuit", "original mapped verdict reason chance n_maps n_possible")
            | over("circuit map", "map_circuit map_verdict"),
        ),
        Schema(
            "match_family", "match_family", attrs=("n_links", "conflicts"),
            needed=over("group model_name", "member similarity")
            | over("group", "n_models agreement"),
        ),
        Schema(
            "influence", "influence", attrs=("component", "unit", "kind", "same_probe", "blocks"),
            needed=over("query source", "influence se")
            | over("query", "query_sequence") | over("source", "source_sequence"),
            optional=over("query", "query_position") | over("source", "source_position"),
        ),
        Schema(
            "effects", "ablate", attrs=("intervention", "model", "metric", "units", "cost_sign"),
            needed=over("sequence position", "effect token_id"),
            optional=over("sequence position", "base_loss loss"),  # where that is the metric
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
            "behaviour_scores", "behaviour_scores",
            needed=over("component", f"{_BEHAVIOUR} copying written_share head_type"),
            optional=over("component", _each(_BEHAVIOUR, "{}_se")),
        ),
        Schema(
            "edge_attribution", "edge_attribution",
            needed=over("source target through", "effect"),
        ),
        Schema(
            "stages", "stages", attrs=("flat", "level"),
            needed=over("component", "n_stages staged noise")
            | over("component boundary", _with_interval("boundary_step") + " support")
            | over("component stage", "start end trend probability type")
            | over("component stage", _with_interval("slope"))
            | over("component step", _with_interval("fit")),
            optional=over("component stage", _with_interval("loss_change"))
            | over("component stage pattern", _with_interval("subloss_change")),
        ),
        Schema(
            "transitions", "transitions", attrs=("level",),
            needed=over(
                "observable transition",
                " ".join(map(_with_interval, ("begin", "midpoint", "end", "change"))) + " share",
            ) | over("observable", "n_transitions staged")
            | over("observable step", _with_interval("fit")),
        ),
        Schema(
            "critical_checkpoints", "critical_checkpoints", attrs=("level",),
            needed=over("critical", _with_interval("at_step"))
            | over("critical observable", _with_interval("share"))
            | over("step", _with_interval("speed")) | over("observable", "moves"),
        ),
        Schema(
            "crossing", "crossing", attrs=("one", "other", "level", "notes", "pattern", "share"),
            needed=over("crossing", _with_interval("n") + " favoured shift_per_constant")
            | over("undecided", "from_n to_n") | over("n_grid", "difference difference_se")
            | over(
                "", "loss_difference loss_difference_se llc_difference llc_difference_se"
            ),
        ),
        Schema(
            "limit_llc", "limit_llc",
            needed=over("component", "llc se form_se reach certificate n_parameters verdict")
            | over("component rung", "rung_llc rung_se fit") | over("rung", "ratio"),
        ),
        Schema(
            "phase_diagram", "phase_diagram", attrs=("pattern", "notes"),
            needed=over("share n", "lowest") | over("share n phase", "free_energy probability"),
        ),
        Schema(
            "spectrum", "spectrum", attrs=("settings",),
            needed=over("n_beta gamma component", _SPECTRUM) | over("component", "n_parameters"),
        ),
        Schema(
            "multiplicity", "multiplicity",
            needed=over(
                "gamma component",
                "multiplicity llc llc_se llc_low llc_high rungs decades verdict",
            )
            | over("form gamma component", "misfit form_llc form_llc_se")
            | over("n_beta gamma component", "fit rung_llc rung_se"),
        ),
        Schema(
            "curvatures", "curvatures",
            needed=over("component", _with_errors("stiffness effective_directions"))
            | over("component", "finest verdict")
            | over("curvature component", "directions_low directions_high")
            | over("rung component", _with_errors("smoothed")) | over("rung", "resolution"),
        ),
        Schema(
            "density_of_states", "density_of_states", attrs=("component", "gamma"),
            needed=over(
                "rung", "n_beta overlap free_energy free_energy_se integrated integrated_se "
                "difference difference_se"
            )
            | over("loss", "log_volume log_volume_se"),
        ),
        Schema(
            "faithfulness_curve", "faithfulness_curve",
            needed=over("size", "faithfulness low high") | over("random_ranking size", "random")
            | over("", "cpr cmd cpr_p cmd_p"),
        ),
    )
}  # fmt: skip
