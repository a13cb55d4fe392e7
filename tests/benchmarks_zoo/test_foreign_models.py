"""What counts as silently wrong, as right, as certified."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
import torch

from benchmarks import foreign_models
from benchmarks.foreign_models import Record, Result, figures_of
from benchmarks.potentials import quadratic, quadratic_exact
from benchmarks.zoo import FunctionCase, truths

GOOD = Result("L0H0", 5.0, 0.05, True, 5.1, 0.1, "certified", "healthy")


def figures(*results: Result) -> dict[str, float]:
    return figures_of([Record("m", results, 1.0)])


@pytest.mark.parametrize(
    ("llc", "se", "certificate", "wrong"),
    [
        (5.6, 0.1, "certified", True),
        (5.6, 0.2, "certified", False),  # 2.9 standard errors
        (5.45, 0.01, "certified", False),  # 9 %
        (5.6, 0.1, "biased by about 12 %", False),
        (5.6, 0.1, "not certified: too few draws", False),
        (float("nan"), 0.1, "certified", True),
    ],
)
def test_silently_wrong(llc: float, se: float, certificate: str, wrong: bool) -> None:
    one = replace(GOOD, llc=llc, se=se, certificate=certificate)
    assert figures(one)["silent_wrong"] == wrong
    assert figures(replace(one, converged=False))["silent_wrong"] == 0
    dead = replace(one, truth=0.001, llc=0.09)
    assert not dead.silent_wrong


def test_shares() -> None:
    alarm = replace(GOOD, certificate="not certified: defect 3 of 4")
    far = replace(GOOD, llc=6.0, certificate="biased by about 20 %")
    unknown = replace(GOOD, converged=False)
    found = figures(GOOD, GOOD, alarm, far, unknown)
    assert found["components"] == 4
    assert found["certified_share"] == 0.5
    assert found["false_alarm_rate"] == pytest.approx(1 / 3)
    assert found["coverage_95"] == 1.0
    assert found["median_relative_se"] == pytest.approx(0.1 / 5.1)
    assert (found["without_truth"], found["without_truth_certified"]) == (1, 1)


def test_right_is_as_narrow_as_the_exact_value_is_known() -> None:
    assert replace(GOOD, llc=5.14).right
    assert not replace(GOOD, llc=5.16).right
    assert replace(GOOD, llc=5.16, truth_se=0.1).right
    assert replace(GOOD, truth=0.001, llc=0.02, truth_se=0.0).right


def test_a_function_is_judged_and_kept(tmp_path, monkeypatch) -> None:
    curvatures = torch.tensor([1.0, 3.0, 10.0])
    case = FunctionCase(
        quadratic(curvatures), torch.zeros(3), None, lambda n, g: quadratic_exact(curvatures, n, g)
    )

    class Entry:
        name = "quadratic"

        def build(self, cache: object) -> FunctionCase:
            return case

    record = foreign_models.judge("quadratic", case, list(truths(case, None)))
    assert abs(record.results[0].z) < 4 and not record.error
    first = foreign_models.kept(Entry(), tmp_path, "v1", None)
    file = next((tmp_path / "foreign" / "v1").iterdir())
    assert json.loads(file.read_text())["name"] == "quadratic"
    monkeypatch.setattr(foreign_models, "sampled", None)
    assert foreign_models.kept(Entry(), tmp_path, "v1", None) == first
    assert foreign_models.kept(Entry(), tmp_path, "v2", None).error.startswith("TypeError")
