"""Which sources of a node become edges of a proposal."""

from __future__ import annotations

import numpy as np
import pytest
import xarray as xr

from lens_slt.circuits.hypothesis import Edge
from lens_slt.circuits.propose import _beyond_median, _responding, _sources, _through
from lens_slt.circuits.statistics import Measured


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


def measured(value: float) -> Measured:
    return Measured(value, value - 0.05, value + 0.05, 0.5, 0.025, 40)


def test_heads_that_share_the_work_stand_beyond_what_does_not_serve_the_pattern():
    """Robust tokens: idle heads hold less on them than elsewhere, those of the circuit as much."""
    heads = {"L1H0": measured(0.0), "L1H1": measured(-0.02), "L1H2": measured(-0.03)}
    heads |= {"L0H0": measured(-0.6), "L0H1": measured(-0.5), "L0H2": measured(-0.03)}
    heads |= {"L1H3": measured(-0.5), "L0H3": measured(-0.6)}
    level = {"L1H0": 0.5, "L1H1": 0.6, "L1H2": 0.1, "L1H3": 0.3}
    level |= {"L0H0": 0.4, "L0H1": 0.5, "L0H2": 1.0, "L0H3": 0.4}
    found = _responding({"induction": heads}, {"induction": level})["induction"]
    assert set(found) == {"L1H0", "L1H1", "L0H2"}  # L1H2 holds little on the pattern
    # 0, beyond the median of the eight: halfway between −0.03 of 0.23 and −0.5 of 1.5
    middle = -(0.03 / 0.23 + 0.5 / 1.5) / 2
    assert found["L1H0"]["beyond"] == pytest.approx(-middle, abs=0.001)
    # Without levels, as of susceptibilities, nothing is said.
    assert _responding({"induction": heads}, {"induction": {}}) == {}
    # A pattern that is all there is has nothing to be compared with: all are alike.
    alone = {name: measured(value) for name, value in level.items()}
    assert all(np.isnan(x) or x == 0 for x, _ in _beyond_median(alone, level).values())


def test_slight_readers_are_beside_the_core():
    def one(share: float) -> dict[str, float]:
        return {"share": share, "se": 0.01}

    edges = {
        Edge("L0H1", "L1H2", "K"): one(0.9), Edge("L0H1", "L1H3", "V"): one(0.4),
        Edge("L0H1", "L1H4", "K"): one(0.8), Edge("L0H0", "L0MLP", ""): one(0.3),
    }  # fmt: skip
    values = {name: {"value": x} for name, x in (("L1H2", 2.0), ("L1H3", 2.0), ("L1H4", 0.5))}
    assert set(_through("L0H1", edges, values)) == {Edge("L0H1", "L1H2", "K")}
    # What stands out by its level may hold less on the pattern than elsewhere.
    negative = {name: {"value": -0.2} for name in ("L1H2", "L1H4")}
    assert set(_through("L0H1", edges, negative)) == {
        Edge("L0H1", "L1H2", "K"), Edge("L0H1", "L1H4", "K")
    }  # fmt: skip
