"""Nodes and edges at roles against plain hooks on an untouched model."""

from __future__ import annotations

import inspect
from dataclasses import replace
from typing import get_type_hints

import numpy as np
import pytest
import torch

import lens_slt as ls
from lens_slt.circuits.case import Case
from lens_slt.circuits.graph import circuit_graph, to_dot
from lens_slt.circuits.hypothesis import CircuitHypothesis, Edge
from lens_slt.circuits.null_sets import other_paths, random_paths, same_shape
from lens_slt.circuits.roles import apart, meet, pieces, rest
from lens_slt.circuits.runs import Runs
from lens_slt.circuits.shortlist import node_effects
from lens_slt.circuits.statistics import Contrast
from lens_slt.circuits.trial import TrialOptions
from lens_slt.data.tokenizer import shipped_tokenizer
from lens_slt.models.adapter import adapt
from tests.tiny_models import TINY_MODELS, has_hooked_transformer, native

MODELS = ["native_attn_only", "native_mlp", "wrapped_gpt2", "wrapped_llama"]
MODELS += ["hooked_attn_only", "hooked_mlp"] if has_hooked_transformer() else []
N, LENGTH = 4, 12
ROLES = {"S2": torch.tensor([2, 5, 3, 4]), "END": torch.tensor([10, 8, 9, 10])}


def some_tokens(n: int = N, length: int = LENGTH, seed: int = 0) -> torch.Tensor:
    return torch.randint(1, 49, (n, length), generator=torch.Generator().manual_seed(seed))


def mask_of(role: str) -> torch.Tensor:
    return torch.nn.functional.one_hot(ROLES[role], LENGTH - 1).bool()


def losses(model, tokens, hooks=()):
    with torch.no_grad():
        logits = model.run_with_hooks(tokens[:, :-1], return_type="logits", fwd_hooks=list(hooks))
    return -logits.log_softmax(-1).gather(-1, tokens[:, 1:, None])[..., 0].numpy()


def recorded(model, tokens, names):
    kept = {}
    hooks = [(n, lambda x, hook, n=n: kept.update({n: x.clone()})) for n in names]
    losses(model, tokens, hooks)
    return kept


def zeroed(layer, heads, where):
    """A hook that overwrites the outputs of some heads at some positions."""

    def put(x, hook):
        x = x.clone()
        for head in heads:
            x[:, :, head][where] = 0
        return x

    return f"blocks.{layer}.attn.hook_z", put


def weight_of(model, name):
    leaf = adapt(model).leaves[name]
    return leaf.view(leaf.parameter)


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("role", ["S2", "~S2~END"])
def test_a_node_at_a_role_equals_a_hook_at_its_positions(name, role):
    tokens = some_tokens()
    where = ~(mask_of("S2") | mask_of("END")) if role[0] == "~" else mask_of(role)
    got = ls.ablate(TINY_MODELS[name](), tokens, f"L0H1@{role}", roles=ROLES, how="zero")
    want = losses(TINY_MODELS[name](), tokens, [zeroed(0, [1], where)])
    np.testing.assert_allclose(got["loss"], want, atol=1e-5)
    assert float(np.abs(got["effect"]).max()) > 1e-3
    # Masks name the same positions; those of the ablation are where both say so.
    masks = {key: mask_of(key).numpy() for key in ROLES}
    some = ls.Ablation("zero", positions=mask_of("S2").numpy())
    again = ls.ablate(TINY_MODELS[name](), tokens, f"L0H1@{role}", roles=masks, how=some)
    want = losses(TINY_MODELS[name](), tokens, [zeroed(0, [1], where & mask_of("S2"))])
    np.testing.assert_allclose(again["loss"], want, atol=1e-5)


def test_a_mean_at_a_role_is_that_of_all_tokens():
    tokens, model = some_tokens(), TINY_MODELS["native_mlp"]()
    out = recorded(model, tokens, ["blocks.0.hook_mlp_out"])["blocks.0.hook_mlp_out"]

    def put(x, hook):
        return torch.where(mask_of("S2")[..., None], out.mean((0, 1)), x)

    got = ls.ablate(model, tokens, "L0MLP@S2", roles=ROLES, how="mean")
    want = losses(TINY_MODELS["native_mlp"](), tokens, [("blocks.0.hook_mlp_out", put)])
    np.testing.assert_allclose(got["loss"], want, atol=1e-5)


