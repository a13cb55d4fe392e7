"""Files of EAP-IG, MIB and ACDC, written by hand as their code writes them, and back again."""

from __future__ import annotations

import json
import pickle
import sys
import types

import numpy as np
import pytest
import torch

import lens_slt as ls
from lens_slt.circuits.exchange_eap import eap_name
from lens_slt.circuits.exchange_graph import Sizes
from tests.tiny_models import native

MIXED = "embed -> L0H1.V; L0H1 -> L0MLP -> L1H2.K -> L1MLP -> logits; L1H2 -> logits"


@pytest.fixture(scope="module")
def model():
    return native(attn_only=False)


def eap_file(path, edges, nodes=None, parallel=False):
    """A graph of EAP-IG with one layer of two heads, as its ``to_json`` writes it."""
    nodes = {"input": True, "a0.h0": False, "a0.h1": True, "m0": False, "logits": True} | (
        nodes or {}
    )
    cfg = {"n_layers": 1, "n_heads": 2, "parallel_attn_mlp": parallel, "d_model": 8}
    content = {
        "cfg": cfg, "nodes": {name: {"in_graph": there} for name, there in nodes.items()},
        "edges": {name: {"score": s, "in_graph": there} for name, (s, there) in edges.items()},
    }  # fmt: skip
    path.write_text(json.dumps(content))
    return path


GRAPH = {
    "input->a0.h0<q>": (-0.3, False), "input->a0.h1<v>": (0.2, True), "a0.h1->m0": (0.01, False),
    "a0.h1->logits": (-0.1, True), "m0->logits": (0.0, False),
}  # fmt: skip


def test_a_graph_of_eap_ig_is_read(tmp_path):
    path = eap_file(tmp_path / "graph.json", GRAPH)
    found = ls.read_circuit(path, "induction", name="theirs")
    assert found == ls.circuit("embed -> L0H1.V; L0H1 -> logits", "induction", name="theirs")
    assert found.provenance == {
        "file": "graph.json", "format": "eap-ig",
        "scores": {"embed→L0H1.V": 0.2, "L0H1→logits": -0.1},
    }  # fmt: skip
    best = ls.read_circuit(path, "induction", format="mib", top=2)
    assert [str(edge) for edge in best.edges] == ["embed→L0H0.Q", "embed→L0H1.V"]
    lone = eap_file(tmp_path / "nodes.json", {"a0.h1->m0": (0.0, False)}, {"m0": True})
    assert ls.read_circuit(lone, "induction").components == ("L0H1", "L0MLP")


def test_a_graph_of_tensors_is_read_by_the_names_of_its_nodes(tmp_path):
    sources = ["input", "a0.h0", "a0.h1", "m0"]
    targets = [*(f"a0.h{h}<{x}>" for x in "qkv" for h in range(2)), "m0", "logits"]
    scores = torch.arange(32.0).view(4, 8) / 10
    inside = torch.zeros(4, 8, dtype=torch.bool)
    inside[2, 6] = inside[0, 3] = inside[3, 7] = True
    inside[3, 0] = True  # runs backwards: choosing nodes marks whole rows
    content = {
        "cfg": {"n_layers": 1, "n_heads": 2, "parallel_attn_mlp": False, "d_model": 8},
        "src_nodes": sources, "dst_nodes": targets, "edges_scores": scores,
        "edges_in_graph": inside, "nodes_in_graph": torch.tensor([True, False, True, True]),
    }  # fmt: skip
    torch.save(content, tmp_path / "graph.pt")
    found = ls.read_circuit(tmp_path / "graph.pt", "induction")
    assert {str(e) for e in found.edges} == {"embed→L0H1.K", "L0H1→L0MLP", "L0MLP→logits"}
    assert found.provenance["scores"]["L0H1→L0MLP"] == pytest.approx(2.2)
    for key, value in (("edges_scores", scores[:2]), ("src_nodes", sources[1:])):
        torch.save({**content, key: value}, tmp_path / "bad.pt")
        with pytest.raises(ValueError, match=r"bad.pt is no graph .*edges_scores must be \["):
            ls.read_circuit(tmp_path / "bad.pt", "induction")


