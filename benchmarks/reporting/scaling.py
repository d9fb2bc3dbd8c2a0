"""How time and memory grow along a line of cases.

Legend: N rows, V vocabulary.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import NamedTuple

from benchmarks.cases.plan import Line
from benchmarks.reporting.results import Result

LEAST_POINTS = 3
"""Points that an exponent is fitted to at least."""


class Fit(NamedTuple):
    """y = factor x^exponent."""

    exponent: float
    factor: float


class Track(NamedTuple):
    """One implementation along a line."""

    implementation: str
    sizes: tuple[int, ...]
    """N or V where it was measured, ascending."""
    p50_ms: tuple[float, ...]
    extra_mib: tuple[float | None, ...]
    beyond_outputs_mib: tuple[float | None, ...]
    """Memory beyond inputs and outputs."""

    def time_fit(self) -> Fit | None:
        return fit(self.sizes, self.p50_ms)

    def memory_fit(self) -> Fit | None:
        """Growth of the memory beyond inputs and outputs."""
        return fit(*_known(self.sizes, self.beyond_outputs_mib))

    def memory_growth(self) -> float | None:
        """Memory beyond inputs and outputs at the largest size by that at the smallest."""
        _, known = _known(self.sizes, self.beyond_outputs_mib)
        if len(known) < len(self.sizes) or len(known) < 2 or known[0] <= 0:
            return None
        return known[-1] / known[0]


def fit(x: Sequence[float], y: Sequence[float]) -> Fit | None:
    """Least squares on the logarithms; None with too few points, or one that is not positive."""
    if len(x) < LEAST_POINTS or min(x) <= 0 or min(y) <= 0:
        return None
    log_x, log_y = ([math.log(value) for value in values] for values in (x, y))
    mean_x, mean_y = sum(log_x) / len(x), sum(log_y) / len(y)
    squares = sum((value - mean_x) ** 2 for value in log_x)
    products = sum((a - mean_x) * (b - mean_y) for a, b in zip(log_x, log_y, strict=True))
    exponent = products / squares
    return Fit(exponent, math.exp(mean_y - exponent * mean_x))


def tracks(line: Line, results: Iterable[Result]) -> list[Track]:
    """Those implementations that were measured at two sizes of the line or more."""
    size_of = dict(zip(line.cases, line.sizes(), strict=True))
    found: dict[str, list[tuple[int, Result]]] = {}
    for result in results:
        if result.measured and result.case in size_of:
            found.setdefault(result.implementation, []).append((size_of[result.case], result))
    return [
        _track(name, sorted(points, key=lambda point: point[0]))
        for name, points in found.items()
        if len(points) > 1
    ]


def _track(name: str, points: Sequence[tuple[int, Result]]) -> Track:
    return Track(
        name,
        tuple(size for size, _ in points),
        tuple(result.p50_ms or 0.0 for _, result in points),
        tuple(result.extra_mib for _, result in points),
        tuple(result.beyond_outputs_mib for _, result in points),
    )


def _known(sizes: Sequence[int], values: Sequence[float | None]) -> tuple[list[float], list[float]]:
    """The points that have a value."""
    known = [(float(size), value) for size, value in zip(sizes, values, strict=True) if value]
    return [size for size, _ in known], [value for _, value in known]
