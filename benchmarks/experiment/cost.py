"""Time of a step and peak memory of each method, one process after the other, nothing beside it.

The cells of the experiment share the machine with each other, so their own times are no measure.
"""

from __future__ import annotations

import json
import time
from collections.abc import Mapping
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from statistics import median
from typing import Any, NamedTuple

from benchmarks.experiment.cell import Cell
from benchmarks.measuring.process import in_own_process, peak_mib

STEPS = 12
"""Steps that are run; the first WARM_UP are not timed."""
WARM_UP = 2
COSTS_FILE = "cost.json"


class Cost(NamedTuple):
    """What a training step of one method costs."""

    step_ms: list[float]
    """Optimiser steps that were timed."""
    peak_mib: float
    """Most memory that the process held."""

    @property
    def median_ms(self) -> float:
        return median(self.step_ms)


def load_costs(path: Path) -> dict[str, Cost]:
    """Costs by the label of their method; none where the file is missing."""
    if not path.is_file():
        return {}
    values = json.loads(path.read_text(encoding="utf-8"))
    return {label: Cost(cost["step_ms"], cost["peak_mib"]) for label, cost in values.items()}


def measure_costs(
    methods: Mapping[str, Cell], aligned: Path, shipped: Path, anchors: Path, folder: Path
) -> dict[str, Cost]:
    """Measure what `folder` has no figure for, and keep it there.

    Args:
        methods: cells by the label of their method.
        aligned: folder of the aligned model.
        shipped: folder of the model as shipped.
        anchors: file of the aligned model's own answers.
        folder: an existing folder for cost.json.
    """
    path = folder / COSTS_FILE
    costs = load_costs(path)
    for label, cell in methods.items():
        if label not in costs:
            few = replace(cell, steps=STEPS)
            costs[label] = in_own_process(_cost, few, aligned, shipped, anchors)
            values = {name: cost._asdict() for name, cost in costs.items()}
            path.write_text(json.dumps(values, indent=1) + "\n", encoding="utf-8")
    return costs


def _cost(cell: Cell, aligned: Path, shipped: Path, anchors: Path) -> Cost:
    from benchmarks.experiment.protocol import Protocol
    from benchmarks.experiment.stages import Bench

    bench = Bench(aligned, shipped, Protocol(), anchors=anchors)
    times_s: list[float] = []

    def tick(model: Any, reference: Any, step: int) -> None:
        times_s.append(time.perf_counter())

    # Which tokens they are does not matter here, and discovery's two models would be the peak.
    bench.finetune(replace(cell, curve_every=1, token_source="frequency"), tick)
    steps_ms = [1e3 * (after - before) for before, after in pairwise(times_s)]
    return Cost(steps_ms[WARM_UP:], peak_mib())
