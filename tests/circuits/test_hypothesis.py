"""Hypotheses: one line, JSON and back, and what is refused."""

from __future__ import annotations

import json

import pytest

import lens_slt as ls
from lens_slt.circuits.hypothesis import CircuitHypothesis, Edge, check_hypothesis
from lens_slt.models.adapter import adapt, weights_hash
from tests.tiny_models import native


def test_one_line_makes_heads_and_edges():
    found = ls.circuit("L0H2 -> L1H3.k -> logits; L0H10, L1MLP", pattern="induction")
    assert found.components == ("L0H2", "L0H10", "L1MLP", "L1H3")
    assert found.heads == ("L0H2", "L0H10", "L1H3")
    assert found.edges == (Edge("L0H2", "L1H3", "K"), Edge("L1H3", "logits"))
    assert str(found) == "circuit for induction: L0H2→L1H3.K; L1H3→logits; L0H10; L1MLP"
    assert ls.circuit("L0H2→L1H3.K", "x") == ls.circuit("L0H2->L1H3.K", "x")


def test_json_keeps_everything(tmp_path):
    made = [
        ls.circuit("L0H2 -> L1H3.K; L1H4", "induction", name="mine", provenance={"mode": 2}),
        ls.circuit("L0H1", "newline", model="abc"),
    ]
    ls.write_hypotheses(tmp_path / "h.json", made)
    again = ls.read_hypotheses(tmp_path / "h.json")
    assert again == made
    assert again[0].provenance == {"mode": 2}
    (tmp_path / "one.json").write_text(json.dumps(made[0].as_dict()))
    assert ls.read_hypotheses(tmp_path / "one.json") == made[:1]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("L1H1 -> L0H1.K", "runs backwards"),
        ("L1H1 -> L1H2.K", "runs backwards"),
        ("L0H1 -> L1H2", r"must say through what.*L0H1 -> L1H2.K.*Q, K, V; got ''"),
        ("L0H1 -> L1H2.W", "got 'W'"),
        ("L0H1 -> logits.K", "goes through ''"),
        ("L0MLP -> L1H2.K", "edge source must be a head such as 'L0H2'; got 'L0MLP'"),
        ("L0H1.K -> L1H2.K", "a source has no '.'"),
        (" ; ", "at least one component"),
    ],
)
def test_what_is_no_circuit_is_refused(text, message):
    with pytest.raises(ValueError, match=message):
        ls.circuit(text, "induction")


def test_values_are_checked():
    with pytest.raises(ValueError, match="pattern must name the tokens"):
        ls.circuit("L0H1", "")
    with pytest.raises(ValueError, match="component L0H1 is named twice"):
        CircuitHypothesis(("L0H1", "L0H1"), (), "x")
    with pytest.raises(ValueError, match="edges end in L1H2, not among"):
        CircuitHypothesis(("L0H1",), (Edge("L0H1", "L1H2", "K"),), "x")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{", "is no JSON file"),
        ("[3]", "hypothesis 1: must be an object with 'pattern'"),
        ('[{"pattern": "x", "heads": ["L0H1"]}]', "must be an object"),
        ('[{"pattern": "x", "components": [3]}]', "must be strings"),
        ('[{"pattern": "x", "edges": ["L1H1->L0H1.K"]}]', "hypothesis 1: edge .* backwards"),
    ],
)
def test_bad_files_are_refused_by_name(tmp_path, content, message):
    file = tmp_path / "bad.json"
    file.write_text(content)
    with pytest.raises(ValueError, match=f"bad.json.*{message}"):
        ls.read_hypotheses(file)


def test_a_hypothesis_belongs_to_its_model():
    adapted = adapt(native())
    digest = weights_hash(adapted)
    check_hypothesis(ls.circuit("L0H1", "x", model=digest), adapted, digest)
    with pytest.raises(ValueError, match="was made for a model with weights 0123"):
        check_hypothesis(ls.circuit("L0H1", "x", model="0123"), adapted, digest)
    with pytest.raises(ValueError, match="L0H9.*did you mean 'L0H3'"):
        check_hypothesis(ls.circuit("L0H9", "x"), adapted, digest)
