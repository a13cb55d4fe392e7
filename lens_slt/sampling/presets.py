"""Settings by name, each with the paper it is from."""

from __future__ import annotations

from lens_slt.arguments import choice, typed
from lens_slt.sampling.settings import Settings

PRESETS: dict[str, tuple[Settings, str]] = {
    "default": (Settings(), "lens_slt: Leimkuhler–Matthews Langevin, step size tied to γ"),
    "wang2024": (
        Settings(
            n_beta=30, gamma=200, step_size=1e-3, sampler="sgld", chains=4, draws=200, burn_in=0,
            batch_size=64, antithetic=False,
        ),
        "Wang et al. 2024, Differentiation and Specialization of Attention Heads via the Refined "
        "Local Learning Coefficient (arXiv 2410.02984), per-head rLLCs by SGLD. nβ, γ and ε agree "
        "with public replications; chains, draws and batch size: check Appendix F.2",
    ),
    "baker2025": (
        Settings(
            n_beta=30, gamma=300, step_size=1e-3, sampler="sgld", chains=4, draws=200, burn_in=0,
            batch_size=64, antithetic=False,
        ),
        "Baker et al. 2025, Structural Inference: Interpreting Small Language Models with "
        "Susceptibilities (arXiv 2504.18274), by SGLD. Not checked against the paper's appendix: "
        "compare before quoting",
    ),
}  # fmt: skip


@typed
def preset(name: str) -> Settings:
    """Settings by name: see ``PRESETS`` for the paper behind each.

    Example:
        >>> import lens_slt as ls
        >>> ls.preset("wang2024").sampler, ls.preset("wang2024").gamma
        ('sgld', 200)
    """
    choice("preset", name, tuple(PRESETS))
    return PRESETS[name][0]
