"""One small run with everything that a report shows."""

from __future__ import annotations

import pytest
import xarray as xr

import lens_slt as ls
from lens_slt.arrays import write_zarr
from lens_slt.circuits.evidence import Evidence
from lens_slt.circuits.trial import Trial
from lens_slt.circuits.trial_notes import Disagreement
from lens_slt.report.files import ATTENDED, write_about
from lens_slt.report.files_circuits import write_trials
from lens_slt.structure.overview import open_views, read_structure
from tests.report.browsing import BROWSER, DRAWN

SETTINGS = {
    "how": "mean", "least_effect": 0.05, "n_null": 60, "sequences": 8, "length": 24,
    "model": "attn-1l", "weights": "0123456789abcdef", "metric": "loss", "units": "nats",
}  # fmt: skip


@pytest.fixture(scope="session")
def tokens():
    return ls.load_tokens("code", n_sequences=8, length=24)


@pytest.fixture(scope="session")
def run(tokens, tmp_path_factory, trial, behaviour):
    """The folder of a run, with draws, views, trials and behaviour scores."""
    folder = tmp_path_factory.mktemp("run")
    draws = ls.sample(
        ls.load_model("attn-1l"), tokens, ["heads", "full"], path=folder / "draws.zarr",
        settings=ls.Settings(draws=20, burn_in=5, batch_size=4), progress=False,
        probes={"code": tokens, "prose": ls.load_tokens("prose", n_sequences=4, length=24)},
    )  # fmt: skip
    read_structure(draws, "code", tokens, folder=folder)
    write_trials(folder, [trial], behaviour)
    write_zarr(ls.attention_patterns(ls.load_model("attn-1l"), tokens[:1]), folder / ATTENDED)
    write_about(folder, {"title": "A <small> run", "data": "code"})
    return folder


@pytest.fixture(scope="session")
def draws(run):
    return ls.open_draws(run / "draws.zarr")


@pytest.fixture(scope="session")
def views(run):
    return open_views(run)


@pytest.fixture(scope="session")
def trial():
    hypothesis = ls.circuit("L0H2 -> L1H2.K -> logits; L0H2 -> L1H2.Q", "induction", name="mine")
    evidence = (
        Evidence("necessity", "circuit", 1.5, 1.2, 1.8, p=1e-4, corrected_p=4e-4, null="8 others",
                 null_low=-0.2, null_high=0.3, null_share=0.0, outcome="held", votes=True),
        Evidence("minimality", "L0H2", 1.4, 1.1, 1.6, p=1e-4, outcome="held", votes=True),
        Evidence("minimality", "L1H2", 0.9, 0.7, 1.6, p=1e-4, outcome="held", votes=True),
        Evidence("edge", "L0H2→L1H2.K", 1.1, 0.8, 1.4, p=1e-4, outcome="held", votes=True),
        Evidence("edge", "L0H2→L1H2.Q", 0.01, -0.1, 0.04, p=0.4, outcome="failed", votes=True),
        Evidence("faithfulness", "circuit", 0.2, 0.1, 0.3, unit="share", words="alone"),
    )  # fmt: skip
    curve = xr.Dataset(
        {
            "faithfulness": ("size", [0, 0.5, 1]), "low": ("size", [0, 0.4, 1]),
            "high": ("size", [0, 0.6, 1]), "random": (("random_ranking", "size"), [[0, 0.1, 1.0]]),
            "cpr": 0.5, "cmd": 0.5, "cpr_p": 0.5, "cmd_p": 0.5,
        },
        coords={"size": [0, 1, 2]},
    )  # fmt: skip
    other = Disagreement("outside", "L0H6", 2.0, "L0H6 matters")
    return Trial(
        hypothesis, "contradicted", ("edge of L0H2→L1H2.Q fails",), (other,), evidence, curve,
        SETTINGS,
    )  # fmt: skip


@pytest.fixture(scope="session")
def behaviour():
    return ls.behaviour_scores(ls.load_model("attn-2l"), n_random=4)


@pytest.fixture(scope="module")
def browser():
    sync_api = pytest.importorskip("playwright.sync_api")
    with sync_api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=BROWSER, args=["--no-sandbox"])
        yield browser
        browser.close()


@pytest.fixture
def open_page(browser, run):
    """Opens the report; afterwards, nothing was complained about and nothing fetched."""
    pages, complaints, fetched = [], [], []

    def open_at(width=900, theme="light", file=None, height=800, place=""):
        address = (file or ls.write_report(run)).resolve().as_uri()
        page = browser.new_page(viewport={"width": width, "height": height})
        page.on("console", lambda message: complaints.append(message.text))
        page.on("pageerror", lambda error: complaints.append(str(error)))
        page.on("request", lambda request: fetched.append(request.url))
        page.set_default_timeout(120_000)  # a busy machine takes its time
        page.goto(f"{address}?theme={theme}#{place}")
        page.wait_for_selector(f"#{place} {DRAWN}" if place else DRAWN)
        pages.append(page)
        return page

    yield open_at
    for page in pages:
        page.close()
    assert [text for text in complaints if "GL Driver Message" not in text] == []
    assert {url.partition(":")[0] for url in fetched} <= {"file", "data", "blob"}
