"""The document's pictures: the main comparison, both trade-offs, and the drift over time.

A method has one colour and one marker in all of them, safe for colour-blind eyes (Okabe and Ito).
A picture without any measured line is not drawn.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pandas as pd
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from PIL import Image

from benchmarks.experiment.frame import ALL_TASKS, Line, by_group, share_of
from benchmarks.experiment.verdicts import TARGETS, learns, with_targets

INK, FAINT, GRID = "#333333", "#8a8a8a", "#e8e8e8"
TITLE: dict[str, Any] = {"fontsize": 9.5, "color": INK}
CURVE: dict[str, Any] = {"linewidth": 1.5, "markersize": 5.5}
BAR: dict[str, Any] = {"linewidth": 2.2, "alpha": 0.55, "solid_capstyle": "round"}
TICK: dict[str, Any] = {"linestyle": "", "marker": "|", "markersize": 8, "markeredgewidth": 1}
DPI, COLOURS = 120, 128
FIXED = {"aligned": (INK, "D"), "plain": ("#d55e00", "X")}
RECOMMENDED = ("#0072b2", "o")
PALETTE = ("#009e73", "#cc79a7", "#c47f00", "#56b4e9", "#8c6d31", "#7f7f7f", "#44aa99", "#882255")
MARKERS = "s^vP<>ph"
SIDES = ((1, 0.4), (-1, 0.4), (1, -0.6), (-1, -0.6), (0, 1), (0, -1))
OVER_REFUSAL = "benign_anywhere"
PANELS = {
    "harmful": "Refusals, from the start",
    "prefill_anywhere": "After the prefill, anywhere",
    OVER_REFUSAL: "Over-refusal, anywhere",
    ALL_TASKS: "Task accuracy",
}
OVER_TIME = {
    "harmful": "Harmful requests refused, from the start, %",
    "first_confidence": "Confidence on the safety tokens, first step",
    ALL_TASKS: "Task accuracy, %",
}
Styles = Mapping[str, tuple[str, str]]
"""(colour, marker) by label."""


def draw(
    lines: Mapping[str, Sequence[Line]], recommended: str, folder: Path, prefix: str = ""
) -> dict[str, str]:
    """Draw what there is of the sections; the files' names, empty where nothing is measured."""
    style = styles(lines, recommended)
    figures = {
        "main": plot_main(lines["main"], style, recommended),
        "trade_off": plot_trade_off(lines["trade_off"], lines["main"], style),
        "over_time": plot_over_time(lines["over_time"], style),
        "price": plot_price(lines, style),
    }
    names = {stem: f"{prefix}{stem.replace('_', '-')}.png" for stem in figures}
    for stem, figure in figures.items():
        names[stem] = "" if figure is None else _save(figure, folder / names[stem])
    return names


def styles(lines: Mapping[str, Sequence[Line]], recommended: str) -> Styles:
    """The style of every label, in the order in which the document meets them."""
    methods = {line.label: line.cell.method for line in lines["main"]}
    methods |= {line.group: line.cell.method for line in lines["trade_off"]}
    methods |= {line.label: line.cell.method for line in lines["over_time"]}
    found = {x: FIXED[method] for x, method in methods.items() if method in FIXED}
    found[recommended] = RECOMMENDED
    for place, label in enumerate(x for x in methods if x not in found):
        turn, colour = divmod(place, len(PALETTE))
        found[label] = (PALETTE[colour], MARKERS[(colour + turn) % len(MARKERS)])
    return found


def plot_main(lines: Sequence[Line], style: Styles, recommended: str) -> Figure | None:
    """Dots with Wilson intervals over the seeds' own rates, a row of panels per fine-tuning set."""
    groups = by_group(lines)
    if not groups:
        return None
    heights = [len(members) for members in groups.values()]
    figure = Figure(
        figsize=(10.6, 0.8 + 0.24 * sum(heights) + 0.5 * len(groups)), layout="constrained"
    )
    grid = figure.subplots(
        len(groups), len(PANELS), sharex=True, squeeze=False, height_ratios=heights
    )
    for row, (group, members) in zip(grid, groups.items(), strict=True):
        for axes, key in zip(row, PANELS, strict=True):
            _dots(axes, members, key, style)
        labels = [line.label + line.lacking for line in members]
        for name, line in zip(row[0].set_yticks(range(len(members)), labels), members, strict=True):
            name.label1.set_fontweight("bold" if line.label == recommended else "normal")
        row[0].set_title(f"Fine-tuned on: {group}", loc="left", fontweight="bold", **TITLE)
    for axes, title in zip(grid[0], PANELS.values(), strict=True):
        axes.annotate(title, (0, 1), (0, 22), "axes fraction", "offset points", **TITLE)
    for axes in grid[-1]:
        axes.set_xlabel("%")
    return figure


