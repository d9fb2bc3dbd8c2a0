"""What is installed, without importing it."""

from __future__ import annotations

from importlib.metadata import PackageNotFoundError, version


def installed_version(distribution: str) -> str | None:
    """By the name that a package index knows it under; None where it is not installed."""
    try:
        return version(distribution)
    except PackageNotFoundError:
        return None
