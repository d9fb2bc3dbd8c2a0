"""The document's pictures: the trade-off, the main comparison, and the drift over time.

A method has one colour and one marker in all of them, safe for colour-blind eyes (Okabe and Ito).
A picture without any measured line is not drawn.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from benchmarks.experiment.pooled import (
    ALL_TASKS,
    Curve,
    Pooled,
    Results,
    harmful_share,
    in_groups,
)

INK, FAINT, GRID = "#333333", "#8a8a8a", "#e8e8e8"
TITLE: dict[str, Any] = {"fontsize": 9.5, "color": INK}
LINE: dict[str, Any] = {"linewidth": 1.5, "markersize": 5.5}
DPI, COLOURS = 120, 128


class Style(NamedTuple):
    """How a method is drawn."""

    colour: str
    marker: str


ALIGNED = Style(INK, "D")
PLAIN = Style("#d55e00", "X")
RECOMMENDED = Style("#0072b2", "o")
OTHERS = (
    Style("#009e73", "s"),
    Style("#cc79a7", "^"),
    Style("#c47f00", "v"),
    Style("#56b4e9", "P"),
    Style("#8c6d31", "<"),
    Style("#7f7f7f", ">"),
    Style("#44aa99", "p"),
    Style("#882255", "h"),
)

MEASURES = {
    "Refusals, from the start": "harmful",
    "After the prefill, anywhere": "prefill_anywhere",
    "Over-refusal, anywhere": "benign_anywhere",
    "Task accuracy": ALL_TASKS,
}
"""Panels of the main picture."""


def styles(results: Results) -> dict[str, Style]:
    """The style of every label, in the order in which the document meets them."""
    lines = [(line.label, line.cell.method) for line in results.main]
    lines += [(line.group, line.cell.method) for line in results.trade_off]
    lines += [(curve.label, curve.cell.method) for curve in results.over_time]
    found: dict[str, Style] = {}
    free = iter(OTHERS)
    for label, method in dict(lines).items():
        if label == results.recommended:
            found[label] = RECOMMENDED
        elif method in ("aligned", "plain"):
            found[label] = {"aligned": ALIGNED, "plain": PLAIN}[method]
        else:
            found[label] = next(free, OTHERS[-1])
    return found


def plot_trade_off(results: Results, path: Path) -> Path | None:
    """Refusals against task accuracy, a line per method through its lambdas, a panel per share."""
    lines = [line for line in results.trade_off if _has(line, "harmful", ALL_TASKS)]
    shares = sorted({line.cell.harmful_share for line in lines})
    if not lines:
        return None
    style = styles(results)
    figure = _figure(4.9 * len(shares) + 0.4, 4.7)
    panels = figure.subplots(1, len(shares), sharey=True, squeeze=False)[0]
    for axes, share in zip(panels, shares, strict=True):
        marks = _reference_marks(axes, _main_set(results, share), style)
        here = [line for line in lines if line.cell.harmful_share == share]
        for method, members in in_groups(here).items():
            _trade_off_line(axes, members, style[method], method)
        _write_weights(axes, here, style, marks)
        axes.set(xlim=(-4, 106), ylim=(-4, 106), xlabel="task accuracy, %")
        axes.set_title(_share_name(share), loc="left", **TITLE)
        _clean(axes)
    panels[0].set_ylabel("harmful requests refused, from the start, %")
    _legend(figure, panels)
    return _save(figure, path)


def plot_main(results: Results, path: Path) -> Path | None:
    """Dots with Wilson intervals over the seeds' own rates, a row of panels per fine-tuning set."""
    if not any(line.measured for line in results.main):
        return None
    style = styles(results)
    groups = in_groups(results.main)
    heights = [len(lines) for lines in groups.values()]
    figure = _figure(10.6, 0.8 + 0.24 * sum(heights) + 0.5 * len(groups))
    grid = figure.subplots(
        len(groups), len(MEASURES), sharex=True, squeeze=False, height_ratios=heights
    )
    for row, (group, lines) in zip(grid, groups.items(), strict=True):
        for axes, key in zip(row, MEASURES.values(), strict=True):
            _dots(axes, lines, key, style)
            axes.set_yticks(range(len(lines)), [""] * len(lines))
        names = row[0].set_yticks(range(len(lines)), [line.name for line in lines])
        for name, line in zip(names, lines, strict=True):
            name.label1.set_fontweight("bold" if line.label == results.recommended else "normal")
        row[0].set_title(f"Fine-tuned on: {group}", loc="left", fontweight="bold", **TITLE)
    for axes, title in zip(grid[0], MEASURES, strict=True):
        axes.annotate(title, (0, 1), (0, 22), "axes fraction", "offset points", **TITLE)
    for axes in grid[-1]:
        axes.set_xlabel("%")
    return _save(figure, path)


