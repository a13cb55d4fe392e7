"""Runs killed at random moments, and started again, draw what a run draws that is left alone."""

from __future__ import annotations

import os

import pytest

from benchmarks.kills import killed_runs


@pytest.mark.slow
@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_ten_kills(tmp_path):
    tally = killed_runs(10, seed=0, folder=tmp_path)
    assert tally.failures == []
    assert tally.identical == tally.runs >= 3
    assert tally.killed.total() == 10
    assert tally.killed["finished"] + tally.killed["sampled"] < 10  # some hit a run at work
