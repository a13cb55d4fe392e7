"""What every record of ``--json`` holds."""

from __future__ import annotations

import json
from typing import Any

from click.testing import Result

from lens_slt.versions import version_of


def record_of(result: Result, *more: str) -> dict[str, Any]:
    """The one object on standard output, with what all records hold and ``more``."""
    assert result.exit_code in (0, 1), result.stderr
    record = json.loads(result.stdout)
    assert {"command", "options", "versions", "seconds", *more} <= set(record)
    assert record["versions"]["torch"] == version_of("torch")
    assert set(record["versions"]) == {"lens_slt", "torch", "transformer_lens"}
    assert 0 < record["seconds"] < 600
    return record
