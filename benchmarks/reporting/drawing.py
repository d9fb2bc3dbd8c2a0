"""What the pictures of results share: colours, axes, and PNG files of few bytes."""

from __future__ import annotations

from pathlib import Path
from typing import Any, NamedTuple

INK, FAINT, GRID = "#333333", "#8a8a8a", "#e8e8e8"
TITLE: dict[str, Any] = {"fontsize": 9.5, "color": INK, "loc": "left"}
DPI, COLOURS = 120, 128


class Style(NamedTuple):
    """How an implementation is drawn, in every picture."""

    colour: str
    marker: str


FIRST = Style("#0072b2", "o")
OTHERS = (
    Style("#d55e00", "X"),
    Style("#009e73", "s"),
    Style("#cc79a7", "^"),
    Style("#c47f00", "v"),
    Style("#56b4e9", "P"),
    Style("#8c6d31", "<"),
    Style("#7f7f7f", ">"),
    Style("#44aa99", "p"),
    Style("#882255", "h"),
)
"""Safe for colour-blind eyes (Okabe and Ito); past the last one they begin again."""


def new_figure(width: float, height: float) -> Any:
    """Drawn by Agg, without pyplot's state or a display."""
    from matplotlib.figure import Figure

    return Figure(figsize=(width, height), layout="constrained")


def clean(axes: Any, grid: str = "both") -> None:
    """Two spines, small labels, a faint grid behind, of both axes or of x or y alone."""
    axes.spines[["top", "right"]].set_visible(False)
    axes.spines[["left", "bottom"]].set_color(FAINT)
    axes.tick_params(colors=INK, labelsize=8.5)
    for axis in (axes.xaxis, axes.yaxis):
        axis.label.set(fontsize=9, color=INK)
    axes.grid(axis=grid, color=GRID, linewidth=0.7)
    axes.set_axisbelow(True)


def log_scale(axes: Any, name: str) -> None:
    """Make the axis x or y logarithmic, with plain numbers at 1, 2 and 5 of every decade."""
    from matplotlib.ticker import LogLocator, NullLocator

    getattr(axes, f"set_{name}scale")("log")
    axis = getattr(axes, f"{name}axis")
    axis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0)))
    axis.set_minor_locator(NullLocator())
    axis.set_major_formatter("{x:g}")


def legend(figure: Any, panels: Any, columns: int = 5) -> None:
    """One for all panels, below them."""
    handles = {
        text: handle
        for axes in panels
        for handle, text in zip(*axes.get_legend_handles_labels(), strict=True)
    }
    if handles:
        figure.legend(
            list(handles.values()),
            list(handles),
            loc="outside lower center",
            ncols=min(columns, len(handles)),
            frameon=False,
            fontsize=8.5,
        )


def save(figure: Any, path: Path) -> Path:
    """A PNG of few colours, the same bytes each time."""
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
