"""How ``lens-slt`` ends: its exit codes, and what Ctrl-C does while nothing is there to keep."""

from __future__ import annotations

import os
import signal
from enum import IntEnum
from typing import Any


class ExitCode(IntEnum):
    """The one table of exit codes; ``docs/how-to/command-line.md`` has it in words."""

    FINE = 0
    UNUSABLE = 1  # no chain of a component can be used, or no setting is accepted
    BAD_INPUT = 2  # also what typer says of options it does not know
    INTERRUPTED = 130


def end_on_interrupt() -> None:
    """Ctrl-C ends the process at once: while libraries load, some hold exceptions back."""
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:  # it may be ignored
        signal.signal(signal.SIGINT, _end)


def raise_on_interrupt() -> None:
    """Ctrl-C raises KeyboardInterrupt again: what runs can save where it stands."""
    if signal.getsignal(signal.SIGINT) is _end:
        signal.signal(signal.SIGINT, signal.default_int_handler)


def _end(*_: Any) -> None:
    os.write(2, b"interrupted\n")
    os._exit(ExitCode.INTERRUPTED)