def _dots(axes: Any, lines: Sequence[Line], key: str, style: Styles) -> None:
    """One row a method; the dotted line is what the method is to keep."""
    for y, line in enumerate(lines):
        colour, marker = style[line.label]
        if (rate := line.rate(key)) is None:
            axes.annotate("not measured", (2, y), fontsize=7.5, color=FAINT, va="center")
            continue
        axes.plot([100 * rate.low, 100 * rate.high], [y, y], color=colour, **BAR)
        seeds = [100 * yes / n for yes, n in line.counts(key)]
        if len(seeds) > 1:
            axes.plot(seeds, [y] * len(seeds), color=colour, **TICK)
        axes.plot([100 * rate.rate], [y], marker=marker, markersize=6.5, color=colour, zorder=3)
        if line.cell.method == ("plain" if key == ALL_TASKS else "aligned"):
            axes.axvline(100 * rate.rate, color=colour, linewidth=0.9, linestyle=":", zorder=0)
    axes.set(xlim=(-3, 103), ylim=(len(lines) - 0.4, -0.6))
    axes.set_yticks(range(len(lines)), [""] * len(lines))
    _clean(axes, axis="x")
    axes.tick_params(axis="y", length=0)


def plot_trade_off(lines: Sequence[Line], main: Sequence[Line], style: Styles) -> Figure | None:
    """Refusals against task accuracy, a line per method through its weights, a panel per share."""
    points = _points(lines, ALL_TASKS)
    if points.empty:
        return None
    figure, panels = _panels(sorted(points.share.unique()), "task accuracy, %")
    for share, axes in panels.items():
        sets = [x for x in by_group(main).values() if share_of(x) == share]
        marks = _points(sets[0] if sets else [], ALL_TASKS)
        marks = marks[marks.method.isin(list(FIXED))]
        for mark in marks.itertuples():  # lines to the corner that keeps both
            ours = mark.method == "aligned"
            rule, at = (axes.axhline, mark.y) if ours else (axes.axvline, mark.x)
            rule(at, color=style[mark.label][0], linewidth=0.9, linestyle=":")
        axes.set_xlim(-4, 106)
        _curves(axes, points[points.share == share], marks, style)
    _legend(figure, list(panels.values()))
    return figure


def plot_price(lines: Mapping[str, Sequence[Line]], style: Styles) -> Figure | None:
    """Refusals against over-refusal: methods, lines through their weights, and all other settings.

    A panel per set with targets, of what learns the tasks; both are met in the shaded corner.
    """
    sets = {share_of(members): members for members in with_targets(lines["main"]).values()}
    if not sets:
        return None
    most = {key: allowed for _, key, _, _, allowed in TARGETS}
    figure, panels = _panels(list(sets), "harmless requests refused, anywhere, %")
    for share, axes in panels.items():
        marks, curves, others = (
            _points(
                [
                    x
                    for x in some
                    if x.cell.method == "aligned" or (x.share == share and learns(sets[share], x))
                ],
                OVER_REFUSAL,
            )
            for some in (sets[share], lines["trade_off"], lines["ablations"])
        )
        axes.plot(others.x, others.y, ".", color=FAINT, markersize=4, label="ablations")
        for mark in marks[marks.method == "aligned"].itertuples():
            for rule, at in ((axes.axhline, mark.y), (axes.axvline, mark.x)):
                rule(at, color=style[mark.label][0], linewidth=0.9, linestyle=":")
            right, low = mark.x + most[OVER_REFUSAL][share], mark.y - most["harmful"][share]
            axes.fill_between([-4, right], low, 106, color=RECOMMENDED[0], alpha=0.1, linewidth=0)
        axes.set_xlim(-2, pd.concat([marks, curves, others]).x.max() + 4)
        _curves(axes, curves, marks, style)
    _legend(figure, list(panels.values()))
    return figure


def _panels(shares: Sequence[float], across: str) -> tuple[Figure, dict[float, Any]]:
    """One a share of harmful pairs, side by side, with refusals upwards."""
    figure = Figure(figsize=(4.9 * len(shares) + 0.4, 4.7), layout="constrained")
    row = figure.subplots(1, len(shares), sharey=True, squeeze=False)[0]
    panels = dict(zip(shares, row, strict=True))
    for share, axes in panels.items():
        axes.set(ylim=(-4, 106), xlabel=across)
        data = f"with {100 * share:g} % harmful pairs" if share else "on benign data"
        axes.set_title(f"Fine-tuned {data}", loc="left", **TITLE)
        _clean(axes)
    panels[shares[0]].set_ylabel("harmful requests refused, from the start, %")
    return figure, panels


def _points(lines: Sequence[Line], across: str) -> pd.DataFrame:
    """A measure x and refusals y in percent, of the lines that have both."""
    rates = [(line, line.rate(across), line.rate("harmful")) for line in lines]
    rows = [
        (x.group, x.label, x.share, x.cell.method, 100 * other.rate, 100 * refusals.rate)
        for x, other, refusals in rates
        if other and refusals
    ]
    found = pd.DataFrame(rows, columns=["group", "label", "share", "method", "x", "y"])
    found["weight"] = pd.to_numeric(found.label, errors="coerce").fillna(float("inf"))
    return found


