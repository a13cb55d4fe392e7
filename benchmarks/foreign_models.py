"""Are refined LLCs right, and certificates to be trusted, on models made elsewhere?

The zoo of :mod:`benchmarks.zoo`: transformers of many shapes, untrained, half and fully trained, of
algorithmic tasks and text, with weights rescaled over two orders of magnitude, and functions of a
flat vector. Each is sampled with the default settings, and every component compared with its exact
value. Of the components whose exact value converged:

- *silent_wrong*: certified, yet off by more than 10 %, by more than 0.1 and by more than 4 combined
  standard errors;
- *certified_share*; what is quoted as biased is not certified;
- *false_alarm_rate*: share not certified of those that are right: within 3 % of the exact value,
  or within twice its own standard error, or within 0.02, whichever is largest;
- *median_relative_se*: of λ̂, where the exact value is at least 0.1 from zero;
- *coverage_95*: share of the certified whose exact value lies within 1.96 combined standard errors.

Components without a converged exact value are counted apart, as are models on which a call raised.
Results are kept in the cache folder under ``--tag``: name a version of the code by it.
"""

from __future__ import annotations

import json
import time
import warnings
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import xarray as xr

import lens_slt as ls
from benchmarks import common
from benchmarks.common import Target
from benchmarks.zoo import Case, Effort, FunctionCase, Truth, ZooEntry, truths, zoo
from benchmarks.zoo.truth import truth_key

TARGETS = {
    "silent_wrong": Target(most=0),
    "certified_share": Target(least=0.9),
    "false_alarm_rate": Target(most=0.05),
    "median_relative_se": Target(most=0.05),
    "coverage_95": Target(least=0.88),
}
WRONG_SHARE, WRONG, WRONG_Z = 0.1, 0.1, 4.0
RIGHT_SHARE, RIGHT = 0.03, 0.02
CERTIFIED = "certified"
DEFAULT = ls.Settings()
COLUMNS = ("component", "truth", "λ̂", "z", "certificate", "verdict")


@dataclass(frozen=True)
class Result:
    """One component: the exact value, and what the package says of it."""

    component: str
    truth: float
    truth_se: float
    converged: bool
    llc: float
    se: float
    certificate: str
    verdict: str

    @property
    def error(self) -> float:
        return abs(self.llc - self.truth)

    @property
    def z(self) -> float:
        both = float(np.hypot(self.se, self.truth_se))
        return (self.llc - self.truth) / both if both > 0 else float("nan")

    @property
    def certified(self) -> bool:
        return self.certificate == CERTIFIED

    @property
    def silent_wrong(self) -> bool:
        """Certified and clearly wrong; a certified NaN is wrong too."""
        least = max(WRONG_SHARE * abs(self.truth), WRONG)
        near = self.error <= least or abs(self.z) <= WRONG_Z
        return self.certified and not near

    @property
    def right(self) -> bool:
        return self.error <= max(RIGHT_SHARE * abs(self.truth), 2 * self.truth_se, RIGHT)


@dataclass(frozen=True)
class Record:
    """One member of the zoo; ``error`` is what the package raised, empty if nothing."""

    name: str
    results: tuple[Result, ...]
    cpu_seconds: float
    error: str = ""


def sampled(case: Case, settings: ls.Settings) -> xr.Dataset:
    """Refined LLCs."""
    if isinstance(case, FunctionCase):
        return ls.refined_llc(
            ls.sample_function(case.loss, case.point, data=case.data, settings=settings)
        )
    weighted = {} if case.weights is None else {"weights": case.weights}
    return ls.refined_llc(
        ls.sample(
            case.model,
            case.tokens,
            list(case.components),
            settings=settings,
            progress=False,
            **weighted,
        )
    )


