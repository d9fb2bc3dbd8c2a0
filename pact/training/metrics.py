"""A record every few steps: summed on the device, written as JSON lines, drawn as one picture."""

from __future__ import annotations

import gc
import json
import math
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from pact.common.disk import replacing
from pact_kernels import PactLoss

METRICS_FILE = "metrics.jsonl"
PLOT_FILE = "metrics.png"
PLOT_EVERY_S = 30.0
"""Least time between pictures of a run on its way: one takes half a second of a processor."""
COLOURS = ("#1f4e79", "#d9822b")

Record = dict[str, float]


def parts_of(loss: PactLoss, num_items: Tensor) -> Tensor:
    """(5,) fp32 loss, cross-entropy, KL, gate and rows of a micro-batch of a step.

    Args:
        loss: the micro-batch's, over `num_items`.
        num_items: () rows of the whole step.
    """
    gate = loss.mean_gate * loss.num_rows / num_items
    parts = loss.loss.detach(), loss.cross_entropy, loss.kl, gate, loss.num_rows
    return torch.stack([part.float() for part in parts])


class Meter:
    """Sums since the last record; the device is waited for only when they are read."""

    def __init__(self, accelerator: Any) -> None:
        self.accelerator = accelerator
        self._reset()

    def _reset(self) -> None:
        self.sums = torch.zeros(5, device=self.accelerator.device)  # loss, CE, KL, gate, rows
        self.steps = 0
        self.tokens = 0  # of the student's input in this process
        self.start_s = time.perf_counter()

    def add(self, parts: Tensor) -> None:
        """Count one step, of whose micro-batches `parts_of` has made (M, 5) `parts`."""
        self.sums += parts.sum(0)
        self.steps += 1

    def read(self) -> Record:
        """Means per step over all processes, and the speed; then start anew."""
        sums = torch.cat([self.sums, self.sums.new_tensor([self.tokens])])
        *values, tokens = self.accelerator.reduce(sums, reduction="sum").tolist()
        loss, cross_entropy, kl, gate, rows = (value / self.steps for value in values)
        tokens_per_s = tokens / (time.perf_counter() - self.start_s)
        self._reset()
        return {
            "loss": loss,
            "cross_entropy": cross_entropy,
            "kl": kl,
            "gate": gate,
            "rows": rows,
            "tokens_per_s": tokens_per_s,
        }


class MetricsLog:
    """The records of a run, in memory and, with a folder, as JSON lines and a plot.

    Args:
        folder: where to write; None keeps them in memory.
        resume_step: later records are dropped, since the resumed run makes them again.
    """

    def __init__(self, folder: Path | None, resume_step: int = 0) -> None:
        self.folder = folder
        self.records: list[Record] = []
        self._plotted_s = time.perf_counter()
        if folder is None:
            return
        path = folder / METRICS_FILE
        if resume_step and path.is_file():
            whole_lines = path.read_text().rpartition("\n")[0].splitlines()
            try:
                read = [json.loads(line) for line in whole_lines]
                self.records = [record for record in read if record["step"] <= resume_step]
            except (ValueError, TypeError, LookupError, RecursionError) as error:
                raise ValueError(
                    f"{path} must hold a record with its step in every line, and is damaged "
                    f"({error}): restore it, or delete it to go on without the records before"
                ) from error
        with replacing(path) as partial:  # they are state, too: the best evaluation, steps left out
            partial.write_text("".join(json.dumps(record) + "\n" for record in self.records))

    def append(self, record: Record) -> None:
        self.records.append(record)
        if self.folder is not None:
            with (self.folder / METRICS_FILE).open("a") as file:
                file.write(json.dumps(record) + "\n")

    def plot(self) -> None:
        """Draw all records so far."""
        if self.folder is not None and self.records:
            plot_metrics(self.records, self.folder / PLOT_FILE)
            self._plotted_s = time.perf_counter()

    def plot_if_due(self) -> None:
        """Draw them unless the run began, or drew them last, less than PLOT_EVERY_S ago."""
        if time.perf_counter() - self._plotted_s >= PLOT_EVERY_S:
            self.plot()
            gc.collect()  # a figure is a cycle of 7 MiB: some dozens would wait to be collected


def plot_metrics(records: Sequence[Mapping[str, float]], path: Path) -> None:
    """Draw loss, KL, gate and speed over the steps; what is 0 throughout gets no panel.

    Without a panel there is no picture: of steps that were left out, for one.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    looked = [record for record in records if "eval_cross_entropy" in record]
    records = [record for record in records if "loss" in record]
    panels = [
        (title, lines, records)
        for title, lines in (
            ("Loss, nats per token", {"loss": "loss", "cross-entropy": "cross_entropy"}),
            ("KL to the reference, nats per token", {"KL": "kl"}),
            ("Gate, mean over rows", {"gate": "gate"}),
            ("Speed, tokens per second", {"speed": "tokens_per_s"}),
        )
        if any(record[key] for record in records for key in lines.values())
    ]
    if looked:
        title = "Evaluation, nats per token"
        panels.append((title, {"loss": "eval_loss", "cross-entropy": "eval_cross_entropy"}, looked))
    if any("eval_refusals" in record for record in looked):
        panels.append(("Evaluation, share refused", {"refused": "eval_refusals"}, looked))
    if not panels:
        return
    rows = math.ceil(len(panels) / 2)
    figure = Figure(figsize=(9, 3 * rows), layout="constrained")
    FigureCanvasAgg(figure)
    for place, (title, lines, points) in enumerate(panels, start=1):
        axes = figure.add_subplot(rows, min(len(panels), 2), place)
        _draw(axes, title, lines, points)
    with replacing(path) as partial:
        figure.savefig(partial, dpi=150, format="png")


def _draw(
    axes: Any, title: str, lines: Mapping[str, str], records: Sequence[Mapping[str, float]]
) -> None:
    """One panel: for each label the values of its key, faint, under their running mean."""
    steps = [record["step"] for record in records]
    window = max(1, len(records) // 30)
    for (label, key), colour in zip(lines.items(), COLOURS, strict=False):
        values = [record[key] for record in records]
        if window > 1:
            axes.plot(steps, values, color=colour, linewidth=0.8, alpha=0.3)
        axes.plot(steps, _running_mean(values, window), color=colour, linewidth=1.5, label=label)
    if len(lines) > 1:
        axes.legend(frameon=False, fontsize=8)
    else:
        axes.set_ylim(bottom=0)
    axes.set_title(title, loc="left", fontsize=10)
    axes.set_xlabel("optimiser step", fontsize=9)
    axes.tick_params(labelsize=8, length=0)
    axes.spines[["top", "right", "left"]].set_visible(False)
    axes.grid(axis="y", color="#e5e5e5", linewidth=0.8)
    axes.set_axisbelow(True)
    axes.margins(x=0.02)


def _running_mean(values: Sequence[float], window: int) -> list[float]:
    """Each value's mean with those before it, `window` of them or as many as there are."""
    recent = (values[max(0, place + 1 - window) : place + 1] for place in range(len(values)))
    return [sum(part) / len(part) for part in recent]
