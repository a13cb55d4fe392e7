"""Results as tables for a terminal of 80 columns."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np
import xarray as xr
from rich.table import Table
from rich.text import Text

from lens_slt.calibration import BELOW_PRIOR, ERRORS, Calibration
from lens_slt.report.plain_table import PlainTable, cell
from lens_slt.sampling.certificate import allowed_bias
from lens_slt.sampling.health import HEALTHY
from lens_slt.sampling.result import settings_of
from lens_slt.sampling.settings import Settings
from lens_slt.schema import require


def rllc_table(llc: xr.Dataset, words: Sequence[str] = ()) -> Table:
    """One row per component: λ̂ ± standard error, R̂, effective draws, chains used, steps per draw,
    the bias that the defect allows in per cent of λ̂, verdict.

    ``llc`` is from :func:`lens_slt.refined_llc`; ``words``, such as :func:`notes`, come below.
    """
    llc = require(llc, "refined_llc", argument="llc")
    settings = settings_of(llc)
    table = PlainTable("Refined LLC", "\n".join([run_words(settings), *words]))
    table.add_column("component", no_wrap=True)
    for name in ("λ̂ ± SE", "SE %", "R̂", "ESS", "chains", "ε₀/ε", "bias ≤ %"):
        table.add_column(name, justify="right", no_wrap=True)
    table.add_column("verdict")
    for i, name in enumerate(llc["component"].values):
        row = llc.isel(component=i)
        value, error = float(row["llc"]), float(row["se"])
        table.add_row(
            str(name), with_error(value, error), _share(value, error), _number(row["rhat"], 2),
            _number(row["ess"], 0), f"{int(row['chains_used'])}/{settings.chains}",
            str(int(row["steps_per_draw"])), _allowed(row),
            verdict_text(str(row["verdict"].values)),
        )  # fmt: skip
    return table


def probe_table(llc: xr.Dataset) -> Table:
    """One row per component: λ̂ on the sampling tokens and on every probe, ± standard error."""
    llc = require(llc, "refined_llc", argument="llc")
    if "probe" not in llc.dims:
        raise ValueError("llc has no probes; give probes= to lens_slt.sample")
    table = PlainTable("Refined LLC by probe", "± one standard error")
    table.add_column("component", no_wrap=True)
    table.add_column("sampling", justify="right")
    for probe in llc["probe"].values:
        table.add_column(str(probe).replace("_", " "), justify="right")
    for i, name in enumerate(llc["component"].values):
        row = llc.isel(component=i)
        cells = [with_error(float(row["llc"]), float(row["se"]))]
        for value, error in zip(row["probe_llc"].values, row["probe_se"].values, strict=True):
            cells.append(with_error(float(value), float(error)))
        table.add_row(str(name), *cells)
    return table


def health_summary(llc: xr.Dataset) -> str:
    """Health of all components in words: one sentence, and one line per component that has none."""
    llc = require(llc, "refined_llc", argument="llc")
    names, verdicts = llc["component"].values, llc["verdict"].values
    bad = [(n, v, int(c)) for n, v, c in zip(names, verdicts, llc["chains_used"], strict=True)
           if v != HEALTHY]  # fmt: skip
    worst = _worst(llc)
    if not bad:
        every = "the one component is" if len(names) == 1 else f"all {len(names)} components are"
        return f"{every} healthy and certified; {worst}"
    lines = [f"{len(names) - len(bad)} of {len(names)} components are healthy; {worst}"]
    for name, verdict, used in bad:
        lines.append(f"{name}: {verdict}" + ("" if used else " (no chain can be used)"))
    return "\n".join(lines)


def _worst(llc: xr.Dataset) -> str:
    """The largest R̂ and what the prior alone does to the loss."""
    rhat, prior = llc["rhat"].values, llc["prior_loss"].values
    words = f"largest R̂ {np.nanmax(rhat):.2f}" if np.isfinite(rhat).any() else "R̂ not defined"
    if not np.isfinite(prior).any():
        return words
    low, high = f"{np.nanmin(prior):.2g}", f"{np.nanmax(prior):.2g}"
    span = low if low == high else f"{low} to {high}"
    words = f"{words}; the prior alone raises the loss by {span} nats"
    same = _told_by_the_prior(llc)
    if same:
        words += (
            f", draws of {few_words(same)} hardly less, where λ̂ is little more than a mean "
            "curvature: raise nβ or lower γ to learn more"
        )
    return words


def _told_by_the_prior(llc: xr.Dataset) -> list[str]:
    """Components whose loss is not clearly below the prior's, as ``calibrate`` judges it."""
    n_beta, prior = settings_of(llc).n_beta, llc["prior_loss"].values
    if n_beta == 0:  # the control is the prior
        return []
    lowered = prior - llc["mean_paired_loss"].values
    error = np.hypot(llc["prior_loss_se"].values, llc["se"].values / n_beta)
    same = lowered <= np.maximum(ERRORS * error, BELOW_PRIOR * prior)
    return [str(name) for name in llc["component"].values[same]]


