"""Time of a step and peak memory of each method, one process after the other, nothing beside it.

    python -m benchmarks.experiment.cost ALIGNED SHIPPED < CELL    (a pickled cell)

prints both as JSON. The cells of the experiment share the machine with each other, so their own
times are no measure.
"""

from __future__ import annotations

import json
import pickle
import subprocess
import sys
import time
from collections.abc import Mapping
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

from benchmarks.experiment.cell import Cell
from benchmarks.experiment.costs import Cost, load_costs
from benchmarks.training.memory import peak_mib

STEPS = 12
"""Steps that are run; the first WARM_UP are not timed."""
WARM_UP = 2
COSTS_FILE = "cost.json"
ROOT = Path(__file__).resolve().parents[2]


def measure_costs(
    methods: Mapping[str, Cell], aligned: Path, shipped: Path, folder: Path
) -> dict[str, Cost]:
    """Measure what `folder` has no figure for, and keep it there.

    Args:
        methods: cells by the label of their method.
        aligned: folder of the aligned model.
        shipped: folder of the model as shipped.
        folder: an existing folder for cost.json.
    """
    path = folder / COSTS_FILE
    costs = load_costs(path)
    for label, cell in methods.items():
        if label not in costs:
            costs[label] = _in_own_process(replace(cell, steps=STEPS), aligned, shipped)
            values = {name: cost._asdict() for name, cost in costs.items()}
            path.write_text(json.dumps(values, indent=1) + "\n", encoding="utf-8")
    return costs


def _in_own_process(cell: Cell, aligned: Path, shipped: Path) -> Cost:
    command = [sys.executable, "-m", "benchmarks.experiment.cost", str(aligned), str(shipped)]
    done = subprocess.run(command, cwd=ROOT, input=pickle.dumps(cell), capture_output=True)
    if done.returncode:
        raise RuntimeError(f"{cell.name} could not be measured:\n{done.stderr.decode()}")
    return Cost(**json.loads(done.stdout.splitlines()[-1]))


def main() -> None:
    from benchmarks.experiment.protocol import Protocol
    from benchmarks.experiment.stages import Bench

    aligned, shipped = map(Path, sys.argv[1:])
    cell: Cell = pickle.load(sys.stdin.buffer)
    bench = Bench(aligned, shipped, Protocol())
    times_s: list[float] = []

    def tick(model: Any, reference: Any, step: int) -> None:
        times_s.append(time.perf_counter())

    # Which tokens they are does not matter here, and discovery's two models would be the peak.
    bench.finetune(replace(cell, curve_every=1, token_source="frequency"), tick)
    steps_ms = [1e3 * (after - before) for before, after in pairwise(times_s)]
    print(json.dumps({"step_ms": steps_ms[WARM_UP:], "peak_mib": peak_mib()}))


if __name__ == "__main__":
    main()
