"""Versions of the packages that results depend on, read without importing them."""

from __future__ import annotations

import sys
import warnings
from importlib.metadata import PackageNotFoundError, version

LOADED_EARLY = ("numpy", "torch", "pandas")  # by notebooks, before lens_slt is installed in them
PACKAGES = ("lens-slt", "torch", "transformer-lens")


def versions() -> dict[str, str]:
    """The version of every package, by its name."""
    return {package: version_of(package) for package in PACKAGES}


def version_of(package: str) -> str:
    """The version of an installed package."""
    try:
        return version(package)
    except PackageNotFoundError:
        return "not installed"


def warn_of_restart() -> None:
    """Warn where an installation replaced a package of which the old version is still loaded."""
    loaded = {name: getattr(sys.modules.get(name), "__version__", None) for name in LOADED_EARLY}
    stale = [
        f"{name} {old} is loaded and {version_of(name)} installed"
        for name, old in loaded.items()
        if old is not None and _public(str(old)) != _public(version_of(name))
    ]
    if stale:
        words = f"{'; '.join(stale)}: restart the session (in Colab: Runtime, Restart session)"
        warnings.warn(words, stacklevel=2)


def _public(name: str) -> str:
    """A version without what names its build: torch says +cu128, and its metadata do not."""
    return name.partition("+")[0]
