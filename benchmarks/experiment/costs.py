"""What a training step of each method costs, as it was measured apart from the fine-tunings."""

from __future__ import annotations

import json
from pathlib import Path
from statistics import median
from typing import NamedTuple


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