def plot_over_time(results: Results, path: Path) -> Path | None:
    """Refusals, first-step confidence and accuracy against the optimiser step."""
    curves = [curve for curve in results.over_time if curve.points]
    if not curves:
        return None
    style = styles(results)
    figure = _figure(11.0, 3.5)
    panels = figure.subplots(1, 3)
    titles = (
        "Harmful requests refused, from the start, %",
        "Confidence on the safety tokens, first step",
        "Task accuracy, %",
    )
    for axes, title, key in zip(
        panels, titles, ("harmful", "first_confidence", ALL_TASKS), strict=True
    ):
        for curve in curves:
            if track := _track(curve, key):
                steps, middle, low, high = (list(column) for column in zip(*track, strict=True))
                colour, marker = style[curve.label]
                axes.fill_between(steps, low, high, color=colour, alpha=0.15, linewidth=0)
                axes.plot(steps, middle, color=colour, marker=marker, label=curve.label, **LINE)
        axes.set_ylim(-4, 104)
        if key == "first_confidence":
            for value in _reference_values(curves):
                axes.axhline(value, color=INK, linewidth=1, linestyle="--", label="reference")
            axes.autoscale(axis="y")
            axes.set_ylim(0, None)
        axes.set_xlabel("optimiser step")
        axes.set_title(title, loc="left", **TITLE)
        _clean(axes)
    _legend(figure, panels)
    return _save(figure, path)


def _trade_off_line(axes: Any, lines: Sequence[Pooled], style: Style, method: str) -> None:
    places = [_place(line) for line in sorted(lines, key=lambda line: _number(line.label))]
    x, y = zip(*places, strict=True)
    axes.plot(x, y, color=style.colour, marker=style.marker, label=method, **LINE)


def _write_weights(
    axes: Any,
    lines: Sequence[Pooled],
    style: dict[str, Style],
    marks: Sequence[tuple[float, float]],
) -> None:
    """Each point's weight beside it, on the first free side; where none is free, nowhere.

    Sizes are in percent of the axes, which are about as wide as they are high.
    """
    points = [*map(_place, lines), *marks]
    taken = [(x, y, 2.2, 2.2) for x, y in points]  # with half the width and half the height
    for line in sorted(lines, key=lambda line: -_number(line.label)):
        x, y = _place(line)
        width = 0.9 * len(line.label) + 0.4
        for right, up in ((1, 0.4), (-1, 0.4), (1, -0.6), (-1, -0.6), (0, 1), (0, -1)):
            at = x + right * (2.3 + width), y + up * 4.2
            if all(abs(at[0] - a) > width + w or abs(at[1] - b) > 1.6 + h for a, b, w, h in taken):
                taken.append((*at, width, 1.6))
                colour = style[line.group].colour
                axes.text(*at, line.label, ha="center", va="center", fontsize=7.5, color=colour)
                break


def _reference_marks(
    axes: Any, lines: Sequence[Pooled], style: dict[str, Style]
) -> list[tuple[float, float]]:
    """The aligned model and plain fine-tuning, with lines to the corner that keeps both."""
    marks = []
    for line in lines:
        method = line.cell.method
        if method not in ("aligned", "plain") or not _has(line, "harmful", ALL_TASKS):
            continue
        x, y = _place(line)
        colour, marker = style[line.label]
        if method == "aligned":
            axes.axhline(y, color=colour, linewidth=0.9, linestyle=":")
        else:
            axes.axvline(x, color=colour, linewidth=0.9, linestyle=":")
        axes.plot([x], [y], marker, color=colour, markersize=9, label=line.label)
        marks.append((x, y))
    return marks


