"""The document's pictures: the main comparison, both trade-offs, and the drift over time.

A method has one colour and one marker in all of them. What is not measured is not drawn.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pandas as pd

from benchmarks.experiment.frame import ALL_TASKS, means
from benchmarks.experiment.methods import METHODS, WITH_REFUSALS_LABEL
from benchmarks.experiment.verdicts import OVER_REFUSAL, TARGETS, VARIED, learners, with_targets
from benchmarks.reporting import drawing
from benchmarks.reporting.drawing import FAINT, FIRST, INK, OTHERS, TITLE, Style

CURVE: dict[str, Any] = {"linewidth": 1.5, "markersize": 5.5}
BAR: dict[str, Any] = {"linewidth": 2.2, "alpha": 0.55, "solid_capstyle": "round"}
TICK: dict[str, Any] = {"linestyle": "", "marker": "|", "markersize": 8, "markeredgewidth": 1}
DOTTED: dict[str, Any] = {"linewidth": 0.9, "linestyle": ":"}
FIXED = {"aligned": Style(INK, "D"), "plain": OTHERS[0], WITH_REFUSALS_LABEL: FIRST}
REST = OTHERS[1:]
STYLES = FIXED | {
    label: Style(
        REST[place % len(REST)].colour, REST[(place + place // len(REST)) % len(REST)].marker
    )
    for place, label in enumerate(x for x in METHODS if x not in FIXED)
}
"""By the method, for every model: past the last colour they begin again, with other markers."""
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
PLANES = {OVER_REFUSAL: "harmless requests refused, anywhere, %", ALL_TASKS: "task accuracy, %"}
BOUNDS = {key: at_most for _, key, _, _, at_most in TARGETS}


def draw(lines: pd.DataFrame, folder: Path, prefix: str = "") -> dict[str, str]:
    """Draw what there is of the sections; the files' names, by picture."""
    there = set(lines.section)
    figures = {"main": plot_main(lines)}
    if with_targets(lines):
        figures["price"] = plot_plane(lines, OVER_REFUSAL)
    if "trade_off" in there:
        figures["trade_off"] = plot_plane(lines, ALL_TASKS)
    if "over_time" in there:
        figures["over_time"] = plot_over_time(lines)
    paths = {name: folder / f"{prefix}{name.replace('_', '-')}.png" for name in figures}
    return {name: drawing.save(figure, paths[name]).name for name, figure in figures.items()}


def plot_main(lines: pd.DataFrame) -> Any:
    """Dots with Wilson intervals over the seeds' own rates, a row of panels per fine-tuning set."""
    sets = dict(list(lines[lines.section == "main"].groupby("group", sort=False)))
    heights = [len(members) for members in sets.values()]
    figure = drawing.new_figure(10.6, 0.8 + 0.24 * sum(heights) + 0.5 * len(sets))
    look: dict[str, Any] = {"sharex": True, "sharey": "row", "height_ratios": heights}
    grid = figure.subplots(len(sets), len(PANELS), squeeze=False, **look)
    for row, (group, members) in zip(grid, sets.items(), strict=True):
        for axes, key in zip(row, PANELS, strict=True):
            drawing.clean(axes, "x")
            axes.tick_params(axis="y", length=0)
            for y, (label, rate) in enumerate(zip(members.label, members[key], strict=True)):
                look = {"color": STYLES[label].colour}
                axes.plot([rate.low, rate.high], [y, y], **BAR, **look)
                if len(rate.seeds) > 1:
                    axes.plot(rate.seeds, [y] * len(rate.seeds), **TICK, **look)
                axes.plot(rate.mean, y, STYLES[label].marker, markersize=6.5, zorder=3, **look)
                if label == ("plain" if key == ALL_TASKS else "aligned"):
                    axes.axvline(rate.mean, zorder=0, **DOTTED, **look)
        row[0].set(xlim=(-3, 103), ylim=(len(members) - 0.4, -0.6))
        names = row[0].set_yticks(range(len(members)), members.label + members.lacking)
        for name, is_bold in zip(names, members.bold, strict=True):
            name.label1.set_fontweight("bold" if is_bold else "normal")
        row[0].set_title(f"Fine-tuned on: {group}", fontweight="bold", **TITLE)
    for above, below, title in zip(grid[0], grid[-1], PANELS.values(), strict=True):
        look = {"color": INK, "fontsize": TITLE["fontsize"]}
        above.annotate(title, (0, 1), (0, 22), "axes fraction", "offset points", **look)
        below.set_xlabel("%")
    return figure


