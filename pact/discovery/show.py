"""Safety tokens for the eye: a table for the terminal and a bar chart.

Legend: K safety tokens.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from torch import Tensor

from pact.common.outputs import check_new_file, whole_file
from pact.common.settings import user_path
from pact.discovery.tokens import SafetyTokens

COLUMNS = ("rank", "id", "token", "weight", "P aligned", "P base")
POSITIVE, NEGATIVE, INK = "#2a7f8e", "#d9825b", "#333333"


def token_table(tokens: SafetyTokens, tokenizer: Any) -> str:
    """One line per token, the largest weight first; a confidence that is not known is a dash.

    Args:
        tokens: K safety tokens.
        tokenizer: the one they were found with.

    Returns:
        A header and K lines, aligned.

    Raises:
        ValueError: the tokenizer is another one.
    """
    order, texts = _ranked(tokens, tokenizer)
    lines = [COLUMNS]
    for rank, n in enumerate(order, start=1):
        lines.append(
            (
                str(rank),
                str(int(tokens.ids[n])),
                texts[n],
                f"{float(tokens.weights[n]):+.4f}",
                _confidence(tokens.aligned_confidence, n),
                _confidence(tokens.base_confidence, n),
            )
        )
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    table = []
    for line in lines:
        cells = [cell.rjust(width) for cell, width in zip(line, widths, strict=True)]
        cells[2] = line[2].ljust(widths[2])
        table.append("  ".join(cells).rstrip())
    return "\n".join(table)


def plot_tokens(tokens: SafetyTokens, tokenizer: Any, path: str | Path) -> None:
    """Draw the weights as a bar chart, the largest on top, and write it as a PNG.

    Args:
        tokens: K safety tokens.
        tokenizer: the one they were found with.
        path: the image to write.

    Raises:
        ValueError: the tokenizer is another one, or the image is there.
    """
    path = user_path(path)
    check_new_file(path, "plot")
    from matplotlib.figure import Figure  # drawn by Agg, without pyplot's state or a display

    order, texts = _ranked(tokens, tokenizer)
    weights = tokens.weights[order].tolist()
    places = range(len(order))
    figure = Figure(figsize=(6.4, 1.3 + 0.2 * len(order)), layout="constrained")
    axes = figure.subplots()
    colours = [POSITIVE if weight > 0 else NEGATIVE for weight in weights]
    axes.barh(places, weights, height=0.7, color=colours)
    labels = [_drawable(texts[n]) for n in order]
    axes.set_yticks(places, labels, family="monospace", parse_math=False)
    axes.set_ylim(len(order) - 0.4, -0.6)
    axes.axvline(0, color=INK, linewidth=0.8)
    axes.set_xlabel("weight", fontsize=8, color=INK)
    axes.set_title(_title(tokens), loc="left", fontsize=9, color=INK, parse_math=False)
    axes.grid(axis="x", color="#e5e5e5", linewidth=0.8)
    axes.set_axisbelow(True)
    axes.tick_params(length=0, labelsize=8, labelcolor=INK)
    axes.spines[:].set_visible(False)
    with whole_file(path) as partial:
        figure.savefig(partial, format="png", dpi=160)


def _ranked(tokens: SafetyTokens, tokenizer: Any) -> tuple[list[int], list[str]]:
    """Indices by descending weight, and each token's text in index order."""
    tokens.check_tokenizer(tokenizer)
    order = tokens.weights.argsort(descending=True, stable=True).tolist()
    return order, [_text(token, tokenizer) for token in tokens.ids.tolist()]


def _text(token: int, tokenizer: Any) -> str:
    """The token in quotes; one that is part of a character as the vocabulary spells it."""
    text = tokenizer.decode([token])
    return repr(tokenizer.convert_ids_to_tokens(token) if "\ufffd" in text else text)


def _drawable(text: str) -> str:
    """`text` with escapes for what the chart's font may lack: all beyond the Latin letters."""
    return text if all(ord(character) < 0x250 for character in text) else ascii(text)


def _confidence(values: Tensor | None, n: int) -> str:
    return "-" if values is None else f"{float(values[n]):.2e}"


def _title(tokens: SafetyTokens) -> str:
    count = f"{tokens.ids.numel()} safety tokens"
    aligned, base = (Path(tokens.metadata.get(name, "")).name for name in ("aligned", "base"))
    return f"{count} of {aligned} against {base}" if aligned and base else count
