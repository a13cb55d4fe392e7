"""Public functions refuse what is not of the types they declare, by name, before any work."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import lens_slt as ls
from lens_slt.arguments import boolean, instance, typed

NO_STRINGS = (3, None, True, {}, ["x"], Path("x"), np.float64(1))
NO_PATHS = (3, True, {}, [], b"x")
NO_NAMES = (3, True, {"a": 1}, [3], ["L0H1", None], np.array([1.0]))
WRONG: dict[str, tuple[Any, ...]] = {  # by what a signature says
    "bool": ("no", 1, 0, None, {}, np.bool_(True)),
    "str": NO_STRINGS,
    "str | None": (3, True, {}, ["x"]),
    "str | Path": (*NO_PATHS, None),
    "Path | str": (*NO_PATHS, None),
    "str | Path | None": NO_PATHS,
    "str | Sequence[str]": (*NO_NAMES, None),
    "str | Sequence[str] | None": NO_NAMES,
    "Sequence[str]": (*NO_NAMES, None, "L0H1"),
    "Sequence[str] | None": (*NO_NAMES, "L0H1"),
    "Mapping[str, Any] | None": ([1], "x", 3, {3: 1}),
    "Settings": ({}, 3, None, "default", ["default"]),
    "Settings | None": ({}, 3, "default"),
    "Settings | str": ({}, 3, None, ["default"]),
    "torch.device | str | None": (3, {}, True, ["cpu"]),
    "Trial": ({}, None, 3, "x"),
    "Sequence[Trial]": (3, None, "x", [3], {}),
    "Calibration": ({}, None, 3, ls.Settings()),
    "Trial | CircuitHypothesis": ({}, None, 3, "L0H1"),
    "CircuitHypothesis | Sequence[CircuitHypothesis]": ({}, None, 3, "L0H1", ["L0H1"], [None]),
    "Sequence[CircuitHypothesis]": ({}, None, 3, "L0H1", ["L0H1"]),
    "Phase": ({}, None, 3, "x"),
    "Sequence[Phase]": (3, None, "x", [3], {}),
    "SltEvidence": ({}, None, 3),
    "SltEvidence | None": ({}, 3, "x"),
    "Tensor | None": ({}, 3, [1.0], np.zeros(2)),
    "nx.MultiDiGraph": ({}, None, "x"),
    "NgramCounts | None": ({}, 3, "x"),
}
RIGHT: dict[str, Any] = dict.fromkeys(
    (
        "Sequence[str]",
        "Sequence[Trial]",
        "Sequence[CircuitHypothesis]",
        "Sequence[Phase]",
        "Sequence[float]",
        "Sequence[int]",
        "Sequence[xr.Dataset]",
        "Sequence[xr.DataTree]",
        "Sequence[tuple[int, int]]",
    ),
    (),
) | {f"Mapping[{key}]": {} for key in ("int, xr.DataTree", "str, float", "str, Any")}
BARE: dict[str, type] = {
    "Trial": ls.Trial, "Calibration": ls.Calibration, "SltEvidence": ls.SltEvidence,
    "Trial | CircuitHypothesis": ls.Trial, "Checkpoints": ls.Checkpoints,
    "DevelopmentView": ls.DevelopmentView, "Phase": ls.Phase,
    "CircuitHypothesis | Sequence[CircuitHypothesis]": ls.CircuitHypothesis,
}  # fmt: skip


ELSEWHERE = {"open_draws", "plot_traces"}  # what is no name is refused as an unknown one


def functions() -> Iterator[tuple[str, Callable[..., Any]]]:
    for name in ls.__all__:
        found = getattr(ls, name)
        if inspect.isfunction(found) and name not in ELSEWHERE:
            yield name, found


CASES = [
    (name, parameter.name)
    for name, function in functions()
    for parameter in inspect.signature(function).parameters.values()
    if parameter.annotation in WRONG
]


def test_most_functions_are_here() -> None:
    assert len({name for name, _ in CASES}) >= 25
    assert {"sample", "estimate", "calibrate", "cross_check", "load_tokens", "modes"} <= {
        name for name, _ in CASES
    }


@pytest.mark.parametrize(("name", "argument"), CASES, ids=[".".join(case) for case in CASES])
def test_wrong_types_are_refused_by_name(name: str, argument: str) -> None:
    function = getattr(ls, name)
    parameters = inspect.signature(function).parameters
    names = list(parameters)
    needed = [other for other in names if parameters[other].default is inspect.Parameter.empty]
    given = {other: _right(parameters[other].annotation) for other in needed}
    for value in WRONG[parameters[argument].annotation]:
        with pytest.raises(TypeError, match=argument) as caught:
            function(**{**given, argument: value})
        assert " must be " in str(caught.value)


def _right(annotation: str) -> Any:
    """Something that passes the check of types, for an argument that must be given."""
    if annotation in BARE:
        return object.__new__(BARE[annotation])
    return RIGHT.get(annotation, "" if "str" in annotation else object())


def test_messages_say_what_to_do() -> None:
    with pytest.raises(TypeError, match=r"did you mean Settings\(\*\*settings\)\?"):
        ls.sample(None, None, settings={"n_beta": 3})  # type: ignore[arg-type]
    with pytest.raises(TypeError, match=r"^antithetic must be True or False; got 'no'$"):
        ls.Settings(antithetic="no")  # type: ignore[arg-type]
    with pytest.raises(TypeError, match=r"^probes must be a dict; got \[1\]$"):
        ls.sample(None, None, probes=[1])  # type: ignore[arg-type]
    with pytest.raises(TypeError, match=r"^components\[1\] must be a string; got 3$"):
        instance("components", ["L0H1", 3], str, Sequence[str])
    with pytest.raises(TypeError, match="flag must be True or False; got 1"):
        boolean("flag", 1)


def test_typed_functions_keep_their_signature_and_result() -> None:
    @typed
    def add(words: str, *, twice: bool = False) -> str:
        """Adds."""
        return words * (1 + twice)

    assert add("a", twice=True) == "aa"
    assert add.__doc__ == "Adds."
    assert list(inspect.signature(add).parameters) == ["words", "twice"]
    with pytest.raises(TypeError, match="missing a required argument: 'words'"):
        add()  # type: ignore[call-arg]


class Table:
    """As datasets.Dataset."""

    def __init__(self, *names: str) -> None:
        self.column_names = list(names)

    def __len__(self) -> int:
        return 2


@pytest.mark.parametrize(
    ("tokens", "message"),
    [
        ({"text": ["a"]}, r"a dict without 'input_ids' \(text\): tokenize"),
        (Table("text"), r"a Table without 'input_ids' \(text\)"),
        ([["a", "b"]], "tokens must hold token ids, or texts alone"),
    ],
)  # fmt: skip
def test_inputs_of_hugging_face_say_what_to_pass(tokens: Any, message: str) -> None:
    with pytest.raises(TypeError, match=message):
        ls.label_patterns(tokens)


@pytest.mark.parametrize("device", ["nonsense", "cuda:99", "cpu:x", ""])
def test_devices_that_are_not_there(device: str) -> None:
    model, tokens = ls.load_model("attn-1l"), torch.randint(1, 9, (4, 8))
    for function in (ls.sample, ls.estimate):
        said = f"device must be a device of this machine: cpu.*{device}"
        with pytest.raises(ValueError, match=said):
            function(model, tokens, "L0H1", device=device)
