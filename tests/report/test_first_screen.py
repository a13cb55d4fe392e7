"""The first screen says what was measured, whether to believe it, what was found."""

from __future__ import annotations

import html
import re
from dataclasses import replace

import pytest

import lens_slt as ls
from lens_slt.circuits.evidence import Evidence
from lens_slt.circuits.trial import Trial
from lens_slt.observables.refined_llc import refined_llc
from lens_slt.report.drawing import circuit_drawing
from lens_slt.report.first_screen import believed, counted, deciding, run_screen
from lens_slt.report.run_results import RunResults
from tests.made_draws import made_draws
from tests.report.test_results_said import CROSSED, MATCHED

CIRCUIT = "the circuit L0H2→L1H2.K; L1H2→logits; L0H2→L1H2.Q"


@pytest.fixture(scope="module")
def supported(trial) -> Trial:
    votes = tuple(
        replace(one, outcome="held", least=0.05) for one in trial.evidence if one.votes
    )  # fmt: skip
    return replace(trial, verdict="supported", evidence=votes)


def words(markup: str) -> str:
    return html.unescape(re.sub(r"<[^>]+>", " ", markup))


def sentences(found: RunResults, bad=None) -> list[str]:
    draws = found.draws
    llc = None if draws is None else refined_llc(draws)
    return re.findall(r"<p>(.*?)</p>", run_screen(found, llc, {"data": "code"}))


def test_three_sentences(supported):
    first, second, third = sentences(RunResults(made_draws(), trials=[supported]))
    assert "3 heads and 1 MLP of made, by 4 chains of 100" in first and "on code" in first
    assert second.startswith("Believe it: all 4 numbers are certified and healthy")
    assert third.startswith("Found: L1H0 (λ̂ 11.98")  # about 30 · 0.4; the MLP is no head
    assert third.index("L1H0") < third.index("L0H0") < third.index("L0H1")
    assert third.endswith("L1H2.Q held on trial for induction.")


def test_what_cannot_be_believed_is_named():
    some = believed(refined_llc(made_draws(bad={"L0H1": 4})))
    assert some.startswith("Believe 3 of 4 numbers") and "L0H1 (diverged)" in some
    every = dict.fromkeys(("L0H0", "L0H1", "L1H0", "L1MLP"), 4)
    none = believed(refined_llc(made_draws(bad=every)))
    assert none.startswith("Do not believe the values: none of 4 is healthy")
    *_, third = sentences(RunResults(made_draws(bad=every)))
    assert "which heads matter" not in third or "cannot be said" in third


def test_a_head_that_is_not_certified_is_not_called_one_that_matters():
    third = sentences(RunResults(made_draws(bad={"L1H0": 1})))[2]
    assert "L0H0" in third and "L1H0" not in third
    assert "held the tightest of the 2 to believe of 3 heads" in third  # L1H0 is held tighter


@pytest.mark.parametrize(
    ("verdicts", "others", "said"),
    [
        (["contradicted"], [], "no circuit held on trial (1 contradicted)"),
        (["undecided"], [], "no circuit held on trial (1 undecided)"),
        (
            ["contradicted", "undecided", "contradicted"], [MATCHED],
            "no circuit held on trial (2 contradicted and 1 undecided), and 2 of 3 components have "
            "a partner in the other model",
        ),
        (
            ["contradicted", "supported"], [CROSSED],
            f"{CIRCUIT} held on trial for induction, and the phases square and pentagon cross at "
            "n = 370 (330–420)",
        ),
        (
            ["supported", "supported", "contradicted"], [],
            f"{CIRCUIT} held on trial for induction, as did 1 more of 3",
        ),
        ([], [], "see the sections"),
    ],
)  # fmt: skip
def test_the_whole_of_what_was_found(trial, verdicts, others, said):
    trials = [replace(trial, verdict=verdict) for verdict in verdicts]
    assert sentences(RunResults(trials=trials, others=others))[2] == f"Found: {said}."


def test_the_whole_of_what_was_measured(trial):
    first, second, _ = sentences(RunResults(trials=[trial]))
    assert first == (
        "Measured: what ablations cost, for 1 circuit of attn-1l on trial with mean ablation on 8 "
        "sequences of 24 tokens."
    )
    assert second.startswith("There is no refined LLC here to certify: a verdict rests on its tes")
    draws = sentences(RunResults(made_draws(), others=[MATCHED]))
    assert re.fullmatch(
        r"Found: L1H0 \(λ̂ \S+ ± \S+\), L0H0 \(λ̂ \S+ ± \S+\) and L0H1 \(λ̂ \S+ ± \S+\) are held "
        r"the tightest of 3 heads, and 2 of 3 components have a partner in the other model\.",
        draws[2],
    )


