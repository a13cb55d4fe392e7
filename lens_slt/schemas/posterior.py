"""What draws tell of one model."""

from __future__ import annotations

import xarray as xr

from lens_slt.schemas.declare import TOKEN, Schema, each, over, with_errors

ROOT = (
    "n_parameters n_draws step_size steps_per_draw curvature prior_loss prior_loss_se choice "
    "bias bias_se"
)
CERTIFICATE = "certificate why defect defect_se defect_share defect_share_se"


def _matrix(name: str, quantities: str) -> Schema:
    """Of tokens × components."""
    return Schema(
        name, name, attrs=("quantity", "probe"),
        needed=over("component token", f"{quantities} se") | TOKEN | over("token", "base_loss")
        | over("component", "split_half reliability mean mean_se rms_se verdict"),
        optional=over("block component token", "blocks") | over("component", "step_size n_draws"),
    )  # fmt: skip


SCHEMAS = (
    Schema(
        "draws", "sample", kind=xr.DataTree, attrs=("settings",),
        needed=over("component", ROOT)
        | over(
            "component chain draw",
            "posterior/paired_loss posterior/squared_distance posterior/step_loss "
            "posterior/virial posterior/defect",
        )
        | over("component chain interval", "burn_in/paired_loss")
        | over("component chain", "health/verdict health/used")
        | over("component", "health/rhat health/summary")
        | over("component", each(CERTIFICATE, "health/{}"))
        | over("component chain draw sequence position", "probes/*/paired_loss")
        | over("sequence position", "probes/*/base_loss probes/*/tokens probes/*/weight"),
        optional=over("component chain draw", "posterior/full_loss"),
    ),
    Schema(
        "refined_llc", "refined_llc", attrs=("settings",),
        needed=over("component", "llc se mean_paired_loss ess rhat chains_used verdict")
        | over("component", f"{CERTIFICATE} {ROOT}"),
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
        needed=over("component", with_errors(
            "bayes_training_loss gibbs_training_loss functional_variance singular_fluctuation "
            "waic bayes_generalisation_loss gibbs_generalisation_loss"
        ))
        | over("component", "waic_observation_se bayes_generalisation_loss_observation_se")
        | over("component", "large_variance k_hat correction"),
    ),
    Schema(
        "wbic", "wbic", attrs=("n_beta", "gamma"),
        needed=over("component", with_errors("wbic llc") + " k_hat correction"),
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
        "influence", "influence", attrs=("component", "unit", "kind", "same_probe", "blocks"),
        needed=over("query source", "influence se")
        | over("query", "query_sequence") | over("source", "source_sequence"),
        optional=over("query", "query_position") | over("source", "source_position"),
    ),
    Schema(
        "data_response", "data_response", attrs=("component", "candidates", "certificate"),
        needed=over("observable sequence", "response se")
        | over("block observable sequence", "blocks") | over("sequence position", "tokens")
        | over("sequence", "group_size"),
    ),
)  # fmt: skip
