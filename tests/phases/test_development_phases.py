"""Checkpoints as phases, and the command."""

from __future__ import annotations

import json
import re

import numpy as np
import pytest
import xarray as xr
from typer.testing import CliRunner

import lens_slt as ls
from lens_slt import cli, cli_phases
from lens_slt.arrays import read_zarr
from lens_slt.development.sublosses import sublosses
from lens_slt.schema import stamped
from tests.cli_records import record_of
from tests.made_draws import made_draws

STEPS = (0, 100)


@pytest.fixture(scope="module")
def curves():
    """A development of two checkpoints, of made draws and losses."""
    rng = np.random.default_rng(0)
    labels = xr.DataArray(
        np.arange(90).reshape(1, 9, 10) % 4 == 0, dims=("pattern", "sequence", "position"),
        coords={"pattern": ["fourth"]},
    )  # fmt: skip
    llc, losses = {}, {}
    text = rng.uniform(1, 3, (9, 10))
    for step in STEPS:
        llc[step] = ls.refined_llc(made_draws())
        own = text + 0.1 * rng.standard_normal(text.shape) - step / 1000
        losses[step] = sublosses({"text": own}, {"text": np.ones((9, 10))}, {"text": labels}, "h")
    nodes = {
        "refined_llc": ls.join_checkpoints(llc), "sublosses": ls.join_checkpoints(losses),
    }  # fmt: skip
    tree = xr.DataTree.from_dict(nodes)
    tree.attrs = {"run": "made", "unit": "step", "settings": nodes["refined_llc"].attrs["settings"]}
    return stamped(tree, "development")


def test_checkpoints_are_phases(curves):
    llc = curves["refined_llc"].to_dataset().sel(component="L1H0")
    losses = curves["sublosses"].to_dataset().sel(probe="text", pattern="all")
    good = [int(s) for s in llc["checkpoint"].values]
    found = ls.development_phases(curves, good, component="L1H0")
    for one, step in zip(found, good, strict=True):
        assert one.name == f"step {step}"
        assert one.llc == float(llc["llc"].sel(checkpoint=step))
        assert one.loss == float(losses["loss"].sel(checkpoint=step))
        assert one.blocks == tuple(losses["blocks"].sel(checkpoint=step).values)
        assert one.component == "L1H0" and one.data
    both = ls.crossing(*found, trust=True)
    assert both.attrs["notes"].count("all other weights frozen") == 1
    blocks = losses["blocks"].sel(checkpoint=100) - losses["blocks"].sel(checkpoint=0)
    se = float(blocks.std(ddof=1) / np.sqrt(blocks.size))
    assert float(both["loss_difference_se"]) == pytest.approx(se, rel=1e-5)


def test_a_pattern_without_an_error_is_refused(curves):
    """As where all of its tokens are in one sequence: its error must not pass for zero."""
    rare = curves.copy(deep=True)
    place = dict(pattern="fourth", probe="text")
    for name in ("se", "blocks"):
        rare["sublosses"][name].loc[place] = np.nan
    found = ls.development_phases(rare, STEPS, component="L1H0")
    assert found[0].sublosses["fourth"].se is None and not found[0].sublosses["fourth"].blocks
    assert np.isfinite(ls.crossing(*found, trust=True)["loss_difference_se"])
    with pytest.raises(ValueError, match="'step 0' on 'fourth' has no standard error.*too few seq"):
        ls.crossing(*found, trust=True, pattern="fourth")


def test_what_is_not_there_is_refused(curves):
    with pytest.raises(ValueError, match="steps: 7 is none of the checkpoints"):
        ls.development_phases(curves, [7], component="L1H0")
    with pytest.raises(ValueError, match="component is missing: choose one of L0H0, L0H1, L1H0"):
        ls.development_phases(curves, [0, 100])
    with pytest.raises(ValueError, match="probe must be one of text"):
        ls.development_phases(curves, [0], component="L1H0", probe="other")


def test_the_command_on_a_folder(curves, tmp_path, monkeypatch):
    monkeypatch.setattr(cli_phases, "open_development", lambda folder: curves)
    options = ["--steps", "0,100", "--component", "L1H0", "--trust", "--json"]
    done = CliRunner().invoke(cli.app, ["phases", str(tmp_path), *options])
    assert done.exit_code == 0, done.output
    whole = record_of(done, "phases", "certificates")
    assert [phase["name"] for phase in whole["phases"]] == ["step 0", "step 100"]
    (record,) = whole["crossings"]
    assert (record["one"], record["other"]) == ("step 0", "step 100")


def test_the_command_on_a_file(tmp_path):
    file = tmp_path / "phases.json"
    rows = [
        {"name": "5", "loss": 0.06874, "llc": 7, "constant": 3.62417},
        {"name": "6", "loss": 0.04819, "llc": 8.5, "constant": 6.37767},
    ]
    file.write_text(json.dumps(rows), "utf-8")
    shown = CliRunner().invoke(cli.app, ["phases", str(file)])
    assert shown.exit_code == 0 and "601" in shown.stdout and "5, 6" in shown.stdout
    out = tmp_path / "kept"
    done = CliRunner().invoke(cli.app, ["phases", str(file), "--json", "--out", str(out)])
    whole = json.loads(done.stdout)
    (row,) = whole["crossings"][0]["crossings"]
    assert row["n"] == pytest.approx(601, abs=1) and row["favoured"] == "6"
    assert whole["files"] == {
        "crossing_1": str(out / "crossing-1.zarr"), "report": str(out / "report.html"),
    }  # fmt: skip
    assert float(read_zarr(out / "crossing-1.zarr")["n"][0]) == row["n"]
    assert "601" in (out / "report.html").read_text("utf-8")


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("{", "is no JSON file"),
        ("{}", "phases must be a list of objects"),
        ('[{"name": "a", "loss": 1}]', "phase 1: .*llc"),
        ('[{"name": "a", "loss": 1, "llc": "x"}]', "phase 1: llc must be a finite number"),
        ('[{"name": "a", "loss": 1, "llc": 1}]', "phases must be at least two"),
    ],
)
def test_files_that_are_none(tmp_path, text, said):
    file = tmp_path / "phases.json"
    file.write_text(text, "utf-8")
    done = CliRunner().invoke(cli.app, ["phases", str(file)])
    assert done.exit_code == 2
    assert re.search(said, " ".join(done.stderr.split()))
