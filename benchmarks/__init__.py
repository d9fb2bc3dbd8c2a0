"""Measures this package's ops and method beside what else there is. Nothing of it is installed."""

from pathlib import Path

OPS_CSV = Path(__file__).parent / "results" / "ops.csv"
"""The measurements of all ops, on every machine."""
