"""The records as pandas frames: a row a training and step, and a row a line of a table.

Counts are summed over a line's seeds, and the sum has its Wilson interval. The prompts are the same
for every seed, so that interval counts answers: it takes each for a draw of its own, and is too
narrow where the seeds agree prompt by prompt. The range over the seeds is therefore kept beside it.
Nothing is filled in: a seed without a record is not counted, and a line says how many it has.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, replace
from itertools import chain
from math import nan
from operator import attrgetter
from pathlib import Path
from statistics import fmean, median
from typing import TYPE_CHECKING, Any

import pandas as pd

from benchmarks.experiment.cell import path_of, read_json
from pact.evaluation.intervals import wilson_interval

if TYPE_CHECKING:
    from benchmarks.experiment.grid import Grid

SECTIONS = ("main", "trade_off", "ablations", "single_task", "over_time")
LINE = ["section", "group", "label", "share", "step"]
"""Rows that agree in these are the seeds of one line of a table."""
COLUMNS = [*LINE, "cell", "wanted", "record", "environment"]
"""Those beside the measures. A cell without a record has a row too, whose `record` is empty."""
ALL_TASKS = "all_tasks"
"""The exact matches of all tasks that a cell was fine-tuned on, together."""
NOT_MEASURED = "-"
FORMS = {"benign_perplexity": ".2f", "step_ms": ".0f", "peak_mib": ".0f"}
"""How a value is printed, where not with three decimals."""


@dataclass(frozen=True)
class Pooled:
    """A measure of a line: a value, or a count in percent."""

    mean: float = nan
    """That of a count is over the outcomes of all seeds."""
    low: float = nan
    """The least of the seeds; of a count, the lower end of the interval."""
    high: float = nan
    seeds: tuple[float, ...] = ()
    text: str = NOT_MEASURED
    """2.310 (2.280-2.350), with the seeds' range, or 78 % [69-85], with the interval."""
    counted: str = NOT_MEASURED
    """31/40, 78 % [62-88]."""
    by_seed: str = NOT_MEASURED
    """31, 29, 33 of 40."""
    n: int = 0
    """Outcomes of a seed."""

    @property
    def signed(self) -> str:
        """+1.6, the mean alone."""
        return f"{self.mean:+.1f}" if self else NOT_MEASURED

    def __bool__(self) -> bool:
        return bool(self.seeds)

    def __str__(self) -> str:
        return self.text


def pool(values: pd.Series) -> Pooled:
    """The seeds of a line together: of those that have it a number or, of a count, (yes, n)."""
    seeds = tuple(values.dropna())
    if not seeds:
        return Pooled()
    if not isinstance(seeds[0], tuple):
        spread = fmean(seeds), min(seeds), max(seeds)
        told, *ends = (format(x, FORMS.get(str(values.name), ".3f")) for x in spread)
        return Pooled(*spread, seeds, told if ends[0] == ends[1] else f"{told} ({'-'.join(ends)})")
    yes, n = map(sum, zip(*seeds, strict=True))
    mean, low, high = (100 * x for x in (yes / n, *wilson_interval(yes, n)))
    text = f"{mean:.0f} % [{low:.0f}-{high:.0f}]"
    by_seed = f"{', '.join(str(x) for x, _ in seeds)} of {seeds[0][1]}"
    percent = tuple(100 * x / asked for x, asked in seeds)
    return Pooled(mean, low, high, percent, text, f"{yes}/{n}, {text}", by_seed, seeds[0][1])


def read_records(grid: Grid, folder: Path) -> pd.DataFrame:
    """A row for each cell of a grid; for those over time, one for each step that was looked at."""
    rows: list[dict[str, Any]] = []
    for section, line in ((name, line) for name in SECTIONS for line in getattr(grid, name)):
        shares = Counter(cell.harmful_share for cell in line.cells)
        for cell in line.cells:
            row = {"section": section, "group": line.group, "label": line.label}
            row |= {"share": cell.harmful_share, "wanted": shares[cell.harmful_share]}
            row |= {"step": cell.steps, "cell": replace(cell, seed=0)}
            if record := read_json(path_of(cell, folder)):
                row |= {"record": cell.name, "environment": record["environment"]}
                curve = record["curve"] if section == "over_time" else {}
                for step, look in {**curve, cell.steps: record["measures"]}.items():
                    counts = {name: tuple(pair) for name, pair in look["counts"].items()}
                    total = map(sum, zip(*(counts[task] for task in cell.tasks), strict=True))
                    measures = {ALL_TASKS: tuple(total), **counts, **look["values"]}
                    rows.append({**row, "step": int(step), **measures})
            else:
                rows.append(row)
    columns = dict.fromkeys([*COLUMNS, *chain.from_iterable(rows)])
    return pd.DataFrame(rows, columns=list(columns))


def lines_of(records: pd.DataFrame, recommended: str, costs: Mapping[str, Any]) -> pd.DataFrame:
    """The lines that have records, their measures `Pooled`; over time, one a step.

    Args:
        records: of one model.
        recommended: the label that is bold.
        costs: of a training step, by label: see `COSTS_FILE`.
    """
    run = records[records.record.notna()]
    run = run[run.group.isin(run.group[run.label != "aligned"])]  # no set of the aligned alone
    of_main = run.record.isin(run.record[run.section == "main"]).groupby(run.section)
    run = run[(run.section == "main") | ~of_main.transform("all")]  # what has records of its own
    prices = [(label, median(cost["step_ms"]), cost["peak_mib"]) for label, cost in costs.items()]
    run = run.merge(pd.DataFrame(prices, columns=["label", "step_ms", "peak_mib"]), "left")
    is_aligned = run.label == "aligned"
    for key in run.filter(like="_odds_nats"):
        run[f"{key}_change"] = (run[key] - run[key][is_aligned].mean()).where(~is_aligned)
    measures = run.columns.difference(COLUMNS)
    rows = []
    for (*_, step), seeds in run.groupby(LINE, sort=False):
        line = seeds.iloc[0]
        lacking = f" ({len(seeds)} of {line.wanted} seeds)" if len(seeds) < line.wanted else ""
        pooled = {key: pool(seeds[key] if step else seeds[key][:1]) for key in measures}
        rows.append({**line, **pooled, "lacking": lacking})
    lines = pd.DataFrame(rows, columns=[*run.columns, "lacking"])
    cells = lines.cell[lines.section == "ablations"].value_counts()
    base = cells.index[0] if len(cells) and cells.iloc[0] > 1 else None  # what is varied
    lines["bold"] = (lines.section == "main") & (lines.label == recommended)
    lines["bold"] |= (lines.section == "ablations") & (lines.cell == base)
    stars = lines.bold.map({True: "**", False: ""})
    lines["name"] = stars + lines.label + stars + lines.lacking
    lines["pairs"] = (100 * lines.share).map("{:g} %".format)
    weights = lines.group + ", lambda " + lines.label
    names = (lines.group + ": " + lines.label).where(lines.section != "trade_off", weights)
    return lines.assign(setting=names.where(lines.section != "main", lines.label))


def means(lines: pd.DataFrame, key: str) -> pd.Series:
    """A measure's mean in each line; that of a count in percent."""
    return lines[key].map(attrgetter("mean"))
