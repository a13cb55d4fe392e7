"""What the commands of :mod:`lens_slt.cli` share: output, errors, loading, settings."""

from __future__ import annotations

import contextlib
import io
import json
import logging
import sys
import warnings
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
import typer
import xarray as xr
from rich.console import Console
from rich.text import Text
from torch import Tensor

from lens_slt.arguments import choice, instance, location
from lens_slt.data.checks import mask_from_pad_id, usable_device
from lens_slt.data.inputs import read_inputs
from lens_slt.data.tokenizer import TokenizerWarning
from lens_slt.data.tokens import ARRAY_FILES, dataset_columns, holds_ids, load_tokens, read_file
from lens_slt.json_files import read_json
from lens_slt.models.padding import PaddingWarning
from lens_slt.models.shipped import SHIPPED, load_model, shipped_checkpoints, shipped_weights
from lens_slt.report.tables import health_summary
from lens_slt.sampling.course import Course
from lens_slt.sampling.estimate import Estimate
from lens_slt.sampling.folder import SamplingWarning
from lens_slt.sampling.jobs import JobError
from lens_slt.sampling.presets import preset as preset_settings
from lens_slt.sampling.settings import Settings
from lens_slt.sampling.store import read_about
from lens_slt.text import visible

N_SEQUENCES = 256  # that text is cut into by default

console = Console(markup=False, highlight=False)  # results
_errors = Console(stderr=True, markup=False, highlight=False)  # everything else


def say(text: str) -> None:
    """Words about the work, on standard error."""
    _errors.print(visible(text), soft_wrap=not _errors.is_terminal)


def show_health(llc: xr.Dataset) -> None:
    """Health in words, before everything else."""
    words = visible(health_summary(llc))
    console.print(Text.assemble(("Health:", "bold"), f" {words}\n"))


def finish(record: dict[str, Any], as_json: bool, usable: bool = True) -> None:
    """Print the record if it is asked for; exit code 1 if the result cannot be used."""
    if as_json:
        sys.stdout.write(json.dumps(record, allow_nan=False, ensure_ascii=False) + "\n")
    if not usable:
        raise typer.Exit(1)


def plain_records(table: pd.DataFrame) -> list[dict[str, Any]]:
    """Rows as plain values for JSON: null for what is no finite number."""
    finite = table.replace([np.inf, -np.inf], np.nan)
    found: list[dict[str, Any]] = (
        finite.astype(object).where(finite.notna(), None).to_dict("records")
    )
    return found


@contextlib.contextmanager
def guarded(as_json: bool, resume_path: Path | None = None) -> Iterator[None]:
    """Errors as one line, interrupts as a word on how to resume, libraries' warnings silenced."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("always")
            warnings.showwarning = _show_own_warning
            _quieten_libraries()
            yield
    except KeyboardInterrupt:
        kept = resume_path is not None and resume_path.exists()
        word = f"; run the same command again to continue from {resume_path}" if kept else ""
        say(f"interrupted{word}")
        raise typer.Exit(130) from None
    except (ValueError, TypeError, OSError, ImportError, JobError) as error:
        say("error: " + " ".join(str(error).split()))
        raise typer.Exit(2) from None


def show_estimate(found: Estimate | None, as_json: bool, not_in_it: str) -> None:
    """What ``--dry-run`` prints of sampling, and in words what the command does beside it."""
    if not as_json:
        words = "nothing is sampled" if found is None else str(found)
        console.print(visible(words), soft_wrap=True)
        say(f"not in it: {not_in_it}; nothing was written")
    record = None if found is None else found.as_dict()
    finish({"estimate": record, "not_in_it": not_in_it}, as_json)


def found_steps(path: Path) -> int:
    """Steps of an earlier run in this place; says so if there are any."""
    about = read_about(path)
    if not about:
        return 0
    step, courses = int(about["step"]), [Course(**course) for course in about["courses"]]
    left = max((course.steps_left for course in courses if not course.done), default=0)
    if left:
        say(f"found draws up to step {step} of {step + left} in {path}")
    else:
        say(f"found finished draws in {path}")
    return step


def load_quietly(
    name: str, checkpoint: int | None, device: str | None, config: Path | None = None
) -> Any:
    """A model, without what TransformerLens prints while loading."""
    if device is not None:
        usable_device(device)
    with contextlib.redirect_stdout(io.StringIO()):
        return load_model(name, config=config, checkpoint=checkpoint, device=device)


def load_data(
    source: str,
    model: Any,
    sequences: int | None,
    length: int | None,
    bos: bool,
    seed: int = 0,
) -> Tensor:
    """Token sequences for a model; text is cut with the model's own tokenizer."""
    if Path(source).suffix in ARRAY_FILES:
        return load_tokens(source, n_sequences=sequences, length=length)
    tokenizer = model.tokenizer
    if tokenizer is None:
        raise ValueError(
            f"--data {source!r} is text and the model has no tokenizer; give a token array "
            f"({', '.join(ARRAY_FILES)})"
        )
    return load_tokens(
        source, tokenizer, n_sequences=sequences or N_SEQUENCES, length=length, bos=bos, seed=seed
    )


