"""The suite does check shapes in signatures, and leaves functions without them as they are."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from jaxtyping import TypeCheckError

from lens_slt.models import norms
from lens_slt.models.observable import Sites
from lens_slt.sampling import lm
from tests.shape_checks import check_shapes_of


def test_a_wrong_shape_is_found():
    with pytest.raises(TypeCheckError, match="scale"):
        norms.fold(torch.ones(4, 3), torch.ones(5), False)
    assert norms.fold(torch.ones(4, 3), torch.ones(4), False).shape == (4, 3)


def test_a_wrong_shape_in_a_dataclass_is_found():
    ids = [torch.zeros(3, dtype=torch.int64) for _ in range(4)]
    Sites(*ids, ids[0])
    with pytest.raises(TypeCheckError, match="column"):
        Sites(*ids, torch.zeros(4, dtype=torch.int64))


def test_functions_without_shapes_are_not_wrapped():
    assert not hasattr(lm.step, "__wrapped__")
    assert hasattr(norms.fold, "__wrapped__")


def test_shapes_in_a_package_of_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Names that stand for shapes, inner functions, and a module without a docstring."""
    (tmp_path / "shaped_here.py").write_text(
        "from jaxtyping import Float\n"
        "import numpy as np\n"
        "Row = Float[np.ndarray, 'x']\n"
        "def outer(x):\n"
        "    def inner(y: 'Row', z: 'Missing' = 0): return y\n"
        "    return inner(x)\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(sys, "meta_path", [*sys.meta_path])
    check_shapes_of("shaped_here")
    from shaped_here import outer

    assert outer(np.ones(2)).shape == (2,)
    for _ in range(2):
        with pytest.raises(TypeCheckError):
            outer(np.ones((2, 2)))
