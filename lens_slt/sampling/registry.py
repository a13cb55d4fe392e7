"""All samplers by name."""

from __future__ import annotations

from lens_slt.sampling import importance, lm, pcn, rmsprop_sgld, sgld
from lens_slt.sampling.sampler import Sampler

SAMPLERS: dict[str, Sampler] = {
    "lm": lm,
    "sgld": sgld,
    "rmsprop_sgld": rmsprop_sgld,
    "pcn": pcn,
    "importance": importance,
}