@pytest.mark.parametrize("name", [name for name in MODELS if name != "wrapped_llama"])
def test_positions_that_come_once_for_all_sequences_have_roles_in_each(name):
    tokens, model = some_tokens(), TINY_MODELS[name]()
    got = ls.ablate(model, tokens, "pos_embed@S2", roles=ROLES, how="zero")

    def put(x, hook):
        return torch.where(mask_of("S2")[..., None], 0, x)

    want = losses(TINY_MODELS[name](), tokens, [("hook_pos_embed", put)])
    np.testing.assert_allclose(got["loss"], want, atol=1e-5)
    assert float(np.abs(got["effect"]).max()) > 1e-3


def without(model, tokens, removed, reader, head=2):
    """Losses where one reader reads the stream less what is removed from it."""
    place = {"logits": "blocks.1.hook_resid_post", "L0MLP": "blocks.0.hook_resid_mid"}.get(
        reader, "blocks.1.hook_resid_pre"
    )
    stream = recorded(model, tokens, [place])[place] - removed
    if reader == "logits":
        return losses(model, tokens, [(place, lambda x, hook: stream)])
    if reader == "L0MLP":
        block = model.blocks[0]
        with torch.no_grad():
            new = block.mlp(block.ln2(stream))
        return losses(model, tokens, [("blocks.0.hook_mlp_out", lambda x, hook: new)])
    with torch.no_grad():
        read = model.blocks[1].ln1(stream)
        weight = weight_of(model, f"blocks.1.attn.W_{reader}")[head]
        new = read @ weight + weight_of(model, f"blocks.1.attn.b_{reader}")[head]

    def put(x, hook):
        x = x.clone()
        x[:, :, head] = new
        return x

    return losses(model, tokens, [(f"blocks.1.attn.hook_{reader.lower()}", put)])


@pytest.mark.parametrize("name", [name for name in MODELS if name != "wrapped_llama"])
@pytest.mark.parametrize("reader", ["Q", "K", "V", "L0MLP", "logits"])
def test_an_edge_at_a_role_equals_a_reader_without_what_is_written_there(name, reader):
    if "attn_only" in name and reader == "L0MLP":
        pytest.skip("no MLPs")
    tokens, model = some_tokens(), TINY_MODELS[name]()
    z = recorded(model, tokens, ["blocks.0.attn.hook_z"])["blocks.0.attn.hook_z"]
    written = (z[:, :, 1] @ weight_of(model, "blocks.0.attn.W_O")[1]).detach()
    target = f"L1H2.{reader}" if reader in "QKV" else reader
    for role, where in (("S2", mask_of("S2")), ("~S2", ~mask_of("S2"))):
        got = ls.ablate_path(
            TINY_MODELS[name](), tokens, f"L0H1@{role} -> {target}", roles=ROLES, how="zero"
        )
        want = without(model, tokens, written * where[..., None], reader)
        np.testing.assert_allclose(got["loss"], want, atol=1e-5)
        assert float(np.abs(got["effect"]).max()) > 1e-4


def test_roles_that_cover_every_position_are_no_role():
    tokens, model = some_tokens(), TINY_MODELS["native_mlp"]()
    place = np.arange(LENGTH - 1)[None].repeat(N, 0)
    roles = {"A": place < 4, "B": (place >= 3) & (place < 8), "C+1": place >= 8}
    for call, parts in (
        (ls.ablate, ["L0H1{}", "L1MLP{}"]),
        (ls.ablate_path, ["L0H1{} -> L1H2.K", "L0H1{} -> L1H3.K", "embed{} -> L0MLP"]),
        (ls.knock_in, ["L1H2{}"]),
        (ls.keep_only, ["L1H2{}"]),
    ):
        join = "; ".join if call is ls.ablate_path else ", ".join
        at = {role: join(part.format(f"@{role}") for part in parts) for role in roles}
        whole = call(model, tokens, join(part.format("") for part in parts), how="mean")["loss"]
        # A and B overlap: what both name is ablated once.
        every = call(model, tokens, join(at.values()), how="mean", roles=roles)["loss"]
        np.testing.assert_allclose(every, whole, atol=1e-5)
        one = call(model, tokens, at["A"], how="mean", roles=roles)["loss"]
        assert np.abs(one - whole).max() > 1e-4


