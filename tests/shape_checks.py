"""Run-time checks of the shapes in signatures, switched on for the tests by ``conftest.py``."""

import re
from collections.abc import Callable
from typing import Any

from beartype import beartype

_SHAPED = re.compile(r"\b(Float|Int|Integer|Bool|Num|Real|Complex|Shaped|UInt)\d*\[")


def check_shapes(function: Callable[..., Any]) -> Callable[..., Any]:
    """Check calls of functions whose signature names shapes; leave all others as they are.

    The others stay unchecked because many tests pass a wrong type on purpose, to read the
    package's own message about it.
    """
    annotations = getattr(function, "__annotations__", {}).values()
    shaped = any(_SHAPED.search(str(annotation)) for annotation in annotations)
    return beartype(function) if shaped else function
