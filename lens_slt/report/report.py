"""The report of a run, or of a sweep over checkpoints: one HTML file that opens offline."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import xarray as xr

from lens_slt.arguments import instance, location, typed
from lens_slt.arrays import read_zarr
from lens_slt.circuits.trial import Trial
from lens_slt.circuits.trial_file import read_trials
from lens_slt.development.develop import DESCRIPTION, open_development
from lens_slt.development.overview import DevelopmentView, read_development
from lens_slt.json_files import read_json
from lens_slt.report.files import ABOUT, BEHAVIOUR, BUILT, DRAWS, REPORT, SWEEP, TRIALS
from lens_slt.report.run_results import ATTENTION, RunResults
from lens_slt.report.sections_development import development_page
from lens_slt.report.sections_results import SHOWN, is_shown
from lens_slt.report.sections_run import run_page
from lens_slt.report.show import OVER_CHECKPOINTS
from lens_slt.sampling.result import open_draws
from lens_slt.schema import require
from lens_slt.structure.overview import View, open_views

OWN = (DRAWS, BEHAVIOUR, BUILT, "llc.zarr", "chi.zarr")  # that are read as what they are


@typed
def write_report(
    result: str | Path | xr.DataTree | DevelopmentView | None,
    file: str | Path | None = None,
    *,
    views: Mapping[str, View] | None = None,
    trials: Sequence[Trial] = (),
    behaviour: xr.Dataset | None = None,
    results: Sequence[xr.Dataset] = (),
    about: Mapping[str, Any] | None = None,
) -> Path:
    """Write the report of a run, or of a sweep over checkpoints; returns its path.

    Args:
        result: the folder that a command of ``lens-slt`` wrote, or the ``path`` of
            :func:`lens_slt.sample` or :func:`lens_slt.develop`: what else lies in the folder
            (matrices, trials, behaviour scores, construction, attention patterns, matches,
            patterning, phases) becomes part of the report. Or results at hand: draws, what
            ``develop`` returned, what :func:`lens_slt.read_development` read off that, or None for
            trials, behaviour scores and other results alone.
        file: the HTML file; ``report.html`` in the folder by default. Results at hand need one.
        views: of draws at hand, from :func:`lens_slt.structure.overview.read_structure`.
        trials: of draws at hand or without any, from :func:`lens_slt.cross_check`.
        behaviour: likewise, from :func:`lens_slt.behaviour_scores`.
        results: likewise, of other functions: attention patterns, which stand on the pages of
            heads; matches, patterning, crossings of phases, spectra.
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
    given = RunResults(None, views or {}, trials, behaviour, _known(results))
    if isinstance(result, str | Path):
        folder = location("result", result)
        if not given.is_empty:
            raise ValueError(
                "views, trials, behaviour and results are for results at hand; those in the folder "
                "are read"
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
                "views, trials, behaviour and results are of one model; the report of a sweep "
                "takes none: "
                "read_development(…, construction=…) takes circuits"
            )
        return result
    if result is None and given.is_empty:
        raise ValueError("a report needs draws, a sweep, trials, behaviour or results; got none")
    if given.behaviour is not None:
        require(given.behaviour, "behaviour_scores", argument="behaviour")
    return replace(given, draws=result)


def _read(folder: Path) -> RunResults | DevelopmentView:
    """All results in a folder."""
    path, sweep, trials = draws_in(folder), sweep_in(folder), folder / TRIALS
    others = [read_zarr(one) for one in sorted(folder.glob("*.zarr")) if one.name not in OWN]
    others = [one for one in others if is_shown(one) or one.attrs.get("result") == ATTENTION]
    view = None
    if sweep is not None:
        view = read_development(open_development(sweep), construction=_built(folder))
        if path is None and not (trials.exists() or others):
            return view
    if path is None and not (trials.exists() or others):
        raise ValueError(
            f"result: {str(folder)!r} holds neither {DRAWS} nor {TRIALS}, no sweep and no other "
            "result"
        )
    behaviour = None
    if (folder / BEHAVIOUR).exists():
        stored = read_zarr(folder / BEHAVIOUR)
        behaviour = require(stored, "behaviour_scores", argument=BEHAVIOUR)
    return RunResults(
        None if path is None else open_draws(path), open_views(folder),
        read_trials(trials) if trials.exists() else (), behaviour,
        _known([one.load() for one in others]), view,
    )  # fmt: skip


def draws_in(folder: Path) -> Path | None:
    """Where draws lie: right here, or as commands name them."""
    places = folder, folder / DRAWS
    return next((one for one in places if (one / "zarr.json").exists()), None)


def sweep_in(folder: Path) -> Path | None:
    """Where a sweep over checkpoints lies: right here, or as ``lens-slt develop`` names it."""
    places = folder, folder / SWEEP
    return next((one for one in places if (one / DESCRIPTION).exists()), None)


def _known(results: Sequence[xr.Dataset]) -> Sequence[xr.Dataset]:
    """Results that a report has a place for, held to their schemas."""
    for one in results:
        if not is_shown(one) and one.attrs.get("result") != ATTENTION:
            what = one.attrs.get("result", "such a dataset")
            raise ValueError(
                f"results: a report has no section for {what}; it has for "
                f"{', '.join([ATTENTION, *SHOWN])}"
            )
        kind = one.attrs["result"]
        over = ("checkpoint",) if kind in OVER_CHECKPOINTS else ()
        require(one, kind, argument="results", leading=over)
    return results


def _built(folder: Path) -> xr.Dataset | None:
    """The construction of circuits, where ``lens-slt develop`` kept it."""
    if not (folder / BUILT).exists():
        return None
    return require(read_zarr(folder / BUILT).load(), "construction", argument=BUILT)
