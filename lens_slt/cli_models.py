"""``lens-slt models``: what comes with the package, read from the headers of its files."""

from __future__ import annotations

from math import prod
from typing import Any

from safetensors import safe_open

from lens_slt.cli_commands import Models
from lens_slt.cli_output import finish, show
from lens_slt.models.shipped_files import SHIPPED, shipped_checkpoints, shipped_file
from lens_slt.report.tables_models import models_table

QUERIES = "attn.W_Q"  # of every layer, [head, d_model, d_head]


def run(options: Models) -> None:
    """List the shipped models."""
    rows = [_row(name) for name in SHIPPED]
    show(options, models_table(rows))
    finish(options, {"models": rows})


def _row(name: str) -> dict[str, Any]:
    """One record; null for what cannot be known without the file of the weights."""
    row: dict[str, Any] = {"model": name, "checkpoints": shipped_checkpoints(name)}
    try:
        path = shipped_file(name)
    except FileNotFoundError:
        return {**row, "layers": None, "heads": None, "d_model": None, "weights": None}
    with safe_open(path, framework="np") as file:
        shapes = {key: file.get_slice(key).get_shape() for key in file.keys()}  # noqa: SIM118
    queries = [shape for key, shape in shapes.items() if key.endswith(QUERIES)]
    return {
        **row, "layers": len(queries), "heads": sum(shape[0] for shape in queries),
        "d_model": queries[0][1], "weights": sum(map(prod, shapes.values())),
    }  # fmt: skip