@pytest.mark.parametrize("parallel", [False, True])
def test_the_edges_of_a_model_are_those_of_eap_ig(parallel):
    """Counted as EAP-IG's own ``Graph.from_model`` adds them."""
    sizes = Sizes(3, 4, 8, parallel=parallel)
    edges = [eap_name(edge) for edge in sizes.edges()]
    expected, before = [], ["input"]
    for layer in range(3):
        heads = [f"a{layer}.h{h}" for h in range(4)]
        expected += [f"{s}->{h}<{x}>" for s in before for h in heads for x in "qkv"]
        expected += [f"{s}->m{layer}" for s in (before if parallel else before + heads)]
        before += [*heads, f"m{layer}"]
    expected += [f"{s}->logits" for s in before]
    assert sorted(edges) == sorted(expected) and len(set(edges)) == len(edges)


@pytest.mark.parametrize(
    ("name", "format"),
    [("a.json", "eap-ig"), ("a.pt", "mib"), ("a.pth", "acdc"), ("a.txt", "acdc")],
)
def test_what_is_written_is_read_again(model, tmp_path, name, format):
    mine = ls.circuit(MIXED, "induction")
    ls.write_circuit(tmp_path / name, mine, format=format, model=model)
    again = ls.read_circuit(tmp_path / name, "induction", format=format)
    assert set(again.edges) == set(mine.edges) and again.components == mine.components
    if name == "a.txt":
        assert (
            "blocks.1.hook_k_input[:, :, 2] blocks.0.hook_mlp_out[:] 1\n"
            in (tmp_path / name).read_text()
        )
    if name == "a.json":
        content = json.loads((tmp_path / name).read_text())
        assert list(content) == ["cfg", "nodes", "edges"]
        assert content["cfg"] == {
            "n_layers": 2, "n_heads": 4, "parallel_attn_mlp": False, "d_model": 16
        }  # fmt: skip
        assert content["edges"]["m0->a1.h2<k>"] == {"score": 1.0, "in_graph": True}
        assert sum(edge["in_graph"] for edge in content["edges"].values()) == len(mine.edges)
        assert len(content["edges"]) == 12 + 5 + 6 * 12 + 10 + 11


def test_importances_are_those_of_the_attribution(model, tmp_path):
    tokens = torch.randint(1, 49, (2, 6), generator=torch.Generator().manual_seed(0))
    mask = torch.ones(2, 5, dtype=torch.bool)
    found = ls.edge_attribution(model, tokens, mask, steps=1, embeddings=True)
    ls.write_circuit(tmp_path / "mib.json", found, format="mib", model=model)
    content = json.loads((tmp_path / "mib.json").read_text())
    assert not any(edge["in_graph"] for edge in content["edges"].values())
    one = float(found["effect"].sel(source="L0MLP", target="L1H3", through="V"))
    assert content["edges"]["m0->a1.h3<v>"]["score"] == pytest.approx(one)
    one = float(found["effect"].sel(source="embed", target="L0MLP", through=""))
    assert content["edges"]["input->m0"]["score"] == pytest.approx(one)
    best = ls.read_circuit(tmp_path / "mib.json", "repeats", top=5)
    theirs = found["effect"].drop_sel(source="pos_embed").to_series().abs().nlargest(5)
    assert [(e.source, e.target, e.through) for e in best.edges] == list(theirs.index)
    unscored = tmp_path / "unscored.json"
    for edge in content["edges"].values():
        del edge["score"]
    unscored.write_text(json.dumps(content))
    with pytest.raises(ValueError, match="its edges have no scores; leave out top="):
        ls.read_circuit(unscored, "repeats", top=5)
    with pytest.raises(ValueError, match="no edge or node is marked .*; pass top="):
        ls.read_circuit(tmp_path / "mib.json", "repeats")
    ls.write_circuit(tmp_path / "best.pt", found, format="mib", model=model, top=5)
    marked = ls.read_circuit(tmp_path / "best.pt", "repeats")
    assert set(marked.edges) == set(best.edges)