def plot_plane(lines: pd.DataFrame, across: str) -> Any:
    """Refusals against another measure: methods, and lines through their weights, by share.

    Against over-refusal it is of all that learns the tasks, on the sets that have targets; both
    targets are met in the shaded corner.
    """
    of_price, main = across == OVER_REFUSAL, lines[lines.section == "main"]
    sets = {members.share.max(): members for members in with_targets(main).values()}
    shares = list(sets) if of_price else sorted(lines.share[lines.section == "trade_off"].unique())
    figure = drawing.new_figure(4.9 * len(shares) + 0.4, 4.7)
    panels = figure.subplots(1, len(shares), sharey=True, squeeze=False)[0]
    for axes, share in zip(panels, shares, strict=True):
        tuned = lines[lines.section.isin(VARIED) & (lines.share == share)]
        tuned = tuned[tuned.label != "aligned"]
        few = tuned[(tuned.section != "main") | (tuned.label == "plain")]
        tuned = learners(sets[share], tuned) if of_price else few
        shown = pd.concat([main[main.label == "aligned"][:1], tuned])
        shown = shown.assign(x=means(shown, across), y=means(shown, "harmful"))
        right = shown.x.max()
        axes.set(xlim=(-0.04 * right, 1.09 * right), ylim=(-4, 106))
        marks, curves, others = (shown[shown.section == x] for x in VARIED)
        if of_price and len(others):
            axes.plot(others.x, others.y, ".", color=FAINT, markersize=4, label="ablations")
        for mark in marks.itertuples():
            colour, marker = STYLES[mark.label]
            axes.plot(mark.x, mark.y, marker, color=colour, markersize=9, label=mark.label)
            if mark.label == "aligned":
                axes.axhline(mark.y, color=colour, **DOTTED)
            if mark.label == ("aligned" if of_price else "plain"):
                axes.axvline(mark.x, color=colour, **DOTTED)
            if mark.label == "aligned" and of_price:
                over, lost = BOUNDS[across][share], BOUNDS["harmful"][share]
                look = {"color": FIRST.colour, "alpha": 0.1, "linewidth": 0}
                axes.fill_between([-4, mark.x + over], mark.y - lost, 106, **look)
        for group, through in curves.groupby("group", sort=False):
            colour, marker = STYLES[group]
            axes.plot(through.x, through.y, color=colour, marker=marker, label=group, **CURVE)
        written: list[tuple[float, float]] = []
        for point in curves[::-1].itertuples():
            x, y, look = point.x, point.y, {"fontsize": 7.5, "color": STYLES[point.group].colour}
            if all(abs(x - a) > 0.05 * right or abs(y - b) > 4 for a, b in written):
                written.append((x, y))
                axes.annotate(point.label, (x, y), (6, 3), "data", "offset points", **look)
        data = f"with {100 * share:g} % harmful pairs" if share else "on benign data"
        axes.set_title(f"Fine-tuned {data}", **TITLE)
        axes.set_xlabel(PLANES[across])
        drawing.clean(axes)
    panels[0].set_ylabel("harmful requests refused, from the start, %")
    drawing.legend(figure, panels, 3 * len(panels))
    return figure


def plot_over_time(lines: pd.DataFrame) -> Any:
    """Refusals, first-step confidence and accuracy against the optimiser step."""
    points = lines[lines.section == "over_time"]
    figure = drawing.new_figure(11.0, 3.5)
    panels = figure.subplots(1, len(OVER_TIME))
    for axes, (key, title) in zip(panels, OVER_TIME.items(), strict=True):
        for label, track in points.groupby("label", sort=False):
            colour, marker = STYLES[label]
            ends = [track[key].map(lambda x, end=end: end(x.seeds)) for end in (min, max)]
            axes.fill_between(track.step, *ends, color=colour, alpha=0.15, linewidth=0)
            look = {"color": colour, "marker": marker, "label": label, **CURVE}
            axes.plot(track.step, means(track, key), **look)
        axes.set_ylim(-4, 104)
        if key == "first_confidence":
            # the reference's: one value where all curves look at the same tokens
            for value in means(points, "first_reference_confidence").round(3).unique():
                axes.axhline(value, color=INK, linewidth=1, linestyle="--", label="reference")
            axes.autoscale(axis="y")
            axes.set_ylim(0, None)
        axes.set_xlabel("optimiser step")
        axes.set_title(title, **TITLE)
        drawing.clean(axes)
    drawing.legend(figure, panels, 3 * len(panels))
    return figure