def test_what_is_kept_at_a_role_is_ablated_elsewhere():
    tokens, model = some_tokens(), TINY_MODELS["native_attn_only"]()
    everywhere = torch.ones(N, LENGTH - 1, dtype=torch.bool)
    hooks = [
        zeroed(0, range(4), everywhere), zeroed(1, [0, 1, 3], everywhere),
        zeroed(1, [2], ~(mask_of("S2") | mask_of("END"))),
    ]  # fmt: skip
    got = ls.keep_only(model, tokens, ["L1H2@S2", "L1H2@END"], roles=ROLES, how="zero")
    want = losses(TINY_MODELS["native_attn_only"](), tokens, hooks)
    np.testing.assert_allclose(got["loss"], want, atol=1e-5)
    # Knocked in, it puts out there what it does in the whole model.
    z = recorded(model, tokens, ["blocks.1.attn.hook_z"])["blocks.1.attn.hook_z"]

    def put(x, hook):
        x = torch.zeros_like(x)
        x[:, :, 2][mask_of("END")] = z[:, :, 2][mask_of("END")]
        return x

    got = ls.knock_in(model, tokens, "L1H2@END", roles=ROLES, how="zero")
    hooks = [zeroed(0, range(4), everywhere), ("blocks.1.attn.hook_z", put)]
    want = losses(TINY_MODELS["native_attn_only"](), tokens, hooks)
    np.testing.assert_allclose(got["loss"], want, atol=1e-5)


def test_roles_of_rows_padded_on_the_left_are_in_their_columns():
    model, tokens, pad = native(), some_tokens(), 49
    lengths = torch.tensor([12, 10, 11, 9])
    right, left = (torch.full((N, LENGTH), pad) for _ in range(2))
    for row, n in enumerate(lengths):
        right[row, :n], left[row, LENGTH - n :] = tokens[row, :n], tokens[row, :n]
    there = torch.tensor([2, 5, 3, 4])
    options = dict(how="zero", pad_id=pad)
    for call, text in ((ls.ablate, "L0H1@S2"), (ls.ablate_path, "L0H1@S2 -> L1H2.K")):
        want = call(model, right, text, roles={"S2": there}, **options)["effect"].values
        shifted = there + LENGTH - lengths
        got = call(model, left, text, roles={"S2": shifted}, **options)["effect"].values
        mask = torch.nn.functional.one_hot(shifted, LENGTH - 1).bool()
        also = call(model, left, text, roles={"S2": mask}, **options)["effect"].values
        for row, n in enumerate(lengths):
            np.testing.assert_allclose(got[row, LENGTH - n :], want[row, : n - 1], atol=1e-5)
        np.testing.assert_array_equal(got, also)
        assert np.nanmax(np.abs(want)) > 1e-3
    with pytest.raises(ValueError, match=r"roles\['S2'\]\[1\] is 0, which is padding on the left"):
        ls.ablate(model, left, "L0H1@S2", roles={"S2": [0, 0, 5, 5]}, **options)


def test_roles_by_name():
    assert apart(["S2", "~END~S2", ""]) == ("END", "S2", "~END~S2")
    assert apart([""]) == ("",)
    assert pieces("~S2", apart(["S2", "END"])) == {"END", "~END~S2"}
    assert rest([]) == {""}
    assert rest(["S2", "END"]) == {"~END~S2"}
    assert rest(["S2", ""]) == rest(["S2", "~S2"]) == frozenset()
    assert rest(["~S2~END", "END"]) == {"S2"}
    assert meet("", "S2")
    assert meet("~END", "S2")
    assert not meet("END", "S2")
    assert not meet("~S2", "S2")


def test_one_line_says_where_nodes_write():
    text = "L0H1@S2 -> L1H2@END.V -> logits; L0H3@S1+1; L0H3@END"
    found = ls.circuit(text, "x")
    assert found.edges == (Edge("L0H1", "L1H2", "V", "S2"), Edge("L1H2", "logits", "", "END"))
    assert found.components == ("L0H1@S2", "L0H3@END", "L0H3@S1+1", "L1H2@END")
    assert found.heads == ("L0H1", "L0H3", "L1H2")
    assert found.roles == ("END", "S1+1", "S2")
    assert str(found) == "circuit for x: L0H1@S2→L1H2.V; L1H2@END→logits; L0H3@END; L0H3@S1+1"
    # Read without a role: there at the roles it is named with, everywhere if with none.
    assert ls.circuit("L0H1@S2 -> L1H2.V; L1H2@END", "x").components == ("L0H1@S2", "L1H2@END")
    assert ls.circuit("L0H1@S2 -> L1H2.V", "x").components == ("L0H1@S2", "L1H2")
    assert ls.circuit("L0H1@S2 -> L1H2.V; L0H1", "x").components == ("L0H1", "L1H2")
    assert ls.circuit("L0H1@~S2~END -> L1H2.V", "x").roles == ("END", "S2")


