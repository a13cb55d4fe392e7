"""Checks of arguments: what is allowed is declared once, and every message has one form.

A message names the argument, the value, what is allowed and the nearest right name.
"""

from __future__ import annotations

import difflib
import math
import os
from collections.abc import Iterable, Sequence
from pathlib import Path


def integer(
    name: str, value: object, *, at_least: int, at_most: int | None = None, note: str = ""
) -> None:
    """Refuse what is no integer within the bounds; ``note`` says why they are what they are."""
    ok = (
        isinstance(value, int)
        and not isinstance(value, bool)
        and value >= at_least
        and (at_most is None or value <= at_most)
    )
    if not ok:
        bounds = f"of at least {at_least}" if at_most is None else f"from {at_least} to {at_most}"
        why = f" ({note})" if note else ""
        raise ValueError(f"{name} must be an integer {bounds}{why}; got {value!r}")


def number(
    name: str,
    value: object,
    *,
    above: float | None = None,
    at_least: float | None = None,
    below: float | None = None,
    at_most: float | None = None,
) -> None:
    """Refuse what is no finite number within the bounds."""
    bounds = {"above": above, "at least": at_least, "below": below, "at most": at_most}
    wanted = " and ".join(
        f"{word} {bound:g}" for word, bound in bounds.items() if bound is not None
    )
    ok = (
        isinstance(value, int | float)
        and not isinstance(value, bool)
        and math.isfinite(value)
        and (above is None or value > above)
        and (at_least is None or value >= at_least)
        and (below is None or value < below)
        and (at_most is None or value <= at_most)
    )
    if not ok:
        bounds = {"above": above, "at least": at_least, "below": below, "at most": at_most}
        wanted = " and ".join(f"{word} {at:g}" for word, at in bounds.items() if at is not None)
        raise ValueError(f"{name} must be a finite number {wanted}; got {value!r}")


def numbers(name: str, values: object, *, above: float) -> tuple[float, ...]:
    """A list of different numbers above a bound, in rising order; refuse anything else."""
    if isinstance(values, str) or not isinstance(values, Sequence) or not values:
        raise ValueError(f"{name} must be a non-empty list of numbers; got {values!r}")
    for place, value in enumerate(values):
        number(f"{name}[{place}]", value, above=above)
    if len(set(values)) < len(values):
        raise ValueError(f"{name} names a value twice: {list(values)}")
    return tuple(sorted(float(value) for value in values))


def choice(name: str, value: object, allowed: Iterable[str]) -> None:
    """Refuse a value that is not one of ``allowed``, naming the nearest that is."""
    allowed = tuple(allowed)
    if value not in allowed:
        hint = did_you_mean(value, allowed)
        raise ValueError(f"{name} must be one of {', '.join(allowed)}; got {value!r}{hint}")


def nearest(value: object, allowed: Iterable[str], likeness: float = 0.6) -> str | None:
    """The allowed name most like ``value``, whatever its case; None if none is like enough."""
    lowered = {name.lower(): name for name in allowed}
    close = difflib.get_close_matches(str(value).lower(), lowered, n=1, cutoff=likeness)
    return lowered[close[0]] if close else None


def did_you_mean(value: object, allowed: Iterable[str], likeness: float = 0.6) -> str:
    """The end of a message: the nearest allowed name, or nothing."""
    near = nearest(value, allowed, likeness)
    return f"; did you mean {near!r}?" if near else ""


def location(name: str, value: object) -> Path:
    """A path as it is meant: ``~`` is the home folder. Refuse what is no path."""
    if not isinstance(value, str | os.PathLike) or not os.fspath(value):
        raise TypeError(f"{name} must be a path, a string or a Path; got {value!r}")
    text = os.fspath(value)
    if isinstance(text, bytes) or "\0" in text:
        raise ValueError(f"{name} must be a path in text without a NUL character; got {value!r}")
    try:
        return Path(text).expanduser()
    except RuntimeError as error:  # ~name of nobody
        raise ValueError(f"{name}: {text!r} has no home folder: {error}") from None
