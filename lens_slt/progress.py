"""Progress of everything that takes more than a few seconds, on standard error."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from time import monotonic

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)

from lens_slt.text import duration

SECONDS = 60.0  # between lines, where there is no terminal that could show a bar


@contextmanager
def track(label: str, total: int, show: bool = True) -> Iterator[Callable[..., None]]:
    """A bar with the time left; yields a function that is told how many steps are done.

    It takes the steps done and, where that changes, how many there will be in all. Where standard
    error is a file, a pipe or a terminal that cannot redraw, lines take the place of the bar, one a
    minute at most.
    """
    console = Console(stderr=True, markup=False, highlight=False)
    if not show:
        yield lambda done, all_of_them=total: None
    elif console.is_jupyter or (console.is_terminal and not console.is_dumb_terminal):
        with _bar(label, console) as bar:
            task = bar.add_task("", total=total)
            yield lambda done, all_of_them=total: bar.update(
                task, completed=done, total=max(all_of_them, done)
            )
    else:
        yield _lines(label, total, console)


def _bar(label: str, console: Console) -> Progress:
    columns = (
        TextColumn(label, markup=False), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(),
        TextColumn("left"), TimeRemainingColumn(),
    )  # fmt: skip
    # Results may go to a file meanwhile: standard output is not the bar's.
    return Progress(*columns, console=console, transient=True, redirect_stdout=False)


def _lines(label: str, total: int, console: Console) -> Callable[..., None]:
    """A function that says what is done, how long it took and what is left."""
    began = last = monotonic()
    first: int | None = None  # steps done at the first call, as of a run that goes on

    def tell(done: int, all_of_them: int = total) -> None:
        nonlocal last, first
        now = monotonic()
        first = done if first is None else first
        if now - last < SECONDS:
            return
        last = now
        all_of_them = max(all_of_them, done)
        words = f"{label}: {done}/{all_of_them} done in {duration(now - began)}"
        if first < done < all_of_them:
            left = (now - began) * (all_of_them - done) / (done - first)
            words += f", about {duration(left)} left"
        console.print(words, soft_wrap=True)

    return tell
