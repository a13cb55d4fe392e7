"""Which sources of a node become edges of a proposal."""

from __future__ import annotations

import numpy as np
import pytest
import xarray as xr

from lens_slt.circuits.propose import _sources


def edges(se=0.005, **shares):
    """Edges into one head from sources with these shares through V."""
    names = list(shares)
    values = np.array(list(shares.values()))[:, None]
    dims = ("source", "through")
    into = xr.Dataset(
        {"share": (dims, values), "se": (dims, np.full_like(values, se))},
        coords={"source": names, "through": ["V"], "target": "L2H0"},
    )
    return {edge.source for edge, _, _ in _sources(into)}


@pytest.mark.parametrize(
    ("shares", "wanted"),
    [
        (dict(L0H0=0.4, L0H1=0.05), {"L0H0"}),
        (dict(L0H0=0.2, L0H1=0.15, L0H2=0.12), {"L0H0", "L0H1", "L0H2"}),  # they share the work
        (dict(L0H0=0.2, L1H0=0.2), set()),  # each layer's part is small
        (dict(L0H0=0.2, L0MLP=0.2), set()),
        (dict(L0H0=0.8, L0H1=0.2), {"L0H0"}),  # little beside the other
        (dict(L0H0=0.06, L0H1=0.06, L0H2=0.06, L0H3=0.06, L0H4=0.06, L0H5=0.06), set()),  # diffuse
        (dict(L0H0=0.25, L0H1=-0.2), set()),
        (dict(L0MLP=0.5, L0H0=float("nan")), {"L0MLP"}),
    ],
)
def test_sources_are_judged_by_what_their_layer_brings(shares, wanted):
    assert edges(**shares) == wanted


def test_what_is_not_clear_is_no_edge():
    assert edges(se=0.1, L0H0=0.25, L0H1=0.4) == {"L0H1"}
