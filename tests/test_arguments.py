"""Every constraint on an argument, with values that it allows and values that it refuses."""

from __future__ import annotations

import re
from functools import partial

import numpy as np
import pytest

from lens_slt.arguments import choice, did_you_mean, integer, nearest, number, numbers

INTEGERS = (True, 2.0, "2", None, [2], float("nan"), np.int64(2))
NUMBERS = (True, "1", None, [1.0], 1j, float("nan"), float("inf"), -float("inf"), np.float32(1))
KINDS = ("mean", "zero", "Resample")


@pytest.mark.parametrize(
    ("check", "allowed", "refused", "message"),
    [
        (partial(integer, at_least=0), [0, 7, 2**70], [-1], "must be an integer of at least 0"),
        (partial(integer, at_least=1, at_most=3), [1, 3], [0, 4],
         "must be an integer from 1 to 3"),
        (partial(integer, at_least=1, at_most=3, note="d_head"), [2], [4],
         "must be an integer from 1 to 3 (d_head)"),
    ],
)  # fmt: skip
def test_integers(check, allowed, refused, message):
    for value in allowed:
        check("n", value)
    for value in (*refused, *INTEGERS):
        todo = ": pass int(…) of it" if isinstance(value, np.generic) else ""
        words = re.escape(f"n {message}; got {value!r}{todo}")
        with pytest.raises(ValueError, match=f"^{words}$"):
            check("n", value)


@pytest.mark.parametrize(
    ("bounds", "allowed", "refused", "message"),
    [
        ({"above": 0}, [1e-300, 3, np.float64(2)], [0, 0.0, -1], "above 0"),
        ({"at_least": 0.5}, [0.5, 1], [0.49], "at least 0.5"),
        ({"below": 1}, [0.99, -5], [1, 2.0], "below 1"),
        ({"at_most": 1}, [1, -5], [1.01], "at most 1"),
        ({"above": 0, "below": 1}, [0.5], [0, 1], "above 0 and below 1"),
        ({"at_least": 0, "at_most": 1}, [0, 1], [-0.1, 1.1], "at least 0 and at most 1"),
    ],
)
def test_numbers_within_bounds(bounds, allowed, refused, message):
    for value in allowed:
        number("share", value, **bounds)
    for value in (*refused, *NUMBERS):
        todo = ": pass float(…) of it" if isinstance(value, np.generic) else ""
        expected = f"share must be a finite number {message}; got {value!r}{todo}"
        with pytest.raises(ValueError, match=f"^{re.escape(expected)}$"):
            number("share", value, **bounds)


def test_lists_of_numbers():
    assert numbers("gammas", [300, 100.0], above=0) == (100.0, 300.0)
    for value in ((), [], "100", None, 100.0, {100.0}):
        expected = f"gammas must be a non-empty list of numbers; got {value!r}"
        with pytest.raises(ValueError, match=re.escape(expected)):
            numbers("gammas", value, above=0)
    for value in (0, -1, *NUMBERS):
        expected = f"gammas[1] must be a finite number above 0; got {value!r}"
        with pytest.raises(ValueError, match=re.escape(expected)):
            numbers("gammas", [100.0, value], above=0)
    with pytest.raises(ValueError, match=re.escape("gammas names a value twice: [100, 100.0]")):
        numbers("gammas", [100, 100.0], above=0)


def test_choices():
    for value in KINDS:
        choice("how", value, KINDS)
    for value, hint in (
        ("men", "; did you mean 'mean'?"), ("ZERO", "; did you mean 'zero'?"),
        ("resample", "; did you mean 'Resample'?"), ("x", ""), (None, ""), (7, ""),
    ):  # fmt: skip
        expected = f"how must be one of mean, zero, Resample; got {value!r}{hint}"
        with pytest.raises(ValueError, match=f"^{re.escape(expected)}$"):
            choice("how", value, KINDS)


def test_the_nearest_name():
    assert nearest("men", KINDS) == "mean"
    assert nearest("qqq", KINDS) is None
    assert nearest("qqq", KINDS, likeness=0) in KINDS
    assert did_you_mean("qqq", KINDS) == ""