@pytest.mark.parametrize(
    "text", ["L0H1@S2 -> L1H2@END.V -> logits; L0H3", "L0H1@S2 -> L1H2.K; L0H1", "L0H1@~S2"]
)
def test_lines_and_files_keep_roles(text, tmp_path):
    found = ls.circuit(text, "x")
    assert ls.circuit(str(found).partition(": ")[2], "x") == found
    ls.write_hypotheses(tmp_path / "h.json", [found])
    assert ls.read_hypotheses(tmp_path / "h.json") == [found]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("L0H1@ -> L1H2.K", "a role is letters, digits.*got '' in 'L0H1@'"),
        ("L0H1@S 2", "a role is letters.*got 'S 2'"),
        ("L0H1@S2@END", "got 'S2@END'"),
        ("L0H1@S2~END", "got 'S2~END'"),
        ("L0H1@~S2~S2", "got '~S2~S2'"),
        ("L0H1@S2 -> logits@END", "what the logits read stands where its source does"),
        ("L0H1; L0H1@S2", "component L0H1@S2 is a part of L0H1"),
    ],
)
def test_what_is_no_role_is_refused(text, message):
    with pytest.raises(ValueError, match=message):
        ls.circuit(text, "x")


def test_edges_end_in_components_at_their_role():
    edge = Edge("L0H1", "L1H2", "K", "S2")
    with pytest.raises(ValueError, match="edges end in L0H1@S2, not among"):
        CircuitHypothesis(("L0H1@END", "L1H2"), (edge,), "x")
    CircuitHypothesis(("L0H1", "L1H2@END"), (edge,), "x")


@pytest.mark.parametrize(
    ("text", "roles", "message"),
    [
        ("L0H1@S2", None, r"roles has no 'S2'.*it has none.*roles={'S2': positions}"),
        ("L0H1@end", ROLES, "roles has no 'end'.*it has END, S2; did you mean 'END'"),
        ("L0H1@S2", {"S2": [1, 2]}, r"roles\['S2'\] must be positions"),
        ("L0H1@S2", {"S2": [1, 2, 3, 11]}, r"roles\['S2'\] must lie between 0 and 10"),
        ("L0H1@S2", {"S2": None}, r"roles\['S2'\] must be positions; got None"),
        ("L0H1", {"~S2": [1, 2, 3, 4]}, "'~S2' is no name of a role"),
        ("L0H1", {"a b": [1, 2, 3, 4]}, "a role is letters"),
    ],
)
def test_roles_that_do_not_fit_are_refused(text, roles, message):
    calls = [ls.ablate, ls.keep_only, ls.knock_in]
    for call in calls:
        with pytest.raises(ValueError, match=message):
            call(native(), some_tokens(), text, roles=roles)
    with pytest.raises(ValueError, match=message):
        ls.ablate_path(native(), some_tokens(), f"{text} -> L1H2.K", roles=roles)


def test_what_is_kept_at_overlapping_roles_is_refused():
    roles = {"A": [1, 2, 3, 4], "B": [2, 2, 3, 4]}
    with pytest.raises(ValueError, match="roles 'A' and 'B' have a position in common, in seq.* 1"):
        ls.keep_only(native(), some_tokens(), "L0H1@A, L0H1@~A~B", roles=roles)


def test_first_order_effects_at_a_role_are_those_of_its_positions():
    runs = Runs(adapt(native().double()), some_tokens(), "zero", roles=ROLES)
    parts = ["L0H1@S2", "L0H1@END", "L0H1@~S2~END"]
    found = node_effects(runs, runs.real, ["L0H1", *parts])
    assert sum(found[part] for part in parts) == pytest.approx(found["L0H1"])
    at_s2 = ls.Ablation("zero", positions=ROLES["S2"])
    alone = node_effects(Runs(runs.adapted, some_tokens(), at_s2), runs.real, ["L0H1"])
    assert alone["L0H1"] == pytest.approx(found["L0H1@S2"])


