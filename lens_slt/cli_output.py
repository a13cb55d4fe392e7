"""What the commands of :mod:`lens_slt.cli` say: results, words about the work, errors, records.

Results go to standard output: tables, or with ``--json`` one object and nothing else. Words about
the work and progress go to standard error, unless ``--quiet`` is given; warnings and errors always.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import re
import sys
import time
import warnings
from collections.abc import Iterator
from typing import Any

import typer
from rich.console import Console, RenderableType

from lens_slt.cli_exit import ExitCode
from lens_slt.cli_options import Options
from lens_slt.text import visible
from lens_slt.versions import versions

OPTIONS = {  # how a message names an argument, and the option that the command line has for it
    r"^path: ": "--out: ", r"another path\b": "another --out", r"\btrust=True\b": "--trust",
    r"n_sequences=(\d+) were asked for": r"\1 were asked for: ask for fewer, or a smaller --length",
    r" that are not among the (\d+) in without": r" beside \1 for probes and trials",
    r"\bn_sequences=": "--sequences ", r"\bpad_id=(-?\d+)": r"--pad-id \1", r" or mask= to": " to",
    r"pass mask= or the attention_mask": "use a data set with an attention_mask",
    r"\bpass bos=False": "pass --no-bos",
}  # fmt: skip

console = Console(markup=False, highlight=False)  # results
_errors = Console(stderr=True, markup=False, highlight=False)  # everything else


def say(options: Options, text: str) -> None:
    """Words about the work, on standard error."""
    if not options.quiet:
        _print(text)


def show(options: Options, *results: RenderableType) -> None:
    """Tables and texts for a reader, with a line between."""
    for result in results if not options.as_json else ():
        console.print(result)
        console.print()


def finish(options: Options, record: dict[str, Any], usable: bool = True) -> None:
    """Print the record if it is asked for; exit code 1 if the result cannot be used."""
    if options.as_json:
        found = {name.replace("-", "_"): version for name, version in versions().items()}
        whole = {
            "command": options.command, "options": options.as_dict(), **record,
            "versions": found, "seconds": float(f"{seconds(options):.4g}"),
        }  # fmt: skip
        sys.stdout.write(json.dumps(whole, allow_nan=False, ensure_ascii=False) + "\n")
    if not usable:
        raise typer.Exit(ExitCode.UNUSABLE)


def seconds(options: Options) -> float:
    """How long a command has run."""
    return time.monotonic() - options.began


@contextlib.contextmanager
def guarded(options: Options) -> Iterator[None]:
    """Errors as one line, interrupts as a word on how to resume, libraries' warnings silenced."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("always")
            warnings.showwarning = _show_own_warning
            _quieten_libraries()
            yield
    except KeyboardInterrupt:
        kept = options.kept
        goes_on = kept is not None and kept.exists()
        word = f"; run the same command again to continue from {kept}" if goes_on else ""
        _print(f"interrupted{word}")
        raise typer.Exit(ExitCode.INTERRUPTED) from None
    except _expected() as error:
        _print("error: " + _in_options(" ".join(str(error).split())))
        raise typer.Exit(ExitCode.BAD_INPUT) from None


def _in_options(words: str) -> str:
    """An error in the words of the command line."""
    for argument, option in OPTIONS.items():
        words = re.sub(argument, option, words)
    return words


def _print(text: str) -> None:
    _errors.print(visible(text), soft_wrap=not _errors.is_terminal)


def _expected() -> tuple[type[Exception], ...]:
    """Errors whose message is for the user; others are ours, and keep their traceback."""
    jobs = sys.modules.get("lens_slt.sampling.jobs")  # loaded by all that raise its error
    more = () if jobs is None else (jobs.JobError,)
    return (ValueError, TypeError, OSError, ImportError, *more)


def _show_own_warning(
    message: Warning | str, category: type[Warning], *rest: Any, **named: Any
) -> None:
    """Warnings of this package reach the user, those of the libraries do not."""
    if category.__module__.startswith("lens_slt."):
        _print(f"warning: {message}")


def _quieten_libraries() -> None:
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")  # read when it is imported
    for name in ("transformers", "transformer_lens", "huggingface_hub", "httpx", "zarr"):
        logging.getLogger(name).setLevel(logging.ERROR)
