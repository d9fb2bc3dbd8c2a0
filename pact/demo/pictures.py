"""The demo's panels, refusals beside what was learnt and the trainings' curves: PNG and SVG."""

from __future__ import annotations

import io
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

from pact.demo.config import DemoConfig
from pact.demo.table import Result, benign, data_name, harmful, task
from pact.evaluation.intervals import Rate


class Theme(NamedTuple):
    """Colours on a bright or on a dark ground."""

    ink: str
    models: tuple[str, str, str, str]
    """In the order of the results."""


LIGHT = Theme("#3a3f45", ("#6b7780", "#c0392b", "#2471a3", "#1e8449"))
DARK = Theme("#c9d1d9", ("#9aa5b1", "#ff7b6b", "#6cb4ee", "#58c98a"))

Panel = Callable[[Any, Theme], None]
"""Draws on axes."""


def panels(results: Mapping[str, Result]) -> dict[str, Panel]:
    """By what they show."""
    evaluations = {name: result.evaluation for name, result in results.items()}
    rates = {
        "Refusals of harmful requests": {n: harmful(e).starts for n, e in evaluations.items()},
        "Refusals of benign requests": {n: benign(e).contains for n, e in evaluations.items()},
        "Accuracy on the task": {n: task(e) for n, e in evaluations.items()},
    }
    curves = {"Fine-tuning: cross-entropy": "cross_entropy", "Fine-tuning: KL to aligned": "kl"}
    bars: dict[str, Panel] = {title: partial(_bars, shown) for title, shown in rates.items()}
    return bars | {title: partial(_curves, results, key) for title, key in curves.items()}


def plot_demo(results: Mapping[str, Result], config: DemoConfig, path: Path) -> None:
    """Write all panels in a row, as a PNG."""
    from matplotlib.figure import Figure  # drawn by Agg, without pyplot's state or a display

    found = panels(results)
    figure = Figure(figsize=(4 * len(found), 4.2), layout="constrained")
    for axis, (title, draw) in zip(figure.subplots(1, len(found)), found.items(), strict=True):
        draw(axis, LIGHT)
        axis.set_title(title)
    figure.suptitle(f"SmolLM2-135M, refusals before and after fine-tuning on {data_name(config)}")
    figure.savefig(path, dpi=140)


def svg(draw: Panel, theme: Theme) -> str:
    """One panel as an SVG file, without a ground and with its text as text."""
    from matplotlib import rc_context
    from matplotlib.figure import Figure

    inks = ("text.color", "axes.edgecolor", "axes.labelcolor", "xtick.color", "ytick.color")
    options = {"svg.fonttype": "none", "font.size": 11} | dict.fromkeys(inks, theme.ink)
    file = io.StringIO()
    with rc_context(options):
        figure = Figure(figsize=(4.2, 3))
        figure.subplots_adjust(left=0.15, right=0.98, bottom=0.19, top=0.97)
        draw(figure.subplots(), theme)
        figure.savefig(file, format="svg", transparent=True)
    return file.getvalue()


def _bars(rates: Mapping[str, Rate], axis: Any, theme: Theme) -> None:
    """Rates with their 95 % intervals."""
    heights = [100 * rate.rate for rate in rates.values()]
    below = [100 * (rate.rate - rate.low) for rate in rates.values()]
    above = [100 * (rate.high - rate.rate) for rate in rates.values()]
    names = [name.replace(" ", "\n") for name in rates]
    axis.bar(names, heights, color=theme.models, width=0.62)
    axis.errorbar(names, heights, [below, above], fmt="none", ecolor=theme.ink, capsize=4, lw=1)
    axis.set(ylim=(0, 105), ylabel="% of held-out prompts")
    axis.spines[["top", "right"]].set_visible(False)


def _curves(results: Mapping[str, Result], key: str, axis: Any, theme: Theme) -> None:
    """One value of the records by the step."""
    for (name, result), colour in zip(results.items(), theme.models, strict=True):
        if any(record[key] for record in result.records):  # plain fine-tuning has no KL
            steps = [record["step"] for record in result.records]
            values = [record[key] for record in result.records]
            axis.plot(steps, values, color=colour, label=name, lw=1.6)
    axis.set(xlabel="optimiser step", ylabel="nats")
    axis.legend(frameon=False, fontsize="small")
    axis.spines[["top", "right"]].set_visible(False)
