"""The certificate against the truth: what it catches, what it lets pass, what it costs.

Components of models and functions of the zoo are sampled with explicit settings, from steps that
are too large to those that are right, with small and large minibatches, at two pairs of nβ and
γ. The truth of every (component, nβ, γ) is a closed form or an exact sampler's. A run is *off* by
λ̂/truth − 1. `caught_above_10pct`: of the runs off by more than 10 %, 0.1 and 4 standard errors, the
share that is not certified. `passed_below_3pct`: of the runs within 3 %, the difference being known
to 1.5 %, the share that is certified. `overhead`: what the coupled virial adds to a step of all
heads of the shipped model.
"""

from __future__ import annotations

import json
import warnings
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch

import lens_slt as ls
from benchmarks.common import Target, cpu_seconds, finish, one_thread, parser, show_table
from benchmarks.zoo import hmc
from benchmarks.zoo.entries import Case, ModelCase, zoo
from benchmarks.zoo.functions import FunctionCase
from benchmarks.zoo.potential import component_potential, function_potential
from benchmarks.zoo.truth import Effort, Truth, sampled_truth, truth_key
from lens_slt.sampling.sampler import coupled_virial

TEMPERATURES = ((30.0, 200.0), (100.0, 100.0))  # nβ, γ
STEPS = (2.5, 1.0, 0.25)  # of 0.8/γ
BATCHES = (4, 32)
TARGETS = {
    "caught_above_10pct": Target(least=1.0),
    "passed_below_3pct": Target(least=0.9),
    "overhead": Target(most=0.03),
}


@dataclass(frozen=True)
class Cell:
    """One run and the truth."""

    name: str
    n_beta: float
    gamma: float
    step: float  # of 0.8/γ
    batch: int
    truth: float
    truth_se: float
    llc: float
    se: float
    share: float  # that the defect allows
    bias: float  # quoted
    certificate: str
    verdict: str

    @property
    def off(self) -> float:
        """The true bias, as a share."""
        return self.llc / self.truth - 1

    @property
    def error(self) -> float:
        """Standard error of λ̂ − truth."""
        return float(np.hypot(self.se, self.truth_se))

    @property
    def is_off(self) -> bool:
        """Whether λ̂ is wrong by any standard."""
        if not np.isfinite(self.llc):
            return True
        wrong = abs(self.llc - self.truth)
        return wrong > max(0.1 * abs(self.truth), 0.1, 4 * self.error)

    @property
    def is_right(self) -> bool:
        """Whether λ̂ is within 3 %, known to 1.5 %."""
        least = 0.03 * abs(self.truth)
        return abs(self.llc - self.truth) <= least and self.error <= least / 2

    @property
    def certified(self) -> bool:
        return self.certificate == "certified"


def cases(seed: int, cache: Path | None, quick: bool) -> Iterator[tuple[str, Case, str]]:
    """Name, case and component: every function, and two heads of four trained models."""
    models = 0
    for entry in zoo(seed):
        if entry.source == "function":
            yield entry.name, entry.build(cache), "function"
        elif entry.level == "full" and not quick and models < 4:
            case = entry.build(cache)
            assert isinstance(case, ModelCase)
            heads = [name for name in case.components if "H" in name and "+" not in name]
            models += bool(heads)
            for head in heads[:2]:
                yield f"{entry.name} {head}", case, head


def truth_of(
    case: Case, component: str, n_beta: float, gamma: float, cache: Path | None, effort: Effort
) -> tuple[float, float] | None:
    """λ̂ and its standard error; None if the exact sampler did not converge."""
    if isinstance(case, FunctionCase) and case.exact is not None:
        return case.exact(n_beta, gamma), 0.0
    file = None
    if cache is not None:
        file = cache / "truth" / f"{truth_key(case, component, effort, n_beta, gamma)}.json"
    if file is not None and file.exists():
        found = Truth(**json.loads(file.read_text()))
        return (found.llc, found.se) if found.converged else None
    potential: hmc.Potential
    if isinstance(case, FunctionCase):
        potential, zero = function_potential(case), torch.zeros_like(case.point.double())
    else:
        of = component_potential(case.model, component, case.tokens, case.weights)
        potential, zero = of.potential, torch.zeros_like(of.star)
    found = sampled_truth(potential, zero, effort, component, n_beta=n_beta, gamma=gamma)
    if file is not None:
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(json.dumps(asdict(found)))
    return (found.llc, found.se) if found.converged else None


