"""What trials cost before they run."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any

import numpy as np

from lens_slt.circuits.hypothesis import CircuitHypothesis
from lens_slt.circuits.neighbours import MOST_TRIED
from lens_slt.circuits.runs import Runs
from lens_slt.circuits.shortlist import ALL_UP_TO
from lens_slt.models.adapter import adapt
from lens_slt.models.captures import run_with

TIMED = 3  # passes of one batch


def n_runs(hypotheses: Sequence[CircuitHypothesis], runs: Runs, n_null: int) -> int:
    """About how often the model will run on all tokens."""
    sizes = [(len(one.components), len(one.edges)) for one in hypotheses]
    own = sum(c * (c + 3) + e * (e + 3) // 2 + MOST_TRIED for c, e in sizes)
    singles = min(len(runs.nodes), ALL_UP_TO)
    nulls = sum(2 * n_null + e * n_null + min(len(runs.nodes), n_null) for _, e in sizes)
    return own + nulls + 130 + singles


def trial_seconds(
    model: Any, tokens: Any, hypotheses: Sequence[CircuitHypothesis], n_null: int
) -> tuple[int, float]:
    """Runs of the model that trials need at most, and seconds, from passes timed here."""
    runs = Runs(adapt(model), tokens)
    rows = next(runs.batches())
    inputs, spent = runs.tokens[rows, :-1], []
    for _ in range(TIMED):
        began = time.perf_counter()
        run_with(runs.adapted, inputs, [])
        spent.append(time.perf_counter() - began)
    n = n_runs(hypotheses, runs, n_null)
    return n, n * float(np.median(spent)) * len(runs.tokens) / len(inputs)
