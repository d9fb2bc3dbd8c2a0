"""Time of a step and peak memory of each method, one process after the other, nothing beside it.

The cells of the experiment share the machine with each other, so their own times are no measure.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any

from benchmarks.experiment.cell import Cell, read_json, write_json
from benchmarks.measuring.process import in_own_process, peak_mib

if TYPE_CHECKING:
    from benchmarks.experiment.subject import Subject

STEPS = 12
"""Steps that are run; the first WARM_UP are not timed."""
WARM_UP = 2
COSTS_FILE = "cost.json"
"""By the label of a method, `step_ms` of the steps that were timed, and `peak_mib`, the most memory
that their process held."""


def measure_costs(methods: Mapping[str, Cell], subject: Subject, folder: Path) -> None:
    """Measure what `folder` has no figure for, and keep it there.

    Args:
        methods: cells by the label of their method.
        subject: the demo's, with its own answers.
        folder: an existing folder for cost.json.
    """
    costs = read_json(folder / COSTS_FILE)
    for label, cell in methods.items():
        if label not in costs:
            costs[label] = in_own_process(_cost, replace(cell, steps=STEPS), subject)
            write_json(folder / COSTS_FILE, costs)


def _cost(cell: Cell, subject: Subject) -> dict[str, Any]:
    from benchmarks.experiment.protocol import Protocol
    from benchmarks.experiment.stages import Bench

    times_s: list[float] = []

    def tick(model: Any, reference: Any, step: int) -> None:
        times_s.append(time.perf_counter())

    # Which tokens they are does not matter here, and discovery's two models would be the peak.
    Bench(subject, Protocol()).finetune(
        replace(cell, curve_every=1, token_source="frequency"), tick
    )
    steps_ms = [1e3 * (after - before) for before, after in pairwise(times_s)]
    return {"step_ms": steps_ms[WARM_UP:], "peak_mib": peak_mib()}
