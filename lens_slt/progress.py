"""One progress bar for everything that takes more than a few seconds."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)


@contextmanager
def track(label: str, total: int, show: bool = True) -> Iterator[Callable[..., None]]:
    """A bar with the time left; yields a function that is told how many steps are done.

    It takes the steps done and, where that changes, how many there will be in all.
    """
    columns = (
        TextColumn(label, markup=False), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(),
        TextColumn("left"), TimeRemainingColumn(),
    )  # fmt: skip
    with Progress(*columns, transient=True, disable=not show) as bar:
        task = bar.add_task("", total=total)
        yield lambda done, all_of_them=total: bar.update(
            task, completed=done, total=max(all_of_them, done)
        )
