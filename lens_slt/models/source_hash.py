"""What tells the weights that a source loads from others."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from lens_slt.models.adapter import adapt, weights_hash
from lens_slt.models.checkpoint_files import file_digest
from lens_slt.models.shipped_files import SHIPPED_NAMES, shipped_file
from lens_slt.models.source import LoadedModel, ModelSource


def source_hash(source: ModelSource, model: Any = None) -> str:
    """Hexadecimal digits: the SHA-256 of the bytes of files and folders; of other sources that of
    the names and values of the model's weights, which is loaded where it is not at hand."""
    path = path_of(source)
    if path is not None:
        return file_digest(path)
    return weights_hash(adapt(source.load("cpu") if model is None else model))


def path_of(source: ModelSource) -> Path | None:
    """The file or folder that a source loads, None if there is no single one on this machine."""
    if not isinstance(source, LoadedModel) or source.revision is not None:
        return None
    if source.name in SHIPPED_NAMES:
        return shipped_file(source.name, source.checkpoint)
    path = Path(source.name)
    return path if path.is_absolute() and path.exists() else None