def notes(draws: xr.DataTree) -> list[str]:
    """What has to be known about the components of a run: shared or tied weights, processing."""
    found: dict[str, list[str]] = {}
    root = draws.to_dataset()
    names = [str(name) for name in root["component"].values]
    if "note" in root:
        for name, note in zip(names, root["note"].values, strict=True):
            if note:
                found.setdefault(str(note), []).append(name)
    lines = [f"{', '.join(members)}: {note}" for note, members in found.items()]
    if "shares_key_value_with" in root:
        groups = {
            tuple(sorted([name, *str(others).split()]))
            for name, others in zip(names, root["shares_key_value_with"].values, strict=True)
            if others
        }
        lines += [f"{', '.join(group)} share key and value weights" for group in sorted(groups)]
    if draws.attrs.get("weight_processing"):
        lines.append(f"the model's weights were processed: {draws.attrs['weight_processing']}")
    return lines


def calibration_table(calibration: Calibration) -> Table:
    """One row per setting with everything the rule used; ● marks the chosen one."""
    evidence, chosen = calibration.evidence, calibration.settings
    legend = (
        "λ̂: median over components; vs prior: median change of the mean paired loss from the "
        "control at nβ = 0; slope: mean |Δ log λ̂ / Δ log knob|; ●: chosen"
    )
    table = PlainTable("Calibration", f"{legend}\n{calibration.reason}")
    table.add_column("", no_wrap=True)
    for name in ("nβ", "γ", "λ̂", "healthy", "R̂", "λ̂/SE", "vs prior", "slope"):
        table.add_column(name, justify="right")
    table.add_column("verdict")
    n = evidence.sizes["component"]
    for gamma in evidence["gamma"].values:
        for n_beta in evidence["n_beta"].values:
            row = evidence.sel(n_beta=n_beta, gamma=gamma)
            marked = chosen is not None and (n_beta, gamma) == (chosen.n_beta, chosen.gamma)
            table.add_row(
                "●" if marked else "", f"{n_beta:g}", f"{gamma:g}",
                _number(row["llc"].median(), 2), f"{int(row['healthy'])}/{n}",
                _number(row["largest_rhat"], 2), _number(row["signal_to_noise"], 0),
                f"{-100 * float(row['below_prior']):+.0f} %", _number(row["sensitivity"], 2),
                str(row["why"].values),
            )  # fmt: skip
        table.add_section()
    return table


def with_error(value: float, error: float) -> str:
    """``13.25 ± 0.12``: two significant digits of the error."""
    if not np.isfinite(value):
        return "–"
    if not np.isfinite(error) or error <= 0:
        return f"{value:.3g}"
    decimals = max(0, 1 - int(np.floor(np.log10(error))))
    return f"{value:.{decimals}f} ± {error:.{decimals}f}"


def verdict_text(verdict: str) -> Text:
    """A verdict with a sign that does not depend on colour."""
    return cell(verdict) if verdict == HEALTHY else cell(f"! {verdict}", "bold")


def run_words(s: Settings) -> str:
    """The settings of a run in one line."""
    size = f"ε₀ {s.epsilon:.3g}, smaller where needed" if s.chooses_step else f"ε {s.epsilon:.3g}"
    draws = f"{s.least_draws}" if s.least_draws == s.most_draws else f"at least {s.least_draws}"
    return (
        f"nβ {s.n_beta:g}, γ {s.gamma:g}, {s.sampler} with {size}, {s.chains} chains × {draws} "
        f"draws after {s.burn_in_steps} of burn-in, batch {s.batch_size or 'of all'}"
    )


def _allowed(row: xr.Dataset) -> str:
    """The bias that the defect allows, two standard errors included."""
    most = allowed_bias(float(row["defect_share"]), float(row["defect_share_se"]))
    return f"{100 * most:.0f}" if np.isfinite(most) else "–"


def _share(value: float, error: float) -> str:
    known = value != 0 and np.isfinite([value, error]).all()  # at nβ = 0 both are 0
    return f"{100 * error / abs(value):.1f}" if known else "–"


def _number(value: Iterable[float] | xr.DataArray | float, decimals: int) -> str:
    number = float(value)  # type: ignore[arg-type]
    return f"{number:.{decimals}f}" if np.isfinite(number) else "–"


def few_words(names: Sequence[str]) -> str:
    """Names with commas; of more than 40 the first, and how many there are."""
    return ", ".join(names) if len(names) <= 40 else f"{', '.join(names[:40])} … ({len(names)})"
