"""The shipped models as a table for a terminal of 80 columns."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from rich.table import Table

from lens_slt.report.plain_table import PlainTable


def models_table(rows: Sequence[dict[str, Any]]) -> Table:
    """One row per shipped model, from records."""
    table = PlainTable("Shipped models", "load with --model NAME, --checkpoint STEP")
    table.add_column("model", no_wrap=True)
    for name in ("layers", "heads in all", "d_model", "weights"):
        table.add_column(name, justify="right", no_wrap=True)
    table.add_column("checkpoints")
    for row in rows:
        if row["weights"] is None:
            table.add_row(row["model"], "–", "–", "–", "–", "not in this installation")
            continue
        steps = row["checkpoints"]
        words = "final weights only"
        if steps:
            words = f"{len(steps)}: {', '.join(map(str, steps))}"
        table.add_row(
            row["model"], str(row["layers"]), str(row["heads"]), str(row["d_model"]),
            f"{row['weights']:,}".replace(",", " "), words,
        )  # fmt: skip
    return table
