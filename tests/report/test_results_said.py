"""What the first screen says of results of other functions."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import xarray as xr

from lens_slt.report.first_screen import run_screen
from lens_slt.report.results_said import clauses, with_partners
from lens_slt.report.run_results import RunResults


def result(kind: str, data: dict[str, Any], coords: dict[str, Any], **attrs: Any) -> xr.Dataset:
    """The part of a result that is read."""
    return xr.Dataset(data, coords, {"result": kind, **attrs})


MATCHED = result(
    "match", {"verdict": ("component", ["matched", "no partner", "shared"])},
    {"component": ["L0H0", "L0H1", "L1H0"]},
)  # fmt: skip
TRANSFERRED = result(
    "transfer", {"verdict": ("circuit", ["supported", "no map", "supported"])}, {},
    chance_rate=0.047, p=0.0021,
)  # fmt: skip
WISHED = result(
    "patterning",
    {
        "wish": ("observable", [-0.02, np.nan]), "predicted": ("observable", [-0.0096, 0.01]),
        "predicted_se": ("observable", [0.0033, 0.001]),
    },
    {"observable": ["code", "prose"]}, strength=2.0,
)  # fmt: skip
CHECKED = result(
    "patterning_check",
    {
        "share": (("kind", "strength"), [[0.5, 0.92], [0.0, 0.1]]),
        "share_se": (("kind", "strength"), [[0.1, 0.11], [0.1, 0.1]]),
    },
    {"kind": ["wish", "shuffled"], "strength": [-1.0, 1.0]}, steps=30,
    strength=1.0,
)  # fmt: skip
ENDS = {"n": [370.0], "n_low": [330.0], "n_high": [420.0]}
WIDE = {"n": 1234.0, "n_low": 1100.0, "n_high": np.inf}
CROSSED = result(
    "crossing", {key: ("crossing", value) for key, value in ENDS.items()}, {},
    one="square", other="pentagon",
)  # fmt: skip


def test_a_partner_that_a_rival_equals_is_no_sure_one() -> None:
    words = np.where(MATCHED["verdict"] == "matched", "ambiguous", MATCHED["verdict"])
    assert with_partners(MATCHED.assign(verdict=("component", words))) == (
        "1 of 3 components have a partner in the other model, 1 more one that a rival equals"
    )


@pytest.mark.parametrize(
    ("found", "said"),
    [
        (MATCHED, "2 of 3 components have a partner in the other model"),
        (
            TRANSFERRED,
            "2 of 3 circuits are supported where the match maps them (5% by chance, p 0.0021)",
        ),
        (
            WISHED,
            "weights of the data are predicted to change code by -0.0096 ± 0.0033 (-0.04 wished)",
        ),
        (CHECKED, "retraining for 30 steps made 92 ± 11 % of that come true"),
        (
            CHECKED.assign_attrs(strength=-1.0),  # the other one is the opposite of the wish
            "retraining for 30 steps made 50 ± 10 % of that come true",
        ),
        (CROSSED, "the phases square and pentagon cross at n = 370 (330–420)"),
        (
            CROSSED.isel(crossing=[]).assign(from_n=("undecided", [100.0])),
            "the phases square and pentagon may cross",
        ),
        (
            CROSSED.assign({key: ("crossing", [value]) for key, value in WIDE.items()}),
            "the phases square and pentagon cross at n = 1,234 (1,100 or more)",
        ),
        (
            CROSSED.assign(n_high=("crossing", [2.5e6])),
            "the phases square and pentagon cross at n = 370 (330–2.5e+06)",
        ),
        (CROSSED.isel(crossing=[]), "the phases square and pentagon do not cross"),
    ],
)
def test_a_result_in_a_clause(found: xr.Dataset, said: str) -> None:
    assert clauses([found]) == [said]


def test_what_has_nothing_to_say_is_left_out() -> None:
    unwished = WISHED.assign(wish=WISHED["wish"] * np.nan)
    unknown = CHECKED.assign(share=CHECKED["share"] * np.nan)
    assert clauses([unwished, unknown, result("attention_patterns", {}, {})]) == []


def test_the_first_screen_says_it() -> None:
    screen = run_screen(RunResults(others=[MATCHED, WISHED]), None, {})
    assert "Measured: matching and patterning." in screen
    assert "Found: 2 of 3 components have a partner in the other model, and weights of" in screen
    assert "no circuit was on trial" not in screen