def run(case: Case, component: str, settings: ls.Settings) -> dict[str, float | str]:
    """λ̂, its error, what the certificate says."""
    if isinstance(case, FunctionCase):
        rows = None if case.data is None else len(case.data)
        if rows is not None:
            settings = settings.but(batch_size=min(settings.batch_size, rows))
        draws = ls.sample_function(case.loss, case.point, data=case.data, settings=settings)
    else:
        draws = ls.sample(
            case.model, case.tokens, component, weights=case.weights, settings=settings,
            progress=False,
        )  # fmt: skip
    row = ls.refined_llc(draws).isel(component=0)
    numbers = {key: float(row[key]) for key in ("llc", "se", "bias")}
    words = {key: str(row[key].values) for key in ("certificate", "verdict")}
    return numbers | {"share": float(row["defect_share"])} | words


def cells(
    case: Case, name: str, component: str, cache: Path | None, quick: bool, seed: int
) -> Iterator[Cell]:
    """All runs of one component."""
    effort = Effort.toy() if quick else Effort()
    no_batches = isinstance(case, FunctionCase) and case.data is None
    for n_beta, gamma in TEMPERATURES:
        right = truth_of(case, component, n_beta, gamma, cache, effort)
        if right is None or right[0] < 0.1:
            continue
        for step in STEPS:
            for batch in BATCHES[-1:] if no_batches else BATCHES:
                settings = ls.Settings(
                    n_beta=n_beta, gamma=gamma, step_size=step * 0.8 / gamma, batch_size=batch,
                    draws=40 if quick else 300, seed=seed,
                )  # fmt: skip
                found = run(case, component, settings)
                yield Cell(name, n_beta, gamma, step, batch, *right, **found)  # type: ignore[arg-type]


def overhead() -> float:
    """CPU time of the coupled virial over that of a step of all heads of the shipped model."""
    model, tokens = ls.load_model("attn-2l"), ls.load_tokens("mix", n_sequences=64)
    from lens_slt.sampling.prepare import prepare

    job = prepare(
        model, tokens, "heads", settings=ls.Settings(batch_size=8), probes=None, mask=None,
        pad_id=None, weights=None, engine="auto", device=None,
    )  # fmt: skip
    parts = [(g, tuple(range(len(m.names)))) for g, m in enumerate(job.target.groups)]
    us = [m.star[:, None].expand(-1, 4, -1) * 0.01 for m in job.target.groups]
    steps, extras = [], []
    for step in range(7):
        began = cpu_seconds()
        evaluate = job.target.minibatch(step, parts)
        grads = [evaluate(part, u, gradient=True)[1] for part, u in zip(parts, us, strict=True)]
        middle = cpu_seconds()
        for u, grad in zip(us, grads, strict=True):
            assert grad is not None
            coupled_virial(u, u, grad, 30.0, 200.0)
            u * 0.6 + grad  # the step of the prior chain
        steps.append(middle - began)
        extras.append(cpu_seconds() - middle)
    return float(np.median(extras) / np.median(steps))


def main() -> None:
    arguments = parser(__doc__)
    arguments.add_argument("--cache", type=Path, help="folder for models and truths")
    args = arguments.parse_args()
    one_thread()
    warnings.simplefilter("ignore")
    found: list[Cell] = []
    for name, case, component in cases(args.seed, args.cache, args.quick):
        found += cells(case, name, component, args.cache, args.quick, args.seed)
        if args.quick and len(found) > 8:
            break
    show_table(
        "Explicit steps: what is true and what the run says (off: λ̂/truth − 1)",
        ["component", "nβ, γ", "ε·γ/0.8", "batch", "off %", "± %", "defect %", "quoted %", "says"],
        [
            [
                c.name, f"{c.n_beta:g}, {c.gamma:g}", c.step, c.batch, 100 * c.off,
                100 * c.error / abs(c.truth), 100 * c.share, 100 * c.bias, c.certificate,
            ]
            for c in found
        ],
    )  # fmt: skip
    off = [c for c in found if c.is_off]
    right = [c for c in found if c.is_right]
    figures = {
        "components": len({c.name for c in found}),
        "runs": len(found),
        "off_above_10pct": len(off),
        "caught_above_10pct": _share([not c.certified for c in off]),
        "right_below_3pct": len(right),
        "passed_below_3pct": _share([c.certified for c in right]),
        "overhead": overhead(),
    }
    finish(args, figures, None if args.quick else TARGETS)


def _share(which: list[bool]) -> float:
    return float(np.mean(which)) if which else float("nan")


if __name__ == "__main__":
    main()
