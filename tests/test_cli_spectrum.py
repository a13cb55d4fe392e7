"""``lens-slt spectrum`` on tiny workloads, and the report of its folder."""

from __future__ import annotations

from pathlib import Path

import pytest
from typer.testing import CliRunner

from lens_slt import cli
from lens_slt.arrays import read_zarr
from tests.cli_records import record_of

TINY = ["--model", "attn-2l", "--data", "mix", "--sequences", "8", "--length", "16", "--draws",
        "24", "--chains", "2", "--batch-size", "4", "--components", "L0H0", "--n-betas", "3,10",
        "--trust"]  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize("steps", [[], ["--steps", "1000,5300"]])
def test_a_spectrum_is_kept_for_a_report(tmp_path: Path, steps: list[str]) -> None:
    out = ["--out", str(tmp_path), "--json"]
    done = CliRunner().invoke(cli.app, ["spectrum", *TINY, *steps, *out])
    record = record_of(done, "rungs", "runs", "files")
    stored = read_zarr(Path(record["files"]["spectrum"]))
    rungs = [row["llc"] for row in record["rungs"] if row["llc"] is not None]
    assert sorted(stored["llc"].values.ravel()) == pytest.approx(sorted(rungs))
    written = CliRunner().invoke(cli.app, ["report", str(tmp_path)])
    assert written.exit_code == 0, written.output
    assert 'id="spectrum"' in (tmp_path / "report.html").read_text()