def _dots(axes: Any, lines: Sequence[Pooled], key: str, style: dict[str, Style]) -> None:
    """One row a method; the dotted line is what the method is to keep."""
    kept = "plain" if key == ALL_TASKS else "aligned"
    for place, line in enumerate(lines):
        colour, marker = style[line.label]
        if key not in line.counts:
            axes.annotate("not measured", (2, place), fontsize=7.5, color=FAINT, va="center")
            continue
        share = line.counts[key]
        axes.plot(
            [100 * share.rate.low, 100 * share.rate.high],
            [place, place],
            color=colour,
            linewidth=2.2,
            alpha=0.55,
            solid_capstyle="round",
        )
        if len(share.per_seed) > 1:
            axes.plot(
                share.seed_percents,
                [place] * len(share.per_seed),
                linestyle="",
                marker="|",
                markersize=8,
                color=colour,
                markeredgewidth=1,
            )
        axes.plot(
            [float(share.percent)], [place], marker=marker, markersize=6.5, color=colour, zorder=3
        )
        if line.cell.method == kept:
            axes.axvline(float(share.percent), color=colour, linewidth=0.9, linestyle=":", zorder=0)
    axes.set(xlim=(-3, 103), ylim=(len(lines) - 0.4, -0.6))
    _clean(axes, horizontal=False)
    axes.tick_params(axis="y", length=0)


def _track(curve: Curve, key: str) -> list[tuple[int, float, float, float]]:
    """(step, mean, least, greatest over the seeds) where it was measured."""
    found = []
    for step, point in curve.points.items():
        if key in point.counts:
            seeds = point.counts[key].seed_percents
            found.append((step, float(point.counts[key].percent), min(seeds), max(seeds)))
        elif key in point.values:
            found.append((step, *point.values[key]))
    return found


def _reference_values(curves: Sequence[Curve]) -> list[float]:
    """The reference's confidence: one value where all curves look at the same tokens."""
    tracks = (_track(curve, "first_reference_confidence") for curve in curves)
    return sorted({round(track[-1][1], 3) for track in tracks if track})


def _main_set(results: Results, share: float) -> list[Pooled]:
    for lines in in_groups(results.main).values():
        if harmful_share(lines) == share:
            return lines
    return []


def _place(line: Pooled) -> tuple[float, float]:
    """(accuracy, refusals) in percent."""
    return float(line.counts[ALL_TASKS].percent), float(line.counts["harmful"].percent)


def _has(line: Pooled, *keys: str) -> bool:
    return all(key in line.counts for key in keys)


def _share_name(share: float) -> str:
    return (
        f"Fine-tuned with {100 * share:g} % harmful pairs" if share else "Fine-tuned on benign data"
    )


def _number(text: str) -> float:
    try:
        return float(text)
    except ValueError:
        return float("inf")


def _figure(width: float, height: float) -> Any:
    from matplotlib.figure import Figure  # drawn by Agg, without pyplot's state or a display

    return Figure(figsize=(width, height), layout="constrained")


def _legend(figure: Any, panels: Sequence[Any]) -> None:
    """One for all panels, below them."""
    handles = {
        text: handle
        for axes in panels
        for handle, text in zip(*axes.get_legend_handles_labels(), strict=True)
    }
    figure.legend(
        list(handles.values()),
        list(handles),
        loc="outside lower center",
        ncols=min(3 * len(panels), len(handles)),
        frameon=False,
        fontsize=8.5,
        markerscale=0.9,
    )


def _clean(axes: Any, horizontal: bool = True) -> None:
    axes.spines[["top", "right"]].set_visible(False)
    axes.spines[["left", "bottom"]].set_color(FAINT)
    axes.tick_params(colors=INK, labelsize=8.5)
    for axis in (axes.xaxis, axes.yaxis):
        axis.label.set(fontsize=9, color=INK)
    axes.grid(axis="both" if horizontal else "x", color=GRID, linewidth=0.7)
    axes.set_axisbelow(True)


def _save(figure: Any, path: Path) -> Path:
    """A PNG of few colours: a third of the bytes, and the same bytes each time."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from PIL import Image

    canvas = FigureCanvasAgg(figure)
    figure.set_dpi(DPI)
    canvas.draw()
    size = canvas.get_width_height(physical=True)
    drawn = Image.frombytes("RGBA", size, bytes(canvas.buffer_rgba())).convert("RGB")
    path.parent.mkdir(parents=True, exist_ok=True)
    drawn.quantize(COLOURS, dither=Image.Dither.NONE).save(path, optimize=True)
    return path
