"""Progress on standard error: a bar on a terminal, else a line a minute."""

from __future__ import annotations

import pytest

from lens_slt import progress
from lens_slt.progress import track


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    now = [0.0]
    monkeypatch.setattr(progress, "monotonic", lambda: now[0])
    return now


def work(clock: list[float], total: int, seconds: float, first: int = 0, show: bool = True) -> None:
    with track("rungs [1]", total, show) as done:
        for i in range(first, total + 1):
            done(i)
            clock[0] += seconds


def test_a_line_a_minute_where_there_is_no_terminal(
    clock: list[float], capsys: pytest.CaptureFixture[str]
) -> None:
    work(clock, total=8, seconds=25)
    out, err = capsys.readouterr()
    assert out == ""
    assert err.splitlines() == [  # at 75 and 150 s
        "rungs [1]: 3/8 done in 1 min 15 s, about 2 min 5 s left",
        "rungs [1]: 6/8 done in 2 min 30 s, about 50 s left",
    ]


def test_nothing_is_left_at_the_end(clock: list[float], capsys: pytest.CaptureFixture[str]) -> None:
    work(clock, total=2, seconds=61)
    assert capsys.readouterr().err.splitlines()[-1] == "rungs [1]: 2/2 done in 2 min"


def test_what_was_done_before_says_nothing_about_the_time_left(
    clock: list[float], capsys: pytest.CaptureFixture[str]
) -> None:
    work(clock, total=14, seconds=61, first=10)
    assert capsys.readouterr().err.splitlines()[0] == (
        "rungs [1]: 11/14 done in 1 min, about 3 min 5 s left"
    )


@pytest.mark.parametrize(("total", "seconds", "show"), [(100, 0.5, True), (8, 600, False)])
def test_short_work_and_what_is_not_to_be_shown_say_nothing(
    clock: list[float], capsys: pytest.CaptureFixture[str], total: int, seconds: float, show: bool
) -> None:
    work(clock, total=total, seconds=seconds, show=show)
    assert capsys.readouterr() == ("", "")


@pytest.mark.parametrize("term", ["xterm", "dumb"])
def test_a_bar_on_a_terminal_that_can_redraw(
    clock: list[float],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    term: str,
) -> None:
    monkeypatch.delenv("NO_COLOR", raising=False)
    monkeypatch.setenv("FORCE_COLOR", "1")  # as if it were a terminal
    monkeypatch.setenv("TERM", term)
    work(clock, total=3, seconds=70)
    out, err = capsys.readouterr()
    assert out == ""
    assert ("\x1b[" in err and "━" in err) == (term == "xterm")
    assert ("1/3 done in 1 min" in err) == (term == "dumb")
