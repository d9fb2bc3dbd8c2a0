"""Render the results as Markdown: figures with verdicts, tables by op, and what was not measured.

Every number comes from the results file.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import jinja2
import pandas as pd

from benchmarks.cases.case import OPS
from benchmarks.cases.plans import lines, plans, title
from benchmarks.measuring.machine import NEEDS_A_GPU, NO_GPU
from benchmarks.reporting.pictures import plot_all
from benchmarks.reporting.results import Result, frame_of
from benchmarks.reporting.scaling import tracks
from benchmarks.reporting.targets import targets

REPORT = "ops.md"
EMPTY_LINES = re.compile(r"\n{3,}")
"""Where a part came to nothing."""
REMARK = ["op", "implementation", "remark"]
CIRCUMSTANCES = ("torch", "triton", "cuda", "threads", "commit")
"""Columns."""


def number(value: float | None) -> str:
    """Three digits, or as many as are before the point; nothing where there is none."""
    if value is None or pd.isna(value):
        return ""
    return f"{value:.0f}" if abs(value) >= 100 else f"{value:.3g}"


def _shown(value: Any) -> str:
    """What the template prints of a value, in a cell of a table or outside."""
    text = number(value) if value is None or isinstance(value, float) else str(value)
    return text.replace("|", "\\|")


TEMPLATES = jinja2.Environment(
    loader=jinja2.FileSystemLoader(Path(__file__).parent),
    undefined=jinja2.StrictUndefined,
    finalize=_shown,
    trim_blocks=True,
    lstrip_blocks=True,
    keep_trailing_newline=True,
)


def render(results: Sequence[Result], folder: Path) -> list[Path]:
    """Write the report and its pictures into a folder."""
    pictures: list[Path] = []
    sections: list[dict[str, Any]] = []
    for (device, machine), here in places(results).items():
        drawn = plot_all(device, machine, here, folder)
        told = section(device, machine, here)
        sections.append({**told, "pictures": [path.name for path in drawn]})
        pictures += drawn
    text = TEMPLATES.get_template(f"{REPORT}.j2").render(sections=sections)
    folder.mkdir(parents=True, exist_ok=True)
    report = folder / REPORT
    report.write_text(EMPTY_LINES.sub("\n\n", text).rstrip() + "\n", encoding="utf-8")
    return [report, *pictures]


def places(results: Iterable[Result]) -> dict[tuple[str, str], list[Result]]:
    """Results by device and machine; a GPU is named where none has been measured on."""
    found: dict[tuple[str, str], list[Result]] = {}
    for each in results:
        found.setdefault((each.device, each.machine), []).append(each)
    if not any(device == "cuda" for device, _ in found):
        found["cuda", NO_GPU] = []
    return found


def section(device: str, machine: str, results: Sequence[Result]) -> dict[str, Any]:
    """All that is said of one machine."""
    everything = frame_of(results)
    measured = everything[everything.p50_ms.notna()]
    lacking = everything[everything.p50_ms.isna()]
    nowhere = device == "cuda" and measured.empty
    remarked = measured[measured.remark != ""]
    ways = measured[(measured.device == "cpu") & (measured.dtype == "bfloat16")].bf16.unique()
    figures = targets(device, results)
    return {
        "name": f"a GPU ({machine})" if nowhere else machine,
        "told": circumstances(measured),
        "needed": NEEDS_A_GPU,
        "figures": [each for each in figures if each.measured or each.target],
        "ops": {op: blocks for op in OPS if (blocks := blocks_of(measured[measured.op == op]))},
        "bf16": " or ".join(
            "widening to fp32" if way == "through fp32" else f"{way} instructions" for way in ways
        ),
        "tracks": [(line, track) for line in lines(device) for track in tracks(line, results)],
        "remarks": list(remarked.groupby(REMARK, sort=False).size().items()),
        "reasons": [
            (key, rows.implementation.value_counts(sort=False))
            for key, rows in lacking.groupby(["op", "reason"], sort=False)
        ],
    }


def circumstances(measured: pd.DataFrame) -> str:
    """What the numbers depend on beside the code."""

    def all_of(column: str) -> list[str]:
        return sorted(set(measured[column].astype(str)) - {""})

    if measured.empty:
        return ""
    dates = all_of("date")
    told = [dates[0] if len(dates) == 1 else f"{dates[0]} to {dates[-1]}"]
    for column in CIRCUMSTANCES:
        if values := all_of(column):
            name = {"cuda": "CUDA", "threads": "threads:"}.get(column, column)
            told.append(f"{name} {', '.join(values)}")
    commands = ", ".join(f"`{command}`" for command in all_of("command"))
    return f"{'; '.join(told)} (UTC; a commit's + says that files had changed). {commands}"


def blocks_of(measured: pd.DataFrame) -> list[tuple[str, list[Any]]]:
    """The lines of each case, the fastest first, in the order of the plans."""
    planned = [plan.case for subset in ("cpu", "cpu-large", "gpu") for plan in plans(subset)]
    place = {case: index for index, case in enumerate(planned)}
    cases = sorted(measured.case.unique(), key=lambda case: place.get(case, len(place)))
    fastest_first = measured.sort_values("p50_ms", kind="stable")
    return [
        (title(case), list(fastest_first[fastest_first.case == case].itertuples()))
        for case in cases
    ]