LOG = """
Node: cur_parent=TLACDCInterpNode(blocks.0.attn.hook_result, [:, :, 1]) \
(self.current_node=TLACDCInterpNode(blocks.1.hook_k_input, [:, :, 2]))

Metric after removing connection to blocks.0.attn.hook_result [:, :, 1] is 3.1 (and so on)
Result is 1.1...so keeping connection

Node: cur_parent=TLACDCInterpNode(blocks.0.hook_mlp_out, [:]) \
(self.current_node=TLACDCInterpNode(blocks.1.hook_resid_post, [:]))

Result is 0.0001...so removing connection
"""
LINES = """
# reader, writer
blocks.1.hook_k_input[:, :, 2] blocks.0.attn.hook_result[:, :, 1] 1.1
('blocks.1.hook_resid_post', [:], 'blocks.1.attn.hook_result', [:, :, 2])
blocks.1.attn.hook_k[COLON, COLON, 2] blocks.1.hook_k_input[COLON, COLON, 2]
blocks.0.hook_mlp_in blocks.0.hook_resid_pre -3e-2
blocks.1.attn.hook_q 2 blocks.0.hook_mlp_out
"""


def test_text_of_acdc_is_read(tmp_path):
    path = tmp_path / "edges.txt"
    path.write_text(LINES)
    found = ls.read_circuit(path, "induction")
    expected = "L0H1 -> L1H2.K; L1H2 -> logits; embed -> L0MLP -> L1H2.Q"
    assert set(found.edges) == set(ls.circuit(expected, "induction").edges)
    assert found.provenance["scores"] == {"L0H1→L1H2.K": 1.1, "embed→L0MLP": -0.03}
    path.write_text(LOG)
    found = ls.read_circuit(path, "induction")
    assert [str(edge) for edge in found.edges] == ["L0H1→L1H2.K"]
    assert ls.read_circuit(path, "induction", top=2).edges[1] == ls.Edge("L0MLP", "logits")


def test_a_pickle_of_acdc_is_read_without_running_it(tmp_path, monkeypatch):
    """With a class of the name and module of theirs, which the reader does not import."""
    module = types.ModuleType("acdc.TLACDCEdge")

    class TorchIndex:
        def __init__(self, parts):
            self.as_index = tuple(slice(None) if x is None else x for x in parts)
            self.hashable_tuple = tuple(parts)

    TorchIndex.__module__, TorchIndex.__qualname__ = module.__name__, "TorchIndex"
    module.TorchIndex = TorchIndex
    monkeypatch.setitem(sys.modules, "acdc", types.ModuleType("acdc"))
    monkeypatch.setitem(sys.modules, module.__name__, module)
    head, whole = (lambda i: TorchIndex([None, None, i])), TorchIndex([None])
    edges = [
        (("blocks.1.hook_q_input", head(3), "blocks.0.attn.hook_result", head(0)), 0.25),
        (("blocks.1.attn.hook_q", head(3), "blocks.1.hook_q_input", head(3)), 0.5),
        (("blocks.1.hook_resid_post", whole, "hook_pos_embed", whole), None),
    ]
    path = tmp_path / "edges.pkl"
    path.write_bytes(pickle.dumps(edges))
    monkeypatch.undo()
    found = ls.read_circuit(path, "induction")
    assert [str(edge) for edge in found.edges] == ["L0H0→L1H3.Q", "pos_embed→logits"]
    assert found.provenance["scores"] == {"L0H0→L1H3.Q": 0.25}
    path.write_bytes(pickle.dumps([np.float64(1)]))
    with pytest.raises(ValueError, match=r"edges.pkl has no edges of ACDC: it holds a numpy\."):
        ls.read_circuit(path, "induction")
    path.write_bytes(b"\x80\x04nonsense")
    with pytest.raises(ValueError, match="edges.pkl has no edges of ACDC: it is no pickle"):
        ls.read_circuit(path, "induction")


def test_a_subgraph_of_acdc_has_every_edge_of_its_model(model, tmp_path):
    ls.write_circuit(tmp_path / "a.pth", ls.circuit(MIXED, "x"), format="acdc", model=model)
    subgraph = torch.load(tmp_path / "a.pth", weights_only=True)
    heads, mlps = 8, 2
    inside = [key for key in subgraph if key[2].rpartition("_")[2] in ("input", "in")]
    assert len(inside) == 3 * heads + mlps
    placeholders = [k for k in subgraph if k[0].endswith("hook_result")]
    assert len(placeholders) == 3 * heads
    assert len(subgraph) == 3 * heads * 2 + mlps + (12 + 5 + 6 * 12 + 10 + 11)
    key = ("blocks.1.hook_k_input", (None, None, 2), "blocks.0.hook_mlp_out", (None,))
    assert subgraph[key] is True
    assert subgraph["blocks.0.hook_v_input", (None, None, 1), "blocks.0.hook_resid_pre", (None,)]


