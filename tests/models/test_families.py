"""Families that differ most against torch hooks on untouched copies: right, or refused."""

from __future__ import annotations

import pytest
import torch

from benchmarks.families.build import NotBuilt, randomise, wrapped
from benchmarks.families.configs import FAMILIES
from benchmarks.families.measure import MEASUREMENTS, measured, refusals
from benchmarks.families.plain import Elements
from benchmarks.families.variants import VARIANTS, has_hooked_transformer, variant
from benchmarks.families.verdict import judged

FAMILY = {family.name: family for family in FAMILIES}
EVERYTHING = tuple(MEASUREMENTS)
WEIGHTS_AND_PARTS = ("losses", "moved", "gradients", "heads", "mlps")


def faults(cells: dict) -> dict[str, str]:
    return {
        name: f"{cell} {cell.error:.2g} {cell.words}"
        for name, cell in cells.items()
        if cell.kind in ("wrong", "crash")
    }


@pytest.mark.parametrize(
    ("name", "numbers"),
    [
        ("gpt2", EVERYTHING),
        ("codegen", EVERYTHING),
        ("bloom", EVERYTHING),
        ("stablelm parallel", tuple(name for name in EVERYTHING if name != "compos.")),
        ("gemma2", WEIGHTS_AND_PARTS),
        ("granite", EVERYTHING),
        ("olmo2", WEIGHTS_AND_PARTS),
        ("openai-gpt", WEIGHTS_AND_PARTS),
        ("bloom post-norm", ("losses", "moved", "gradients")),
        ("gemma4 inputs", ()),
        ("gpt2 unscaled", ()),
        ("hunyuandensev1", ()),
    ],
)
def test_a_family_is_measured_right_or_refused(name: str, numbers: tuple[str, ...]) -> None:
    try:
        model, plain = wrapped(FAMILY[name])
    except NotBuilt as words:
        pytest.skip(f"this TransformerLens cannot build it: {words}")
    cells = measured(model, plain)
    assert faults(cells) == {}
    assert {column: cells[column].kind for column in numbers} == dict.fromkeys(numbers, "right")


@pytest.mark.parametrize("name", ["mixtral", "mamba"])
def test_what_cannot_be_sampled_is_refused_by_every_function(name: str) -> None:
    model, _ = wrapped(FAMILY[name])
    assert {cell.kind for cell in refusals(model).values()} == {"refused"}


@pytest.mark.skipif(not has_hooked_transformer(), reason="TransformerLens 4 has none")
@pytest.mark.parametrize("name", ["RMSPre", "rotary grouped", "shortformer", "norms after"])
def test_a_variant_of_hooked_transformer_is_measured_right_or_refused(name: str) -> None:
    assert name in VARIANTS
    cells = measured(*variant(name))
    assert faults(cells) == {}
    assert all(cells[column].kind in ("right", "none") for column in WEIGHTS_AND_PARTS)


def test_a_wrong_number_and_a_crash_are_told_from_a_refusal() -> None:
    def fine():
        yield "a", 1e-6

    def wrong():
        yield "a", 1e-6
        yield "b", 0.5

    def not_a_number():
        yield "a", float("nan")

    def own_mistake():
        raise ValueError("a sentence that lens_slt did not say")
        yield

    assert judged(fine).kind == "right"
    assert (judged(wrong).kind, judged(wrong).words) == ("wrong", "b")
    assert judged(not_a_number).kind == "wrong"
    assert judged(own_mistake).kind == "crash"
    assert judged(lambda: iter(())).kind == "none"


def test_every_weight_is_found_by_its_value() -> None:
    model = randomise(torch.nn.Linear(40, 1000))
    elements = Elements(model)
    found = elements.find(model.weight.detach().flatten())
    assert torch.equal(found, torch.arange(40_000))
    assert elements.find(torch.tensor([7.0])).tolist() == [-1]
