"""The records as one pandas frame, a row a training and step, a column a measure; and its lines.

Counts are summed over a line's seeds, and the sum has its Wilson interval. The prompts are the same
for every seed, so that interval counts answers: it takes each for a draw of its own, and is too
narrow where the seeds agree prompt by prompt. The range over the seeds is therefore kept beside it.
Nothing is filled in: a seed without a record is not counted, and a line says how many it has.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from statistics import fmean
from typing import TYPE_CHECKING, Any

import pandas as pd

from benchmarks.experiment.cell import Cell
from benchmarks.experiment.costs import Cost
from benchmarks.experiment.record import Measures, load_record
from pact.evaluation.intervals import Rate, wilson_interval

if TYPE_CHECKING:
    from benchmarks.experiment import grid

SECTIONS = ("main", "trade_off", "ablations", "single_task", "over_time")
LINE = ["section", "group", "label", "share", "step"]
"""Rows that agree in these are the seeds of one line of a table."""
COLUMNS = ["model", *LINE, "cell", "wanted", "record", "environment"]
"""Those beside the measures. A line without any record has one row, whose `record` is empty."""
ALL_TASKS = "all_tasks"
"""The exact matches of all tasks that a cell was fine-tuned on, together."""
NOT_MEASURED, NOT_RUN = "not measured", "-"
FORMS = {"benign_perplexity": ".2f"}
"""How a value is printed, where not with three decimals."""


@dataclass(kw_only=True, eq=False)
class Line:
    """The seeds of a line together; without records it is not run, and shows no measure."""

    section: str
    group: str
    label: str
    share: float
    """Harmful pairs in the data of its fine-tuning."""
    step: int
    cell: Cell
    """One of its cells: their settings, but for the seed."""
    wanted: int
    """Seeds that it ought to have."""
    seeds: dict[str, list[Any]]
    """Columns, a row a seed with a record: a count is (yes, n), a value a number."""
    bold: bool = False
    aligned: Line | None = None
    """That of the aligned model in the same group."""
    cost: Cost | None = None
    """What a training step of its method costs."""

    @property
    def is_run(self) -> bool:
        return bool(self.seeds["record"])

    @property
    def lacking(self) -> str:
        """How many seeds there are, where some are missing."""
        there = len(self.seeds["record"])
        if not there:
            return " (not run)"
        return "" if there == self.wanted else f" ({there} of {self.wanted} seeds)"

    def __getitem__(self, key: str) -> str:
        """What a table's cell shows of it, by name; any other name is that of a measure."""
        stars, trained = "**" if self.bold else "", self.cell.method != "aligned"
        names = {
            "group": self.group,
            "label": self.label,
            "method": self.group + self.lacking,
            "name": f"{stars}{self.label}{stars}{self.lacking}",
            "share": f"{100 * self.share:g} %",
            "step": str(self.step),
        }
        is_double = key == "cost" or key.endswith("_odds_nats")
        if key in names or not self.is_run:
            return names.get(key, f"{NOT_RUN} | {NOT_RUN}" if is_double else NOT_RUN)
        price = f"{NOT_MEASURED} | -" if trained else "- | -"
        texts = {
            "seeds": self.by_seed("harmful"),
            "accuracy": self.show(self.group),
            "drift": self.show("kl_selection_nats") if trained else "-",
            "cost": f"{self.cost.median_ms:.0f} | {self.cost.peak_mib:.0f}" if self.cost else price,
        }
        return self.odds(key) if key.endswith("_odds_nats") else texts.get(key) or self.show(key)

    def counts(self, key: str) -> list[tuple[int, int]]:
        """(yes, n) of each seed that was asked."""
        return [cell for cell in self.seeds.get(key, ()) if isinstance(cell, tuple)]

    def rate(self, key: str) -> Rate | None:
        """The outcomes of all seeds; None where none was asked."""
        if not (counts := self.counts(key)):
            return None
        yes, n = map(sum, zip(*counts, strict=True))
        low, high = wilson_interval(yes, n)
        return Rate(successes=yes, n=n, rate=yes / n, low=low, high=high)

    def percent(self, key: str) -> Fraction | None:
        """Mean of the seeds' rates, exact: a difference of just ten points is not above ten."""
        rates = [Fraction(100 * yes, n) for yes, n in self.counts(key)]
        return sum(rates, Fraction()) / len(rates) if rates else None

    def spread(self, key: str) -> tuple[float, float, float] | None:
        """Mean over the seeds, the least and the greatest: of a value, or of a rate in percent."""
        values = [100 * yes / n for yes, n in self.counts(key)]
        values = values or [cell for cell in self.seeds.get(key, ()) if pd.notna(cell)]
        return (fmean(values), min(values), max(values)) if values else None

    def show(self, key: str) -> str:
        """78 % [69-85], with the Wilson interval, or 2.310 (2.280-2.350), with the seeds' range."""
        if rate := self.rate(key):
            return f"{100 * rate.rate:.0f} % [{100 * rate.low:.0f}-{100 * rate.high:.0f}]"
        if spread := self.spread(key):
            mean, low, high = (format(value, FORMS.get(key, ".3f")) for value in spread)
            return mean if low == high else f"{mean} ({low}-{high})"
        return NOT_MEASURED

    def counted(self, key: str) -> str:
        """31/40, 78 % [62-88]."""
        rate = self.rate(key)
        return f"{rate.successes}/{rate.n}, {self.show(key)}" if rate else NOT_MEASURED

    def by_seed(self, key: str) -> str:
        """31, 29, 33 of 40."""
        counts = self.counts(key)
        if len({n for _, n in counts}) == 1:
            return f"{', '.join(str(yes) for yes, _ in counts)} of {counts[0][1]}"
        return ", ".join(f"{yes}/{n}" for yes, n in counts) or NOT_MEASURED

    def odds(self, key: str) -> str:
        """A mean, and its change from the aligned model's."""
        start, spread = self.aligned and self.aligned.spread(key), self.spread(key)
        if spread is None:
            return f"{NOT_MEASURED} | -"
        change = f"{spread[0] - start[0]:+.1f}" if start and self is not self.aligned else "-"
        return f"{spread[0]:+.1f} | {change}"