def judge(name: str, case: Case, exact: list[Truth], settings: ls.Settings = DEFAULT) -> Record:
    """Sample a member of the zoo and put the results beside the exact values."""
    began = time.process_time()
    try:
        refined = sampled(case, settings)
    except Exception as raised:  # a stranger's model must not stop the others
        return Record(name, (), time.process_time() - began, f"{type(raised).__name__}: {raised}")
    spent = time.process_time() - began
    results = []
    for truth in exact:
        one = refined.sel(component=truth.component)
        verdict, certificate = str(one["verdict"].item()), str(one["certificate"].item())
        results.append(
            Result(
                truth.component, truth.llc, truth.se, truth.converged,
                float(one["llc"]), float(one["se"]), certificate, verdict,
            )
        )  # fmt: skip
    return Record(name, tuple(results), spent)


def kept(
    entry: ZooEntry,
    cache: Path | None,
    tag: str,
    effort: Effort,
    settings: ls.Settings = DEFAULT,
) -> Record:
    """The record of an entry, from the cache folder where this tag has it."""
    case = entry.build(cache)
    first = "function" if isinstance(case, FunctionCase) else " ".join(case.components)
    key = truth_key(case, first, effort)
    file = None if cache is None else cache / "foreign" / tag / f"{key}.json"
    if file is not None and file.exists():
        plain = json.loads(file.read_text())
        return Record(**plain | {"results": tuple(Result(**one) for one in plain["results"])})
    record = judge(entry.name, case, list(truths(case, cache, effort)), settings)
    if file is not None and not record.error:
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(json.dumps(asdict(record)))
    return record


def figures_of(records: list[Record]) -> dict[str, Any]:
    """The summary; see the top of the file."""
    results = [one for record in records for one in record.results]
    known = [one for one in results if one.converged]
    certified = [one for one in known if one.certified]
    right = [one for one in known if one.right]
    relative = [one.se / abs(one.llc) for one in known if abs(one.truth) >= WRONG and one.llc]
    relative = [x for x in relative if np.isfinite(x)]
    return {
        "silent_wrong": sum(one.silent_wrong for one in known),
        "certified_share": len(certified) / max(len(known), 1),
        "false_alarm_rate": sum(not one.certified for one in right) / max(len(right), 1),
        "median_relative_se": float(np.median(relative)) if relative else float("nan"),
        "coverage_95": sum(abs(one.z) <= 1.96 for one in certified) / max(len(certified), 1),
        "right_share": len(right) / max(len(known), 1),
        "components": len(known),
        "without_truth": len(results) - len(known),
        "without_truth_certified": sum(one.certified for one in results if not one.converged),
        "models": len(records),
        "models_that_raised": sum(bool(record.error) for record in records),
        "cpu_seconds": sum(record.cpu_seconds for record in records),
    }


def show(record: Record, description: str) -> None:
    """One table of a model, at most 100 columns wide."""
    if record.error:
        common.say(f"{record.name}: {record.error[:80]}")
        return
    rows = [
        [
            one.component[:10],
            str(common.WithError(one.truth, one.truth_se)) + ("" if one.converged else " ?"),
            str(common.WithError(one.llc, one.se)), f"{one.z:.1f}", one.certificate[:24],
            ("WRONG " if one.silent_wrong and one.converged else "") + one.verdict[:12],
        ]
        for one in record.results
    ]  # fmt: skip
    common.show_table(f"{description}: {record.cpu_seconds:.0f} s", COLUMNS, rows)


def main() -> None:
    """Command line."""
    made = common.parser(__doc__)
    made.add_argument("--n", type=int, default=40, help="models; forty hold every kind")
    made.add_argument("--cache", type=Path, help="folder for models, exact values and results")
    made.add_argument("--tag", default="untagged", help="of the version whose results are kept")
    args = made.parse_args()
    common.one_thread()
    warnings.filterwarnings("ignore")
    effort, settings = Effort(), DEFAULT
    if args.quick:
        effort, settings = Effort.toy(), common.toy(DEFAULT)
    records = []
    for entry in zoo(args.seed, 2 if args.quick else args.n):
        entry = entry.shortened() if args.quick else entry
        records.append(kept(entry, args.cache, args.tag, effort, settings))
        show(records[-1], entry.describe())
    common.finish(args, figures_of(records), None if args.quick else TARGETS)


if __name__ == "__main__":
    main()
