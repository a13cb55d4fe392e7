"""Tables say the right numbers and fit a terminal."""

import io

import pytest
from rich.cells import cell_len
from rich.console import Console
from rich.table import Table

from lens_slt.observables.refined_llc import refined_llc
from lens_slt.report.tables import (
    health_summary,
    notes,
    probe_table,
    rllc_table,
    with_error,
)
from lens_slt.report.tables_models import models_table
from tests.made_draws import made_draws


def text_of(table: Table) -> str:
    console = Console(file=io.StringIO(), width=80)
    console.print(table)
    return console.file.getvalue()  # type: ignore[attr-defined]


def row_of(text: str, name: str) -> list[str]:
    return next(line.split() for line in text.splitlines() if line.startswith(name))


def test_table_has_the_estimate_its_error_and_its_health() -> None:
    # Paired loss 0.2 at nβ 30; 400 independent draws of spread 0.01: λ̂ = 6.00, se = 30·0.01/20.
    text = text_of(rllc_table(refined_llc(made_draws())))
    cells = row_of(text, "L0H0")
    assert float(cells[1]) == pytest.approx(6.0, abs=0.06)
    assert cells[2] == "±"
    assert float(cells[3]) == pytest.approx(0.015, rel=0.35)
    assert float(cells[4]) == pytest.approx(0.3, abs=0.1)  # percent
    assert float(cells[5]) == pytest.approx(1.0, abs=0.02)  # R̂
    assert 200 < int(cells[6]) < 900
    assert cells[7:] == ["4/4", "1", "0", "healthy"]  # one step a draw, no bias allowed


def test_table_fits_80_columns_and_keeps_every_digit() -> None:
    text = text_of(rllc_table(refined_llc(made_draws(bad={"L0H1": 1}))))
    assert max(map(cell_len, text.splitlines())) <= 80
    assert "…" not in text
    assert "1 of 4 chains diverged" in " ".join(text.split())


def test_component_without_chains_has_no_number() -> None:
    cells = row_of(text_of(rllc_table(refined_llc(made_draws(bad={"L0H1": 4})))), "L0H1")
    assert cells[1:6] == ["–", "–", "–", "0", "0/4"]
    assert cells[-1] == "diverged"


def test_shared_and_tied_weights_are_named() -> None:
    shares = ["L0H1", "L0H0", "", ""]
    tied = "embedding and unembedding are tied: this one matrix is both"
    draws = made_draws(shares_key_value_with=shares, note=["", "", "", tied])
    assert notes(draws) == [f"L1MLP: {tied}", "L0H0, L0H1 share key and value weights"]
    assert "share key and value weights" in " ".join(
        text_of(rllc_table(refined_llc(draws), notes(draws))).split()
    )


def test_probes_get_columns() -> None:
    llc = refined_llc(made_draws(probes=True))
    text = text_of(probe_table(llc))
    assert "other text" in text
    cells = row_of(text, "L0H0")
    assert [float(cell) for cell in cells[1::3]] == pytest.approx([6.0, 12.0, 3.0], abs=0.1)


def test_probe_table_needs_probes() -> None:
    with pytest.raises(ValueError, match="give probes="):
        probe_table(refined_llc(made_draws()))


def test_health_in_words() -> None:
    all_well = health_summary(refined_llc(made_draws(prior_loss=[0.25, 0.5, 0.75, 1.0])))
    assert all_well.startswith("all 4 components are healthy and certified; largest R̂ 1.0")
    assert "the prior alone raises the loss by 0.25 to 1 nats" in all_well
    assert "hardly" not in all_well
    llc = refined_llc(made_draws(prior_loss=4 * [1.0], prior_loss_se=4 * [0.01]))
    loss = llc["mean_paired_loss"].values
    near = llc.assign(prior_loss=("component", [9.0, 1.05 * loss[1], 9.0, 9.0]))
    assert "nats, draws of L0H1 hardly less, where λ̂ is little more than a mean" in health_summary(
        near
    )
    summary = health_summary(refined_llc(made_draws(bad={"L0H1": 4, "L1H0": 1})))
    assert summary.splitlines()[0].startswith("2 of 4 components are healthy")
    assert "L0H1: diverged (no chain can be used)" in summary
    assert "L1H0: 1 of 4 chains diverged" in summary


@pytest.mark.parametrize(
    ("value", "error", "text"),
    [
        (13.2468, 0.1234, "13.25 ± 0.12"),
        (5.6, 0.0951, "5.600 ± 0.095"),
        (1234.5, 23.4, "1234 ± 23"),
        (-0.5, 1.5, "-0.5 ± 1.5"),
        (float("nan"), 0.1, "–"),
        (2.5, float("nan"), "2.5"),
    ],
)
def test_two_digits_of_the_error(value: float, error: float, text: str) -> None:
    assert with_error(value, error) == text


def test_models_that_are_not_installed_say_so() -> None:
    row = {"model": "big", "layers": 2, "heads": 16, "d_model": 128, "weights": 10**6}
    missing = {"model": "gone", "weights": None, "checkpoints": []}
    text = text_of(models_table([{**row, "checkpoints": [1, 5]}, missing]))
    assert row_of(text, "big")[4:] == ["1", "000", "000", "2:", "1,", "5"]
    assert row_of(text, "gone")[-4:] == ["not", "in", "this", "installation"]
