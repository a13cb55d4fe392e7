"""Sections about matching, patterning and phases, from results and from commands' tables."""

from __future__ import annotations

import re

import numpy as np
import pytest
import xarray as xr

import lens_slt as ls
from lens_slt.arrays import write_zarr
from lens_slt.report.sections_results import KINDS
from lens_slt.schema import stamped
from lens_slt.schemas import SCHEMAS
from tests.development.test_develop import developed
from tests.report.test_first_screen import words


@pytest.fixture(scope="module")
def match() -> xr.Dataset:
    """Two heads of one model and two of another that are alike."""
    generator = np.random.default_rng(0)
    values = generator.normal(size=(2, 60))
    results = []
    for seed in (1, 2):
        noisy = values + 0.1 * np.random.default_rng(seed).normal(size=values.shape)
        results.append(noisy)
    names = ["L0H0", "L0H1"]
    similar = np.corrcoef(np.concatenate(results))[:2, 2:]
    return xr.Dataset(
        {
            "similarities": (("component", "other"), similar),
            "similarity": ("component", np.diag(similar)),
            "similarity_low": ("component", np.diag(similar) - 0.1),
            "similarity_high": ("component", np.diag(similar) + 0.1),
            "partner": ("component", names), "verdict": ("component", ["matched", "ambiguous"]),
            "p": ("component", [0.01, 0.2]), "stability": ("component", [1.0, 0.5]),
            "runner_up": ("component", [0.2, 0.8]), "other_verdict": ("other", ["matched", "none"]),
        },
        {"component": names, "other": names},
        {"kinds": "per_token_llc", "least": 0.5, "level": 0.95},
    )  # fmt: skip


def test_every_kind_is_a_result():
    for _, _, kinds in KINDS.values():
        assert set(kinds) <= set(SCHEMAS)


def test_results_at_hand_have_sections(match, tmp_path):
    found = stamped(match, "match")
    path = ls.write_report(None, tmp_path / "one.html", results=[found])
    text = path.read_text("utf-8")
    assert re.findall(r'<section id="(\w+)"', text) == ["matching", "limits"]
    assert "1 of 2 components have a partner in the other model, 1 more" in words(text)
    with pytest.raises(ValueError, match=r"no section for modes; it has for attention_patterns"):
        ls.write_report(None, tmp_path / "x.html", results=[xr.Dataset(attrs={"result": "modes"})])
    with pytest.raises(ValueError, match="no section for such a dataset"):
        ls.write_report(None, tmp_path / "x.html", results=[xr.Dataset()])


def test_behaviour_alone_is_a_report(tmp_path):
    scores = ls.behaviour_scores(ls.load_model("attn-1l"), n_random=2)
    text = ls.write_report(None, tmp_path / "one.html", behaviour=scores).read_text("utf-8")
    assert "What the heads do" in words(text)
    assert "No circuit was proposed" not in words(text)  # nobody has looked
    with pytest.raises(ValueError, match="trials, behaviour or results; got none"):
        ls.write_report(None, tmp_path / "none.html")


def test_results_beside_a_sweep_are_not_lost(match, tmp_path):
    developed([0, 5], tmp_path / "sweep", behaviour=False)
    write_zarr(stamped(match, "match"), tmp_path / "match.zarr")
    keys = re.findall('<section id="([^"]+)"', ls.write_report(tmp_path).read_text("utf-8"))
    assert {"matching", "stages", "limits"} <= set(keys)


def test_results_in_a_folder_are_found(match, tmp_path):
    write_zarr(stamped(match, "match"), tmp_path / "any.zarr")
    text = ls.write_report(tmp_path).read_text("utf-8")
    assert 'id="matching"' in text and 'class="plot"' in text