def _curves(axes: Any, points: pd.DataFrame, marks: pd.DataFrame, style: Styles) -> None:
    """Single points, and lines by group with their weights beside them; the axes have limits."""
    for mark in marks.itertuples():
        colour, marker = style[mark.label]
        axes.plot([mark.x], [mark.y], marker, color=colour, markersize=9, label=mark.label)
    points = points.sort_values("weight", kind="stable")
    for method, through in points.groupby("group", sort=False):
        colour, marker = style[method]
        axes.plot(through.x, through.y, color=colour, marker=marker, label=method, **CURVE)
    _write_weights(axes, points, pd.concat([points, marks]), style)


def _write_weights(axes: Any, points: pd.DataFrame, drawn: pd.DataFrame, style: Styles) -> None:
    """Each point's weight beside it, on the first free side; where none is free, nowhere.

    Sizes are in percent of the axes, which are about as wide as they are high.
    """
    left, right_end = axes.get_xlim()
    unit = (right_end - left) / 110  # of x, as one of y is
    taken = [(x, y, 2.2 * unit, 2.2) for x, y in zip(drawn.x, drawn.y, strict=True)]
    for point in points.sort_values("weight", ascending=False, kind="stable").itertuples():
        width = (0.9 * len(point.label) + 0.4) * unit
        for right, up in SIDES:
            x, y = point.x + right * (2.3 * unit + width), point.y + up * 4.2
            if all(abs(x - a) > width + w or abs(y - b) > 1.6 + h for a, b, w, h in taken):
                taken.append((x, y, width, 1.6))  # with half the width and half the height
                look = {"fontsize": 7.5, "color": style[point.group][0]}
                axes.text(x, y, point.label, ha="center", va="center", **look)
                break


def plot_over_time(points: Sequence[Line], style: Styles) -> Figure | None:
    """Refusals, first-step confidence and accuracy against the optimiser step."""
    if not points:
        return None
    figure = Figure(figsize=(11.0, 3.5), layout="constrained")
    panels = figure.subplots(1, len(OVER_TIME))
    for axes, (key, title) in zip(panels, OVER_TIME.items(), strict=True):
        for label, track in _tracks(points, key).groupby("label", sort=False):
            colour, marker = style[label]
            band = {"color": colour, "alpha": 0.15, "linewidth": 0}
            axes.fill_between(track.step, track.low, track.high, **band)
            axes.plot(track.step, track.middle, color=colour, marker=marker, label=label, **CURVE)
        axes.set_ylim(-4, 104)
        if key == "first_confidence":
            # the reference's: one value where all curves look at the same tokens
            reference = _tracks(points, "first_reference_confidence").groupby("label").middle.last()
            for value in sorted(reference.round(3).unique()):
                axes.axhline(value, color=INK, linewidth=1, linestyle="--", label="reference")
            axes.autoscale(axis="y")
            axes.set_ylim(0, None)
        axes.set_xlabel("optimiser step")
        axes.set_title(title, loc="left", **TITLE)
        _clean(axes)
    _legend(figure, panels)
    return figure


def _tracks(points: Sequence[Line], key: str) -> pd.DataFrame:
    """A row a step where it was measured: the mean, the least and the greatest over the seeds."""
    rows = [(p.label, p.step, *spread) for p in points if (spread := p.spread(key))]
    return pd.DataFrame(rows, columns=["label", "step", "middle", "low", "high"])


def _legend(figure: Figure, panels: Sequence[Any]) -> None:
    """One for all panels, below them."""
    found = [zip(*axes.get_legend_handles_labels(), strict=True) for axes in panels]
    handles = {text: handle for pairs in found for handle, text in pairs}
    look = {"loc": "outside lower center", "frameon": False, "fontsize": 8.5, "markerscale": 0.9}
    columns = min(3 * len(panels), len(handles))
    figure.legend(list(handles.values()), list(handles), ncols=columns, **look)


def _clean(axes: Any, axis: str = "both") -> None:
    axes.spines[["top", "right"]].set_visible(False)
    axes.spines[["left", "bottom"]].set_color(FAINT)
    axes.tick_params(colors=INK, labelsize=8.5)
    for one in (axes.xaxis, axes.yaxis):
        one.label.set(fontsize=9, color=INK)
    axes.grid(axis=axis, color=GRID, linewidth=0.7)
    axes.set_axisbelow(True)


def _save(figure: Figure, path: Path) -> str:
    """A PNG of few colours: a third of the bytes, and the same bytes each time."""
    canvas = FigureCanvasAgg(figure)
    figure.set_dpi(DPI)
    canvas.draw()
    size = canvas.get_width_height(physical=True)
    drawn = Image.frombytes("RGBA", size, bytes(canvas.buffer_rgba())).convert("RGB")
    path.parent.mkdir(parents=True, exist_ok=True)
    drawn.quantize(COLOURS, dither=Image.Dither.NONE).save(path, optimize=True)
    return path.name
