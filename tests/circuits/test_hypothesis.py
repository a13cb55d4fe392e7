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
    assert found.components == ("L0H2", "L0H10", "L1H3", "L1MLP")
    assert found.heads == ("L0H2", "L0H10", "L1H3")
    assert found.edges == (Edge("L0H2", "L1H3", "K"), Edge("L1H3", "logits"))
    assert str(found) == "circuit for induction: L0H2→L1H3.K; L1H3→logits; L0H10; L1MLP"
    assert ls.circuit("L0H2→L1H3.K", "x") == ls.circuit("L0H2->L1H3.K", "x")


def test_edges_lead_through_mlps_and_from_embeddings():
    found = ls.circuit("embed -> L0MLP -> L1H2.V -> L1MLP -> logits", pattern="x")
    assert found.components == ("embed", "L0MLP", "L1H2", "L1MLP")
    assert [str(edge) for edge in found.edges] == [
        "embed→L0MLP", "L0MLP→L1H2.V", "L1H2→L1MLP", "L1MLP→logits"
    ]  # fmt: skip
    assert ls.circuit("; ".join(map(str, found.edges)), "x") == found


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
        ("L0ATTN -> L1H2.K", "edge source must be a head such as 'L0H2', an MLP .*'L0ATTN'"),
        ("L0H2 -> L1ATTN", "edge target must be a head such as 'L1H2', an MLP .*'L1ATTN'"),
        ("L1H2 -> L0MLP", "runs backwards"),
        ("L0MLP -> L1MLP.K", "an edge into an MLP goes through ''"),
        ("L0H1.K -> L1H2.K", "a source has no '.'"),
        (" ; ", "at least one component, such as 'L0H2'; got ' ; '"),
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
        ('[{"pattern": "x", "heads": ["L0H1"]}]', "a key must be one of components.*got 'heads'"),
        ('[{"pattern": "x", "components": [3]}]', r"components\[0\] must be a string; got 3"),
        ('{"pattern": "x", "components": "L0H1"}', "components must be a list of string"),
        ('{"pattern": 3, "components": ["L0H1"]}', "pattern must be a string; got 3"),
        ('{"pattern": "x", "components": ["L0H1"], "name": null}', "name must be a string"),
        ('{"pattern": "x"}', "must be an object with 'pattern', and 'components' or"),
        ('{"pattern": "x", "components": ["L0H1", "L0H1"]}', "has 'L0H1' twice"),
        ('{"pattern": "x", "pattern": "y", "components": ["L0H1"]}', "says 'pattern' twice"),
        (
            '[{"pattern": "x", "components": ["L0H1"]}, {"pattern": "x", "components": ["L0H1"]}]',
            "hypothesis 2 is hypothesis 1 again",
        ),
        ("[]", "holds no hypothesis"),
        ("", "is empty"),
        ('[{"pattern": "x", "edges": ["L1H1->L0H1.K"]}]', "hypothesis 1: edge .* backwards"),
    ],
)
def test_bad_files_are_refused_by_name(tmp_path, content, message):
    file = tmp_path / "bad.json"
    file.write_text(content)
    with pytest.raises(ValueError, match=f"bad.json.*{message}"):
        ls.read_hypotheses(file)


def test_files_that_are_none_are_refused(tmp_path):
    latin = tmp_path / "latin.json"
    latin.write_bytes('{"pattern": "x", "name": "é", "components": ["L0H1"]}'.encode("latin-1"))
    with pytest.raises(ValueError, match="latin.json is not UTF-8 text"):
        ls.read_hypotheses(latin)
    with pytest.raises(OSError, match="is a folder; a JSON file is needed"):
        ls.read_hypotheses(tmp_path)
    with pytest.raises(OSError, match="there is no file .*none.json"):
        ls.read_hypotheses(tmp_path / "none.json")
    marked = tmp_path / "marked.json"  # as some editors write UTF-8
    marked.write_bytes(b"\xef\xbb\xbf" + b'{"pattern": "x", "components": ["L0H1"]}')
    assert ls.read_hypotheses(marked) == [ls.circuit("L0H1", "x")]


def test_a_hypothesis_belongs_to_its_model():
    adapted = adapt(native())
    digest = weights_hash(adapted)
    check_hypothesis(ls.circuit("L0H1", "x", model=digest), adapted, digest)
    with pytest.raises(ValueError, match="was made for a model with weights 0123"):
        check_hypothesis(ls.circuit("L0H1", "x", model="0123"), adapted, digest)
    with pytest.raises(ValueError, match="L0H9.*did you mean 'L0H3'"):
        check_hypothesis(ls.circuit("L0H9", "x"), adapted, digest)
