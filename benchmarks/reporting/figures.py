"""Measured figures beside their targets."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True, kw_only=True)
class Figure:
    """One measured value, and the bound that it is to keep."""

    name: str
    value: float
    at_most: float | None = None
    """Its target where less is better."""
    at_least: float | None = None
    """Its target where more is better; without either the figure is stated only."""
    reason: str = ""
    """Why it was not measured: then its value is no number."""

    @property
    def measured(self) -> bool:
        return not self.reason

    @property
    def met(self) -> bool | None:
        """Whether the target is kept; None without one. A value that is no number keeps none."""
        if self.at_most is not None:
            return self.value <= self.at_most
        return None if self.at_least is None else self.value >= self.at_least

    @property
    def target(self) -> str:
        if self.at_most is not None:
            return f"<= {self.at_most:g}"
        return "" if self.at_least is None else f">= {self.at_least:g}"

    @property
    def verdict(self) -> str:
        told = {True: "met", False: "missed", None: ""}[self.met]
        return told if self.measured else f"not measured: {self.reason}"

    def record(self) -> dict[str, str | float | bool | None]:
        """Ready for JSON."""
        return {"name": self.name, "value": self.value, "target": self.target, "met": self.met}


def ratio(name: str, of: Mapping[str, float], over: str, under: str, **bound: Any) -> list[Figure]:
    """The figure of two values by their names; none where one of them is lacking."""
    if over not in of or under not in of:
        return []
    return [Figure(name=name, value=of[over] / of[under], **bound)]


def figure_table(figures: Sequence[Figure]) -> str:
    """One line for each: name, target, value, verdict."""
    cells = [("figure", "target", "value", "")]
    cells += [(f.name, f.target, f"{f.value:.3f}", f.verdict) for f in figures]
    return align(cells)


def align(cells: Sequence[Sequence[str]], left: Collection[int] = (0,)) -> str:
    """Columns of equal width, some to the left, the others to the right."""
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]

    def aligned(line: Sequence[str]) -> str:
        ways = [str.ljust if place in left else str.rjust for place in range(len(line))]
        return "  ".join(map(lambda way, *cell: way(*cell), ways, line, widths)).rstrip()

    return "\n".join(map(aligned, cells))
