"""The steps that commands share: loading, settings, foreseeing, what is said of draws."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields
from pathlib import Path
from typing import Any

import joblib
import numpy as np
import pandas as pd
import torch
import xarray as xr
from rich.text import Text

from lens_slt.arguments import choice, instance
from lens_slt.circuits.hypothesis import CircuitHypothesis, circuit, read_hypotheses
from lens_slt.circuits.statistics import too_few
from lens_slt.cli_options import OfModel, Options, Resumed
from lens_slt.cli_output import console, finish, say, show
from lens_slt.data.checks import usable_device
from lens_slt.data.inputs import read_inputs
from lens_slt.data.patterns import label_patterns
from lens_slt.json_files import read_json
from lens_slt.models.source import LoadedModel
from lens_slt.report.tables import health_summary
from lens_slt.sampling.course import Course
from lens_slt.sampling.estimate import Estimate
from lens_slt.sampling.presets import preset as preset_settings
from lens_slt.sampling.result import settings_of
from lens_slt.sampling.settings import Settings
from lens_slt.sampling.store import read_about
from lens_slt.text import visible

MOST_PROCESSES = 4  # that are started unasked: each holds a model


def load(options: OfModel) -> Any:
    """The model of a command, at its checkpoint if it takes one."""
    checkpoint = getattr(options, "checkpoint", None)
    return load_quietly(options.model, checkpoint, options.device, options.config)


def settings_from(options: Options, base: Settings | None = None, **more: Any) -> Settings:
    """Every option that has the name of a setting, on a preset, a file or the default."""
    names = [one.name for one in fields(options) if one.name in Settings().as_dict()]
    given = {name: getattr(options, name) for name in names} | more
    named, file = getattr(options, "preset", None), getattr(options, "settings", None)
    return make_settings(named, file, base, **given)


def show_health(options: Options, llc: xr.Dataset) -> None:
    """Health in words, before everything else."""
    show(options, Text.assemble(("Health:", "bold"), f" {visible(health_summary(llc))}"))


def show_estimate(
    options: Options, found: Estimate | None, not_in_it: str, settings: Settings | None = None
) -> None:
    """What ``--dry-run`` prints of sampling, and in words what the command does beside it."""
    if not options.as_json:
        words = "nothing is sampled" if found is None else str(found)
        console.print(visible(words), soft_wrap=True)
    say(options, f"not in it: {not_in_it}; nothing was written")
    record = None if found is None else found.as_dict()
    given = {} if settings is None else {"settings": settings.as_dict()}
    finish(options, {"estimate": record, "not_in_it": not_in_it} | given)


def found_steps(options: Resumed) -> int:
    """Steps of an earlier run in the folder; says so if there are any."""
    path = options.kept
    about = read_about(path)
    if not about:
        return 0
    step, courses = int(about["step"]), [Course(**course) for course in about["courses"]]
    left = max((course.steps_left for course in courses if not course.done), default=0)
    if left:
        say(options, f"found draws up to step {step} of {step + left} in {path}")
    else:
        say(options, f"found finished draws in {path}")
    return step


def record_of(llc: xr.Dataset) -> dict[str, Any]:
    """What ``--json`` says of all draws: model, settings, health, and every certificate."""
    words = (llc[key].values for key in ("component", "certificate", "why"))
    return {
        "model": llc.attrs["model"],
        "settings": settings_of(llc).as_dict(),
        "health": health_summary(llc),
        "certificates": {
            str(name): f"{word}: {why}" for name, word, why in zip(*words, strict=True)
        },
    }


def record_of_curves(curves: xr.DataTree) -> dict[str, Any]:
    """Likewise of a sweep over checkpoints: of every component one word for each."""
    llc = curves["refined_llc"].to_dataset()

    def words(key: str) -> dict[str, list[str]]:
        return {
            str(name): [str(word) for word in llc[key].sel(component=name).values]
            for name in llc["component"].values
        }

    return {
        "run": curves.attrs["run"], "settings": settings_of(curves).as_dict(),
        "health": words("verdict"), "certificates": words("certificate"),
    }  # fmt: skip


def is_usable(llc: xr.Dataset) -> bool:
    """Whether every component has a chain that can be used, at one checkpoint or rung at least."""
    others = [dim for dim in llc["chains_used"].dims if dim != "component"]
    return bool((llc["chains_used"] > 0).any(others).all())


def plain_records(table: pd.DataFrame) -> list[dict[str, Any]]:
    """Rows as plain values for JSON: null for what is no finite number."""
    finite = table.replace([np.inf, -np.inf], np.nan)
    found: list[dict[str, Any]] = (
        finite.astype(object).where(finite.notna(), None).to_dict("records")
    )
    return found


def load_quietly(
    name: str, checkpoint: int | None, device: str | None, config: Path | None = None
) -> Any:
    """A model, without what TransformerLens prints while loading."""
    if device is not None:
        usable_device(device)
    return LoadedModel(name, checkpoint, config=config).load(device)


def make_settings(
    preset: str | None, file: Path | None, base: Settings | None = None, **given: Any
) -> Settings:
    """A preset, a settings file or the default, with the options that were given on top."""
    if preset is not None and file is not None:
        raise ValueError("give --preset or --settings, not both")
    settings = base or preset_settings(preset or "default")
    if file is not None:
        settings = _read_settings(file)
    return settings.but(**{key: value for key, value in given.items() if value is not None})


def read_numbers(name: str, text: str) -> list[float]:
    """Numbers with commas, as an option gives them."""
    try:
        return [float(part) for part in text.split(",")]
    except ValueError:
        raise ValueError(f"--{name} must be numbers with commas; got {text!r}") from None


def whole_numbers(name: str, text: str) -> list[int]:
    """Whole numbers with commas, such as training steps."""
    try:
        return [int(part) for part in text.split(",")]
    except ValueError:
        raise ValueError(f"--{name} must be whole numbers with commas; got {text!r}") from None


def processes(given: str | int | None, device: str | None) -> Any:
    """What ``--parallel`` asks for; by default a process for each core of a CPU, but few.

    Jobs compute with one thread each, so that results do not depend on how many run at a time.
    """
    if given is not None:
        return int(given) if str(given).isdecimal() else given
    accelerated = torch.cuda.is_available() or torch.backends.mps.is_available()
    on_cpu = device == "cpu" or (device is None and not accelerated)
    cores = min(joblib.cpu_count(), MOST_PROCESSES)
    return cores if on_cpu and cores > 1 else None


def parse_probes(given: list[str]) -> dict[str, str]:
    """``name=source`` options as a dict."""
    probes = {}
    for text in given:
        name, equals, source = text.partition("=")
        if not (name and equals and source):
            raise ValueError(f"--probe must read name=source, such as code=code; got {text!r}")
        if name in probes:
            raise ValueError(f"--probe names {name!r} twice")
        probes[name] = source
    return probes


def circuits_of(option: str, given: str, pattern: str | None) -> list[CircuitHypothesis]:
    """Hypotheses of a JSON file, or the one that is written out, for the tokens of a pattern."""
    if Path(given).suffix == ".json":
        found = read_hypotheses(Path(given).expanduser())
    elif pattern is None:
        raise ValueError(
            f"--{option} {given!r} needs --pattern, the tokens that the circuit is for"
        )
    else:
        found = [circuit(given, pattern)]
    roles = sorted({role for one in found for role in one.roles})
    if roles:
        raise ValueError(
            f"--{option} names roles ({', '.join(roles)}), and the command line knows no "
            "positions of roles: use lens_slt.cross_check with roles= in Python"
        )
    return found


def with_enough_tokens(
    options: Options, circuits: list[CircuitHypothesis], tokens: Any, model: Any
) -> list[CircuitHypothesis]:
    """Of inferred circuits, those for whose pattern a trial can be made on this text."""
    ids, real = read_inputs(tokens)
    labels = label_patterns(ids, model.tokenizer)
    found = []
    for one in circuits:
        mask = labels.sel(pattern=one.pattern).values
        counts = np.ones_like(mask) if real is None else real[:, 1:].numpy()
        members = mask & counts
        if why := too_few(members, ~mask & counts):
            has = f"the text of the trial has {members.sum()} {one.pattern} tokens"
            say(options, f"not tried: {one}: {has} in {members.any(1).sum()} of its {len(ids)} "
                f"sequences; {why}")  # fmt: skip
        else:
            found.append(one)
    return found


def _read_settings(file: Path) -> Settings:
    try:
        values = read_json(file)
        instance("the file", values, Mapping)
        for key in values:
            choice("a key", key, Settings().as_dict())
        return Settings(**values)
    except (ValueError, TypeError, OSError) as error:
        raise ValueError(f"--settings {str(file)!r}: {error}") from None
