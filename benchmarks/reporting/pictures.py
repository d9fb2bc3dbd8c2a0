"""Pictures of one machine's results: time and memory of every case, and their growth.

A picture without a measured line is not drawn.

Legend: N rows, V vocabulary.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from itertools import cycle
from pathlib import Path
from typing import Any

import pandas as pd

from benchmarks.cases.plans import OURS, Line, lines, title
from benchmarks.measuring.floors import CROSS_ENTROPY_ALONE, GEMMS
from benchmarks.reporting import drawing
from benchmarks.reporting.drawing import Style
from benchmarks.reporting.results import Result, frame_of
from benchmarks.reporting.scaling import exponent, tracks

DRAWN_OPS = ("linear_cross_entropy", "pact_loss")


def plot_all(device: str, machine: str, results: Sequence[Result], folder: Path) -> list[Path]:
    """Into PNG files named after the machine."""
    stem = f"{device}-{'-'.join(re.findall('[a-z0-9]+', machine.lower()))}"
    names = dict.fromkeys(each.implementation for each in results if each.measured)
    others = [name for name in names if name not in (OURS, GEMMS)]
    style = {**dict(zip(others, cycle(drawing.OTHERS), strict=False)), OURS: drawing.FIRST}
    drawn = [plot_cases(op, results, style, folder / f"{op}-{stem}.png") for op in DRAWN_OPS]
    drawn.append(plot_growth(lines(device), results, style, folder / f"growth-{stem}.png"))
    return [path for path in drawn if path is not None]


def plot_cases(
    op: str, results: Sequence[Result], style: dict[str, Style], path: Path
) -> Path | None:
    """A row for each case: time as a multiple of its GEMMs', and peak memory beyond the inputs."""
    frame = frame_of(each for each in results if each.measured and each.case.op == op)
    frame = frame[frame.of_gemms.notna() & (frame.implementation != GEMMS)]
    if frame.empty:
        return None
    cases = list(dict.fromkeys(frame.case))
    frame = frame.assign(row=[cases.index(case) for case in frame.case], times=1 / frame.of_gemms)
    figure = drawing.new_figure(11.0, 1.6 + 0.3 * len(cases))
    left, right = panels = figure.subplots(1, 2, sharey=True)
    for name, own in frame.groupby("implementation", sort=False):
        _dots(left, own.times, own.row, name, style[name])
        if name != CROSS_ENTROPY_ALONE:
            _dots(right, own.extra_mib, own.row, name, style[name])
    left.axvline(1.0, color=drawing.FAINT, linewidth=1, linestyle="--")
    left.set_yticks(range(len(cases)), [title(case) for case in cases])
    left.set_ylim(len(cases) - 0.4, -0.6)
    left.set_title("Time / time of its GEMMs alone", **drawing.TITLE)
    right.set_title("Peak memory beyond the inputs, MiB", **drawing.TITLE)
    for axes in panels:
        drawing.log_scale(axes, "x")
        drawing.clean(axes)
    drawing.legend(figure, panels)
    return drawing.save(figure, path)


def plot_growth(
    along: Sequence[Line], results: Sequence[Result], style: dict[str, Style], path: Path
) -> Path | None:
    """Time and memory beyond the outputs against N and V, with fitted exponents."""
    found = [(line, group) for line in along if (group := tracks(line, results))]
    if not found:
        return None
    figure = drawing.new_figure(11.0, 0.5 + 3.2 * len(found))
    grid = figure.subplots(len(found), 2, squeeze=False)
    for (time_axes, memory_axes), (line, group) in zip(grid, found, strict=True):
        for name, points in group:
            if name != GEMMS:
                _curve(time_axes, points.along, points.p50_ms, name, style[name])
                _curve(memory_axes, points.along, points.beyond_outputs_mib, name, style[name])
        head = line.cases[0]
        rest = f"V {head.vocabulary}" if line.size == "N" else f"N {head.rows}"
        time_axes.set_title(f"Time, ms (D {head.hidden}, {rest})", **drawing.TITLE)
        memory_axes.set_title("Memory beyond inputs and outputs, MiB", **drawing.TITLE)
        for axes in (time_axes, memory_axes):
            drawing.log_scale(axes, "x")
            drawing.log_scale(axes, "y")
            axes.set_xticks(line.sizes(), [str(size) for size in line.sizes()])
            axes.set_xlabel(line.size)
            drawing.clean(axes)
            axes.legend(frameon=False, fontsize=8)
    return drawing.save(figure, path)


def _dots(axes: Any, x: pd.Series, y: pd.Series, name: str, style: Style) -> None:
    above = x > 0  # what a logarithm has, and was measured
    look = {"color": style.colour, "markersize": 6.5, "zorder": 3 if name == OURS else 2}
    if above.any():
        axes.plot(x[above], y[above], style.marker, label=name, alpha=0.9, **look)


def _curve(axes: Any, x: pd.Series, y: pd.Series, name: str, style: Style) -> None:
    above = y > 0
    fitted = exponent(x[above], y[above])
    label = name if fitted is None else f"{name}: exponent {fitted:.2f}"
    look = {"color": style.colour, "marker": style.marker, "linewidth": 1.5, "markersize": 5.5}
    if above.any():
        axes.plot(x[above], y[above], label=label, **look)
