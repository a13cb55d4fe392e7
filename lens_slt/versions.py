"""Versions of the packages that results depend on, read without importing them."""

from __future__ import annotations

from importlib.metadata import PackageNotFoundError, version

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
