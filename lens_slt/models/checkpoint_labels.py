"""Which checkpoints of a model TransformerLens knows."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Iterator

from lens_slt.models.shipped_files import SHIPPED, shipped_checkpoints


def checkpoint_labels(name: str) -> tuple[list[int], str]:
    """The checkpoints of a model that TransformerLens knows, rising, and their unit.

    The unit is "step" or "token". Raises ValueError where it knows none, OSError where they have to
    be listed on the Hugging Face Hub and cannot be.
    """
    try:
        from transformer_lens.loading_from_pretrained import get_checkpoint_labels
    except ImportError:  # TransformerLens 4 keeps them elsewhere
        from transformer_lens.tools.model_registry.checkpoints import get_checkpoint_labels
    try:
        with _without_log():
            labels, unit = get_checkpoint_labels(name)
    except ValueError:
        raise ValueError(
            f"source: {name!r} is no folder, file, pattern or shipped model with checkpoints "
            f"({', '.join(name for name in SHIPPED if shipped_checkpoints(name))}), and "
            "TransformerLens knows no checkpoints of a model of that name; of one on the Hugging "
            "Face Hub give its revisions, steps={1000: 'step1000', …}"
        ) from None
    except Exception as error:  # of the network, in whatever library
        raise OSError(
            f"source: the checkpoints of {name!r} cannot be listed ({error}); give its revisions, "
            "steps={1000: 'step1000', …}, or try again with a network"
        ) from error
    return sorted(set(labels)), unit


@contextlib.contextmanager
def _without_log() -> Iterator[None]:
    """TransformerLens says with every look-up that models were updated in 2023."""
    level = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        yield
    finally:
        logging.disable(level)