def test_nulls_keep_roles():
    runs = Runs(adapt(native()), some_tokens(), roles=ROLES)
    sets = same_shape(frozenset({"L0H1@S2", "L1H2@END", "L1H0"}), runs, 1000, 0)
    assert len(sets.members) == 3 * 2 * 2  # a head that is there everywhere is no other head at END
    for one in sets.members:
        assert sorted(x.partition("@")[::2] for x in one if "@" in x)[0][1] == "S2"
        assert not one & {"L0H1@S2", "L1H2@END", "L1H0@END", "L1H2", "L1H0"}
    assert "at the same roles" in sets.words
    edges = [
        Edge("L0H1", "L1H2", "K", "S2"),
        Edge("L0H3", "L1H2", "K"),
        Edge("L0H2", "L1H2", "K", "END"),
    ]
    others = other_paths(edges[0], edges, runs, 1000, 0)
    assert {e.role for one in others.members for e in one} == {"S2"}
    assert len(others.members) == 4 * 4 * 3 - 2  # itself, and the one that is there everywhere
    assert "at the same role" in others.words
    universe = [Edge(f"L0H{s}", f"L1H{t}", "K") for s in range(4) for t in range(4)]
    for one in random_paths(edges[:2], universe, 20, 0).members:
        assert sorted(e.role for e in one) == ["", "S2"]
        assert not {e.path for e in one if not e.role} & {e.path for e in edges[:2]}


@pytest.fixture(scope="module")
def prompts():
    return ls.make_prompts("ioi", shipped_tokenizer(), n=24, seed=1)


def tiny(prompts):
    return native(d_vocab=len(shipped_tokenizer()), n_ctx=prompts.tokens.shape[1])


def test_sufficiency_of_an_edge_at_a_role_equals_plain_hooks(prompts):
    """All values of layer 1 lack all heads of layer 0, but for one path at S2."""
    model, tokens = tiny(prompts), prompts.tokens
    runs = Runs(adapt(model), tokens, "zero", weights=prompts.counts, roles=prompts.roles)
    contrast = Contrast(runs.base, runs.real)
    case = Case(ls.circuit("L0H1@S2 -> L1H2@END.V", "all"), runs, contrast, 0.05, 10, 0)
    assert case.roles == ("S2", "~S2")
    assert len(case.universe) == 4 * 4 * 2
    names = ["blocks.0.attn.hook_z", "blocks.1.hook_resid_pre"]
    z, resid = recorded(model, tokens, names).values()
    writes = torch.einsum("rphe,hed->rphd", z, weight_of(model, "blocks.0.attn.W_O")).detach()
    s2 = torch.nn.functional.one_hot(prompts.roles["S2"], tokens.shape[1] - 1).bool()
    new = []
    for head in range(4):
        lost = writes.sum(2)
        if head == 2:
            lost = lost - writes[:, :, 1] * s2[..., None]
        with torch.no_grad():
            new.append(
                model.blocks[1].ln1(resid - lost) @ weight_of(model, "blocks.1.attn.W_V")[head]
                + weight_of(model, "blocks.1.attn.b_V")[head]
            )
    hook = ("blocks.1.attn.hook_v", lambda x, hook: torch.stack(new, 2))
    want = losses(tiny(prompts), tokens, [hook])
    got = case.along(case.own_paths)
    counts = prompts.counts.numpy()
    np.testing.assert_allclose(got[counts], want[counts], atol=1e-5)
    assert np.abs(got - case.along(frozenset()))[counts].max() > 1e-5


