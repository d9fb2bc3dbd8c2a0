"""A method's training step is timed by itself, with all that the method needs."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from benchmarks.experiment import cost
from benchmarks.experiment.cost import Cost, load_costs
from benchmarks.experiment.methods import ANCHORED, PLAIN
from tests.tiny import save_tiny


def test_a_step_with_anchors_is_timed(tmp_path: Path) -> None:
    anchors = tmp_path / "anchors.jsonl"
    anchors.write_text('{"prompt": "What?", "completion": "I cannot help with that."}\n')
    models = [save_tiny(tmp_path / name, seed) for seed, name in enumerate(("a", "b"))]
    found = cost._cost(replace(ANCHORED, steps=5, seed=1), *models, anchors)
    assert len(found.step_ms) == 3 - cost.WARM_UP + 1  # between the looks after steps 1 to 4
    assert found.median_ms > 0 and found.peak_mib > 0


def test_what_has_a_figure_is_not_measured_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = []

    def measure(function: Any, cell: Any, *paths: Path) -> Cost:
        asked.append((cell.method, paths))
        return Cost([2.0], 3.0)

    monkeypatch.setattr(cost, "in_own_process", measure)
    paths = [tmp_path / name for name in ("aligned", "shipped", "anchors.jsonl")]
    for methods in ({"plain": PLAIN}, {"plain": PLAIN, "anchors": ANCHORED}):
        cost.measure_costs(methods, *paths, tmp_path)
    assert asked == [("plain", tuple(paths)), ("pact", tuple(paths))]
    assert load_costs(tmp_path / cost.COSTS_FILE) == dict.fromkeys(
        ("plain", "anchors"), Cost([2.0], 3.0)
    )