def test_bad_files_are_named_with_what_is_wrong(tmp_path):
    path = tmp_path / "graph.json"
    eap_file(path, {"a0.h1->a0.h0": (0.1, True)})
    with pytest.raises(ValueError, match=r"graph.json is no graph .* must say through what"):
        ls.read_circuit(path, "x")
    eap_file(path, {"a0.h9->logits": (0.1, True)})
    with pytest.raises(
        ValueError, match="L0H9→logits is not in the model, which has 1 layers of 2"
    ):
        ls.read_circuit(path, "x")
    eap_file(path, {"a0.h1->m0": (0.1, True)}, parallel=True)
    with pytest.raises(ValueError, match="L0H1→L0MLP is not in the model"):
        ls.read_circuit(path, "x")
    eap_file(path, {"a0.h1->m0": ("much", True)})
    with pytest.raises(ValueError, match="score of a0.h1->m0 must be a finite number; got 'much'"):
        ls.read_circuit(path, "x")
    eap_file(path, {"resid->m0": (0.0, True)})
    with pytest.raises(ValueError, match="a node reads 'a0.h1', 'm0', .*; got 'resid'"):
        ls.read_circuit(path, "x")
    path.write_text('{"cfg": {}, "nodes": {}}')
    with pytest.raises(
        ValueError, match="graph.json is no graph of EAP-IG or MIB: it has no edges"
    ):
        ls.read_circuit(path, "x")
    for wrong in ('{"cfg": {"n_layers": 2, "n_heads": 8}, "nodes": {}, "edges": []}', "[]"):
        path.write_text(wrong)
        with pytest.raises(ValueError, match=r"graph.json is no graph of EAP-IG or MIB"):
            ls.read_circuit(path, "x")
    text = tmp_path / "edges.txt"
    for line, words in (
        ("blocks.1.hook_k_input[:, :, 2]", "line 1 must name two hooks"),
        ("blocks.1.hook_k_input[:, :, 2] blocks.0.attn.hook_result", "needs the index of one head"),
        ("blocks.1.hook_k_input[:, :, 2] blocks.0.attn.hook_z[:, :, 1]", "hook_z is no hook at"),
        ("blocks.0.hook_k_input[:, :, 2] blocks.0.attn.hook_result[:, :, 1]", "runs backwards"),
    ):
        text.write_text(line)
        with pytest.raises(ValueError, match=rf"edges.txt.*{words}"):
            ls.read_circuit(text, "x")
    with pytest.raises(FileNotFoundError):
        ls.read_circuit(tmp_path / "none.txt", "x")


def test_what_a_format_lacks_is_refused(model, tmp_path):
    mine = ls.circuit(MIXED, "x")
    with pytest.raises(ValueError, match="model: a .json file lists all edges of its model"):
        ls.write_circuit(tmp_path / "a.json", mine)
    with pytest.raises(ValueError, match="path must end in .json or .pt; got"):
        ls.write_circuit(tmp_path / "a.txt", mine, model=model)
    with pytest.raises(ValueError, match="have no node"):
        ls.write_circuit(tmp_path / "a.pt", ls.circuit("pos_embed -> logits", "x"), model=model)
    with pytest.raises(ValueError, match="'L1' is no head, MLP or embedding"):
        ls.write_circuit(tmp_path / "a.pt", ls.circuit("L1", "x"), model=model)
    with pytest.raises(ValueError, match="L4H0→logits is not in the model"):
        ls.write_circuit(tmp_path / "a.pt", ls.circuit("L4H0 -> logits", "x"), model=model)
    with pytest.raises(ValueError, match="model: ACDC names the logits"):
        ls.write_circuit(tmp_path / "a.txt", mine, format="acdc")
    with pytest.raises(ValueError, match="format must be one of eap-ig, mib, acdc; got 'eap'"):
        ls.write_circuit(tmp_path / "a.json", mine, format="eap", model=model)
