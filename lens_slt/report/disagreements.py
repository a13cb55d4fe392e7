"""What on the page speaks against something else on it: summed up, the single lines on demand."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence

import xarray as xr

from lens_slt.circuits.slt_evidence import RELIABLE
from lens_slt.circuits.trial import Trial
from lens_slt.circuits.trial_notes import Disagrees
from lens_slt.report import page
from lens_slt.report.plots_modes import CLEAR
from lens_slt.report.sections_structure import MODES
from lens_slt.report.tables import few_words
from lens_slt.report.tables_modes import NAMES
from lens_slt.sampling.health import HEALTHY
from lens_slt.structure.modes import NOISE
from lens_slt.structure.overview import View

KINDS: dict[Disagrees, str] = {
    "outside": "Outside of a circuit, but its ablation costs the pattern much",
    "not needed": "Not needed by intervention, but what is noted beside speaks for it",
    "needed": "Needed by intervention, but what is noted beside speaks against it",
}


def disagreements_section(
    llc: xr.Dataset | None, views: Mapping[str, View], trials: Sequence[Trial]
) -> str:
    """One line for each kind of disagreement, with all of its lines folded below it."""
    found = _of_trials(trials) + _of_draws(llc, views)
    if not found:
        return page.paragraph("Nothing on this page disagrees with anything else on it.")
    n = sum(len(lines) for _, lines in found)
    words = (
        f"{n} disagreement{'s' * (n > 1)} of {len(found)} kind{'s' * (len(found) > 1)}. None of "
        "them has a vote; look at them before you quote a supported circuit or a mode."
    )
    return page.paragraph(words) + "".join(
        page.paragraph(f"{len(lines)} × {summary}.") + page.fold("One by one", page.bullets(lines))
        for summary, lines in found
    )


def _of_trials(trials: Sequence[Trial]) -> list[tuple[str, list[str]]]:
    """What trials list, by kind: who is named, and every line with its circuit."""
    lines: dict[Disagrees, list[str]] = defaultdict(list)
    parts: dict[Disagrees, Counter[str]] = defaultdict(Counter)
    for trial in trials:
        for one in trial.disagreements:
            lines[one.kind].append(f"{one} ({trial.hypothesis})")
            parts[one.kind][one.part] += 1
    return [(_summary(kind, parts[kind]), lines[kind]) for kind in KINDS if kind in lines]


def _summary(kind: Disagrees, parts: Counter[str]) -> str:
    named = [f"{part} (×{n})" if n > 1 else part for part, n in parts.most_common()]
    return f"{KINDS[kind]}: {few_words(named)}"


def _of_draws(
    llc: xr.Dataset | None, views: Mapping[str, View]
) -> list[tuple[str, list[str]]]:  # fmt: skip
    """Columns and modes that may be noise, modes of one matrix only, components not healthy."""
    found: list[tuple[str, Iterable[str], list[str]]] = []
    if llc is not None:
        pairs = zip(llc["component"].values, llc["verdict"].values, strict=True)
        bad = {str(name): str(word) for name, word in pairs if word != HEALTHY}
        found.append(("Not healthy", bad, [f"{name}: {word}" for name, word in bad.items()]))
    for key, view in views.items():
        reliable = view.matrix["split_half"].values
        weak = [
            f"{name}: {r:.2f}"
            for name, r in zip(view.matrix["component"].values, reliable, strict=True)
            if r < RELIABLE
        ]
        names = [line.partition(":")[0] for line in weak]
        title = f"{NAMES[key]}: split-half reliability below {RELIABLE}"
        found.append((title, names, weak))
        noise = view.modes["mode"].values[view.modes["verdict"].values == NOISE]
        words = [f"mode {int(m)}" for m in noise]
        found.append((f"{NAMES[key]}: {NOISE}", words, [f"{word} {NOISE}" for word in words]))
    made = [(_title(title, names), lines) for title, names, lines in found if lines]
    differing = _modes_that_differ(views) if len(views) > 1 else []
    if differing:
        made.append(
            ("Patterns that the modes of one matrix tell and the other's do not", differing)
        )
    return made


def _title(title: str, names: Iterable[str]) -> str:
    return f"{title}: {few_words(list(names))}"


def _modes_that_differ(views: Mapping[str, View]) -> list[str]:
    """Patterns that a mode of one matrix tells apart clearly and no mode of the other does."""
    clear = {}
    for key, view in views.items():
        strong = (abs(view.by_mode["auc"] - 0.5) > 0.1) & (view.by_mode["q"] < CLEAR)
        strong = strong.isel(mode=slice(0, MODES)).any("mode")
        clear[key] = set(strong["pattern"].values[strong.values])
    lines = []
    for key, found in clear.items():
        for other, there in clear.items():
            only = sorted(str(name) for name in found - there)
            if key != other and only:
                lines.append(
                    f"{NAMES[key]} has modes that tell {', '.join(only)} from other tokens (AUC "
                    f"beyond 0.4 to 0.6), {NAMES[other]} has none among its first {MODES}"
                )
    return lines
