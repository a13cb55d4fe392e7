"""Entry point of ``lens-slt``, and of ``python -m lens_slt``."""

from __future__ import annotations

from lens_slt.cli_exit import end_on_interrupt


def main() -> None:
    """Run the command line; from here on Ctrl-C ends it with a word and no traceback."""
    end_on_interrupt()
    from lens_slt.cli import main as run

    run()


if __name__ == "__main__":
    main()
