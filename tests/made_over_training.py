"""Results over checkpoints, made without a model."""

from __future__ import annotations

import numpy as np
import xarray as xr

from lens_slt.development.construction import CRITERIA
from lens_slt.development.construction_cells import CONTEXTS
from lens_slt.schema import stamped
from lens_slt.schemas import SCHEMAS

STEPS = [0, 100, 1000, 2000]
SIZES = {"component": ["L0H1", "L1H2"], "probe": ["code", "prose"], "pattern": ["all", "induction"],
         "criterion": list(CRITERIA), "context": list(CONTEXTS), "step": STEPS,
         "observable": ["induction"]}  # fmt: skip


def made(name, *, skip=(), **attrs):
    """A result of random numbers, over checkpoints, as its schema wants it."""
    generator = np.random.default_rng(0)
    data = {}
    for key, dims in SCHEMAS[name].variables.items():
        if key in skip or ("block" in dims and key in SCHEMAS[name].optional):
            continue
        shape = (len(STEPS), *(len(SIZES.get(dim, "four")) for dim in dims))
        data[key] = (("checkpoint", *dims), generator.uniform(0.1, 1, shape))
    used = {dim for dims, _ in data.values() for dim in dims}
    coords = {dim: SIZES[dim] for dim in used & set(SIZES)} | {"checkpoint": STEPS}
    return stamped(xr.Dataset(data, coords=coords, attrs=attrs), name)


def made_construction():
    """Of a circuit of one head, one edge and the whole."""
    text = {"part": ["L0H1", "L0H1→L1H2.K", "circuit"]}
    found = made("construction", run="x", unit="step", units="nats", least_effect=0.05,
                 sequences=16, level=0.95)  # fmt: skip
    found = found.isel(part=slice(3)).assign_coords(text)
    names = ("behaves_least", "onset", "onset_low", "onset_high", "kind", "circuit", "piece",
             "pattern", "behaves_as")  # fmt: skip
    found = found.drop_vars(names)
    dims = ("part", "criterion")
    nan = np.nan
    found = found.assign_coords(
        kind=("part", ["component", "edge", "circuit"]), circuit=("part", ["induction"] * 3),
        piece=("part", ["L0H1", "L0H1→L1H2.K", "induction"]), pattern=("part", ["induction"] * 3),
    ).assign(
        behaves_least=("part", [0.5, nan, nan]), behaves_as=("part", ["previous token", "", ""]),
        head_type=(("checkpoint", "part"), [["previous token", "", ""]] * 4),
        verdict=(("checkpoint", "part"), [["", "", ""]] * 3 + [["", "", "supported"]]),
        reasons=(("checkpoint", "part"), [["", "", "why"]] * 4),
        onset=(dims, [[1000, 100, nan, nan], [nan] * 4, [1000, nan, 1000, 2000]]),
        onset_low=(dims, [[100, nan, nan, nan], [2000, nan, nan, nan], [nan, nan, 100, 1000]]),
        onset_high=(dims, [[2000, 100, nan, nan], [nan] * 4, [nan, nan, 1000, 2000]]),
    )  # fmt: skip
    return stamped(found, "construction")