def load_weighted(
    source: str,
    positions: str | None,
    model: Any,
    sequences: int | None,
    length: int | None,
    bos: bool,
    pad_id: int | None = None,
    seed: int = 0,
) -> tuple[Any, Any]:
    """Tokens of ``--data`` and the position weights of ``--positions``, None without.

    ``last`` is the last token of every sequence that is no padding; a file holds weights of the
    predicted tokens ``[position - 1]`` or ``[sequence, position - 1]``, or a mask with one position
    more; anything else is a column of a data set with token ids. Padding of a data set's rows comes
    with the tokens.
    """
    is_file = positions is not None and Path(positions).suffix in ARRAY_FILES
    column = None if positions in (None, "last") or is_file else positions
    if holds_ids(source):
        more = [] if column is None else [column]
        tokens: Any = dataset_columns(source, sequences or N_SEQUENCES, more)
        given = tokens.pop(column) if column is not None else None
    elif column is not None:
        raise ValueError(
            f"--positions {column!r} must be last, a file ({', '.join(ARRAY_FILES)}), or a column "
            "of a data set with token ids, --data hf:NAME:SPLIT:COLUMN"
        )
    else:
        tokens = load_data(source, model, sequences, length, bos, seed)
        given = read_file(location("positions", positions), "weights") if is_file else None
    if positions is None:
        return tokens, None
    ids, real = read_inputs(tokens)
    if real is None:
        real = torch.ones_like(ids, dtype=torch.bool)
        real = real if pad_id is None else mask_from_pad_id(ids, pad_id, "tokens")
    if positions == "last":
        place = ids.shape[1] - 1 - real.flip(1).int().argmax(1)
        return tokens, (torch.arange(1, ids.shape[1]) == place[:, None]).double()
    return tokens, _weights_like(ids, given, positions)


def _weights_like(ids: Tensor, given: Any, name: str) -> Tensor:
    """Weights of predicted tokens from those, or from a mask of all tokens; ragged rows end in 0.

    Of more rows than there are sequences the first are taken, as they are of the tokens.
    """
    longest = ids.shape[1]
    if isinstance(given, list):
        longest = max(len(row) for row in given)
        given = [[*row, *[0] * (longest - len(row))] for row in given]
    try:
        weights = torch.as_tensor(given).double()
    except (TypeError, ValueError) as error:
        raise ValueError(f"--positions {name!r} must hold numbers: {error}") from None
    if weights.ndim == 2:
        weights = weights[: len(ids)]
    return weights[..., 1:] if weights.shape[-1:] == ids.shape[1:] else weights


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


def shipped_rows() -> list[dict[str, Any]]:
    """One record per shipped model."""
    rows = []
    for name in SHIPPED:
        row: dict[str, Any] = {"model": name, "checkpoints": shipped_checkpoints(name)}
        try:
            weights = shipped_weights(name)
        except FileNotFoundError:
            rows.append({**row, "layers": None, "heads": None, "d_model": None, "weights": None})
            continue
        heads, d_model, _ = weights["blocks.0.attn.W_Q"].shape
        layers = sum(key.endswith("attn.W_Q") for key in weights)
        size = sum(tensor.numel() for tensor in weights.values())
        rows.append(
            {**row, "layers": layers, "heads": layers * heads, "d_model": d_model, "weights": size}
        )
    return rows


def _read_settings(file: Path) -> Settings:
    try:
        values = read_json(file)
        instance("the file", values, Mapping)
        for key in values:
            choice("a key", key, Settings().as_dict())
        return Settings(**values)
    except (ValueError, TypeError, OSError) as error:
        raise ValueError(f"--settings {str(file)!r}: {error}") from None


def _show_own_warning(
    message: Warning | str, category: type[Warning], *rest: Any, **named: Any
) -> None:
    """Warnings of this package reach the user, those of the libraries do not."""
    if issubclass(category, SamplingWarning | TokenizerWarning | PaddingWarning):
        say(f"warning: {message}")


def _quieten_libraries() -> None:
    from transformers.utils import logging as transformers_logging

    transformers_logging.set_verbosity_error()
    for name in ("transformer_lens", "huggingface_hub", "httpx", "zarr"):
        logging.getLogger(name).setLevel(logging.ERROR)
