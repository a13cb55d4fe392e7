"""The command line ``lens-slt``: its commands are in :mod:`lens_slt.cli_commands`.

Each is run by ``cli_NAME.py``, which is imported when it is needed. How commands end is in
:mod:`lens_slt.cli_exit`, what they say in :mod:`lens_slt.cli_output`.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import MISSING, fields
from importlib import import_module
from typing import Annotated, Any, get_type_hints

import typer

from lens_slt.cli_commands import COMMANDS
from lens_slt.cli_exit import raise_on_interrupt
from lens_slt.cli_options import Options
from lens_slt.cli_output import guarded
from lens_slt.versions import version_of

app = typer.Typer(name="lens-slt", no_args_is_help=True, pretty_exceptions_enable=False)


def main() -> None:
    """Run the command line; :mod:`lens_slt.__main__` calls it."""
    app()


def show_version(asked: bool) -> None:
    """Print the version and end."""
    if asked:
        print(f"lens-slt {version_of('lens-slt')}")
        raise typer.Exit


@app.callback()
def about(
    version: Annotated[
        bool,
        typer.Option("--version", help="Show the version.", callback=show_version, is_eager=True),
    ] = False,
) -> None:
    """Singular learning theory for TransformerLens models."""


def command(options: type[Options]) -> Callable[..., None]:
    """The function of a command as typer reads it: one parameter for every option."""

    def run(**given: Any) -> None:
        chosen = options(**given)
        with guarded(chosen):
            module = import_module(f".cli_{options.command.replace('-', '_')}", __package__)
            raise_on_interrupt()
            module.run(chosen)

    parameters = _parameters(options)
    run.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    run.__annotations__ = {one.name: one.annotation for one in parameters}
    run.__doc__ = options.__doc__
    return run


def _parameters(options: type[Options]) -> list[inspect.Parameter]:
    """Those that have to be given first, then a command's own, then those that others share."""
    hints = get_type_hints(options, include_extras=True)
    known = {one.name: one for one in fields(options) if one.init}
    names = dict.fromkeys(
        name for one in options.__mro__ for name in inspect.get_annotations(one) if name in known
    )
    found = [
        inspect.Parameter(
            name, inspect.Parameter.KEYWORD_ONLY, annotation=hints[name],
            default=inspect.Parameter.empty if known[name].default is MISSING
            else known[name].default,
        )
        for name in names
    ]  # fmt: skip
    return sorted(found, key=lambda one: one.default is not inspect.Parameter.empty)


for one in COMMANDS:
    app.command(one.command)(command(one))
