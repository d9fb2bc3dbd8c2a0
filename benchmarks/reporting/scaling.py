"""How time and memory grow along a line of cases.

Legend: N rows, V vocabulary.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from statistics import linear_regression
from typing import NamedTuple

import pandas as pd

from benchmarks.cases.plans import Line
from benchmarks.reporting.results import Result, frame_of

LEAST_POINTS = 3
"""Points that an exponent is fitted to at least."""


class Track(NamedTuple):
    """One implementation along a line."""

    implementation: str
    points: pd.DataFrame
    """Where it was measured: `along`, which is N or V, ascending, and the columns of a result."""

    @property
    def sizes(self) -> tuple[int, ...]:
        return tuple(self.points.along)

    @property
    def time_exponent(self) -> float | None:
        return exponent(self.points.along, self.points.p50_ms)

    @property
    def memory_exponent(self) -> float | None:
        """How the memory beyond inputs and outputs grows."""
        known = self.points[self.points.beyond_outputs_mib.fillna(0) != 0]
        return exponent(known.along, known.beyond_outputs_mib)

    @property
    def memory_growth(self) -> float | None:
        """Memory beyond inputs and outputs at the largest size by that at the smallest."""
        memory = self.points.beyond_outputs_mib
        if len(memory) < 2 or memory.isna().any() or not memory.all() or memory.iloc[0] <= 0:
            return None
        return float(memory.iloc[-1] / memory.iloc[0])


def exponent(x: Sequence[float], y: Sequence[float]) -> float | None:
    """The exponent in y = factor x^exponent, by least squares on the logarithms.

    It is None with too few points, or one that is not positive.
    """
    if len(x) < LEAST_POINTS or min(x) <= 0 or min(y) <= 0:
        return None
    return linear_regression([*map(math.log, x)], [*map(math.log, y)]).slope


def tracks(line: Line, results: Iterable[Result]) -> list[Track]:
    """Those implementations that were measured at two sizes of the line or more."""
    frame = frame_of(results)
    size_of = dict(zip(line.cases, line.sizes(), strict=True))
    frame = frame[frame.p50_ms.notna() & frame.case.isin(size_of)]
    frame = frame.assign(along=[size_of[case] for case in frame.case])
    groups = frame.groupby("implementation", sort=False)
    return [Track(name, each.sort_values("along")) for name, each in groups if len(each) > 1]
