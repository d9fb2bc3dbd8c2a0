"""The records of a line, pooled over its seeds: all that tables, plots and verdicts read.

Counts are summed, and the sum has its Wilson interval. The prompts are the same for every seed, so
that interval counts answers: it takes each for a draw of its own, and is too narrow where the seeds
agree prompt by prompt. The range over the seeds is therefore kept beside it. Values are means over
the seeds with their least and greatest.

Nothing is filled in: a seed without a record is not counted, and a line says how many it has.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from fractions import Fraction
from pathlib import Path
from statistics import fmean
from typing import TYPE_CHECKING, NamedTuple

from benchmarks.experiment.cell import Cell
from benchmarks.experiment.record import Measures, Record, load_record
from pact.evaluation.intervals import Rate, wilson_interval

if TYPE_CHECKING:
    from benchmarks.experiment.grid import Grid, Line

ALL_TASKS = "all_tasks"
"""Key of the exact matches of all tasks that a cell was fine-tuned on, together."""
NOT_MEASURED = "not measured"


class Share(NamedTuple):
    """Yes-or-no outcomes of all seeds."""

    rate: Rate
    per_seed: tuple[tuple[int, int], ...]
    """(yes, n) of each."""

    @classmethod
    def of(cls, per_seed: Iterable[tuple[int, int]]) -> Share:
        kept = tuple((yes, n) for yes, n in per_seed)
        successes, n = sum(yes for yes, _ in kept), sum(n for _, n in kept)
        low, high = wilson_interval(successes, n)
        rate = Rate(successes=successes, n=n, rate=successes / n, low=low, high=high)
        return cls(rate, kept)

    @property
    def percent(self) -> Fraction:
        """Exact, so that a difference of exactly ten points is not above ten."""
        return Fraction(100 * self.rate.successes, self.rate.n)

    @property
    def mean_percent(self) -> Fraction:
        """Mean of the seeds' rates; that of all answers where the seeds have as many."""
        return sum(Fraction(100 * yes, n) for yes, n in self.per_seed) / Fraction(
            len(self.per_seed)
        )

    @property
    def seed_percents(self) -> list[float]:
        return [100 * yes / n for yes, n in self.per_seed]

    def __str__(self) -> str:
        return f"{100 * self.rate.rate:.0f} % {self.interval}"

    @property
    def interval(self) -> str:
        return f"[{100 * self.rate.low:.0f}-{100 * self.rate.high:.0f}]"

    @property
    def counted(self) -> str:
        """With its counts: 31/40, 78 % [62-88]."""
        return f"{self.rate.successes}/{self.rate.n}, {self}"


class Mean(NamedTuple):
    """A value over the seeds."""

    mean: float
    low: float
    high: float

    @classmethod
    def of(cls, values: Sequence[float]) -> Mean:
        return cls(fmean(values), min(values), max(values))

    def text(self, form: str) -> str:
        """With the range over the seeds, where there is one to see."""
        mean, low, high = (format(value, form) for value in self)
        return mean if low == high else f"{mean} ({low}-{high})"


@dataclass(frozen=True, kw_only=True)
class Pooled:
    """A line's seeds together."""

    group: str
    label: str
    cell: Cell
    """One of its cells: their settings, but for the seed."""
    measured: int
    """Seeds with a record."""
    wanted: int
    counts: Mapping[str, Share] = field(default_factory=dict)
    """By the keys of `Measures.counts` and ALL_TASKS; one that no seed measured is left out."""
    values: Mapping[str, Mean] = field(default_factory=dict)
    """By the keys of `Measures.values`."""

    @property
    def name(self) -> str:
        """The label and, where some of its seeds are missing, how many there are."""
        if self.measured in (0, self.wanted):
            return self.label
        return f"{self.label} ({self.measured} of {self.wanted} seeds)"

    def count(self, key: str) -> str:
        return str(self.counts[key]) if key in self.counts else NOT_MEASURED

    def counted(self, key: str) -> str:
        return self.counts[key].counted if key in self.counts else NOT_MEASURED

    def value(self, key: str, form: str) -> str:
        return self.values[key].text(form) if key in self.values else NOT_MEASURED


class Curve(NamedTuple):
    """A line at the steps that all its measured seeds have in common, the last one included."""

    label: str
    cell: Cell
    points: dict[int, Pooled]


