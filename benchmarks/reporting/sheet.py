"""Results of one machine, and figures taken from them."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import NamedTuple

from benchmarks.cases.case import Case
from benchmarks.cases.plan import OURS
from benchmarks.reporting.figures import Figure
from benchmarks.reporting.results import Result

NOT_RUN = "not run yet"


class Target(NamedTuple):
    """A figure, or why there is none."""

    figure: Figure
    """Its value is no number where it was not measured."""
    reason: str = ""
    """Why it was not."""

    @property
    def measured(self) -> bool:
        return not math.isnan(self.figure.value)

    @property
    def value(self) -> str:
        return f"{self.figure.value:.3g}" if self.measured else ""

    @property
    def verdict(self) -> str:
        return self.figure.verdict if self.measured else f"not measured: {self.reason}"


class Sheet:
    """By case and implementation."""

    def __init__(self, results: Iterable[Result]) -> None:
        self.results = list(results)
        self.lines = {(result.case, result.implementation): result for result in self.results}

    def of(self, case: Case) -> list[Result]:
        """All lines of a case."""
        return [result for result in self.results if result.case == case]

    def value(self, case: Case, attribute: str, implementation: str = OURS) -> float | None:
        """One value of a line; None where it was not measured."""
        line = self.lines.get((case, implementation))
        return None if line is None else getattr(line, attribute)

    def target(
        self,
        name: str,
        case: Case,
        needed: Sequence[tuple[str, float | None]],
        *,
        at_most: float | None = None,
        at_least: float | None = None,
    ) -> Target:
        """A figure: a value, or the ratio of two.

        Args:
            name: of the figure.
            case: that it is about, for the reason why it is missing.
            needed: an implementation and its value; a second one divides the first.
            at_most: its bound.
            at_least: its bound.
        """
        value = math.nan
        missing = [implementation for implementation, each in needed if each is None]
        if not missing:
            known = [each for _, each in needed if each is not None]
            value = known[0] if len(known) == 1 else known[0] / known[1]
        figure = Figure(name=name, value=value, at_most=at_most, at_least=at_least)
        return Target(figure, self._reason(case, missing[0]) if missing else "")

    def _reason(self, case: Case, implementation: str) -> str:
        line = self.lines.get((case, implementation))
        return NOT_RUN if line is None else line.reason or line.remark or NOT_RUN
