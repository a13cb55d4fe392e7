"""Phases and spectra."""

from __future__ import annotations

from lens_slt.schemas.declare import Schema, over, with_errors, with_interval

_SPECTRUM = "llc se certificate why prior_loss " + with_errors(
    "variance gap identity stiffness effective_directions"
)

SCHEMAS = (
    Schema(
        "crossing", "crossing", attrs=("one", "other", "level", "notes", "pattern", "share"),
        needed=over("crossing", with_interval("n") + " favoured shift_per_constant")
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
        needed=over("component", with_errors("stiffness effective_directions"))
        | over("component", "finest verdict")
        | over("curvature component", "directions_low directions_high")
        | over("rung component", with_errors("smoothed")) | over("rung", "resolution"),
    ),
    Schema(
        "density_of_states", "density_of_states", attrs=("component", "gamma"),
        needed=over(
            "rung", "n_beta overlap free_energy free_energy_se integrated integrated_se "
            "difference difference_se"
        )
        | over("loss", "log_volume log_volume_se"),
    ),
)  # fmt: skip