class Results(NamedTuple):
    """A grid with its lines pooled."""

    main: list[Pooled]
    trade_off: list[Pooled]
    """A line per method, lambda and share of harmful pairs."""
    ablations: list[Pooled]
    single_task: list[Pooled]
    over_time: list[Curve]
    recommended: str
    quick: bool
    environment: dict[str, list[str]]
    """What the records say of where they were measured: all values of a key, in order."""
    computed_s: float
    """Seconds that the records took, as far as they say."""


def pool_grid(grid: Grid, folder: Path) -> Results:
    """Read all records of a grid that there are."""
    trade_off = [part for line in grid.trade_off for part in _by_share(line)]
    lines = [*grid.main, *grid.trade_off, *grid.ablations, *grid.single_task, *grid.over_time]
    cells = {cell.name: cell for line in lines for cell in line.cells}
    read = (load_record(cell, folder) for cell in cells.values())
    environments = [dict(record.environment) for record in read if record is not None]
    computed_s = sum(float(environment.pop("seconds", 0.0)) for environment in environments)
    return Results(
        main=[pool(line, folder) for line in grid.main],
        trade_off=[pool(line, folder) for line in trade_off],
        ablations=[pool(line, folder) for line in grid.ablations],
        single_task=[pool(line, folder) for line in grid.single_task],
        over_time=[pool_curve(line, folder) for line in grid.over_time],
        recommended=grid.recommended,
        quick=grid.quick,
        environment=_merged(environments),
        computed_s=computed_s,
    )


def pool(line: Line, folder: Path) -> Pooled:
    """A line at the end of its trainings."""
    return _pool(line, [record.measures for record in _records(line, folder)])


def pool_curve(line: Line, folder: Path) -> Curve:
    """A line on the way."""
    records = [record for record in _records(line, folder) if record.curve]
    last = line.cells[0].steps
    curves = [{last: record.measures, **record.curve} for record in records]
    steps = sorted(set.intersection(*map(set, curves))) if curves else []
    points = {step: _pool(line, [curve[step] for curve in curves]) for step in steps}
    if 0 in points:  # the aligned model, the same for every seed
        points[0] = _pool(line._replace(cells=line.cells[:1]), [curves[0][0]])
    return Curve(line.label, line.cells[0], points)


def in_groups(lines: Iterable[Pooled]) -> dict[str, list[Pooled]]:
    """Lines by their group, both in the order given."""
    groups: dict[str, list[Pooled]] = {}
    for line in lines:
        groups.setdefault(line.group, []).append(line)
    return groups


def harmful_share(lines: Iterable[Pooled]) -> float:
    """The share of a fine-tuning set; the aligned model, not trained on it, states none."""
    return max(line.cell.harmful_share for line in lines)


def _pool(line: Line, measures: Sequence[Measures]) -> Pooled:
    counts: dict[str, list[tuple[int, int]]] = {}
    values: dict[str, list[float]] = {}
    tasks = line.cells[0].tasks
    for one in measures:
        asked = {key: count for key, count in one.counts.items() if count[1]}
        for key, count in asked.items():
            counts.setdefault(key, []).append(count)
        if tasks and all(task in asked for task in tasks):
            yes, n = zip(*(asked[task] for task in tasks), strict=True)
            counts.setdefault(ALL_TASKS, []).append((sum(yes), sum(n)))
        for key, value in one.values.items():
            values.setdefault(key, []).append(value)
    return Pooled(
        group=line.group,
        label=line.label,
        cell=line.cells[0],
        measured=len(measures),
        wanted=len({json.dumps(cell.settings()) for cell in line.cells}),
        counts={key: Share.of(per_seed) for key, per_seed in counts.items()},
        values={key: Mean.of(per_seed) for key, per_seed in values.items()},
    )


def _records(line: Line, folder: Path) -> list[Record]:
    """One of every training: cells that a seed does not enter, as the aligned model, are one."""
    found: dict[str, Record | None] = {}
    for cell in line.cells:
        settings = json.dumps(cell.settings())
        found[settings] = found.get(settings) or load_record(cell, folder)
    return [record for record in found.values() if record is not None]


def _by_share(line: Line) -> list[Line]:
    shares = dict.fromkeys(cell.harmful_share for cell in line.cells)
    return [
        line._replace(cells=tuple(cell for cell in line.cells if cell.harmful_share == share))
        for share in shares
    ]


def _merged(environments: Iterable[Mapping[str, str]]) -> dict[str, list[str]]:
    found: dict[str, set[str]] = {}
    for environment in environments:
        for key, value in environment.items():
            found.setdefault(key, set()).add(value)
    return {key: sorted(values) for key, values in found.items()}
