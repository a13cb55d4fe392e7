"""Which sources of a node become edges of a proposal."""

from __future__ import annotations

import numpy as np
import pytest
import xarray as xr

from lens_slt.circuits.propose import _sources


def edges(shared, se=0.005, **shares):
    """Sources of edges into one head where they have these shares through V."""
    names = list(shares)
    values = np.array(list(shares.values()))[:, None]
    dims = ("source", "through")
    into = xr.Dataset(
        {"share": (dims, values), "se": (dims, np.full_like(values, se))},
        coords={"source": names, "through": ["V"], "target": "L2H0"},
    )
    return {edge.source for edge, _, _ in _sources(into, shared)}


@pytest.mark.parametrize(
    ("shares", "alone", "together"),
    [
        (dict(L0H0=0.4, L0H1=0.05), {"L0H0"}, {"L0H0"}),
        (dict(L0H0=0.2, L0H1=0.15, L0H2=0.12), set(), {"L0H0", "L0H1", "L0H2"}),
        (dict(L0H0=0.2, L1H0=0.2), set(), set()),  # each layer's part is small
        (dict(L0H0=0.2, L0MLP=0.2), set(), set()),
        (dict(L0H0=0.8, L0H1=0.2), {"L0H0"}, {"L0H0"}),  # little beside the other
        (dict.fromkeys(["L0H0", "L0H1", "L0H2", "L0H3", "L0H4"], 0.09), set(), set()),  # diffuse
        (dict(L0H0=0.25, L0H1=-0.2), set(), set()),
        (dict(L0H0=0.25, L0H1=0.08), set(), {"L0H0"}),  # it is the clear one of a layer that does
        (dict(L0H0=1.2, L0H1=0.32), {"L0H0", "L0H1"}, {"L0H0", "L0H1"}),
        (dict(L0MLP=0.5, L0H0=float("nan")), {"L0MLP"}, {"L0MLP"}),
    ],
)
def test_sources_are_judged_alone_and_by_what_their_layer_brings(shares, alone, together):
    assert edges(False, **shares) == alone
    assert edges(True, **shares) == together


def test_what_is_not_clear_is_no_edge():
    assert edges(True, se=0.1, L0H0=0.25, L0H1=0.4) == {"L0H1"}
