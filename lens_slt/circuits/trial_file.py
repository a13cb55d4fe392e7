"""Trials read back from a file."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any, get_args

import xarray as xr

from lens_slt.arguments import choice, instance, typed
from lens_slt.circuits.evidence import NAN, Evidence, Outcome
from lens_slt.circuits.hypothesis import from_record
from lens_slt.circuits.trial import SHOWN_SETTINGS, Trial
from lens_slt.circuits.trial_notes import Disagreement
from lens_slt.circuits.verdict import VERDICTS
from lens_slt.json_files import read_json


@typed
def read_trials(path: Path | str) -> list[Trial]:
    """Trials from the ``trials.json`` that ``lens-slt cross-check`` and the demonstration write.

    Raises ValueError, naming the file, for anything else.

    Example:
        >>> import lens_slt as ls, json, pathlib, tempfile
        >>> model, text = ls.load_model("attn-2l"), ls.load_tokens("mix", n_sequences=16)
        >>> mine = ls.circuit("L1H2", pattern="induction")
        >>> trial = ls.cross_check(model, text, mine, n_null=10, verdict_only=True, progress=False)
        >>> path = pathlib.Path(tempfile.mkdtemp(), "trials.json")
        >>> _ = path.write_text(json.dumps([trial.as_dict()]))
        >>> ls.read_trials(path)[0].verdict == trial.verdict
        True
    """
    content = read_json(path)
    try:
        instance("the file", content, Sequence[Mapping[str, Any]])
        return [_from_record(record) for record in content]
    except KeyError as error:
        raise ValueError(f"{path} holds no trials: no {error}") from None
    except (ValueError, TypeError, AttributeError) as error:
        raise ValueError(f"{path} holds no trials: {error}") from None


def _from_record(record: dict[str, Any]) -> Trial:
    numbers = {one.name for one in fields(Evidence) if one.type == "float"}
    rows: list[dict[str, Any]] = [
        {k: NAN if v is None and k in numbers else v for k, v in one.items()}
        for one in record["evidence"]
    ]
    for one in rows:
        choice("outcome", one["outcome"], get_args(Outcome))
        instance("unit", one["unit"], str)
        for name in numbers & set(one):
            instance(name, one[name], float, int)
    choice("verdict", record["verdict"], VERDICTS)
    settings = record["settings"]
    missing = set(SHOWN_SETTINGS) - set(settings)
    if missing:
        raise ValueError(f"settings lack {', '.join(sorted(missing))}")
    curve = record["curve"]
    if curve is not None:
        curve = xr.Dataset.from_dict(curve)
        curve = curve.assign({key: curve[key].astype(float) for key in curve.data_vars})
    return Trial(
        from_record(record["hypothesis"]), record["verdict"], tuple(record["reasons"]),
        tuple(Disagreement(**one) for one in record["disagreements"]),
        tuple(Evidence(**row) for row in rows), curve, settings,
    )  # fmt: skip
