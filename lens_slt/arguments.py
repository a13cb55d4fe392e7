"""Checks of arguments: what is allowed is declared once, and every message has one form.

A message names the argument, the value, what is allowed and the nearest right name. Types are
declared by signatures (:func:`typed`), ranges and choices by calls of the others.
"""

from __future__ import annotations

import dataclasses
import difflib
import functools
import inspect
import math
import os
import re
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from pathlib import Path
from types import NoneType, UnionType
from typing import Any, ParamSpec, TypeVar, get_args, get_origin

P = ParamSpec("P")
R = TypeVar("R")


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
        raise ValueError(f"{name} must be an integer {bounds}{why}; got {_plain(value, int)}")


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
        words = " and ".join(f"{word} {at:g}" for word, at in bounds.items() if at is not None)
        wanted = f"a finite number {words}".rstrip()
        raise ValueError(f"{name} must be {wanted}; got {_plain(value, float)}")


def _plain(value: object, kind: type) -> str:
    """A value as it is shown, and what to do with a number of another library."""
    of_library = hasattr(value, "item") and getattr(value, "ndim", None) == 0
    return f"{value!r}" + (f": pass {kind.__name__}(…) of it" if of_library else "")


def numbers(name: str, values: object, *, above: float) -> tuple[float, ...]:
    """A list of different numbers above a bound, in rising order; refuse anything else."""
    if isinstance(values, str) or not isinstance(values, Sequence) or not values:
        raise ValueError(f"{name} must be a non-empty list of numbers; got {values!r}")
    for place, value in enumerate(values):
        number(f"{name}[{place}]", value, above=above)
    if len(set(values)) < len(values):
        raise ValueError(f"{name} names a value twice: {list(values)}")
    return tuple(sorted(float(value) for value in values))


def boolean(name: str, value: object) -> None:
    """Refuse what is neither True nor False: a text such as "no" would count as true."""
    instance(name, value, bool)


def instance(name: str, value: object, *kinds: Any) -> None:
    """Refuse with a TypeError what is of none of these types, as annotations write them."""
    if not any(_is_a(value, kind) for kind in kinds):
        wanted = " or ".join(dict.fromkeys(_in_words(kind) for kind in kinds if kind != NoneType))
        built = [k for k in kinds if dataclasses.is_dataclass(k) and isinstance(k, type)]
        hint = ""
        if built and isinstance(value, Mapping):
            hint = f"; did you mean {built[0].__name__}(**{name})?"
        raise TypeError(f"{name} must be {wanted}; got {_shown(value)}{hint}")
    for kind in kinds:
        item = next(iter(get_args(kind)), Any)
        if item in (int, float):  # numbers need bounds too, and ints are floats
            continue
        if get_origin(kind) in (Sequence, Iterable, tuple) and _is_a(value, kind):
            for place, one in enumerate(value if isinstance(value, Collection) else ()):
                instance(f"{name}[{place}]", one, *_members(item))
        if get_origin(kind) is Mapping and isinstance(value, Mapping):
            of_key, of_value = get_args(kind)
            for key, one in value.items():
                instance(f"a key of {name}", key, *_members(of_key))
                if of_value not in _NUMBERS:  # as above
                    instance(f"{name}[{key!r}]", one, *_members(of_value))


def typed(function: Callable[P, R]) -> Callable[P, R]:
    """Refuse arguments that are not of the types that a function's signature declares.

    Left to the function are numbers, which need bounds too, arguments declared as ``Any`` or as
    arrays of other libraries, and types that are imported for type checkers only.
    """
    signature = inspect.signature(function)
    names = getattr(inspect.unwrap(function), "__globals__", {})  # below other decorators

    @functools.cache
    def declared() -> dict[str, tuple[Any, ...]]:
        found = {}
        for name, parameter in signature.parameters.items():
            kinds = _resolved(parameter.annotation, names)
            if kinds and all(map(_is_checked, kinds)):
                found[name] = kinds
        return found

    @functools.wraps(function)
    def checked(*args: P.args, **kwargs: P.kwargs) -> R:
        given = signature.bind(*args, **kwargs).arguments
        for name, kinds in declared().items():
            if name in given:
                instance(name, given[name], *kinds)
        return function(*args, **kwargs)

    return checked


def choice(name: str, value: object, allowed: Iterable[str]) -> None:
    """Refuse a value that is not one of ``allowed``, naming the nearest that is."""
    allowed = tuple(allowed)
    if not isinstance(value, str) or value not in allowed:
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


_WORDS: dict[Any, str] = {
    bool: "True or False", str: "a string", Path: "a path", Sequence: "a list",
    Iterable: "a list", tuple: "a tuple", Mapping: "a dict", NoneType: "None",
}  # fmt: skip
_NUMBERS: dict[Any, str] = {int: "an integer", float: "a number"}
_CHECKED = ("lens_slt", "torch", "networkx")  # packages whose classes are told apart
_MOST_SHOWN = 200  # characters of a value in a message


def _resolved(annotation: Any, names: dict[str, Any]) -> tuple[Any, ...]:
    """The types of a union that an annotation writes; none where it cannot be known here."""
    if isinstance(annotation, str):
        try:
            annotation = eval(annotation, names)  # the module's own text
        except NameError:
            return ()
    return _members(annotation)


def _members(kind: Any) -> tuple[Any, ...]:
    return get_args(kind) if isinstance(kind, UnionType) else (kind,)


def _is_checked(kind: Any) -> bool:
    """Whether a type is plain, a list or dict, or a class of a package that is checked."""
    kind = get_origin(kind) or kind
    own = isinstance(kind, type) and kind.__module__.partition(".")[0] in _CHECKED
    return kind in _WORDS or own


def _is_a(value: Any, kind: Any) -> bool:
    kind = get_origin(kind) or kind
    if kind is Any:
        return True
    if kind is Path:
        return isinstance(value, os.PathLike)
    if kind in (Sequence, Iterable):
        no_list = isinstance(value, str | bytes | Mapping | set)
        return isinstance(value, Iterable) and not no_list
    return isinstance(value, kind)


def _in_words(kind: Any) -> str:
    words = (_WORDS | _NUMBERS).get(get_origin(kind) or kind)
    if words is None:
        return f"a {kind.__module__.partition('.')[0]}.{kind.__qualname__}"
    items = [one for one in get_args(kind) if one not in (Any, ...)]
    if items and words == "a list":
        inner = " or ".join(re.sub("^an? ", "", _in_words(one)) for one in _members(items[0]))
        return f"a list of {inner}s"
    return words


def _shown(value: object) -> str:
    words = repr(value)
    return words if len(words) <= _MOST_SHOWN else f"{type(value).__name__} {words[:_MOST_SHOWN]}…"