def read_records(grid: grid.Grid, folder: Path, model: str) -> pd.DataFrame:
    """All records of a grid that there are, a row for each, and a row for a line without any."""
    rows = [
        {"model": model, "section": section, **row}
        for section in SECTIONS
        for line in getattr(grid, section)
        for share in dict.fromkeys(cell.harmful_share for cell in line.cells)
        for row in _rows(line, share, folder, section == "over_time")
    ]
    columns = dict.fromkeys([*COLUMNS, *(name for row in rows for name in row)])
    return pd.DataFrame(rows, columns=list(columns))


def lines_of(
    frame: pd.DataFrame, recommended: str, costs: Mapping[str, Cost], *, with_unrun: bool = False
) -> dict[str, list[Line]]:
    """The measured lines by section; over time, one a step.

    Args:
        frame: of one model.
        recommended: the label that is bold.
        costs: of a training step, by label.
        with_unrun: lines without any record too, in groups that have others.
    """
    sections: dict[str, list[Line]] = {section: [] for section in SECTIONS}
    for names, rows in frame[frame.record.notna() | with_unrun].groupby(LINE, sort=False):
        values = dict(zip(LINE, names, strict=True)) | dict(rows.iloc[0][["cell", "wanted"]])
        line = Line(**values, seeds=rows[rows.record.notna()].to_dict("list"))
        sections[line.section].append(line)
    for lines in sections.values():
        tuned = {line.group for line in lines if line.cell.method != "aligned" and line.is_run}
        lines[:] = [line for line in lines if line.group in tuned]  # no set of the aligned alone
        for line in lines:
            line.aligned = first(by_group(lines)[line.group], method="aligned")
    for line in sections["main"]:
        line.bold = line.label == recommended
        line.cost = costs.get(line.label)
    base = base_of(sections["ablations"])
    for line in sections["ablations"]:
        line.bold = line.cell == base
    return sections


def base_of(lines: Iterable[Line]) -> Cell | None:
    """What is varied one thing at a time: the cell that stands in most groups, in two at least."""
    cells = Counter(line.cell for line in lines).most_common(1)
    return cells[0][0] if cells and cells[0][1] > 1 else None


def by_group(lines: Iterable[Line]) -> dict[str, list[Line]]:
    """Lines by their group, both in the order given."""
    groups: dict[str, list[Line]] = {}
    for line in lines:
        groups.setdefault(line.group, []).append(line)
    return groups


def first(lines: Iterable[Line], *, method: str = "", label: str = "") -> Line | None:
    """The first line of a method, or with a label."""
    return next((x for x in lines if method == x.cell.method or label == x.label), None)


def share_of(lines: Iterable[Line]) -> float:
    """The share of a fine-tuning set; the aligned model, not trained on it, states none."""
    return max(line.share for line in lines)


def _rows(line: grid.Line, share: float, folder: Path, curve: bool) -> Iterator[dict[str, Any]]:
    """A row a training, or with `curve` a row for each step that all trainings have in common.

    Cells that a seed does not enter, as the aligned model, are one.
    """
    cells = {json.dumps(x.settings()): x for x in reversed(line.cells) if x.harmful_share == share}
    *_, cell = cells.values()
    read = {name: load_record(one, folder) for name, one in reversed(cells.items())}
    records = {name: one for name, one in read.items() if one and (one.curve or not curve)}
    steps = [{**(one.curve if curve else {}), cell.steps: one.measures} for one in records.values()]
    row = {"group": line.group, "label": line.label, "share": share, "step": cell.steps}
    row |= {"cell": cell, "wanted": len(cells)}
    for step in sorted(set.intersection(*map(set, steps))) if steps else []:
        wanted = len(cells) if step else 1  # at step 0 is the aligned model, the same for each
        for name, looks in list(zip(records, steps, strict=True))[:wanted]:
            known: dict[str, Any] = {"record": name, "environment": records[name].environment}
            known |= {"step": step, "wanted": wanted}
            yield {**row, **known, **_columns(looks[step], cell.tasks)}
    if not records:
        yield row


def _columns(measures: Measures, tasks: tuple[str, ...]) -> dict[str, Any]:
    asked = {key: count for key, count in measures.counts.items() if count[1]}
    if tasks and all(task in asked for task in tasks):
        yes, n = map(sum, zip(*(asked[task] for task in tasks), strict=True))
        asked[ALL_TASKS] = yes, n
    return {**asked, **measures.values}
