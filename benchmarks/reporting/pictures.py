"""Pictures of one machine's results: time and memory of every case, and their growth.

A picture without a measured line is not drawn.

Legend: N rows, V vocabulary.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from benchmarks.cases.case import Case
from benchmarks.cases.catalogue import lines
from benchmarks.cases.plan import OURS, Line, title
from benchmarks.measuring.floors import CROSS_ENTROPY_ALONE, GEMMS
from benchmarks.reporting.drawing import (
    FAINT,
    FIRST,
    OTHERS,
    TITLE,
    Style,
    clean,
    legend,
    log_scale,
    new_figure,
    save,
)
from benchmarks.reporting.results import Result
from benchmarks.reporting.scaling import Track, fit, tracks

DRAWN_OPS = ("linear_cross_entropy", "pact_loss")


def plot_all(device: str, machine: str, results: Sequence[Result], folder: Path) -> list[Path]:
    """Into PNG files named after the machine."""
    stem = f"{device}-{'-'.join(re.findall('[a-z0-9]+', machine.lower()))}"
    style = styles(results)
    drawn = [plot_cases(op, results, style, folder / f"{op}-{stem}.png") for op in DRAWN_OPS]
    drawn.append(plot_growth(lines(device), results, style, folder / f"growth-{stem}.png"))
    return [path for path in drawn if path is not None]


def styles(results: Iterable[Result]) -> dict[str, Style]:
    """The style of every implementation, in the order in which the results meet them."""
    names = dict.fromkeys(each.implementation for each in results if each.measured)
    others = [name for name in names if name not in (OURS, GEMMS)]
    found = {name: OTHERS[place % len(OTHERS)] for place, name in enumerate(others)}
    return {**found, OURS: FIRST}


def plot_cases(
    op: str, results: Sequence[Result], style: dict[str, Style], path: Path
) -> Path | None:
    """A row for each case: time as a multiple of its GEMMs', and peak memory beyond the inputs."""
    here = [each for each in results if each.measured and each.case.op == op]
    here = [each for each in here if each.of_gemms is not None and each.implementation != GEMMS]
    cases = list(dict.fromkeys(each.case for each in here))
    if not cases:
        return None
    figure = new_figure(11.0, 1.6 + 0.3 * len(cases))
    left, right = panels = figure.subplots(1, 2, sharey=True)
    for name in dict.fromkeys(each.implementation for each in here):
        own = [each for each in here if each.implementation == name]
        _dots(left, own, cases, [1 / (each.of_gemms or 1.0) for each in own], name, style[name])
        if name != CROSS_ENTROPY_ALONE:
            _dots(right, own, cases, [each.extra_mib for each in own], name, style[name])
    left.axvline(1.0, color=FAINT, linewidth=1, linestyle="--")
    left.set_yticks(range(len(cases)), [title(case) for case in cases])
    left.set_ylim(len(cases) - 0.4, -0.6)
    left.set_title("Time / time of its GEMMs alone", **TITLE)
    right.set_title("Peak memory beyond the inputs, MiB", **TITLE)
    for axes in panels:
        log_scale(axes, "x")
        clean(axes)
    legend(figure, panels)
    return save(figure, path)


def plot_growth(
    along: Sequence[Line], results: Sequence[Result], style: dict[str, Style], path: Path
) -> Path | None:
    """Time and memory beyond the outputs against N and V, with fitted exponents."""
    found = [(line, tracks(line, results)) for line in along]
    found = [(line, group) for line, group in found if group]
    if not found:
        return None
    figure = new_figure(11.0, 0.5 + 3.2 * len(found))
    grid = figure.subplots(len(found), 2, squeeze=False)
    for (time_axes, memory_axes), (line, group) in zip(grid, found, strict=True):
        for track in group:
            if track.implementation != GEMMS:
                _curve(time_axes, track, track.p50_ms, style)
                _curve(memory_axes, track, track.beyond_outputs_mib, style)
        head = line.cases[0]
        rest = f"V {head.vocabulary}" if line.size == "N" else f"N {head.rows}"
        time_axes.set_title(f"Time, ms (D {head.hidden}, {rest})", **TITLE)
        memory_axes.set_title("Memory beyond inputs and outputs, MiB", **TITLE)
        for axes in (time_axes, memory_axes):
            log_scale(axes, "x")
            log_scale(axes, "y")
            axes.set_xticks(line.sizes(), [str(size) for size in line.sizes()])
            axes.set_xlabel(line.size)
            clean(axes)
            axes.legend(frameon=False, fontsize=8)
    return save(figure, path)


def _dots(
    axes: Any,
    own: Sequence[Result],
    cases: Sequence[Case],
    values: Sequence[float | None],
    name: str,
    style: Style,
) -> None:
    points = [
        (value, cases.index(each.case))
        for each, value in zip(own, values, strict=True)
        if value is not None and value > 0
    ]
    if points:
        x, y = zip(*points, strict=True)
        front = 3 if name == OURS else 2
        axes.plot(
            x,
            y,
            style.marker,
            color=style.colour,
            markersize=6.5,
            label=name,
            zorder=front,
            alpha=0.9,
        )


def _curve(
    axes: Any, track: Track, values: Sequence[float | None], style: dict[str, Style]
) -> None:
    known = [(x, y) for x, y in zip(track.sizes, values, strict=True) if y is not None and y > 0]
    if not known:
        return
    x, y = zip(*known, strict=True)
    fitted = fit(x, y)
    label = track.implementation + ("" if fitted is None else f": exponent {fitted.exponent:.2f}")
    colour, marker = style[track.implementation]
    axes.plot(x, y, color=colour, marker=marker, label=label, linewidth=1.5, markersize=5.5)