def test_the_number_that_decides(trial, supported):
    assert deciding(trial).part == "L0H2→L1H2.Q"  # the one that failed
    assert deciding(supported).test == "necessity"
    text = words(run_screen(RunResults(trials=[trial]), None, {}))
    assert "Contradicted : L0H2→L1H2.K" in text
    assert "0.01 nats (-0.10 to 0.04 nats) is what ablating the path L0H2→L1H2.Q" in " ".join(
        text.split()
    )
    assert "no circuit held on trial (1 contradicted)" in text
    text = " ".join(words(run_screen(RunResults(trials=[trial, supported]), None, {})).split())
    assert "1.50 nats (1.20 to 1.80 nats) is what ablating the circuit costs induction" in text
    assert "at least 0.05 nats was needed" in text


def test_shares_are_said_in_per_cent(supported):
    one = Evidence("sufficiency", "circuit", 0.61, 0.5, 0.7, unit="share", least=0.1,
                   outcome="undecided", votes=True)  # fmt: skip
    made = replace(supported, verdict="undecided", evidence=(one,))
    text = " ".join(words(run_screen(RunResults(trials=[made]), None, {})).split())
    assert "61 % (50 to 70 %) of the induction tokens' loss comes back" in text
    assert "at least 10 % is needed" in text


def test_a_hypothesis_of_components_speaks_of_components(supported):
    one = Evidence("sufficiency", "circuit", -0.12, -0.14, -0.1, unit="share", least=0.1,
                   outcome="failed", votes=True)  # fmt: skip
    for text, others in (
        ("L1H2", "components"), ("L1H2 -> logits", "components"), ("L0H2 -> L1H2.K", "paths"),
    ):  # fmt: skip
        made = replace(supported, verdict="contradicted", evidence=(one,),
                       hypothesis=ls.circuit(text, "induction"))  # fmt: skip
        seen = words(run_screen(RunResults(trials=[made]), None, {}))
        assert f"with all other {others} ablated" in " ".join(seen.split())


def test_components_that_no_edge_joins_are_named(supported):
    made = replace(supported, hypothesis=ls.circuit("L0H1 -> L1H10.K; L1H1", "induction"))
    assert "L0H1→L1H10.K; L1H1, for induction" in run_screen(RunResults(trials=[made]), None, {})


def test_the_control_is_called_one(tmp_path):
    model, tokens = ls.load_model("attn-1l"), ls.load_tokens("mix", n_sequences=4, length=16)
    settings = ls.Settings(n_beta=0, draws=12, chains=2)
    draws = ls.sample(model, tokens, ["L0H0", "L0H1"], settings=settings, progress=False)
    text = ls.write_report(draws, tmp_path / "control.html").read_text("utf-8")
    first = text[text.index('<div class="verdict">') : text.index("</header>")]
    assert "This is the control, nβ = 0" in first
    assert '<section id="ranking"' not in text
    assert "Believe it" not in first and "held the tightest" not in first


def test_a_trial_without_numbers(supported):
    made = replace(supported, verdict="undecided", evidence=())
    assert "No number" in run_screen(RunResults(trials=[made]), None, {})


@pytest.mark.parametrize(
    ("names", "said"),
    [
        (["L0H0"], "1 head"),
        (["L0H0", "L0H1", "full"], "2 heads and the whole model"),
        (["L0H0", "L0MLP", "L1MLP", "L0", "full"],
         "1 head, 2 MLPs, 1 other component and the whole model"),
    ],
)  # fmt: skip
def test_components_are_counted(names, said):
    assert counted(names) == said


def test_the_drawing_has_every_part_and_what_became_of_it(trial, behaviour):
    drawn = circuit_drawing(trial, behaviour)
    assert drawn.count("<circle") == 2 and drawn.count("<rect") == 1  # heads, the logits
    assert drawn.count('class="edge held"') == 1 and drawn.count('class="edge failed"') == 1
    assert 'stroke-dasharray="7 4"' in drawn
    assert ">previous token</text>" in drawn
    mixed = ls.circuit("embed -> L0H2.Q; L0H2 -> L0MLP -> L1H2.K", "induction")
    drawn = circuit_drawing(mixed)
    places = [float(x) for x in re.findall(r'class="name" x="([\d.]+)"', drawn)]
    assert len(set(places)) == 4 and "failed" not in drawn