def test_prompts_with_roles_are_put_on_trial(prompts):
    text = "L0H1@S2 -> L1H2@END.V -> logits; L0H3"
    trial = ls.cross_check(
        tiny(prompts), prompts.tokens, ls.circuit(text, "all"), weights=prompts.counts,
        roles=prompts.roles, how="mean", n_null=20, n_bootstrap=200, progress=False,
    )  # fmt: skip
    rows = {(one.test, one.part): one for one in trial.evidence}
    assert {part for test, part in rows if test == "minimality"} == {"L0H1@S2", "L1H2@END", "L0H3"}
    assert {part for test, part in rows if test == "edge"} == {"L0H1@S2→L1H2.V", "L1H2@END→logits"}
    assert trial.settings["roles"] == ["END", "IO", "S1", "S2"]
    assert "at the same roles" in rows["necessity", "circuit"].null
    # A necessity is what a plain ablation of the circuit costs the answers.
    alone = ls.ablate(
        tiny(prompts), prompts.tokens, trial.hypothesis.components, weights=prompts.counts,
        roles=prompts.roles, how="mean",
    )["effect"].values[prompts.counts.numpy()].mean()  # fmt: skip
    assert rows["necessity", "circuit"].effect == pytest.approx(alone, abs=1e-5)
    # As a graph: one node for each role.
    graph = circuit_graph(trial)
    assert set(graph) == {"L0H1@S2", "L0H3", "L1H2@END", "logits"}
    assert set(graph.edges()) == {("L0H1@S2", "L1H2@END"), ("L1H2@END", "logits")}
    assert graph.nodes["L1H2@END"]["kind"] == "head"
    assert "V @S2" in to_dot(graph)
    assert "L0H1@S2→L1H2@END" in str(ls.plot_circuit(trial).to_dict())
    assert trial.as_dict()["hypothesis"]["components"] == ["L0H1@S2", "L0H3", "L1H2@END"]


def test_trials_refuse_roles_that_are_missing_or_overlap(prompts):
    def ask(text, roles):
        ls.cross_check(
            tiny(prompts), prompts.tokens, ls.circuit(text, "all"), weights=prompts.counts,
            roles=roles, progress=False,
        )  # fmt: skip

    with pytest.raises(ValueError, match="roles has no 'S3'.*it has END, IO, S1, S2 "):
        ask("L0H1@S3 -> L1H2.V", prompts.roles)
    both = {"A": prompts.roles["S2"], "B": prompts.roles["S2"]}
    with pytest.raises(ValueError, match="roles 'A' and 'B' have a position in common"):
        ask("L0H1@A -> L1H2.V; L0H1@B -> L1H3.V", both)


def test_an_edge_is_supported_where_it_is_and_nowhere_else():
    """In the planted circuit the first head marks the token behind a token's first occurrence."""
    p = ls.plant("induction", seed=1, n_heads=6, vocab=16)
    tokens, patterns = p.tokens[:32], p.patterns[:, :32]
    marked = patterns.sel(pattern=p.pattern).values
    behind = np.zeros_like(marked)
    for row, place in zip(*np.nonzero(marked), strict=True):
        before = (tokens[row, :place] == tokens[row, place]).numpy()
        behind[row, np.flatnonzero(before) + 1] = True
    [edge] = p.truth.edges
    found = [
        ls.CircuitHypothesis(
            (f"{edge.source}@{role}", edge.target), (replace(edge, role=role),), p.pattern, role
        )
        for role in ("BEHIND", "~BEHIND")
    ]  # fmt: skip
    right, wrong = ls.cross_check(
        p.model, tokens, found, patterns=patterns, roles={"BEHIND": behind}, n_null=20,
        n_bootstrap=200, progress=False,
    )  # fmt: skip
    assert right.verdict == "supported", str(right)
    assert wrong.verdict == "contradicted", str(wrong)


def test_other_tools_know_no_roles(tmp_path):
    with pytest.raises(ValueError, match="is at roles, and files of other tools have none"):
        ls.write_circuit(tmp_path / "c.json", ls.circuit("L0H1@S2 -> L1H2.K", "x"), model=native())


def test_type_checkers_know_the_options_of_a_trial():
    function = inspect.unwrap(ls.cross_check)
    options = [
        name for name, one in inspect.signature(function).parameters.items()
        if one.kind == inspect.Parameter.KEYWORD_ONLY
    ]  # fmt: skip
    assert list(get_type_hints(TrialOptions)) == options


def test_a_role_in_padding_is_refused():
    """Where it stood, nothing would be ablated, and nothing said so."""
    mask = torch.ones(N, LENGTH, dtype=torch.bool)
    mask[1, 8:] = False
    with pytest.raises(ValueError, match=r"roles\['END'\] has position 9 of sequence 1, which is"):
        ls.ablate(native(), some_tokens(), "L0H1@END", roles={"END": [9] * N}, mask=mask)
