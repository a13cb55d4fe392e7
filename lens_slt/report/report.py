"""The report of a run, or of a sweep over checkpoints: one HTML file that opens offline."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import xarray as xr

from lens_slt.arguments import instance, location, typed
from lens_slt.arrays import read_zarr
from lens_slt.circuits.trial import Trial, read_trials
from lens_slt.development.develop import DESCRIPTION, open_development
from lens_slt.development.overview import DevelopmentView, read_development
from lens_slt.json_files import read_json
from lens_slt.report.files import ABOUT, BEHAVIOUR, BUILT, DRAWS, REPORT, SWEEP, TRIALS
from lens_slt.report.sections_development import development_page
from lens_slt.report.sections_run import RunResults, run_page
from lens_slt.sampling.result import open_draws
from lens_slt.schema import require
from lens_slt.structure.overview import View, open_views


@typed
def write_report(
    result: str | Path | xr.DataTree | DevelopmentView | None,
    file: str | Path | None = None,
    *,
    views: Mapping[str, View] | None = None,
    trials: Sequence[Trial] = (),
    behaviour: xr.Dataset | None = None,
    about: Mapping[str, Any] | None = None,
) -> Path:
    """Write the report of a run, or of a sweep over checkpoints; returns its path.

    Args:
        result: the folder that a command of ``lens-slt`` wrote, or the ``path`` of
            :func:`lens_slt.sample` or :func:`lens_slt.develop`: what else lies in the folder
            (matrices, trials, behaviour scores, construction) becomes part of the report. Or
            results at hand: draws, what ``develop`` returned, what
            :func:`lens_slt.read_development` read off that, or None for trials alone.
        file: the HTML file; ``report.html`` in the folder by default. Results at hand need one.
        views: of draws at hand, from :func:`lens_slt.structure.overview.read_structure`.
        trials: of draws at hand or without any, from :func:`lens_slt.cross_check`.
        behaviour: likewise, from :func:`lens_slt.behaviour_scores`.
        about: plain values about the run, shown first: ``title``, ``command``, ``data``, …; those
            that lie in the folder by default.

    Raises:
        TypeError: results of another kind.
        ValueError: nothing there to report, a run that has not finished, results of another
            version, no ``file``, or results that do not belong into one report.

    Example:
        >>> import lens_slt as ls
        >>> model, tokens = ls.load_model("attn-2l"), ls.load_tokens("mix", n_sequences=8)
        >>> few = ls.Settings(draws=12, burn_in=4)
        >>> draws = ls.sample(model, tokens, "L1H2", settings=few, progress=False)
        >>> ls.write_report(draws, "report.html").name
        'report.html'
    """
    instance("views", views or {}, Mapping[str, View])
    given = RunResults(None, views or {}, trials, behaviour)
    if isinstance(result, str | Path):
        folder = location("result", result)
        if not given.is_empty:
            raise ValueError(
                "views, trials and behaviour are for results at hand; those in the folder are read"
            )
        found = _read(folder)
        stored = folder / ABOUT
        if about is None and stored.exists():
            about = read_json(stored)
        file = folder / REPORT if file is None else file
    else:
        found = _at_hand(result, given)
    if file is None:
        raise ValueError("file is missing: where the report of results at hand goes")
    place = location("file", file)
    words = dict(about or {})
    text = (
        development_page(found, words)
        if isinstance(found, DevelopmentView)
        else run_page(found, words)
    )
    place.parent.mkdir(parents=True, exist_ok=True)
    place.write_text(text, "utf-8")
    return place


def _at_hand(
    result: xr.DataTree | DevelopmentView | None, given: RunResults
) -> RunResults | DevelopmentView:
    """What a report is of, from results and what was given beside them."""
    if isinstance(result, xr.DataTree):
        tree = require(result, "draws", "development", argument="result", leading=("checkpoint",))
        result = read_development(tree) if tree.attrs["result"] == "development" else tree
    if isinstance(result, DevelopmentView):
        if not given.is_empty:
            raise ValueError(
                "views, trials and behaviour are of one model; the report of a sweep takes none: "
                "read_development(…, construction=…) takes circuits"
            )
        return result
    if result is None and not given.trials:
        raise ValueError("a report needs draws, a sweep or trials; got none")
    if given.behaviour is not None:
        require(given.behaviour, "behaviour_scores", argument="behaviour")
    return RunResults(result, given.views, given.trials, given.behaviour)


def _read(folder: Path) -> RunResults | DevelopmentView:
    """All results in a folder."""
    for sweep in (folder, folder / SWEEP):
        if (sweep / DESCRIPTION).exists():
            return read_development(open_development(sweep), construction=_built(folder))
    path = folder / DRAWS if (folder / DRAWS).exists() else folder
    trials = folder / TRIALS
    is_draws = (path / "zarr.json").exists()
    if not is_draws and not trials.exists():
        raise ValueError(
            f"result: {str(folder)!r} holds neither {DRAWS} nor {TRIALS}, and no sweep"
        )
    behaviour = None
    if (folder / BEHAVIOUR).exists():
        stored = read_zarr(folder / BEHAVIOUR)
        behaviour = require(stored, "behaviour_scores", argument=BEHAVIOUR)
    return RunResults(
        open_draws(path) if is_draws else None, open_views(folder),
        read_trials(trials) if trials.exists() else (), behaviour,
    )  # fmt: skip


def _built(folder: Path) -> xr.Dataset | None:
    """The construction of circuits, where ``lens-slt develop`` kept it."""
    if not (folder / BUILT).exists():
        return None
    return require(read_zarr(folder / BUILT).load(), "construction", argument=BUILT)
