"""Phases and results of phases, made of plain numbers."""

from __future__ import annotations

import json
from typing import Any

import numpy as np

import lens_slt as ls
from lens_slt.sampling.certificate import CERTIFIED
from tests.made_draws import made_draws

FIVE = ls.Phase("5", loss=0.06874, llc=7, constant=3.62417)  # Chen et al. 2023
SIX = ls.Phase("6", loss=0.04819, llc=8.5, constant=6.37767)
CURVATURES = np.array([0.02, 0.04, 0.1, 0.4, 1.0, 1.2])


def localised(ratio: float, curvatures: np.ndarray = CURVATURES) -> float:
    """λ̂ of a quadratic loss at nβ/γ."""
    return float((ratio * curvatures / (ratio * curvatures + 1)).sum() / 2)


def rung(ratio: float, error: float = 0.001, certificate: str = CERTIFIED) -> Any:
    """Refined LLCs as they would be of a quadratic loss."""
    made = ls.refined_llc(made_draws()).isel(component=[0])
    settings = ls.Settings(n_beta=100 * ratio, gamma=100)
    made.attrs["settings"] = json.dumps(settings.as_dict())
    size = made.sizes["component"]
    made["llc"] = ("component", np.full(size, localised(ratio)))
    made["se"] = ("component", np.full(size, error))
    made["certificate"] = ("component", np.full(size, certificate))
    return made


def results() -> dict[str, Any]:
    """One result of every kind."""
    return {
        "crossing": ls.crossing(FIVE, SIX),
        "phase_diagram": ls.phase_diagram([FIVE, SIX], [100, 1000]),
        "limit_llc": ls.limit_llc([rung(ratio) for ratio in (10, 30, 100)]),
    }
