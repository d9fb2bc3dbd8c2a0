"""A method's training step is timed by itself, with all that the method needs."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from benchmarks.experiment import cost
from benchmarks.experiment.cell import read_json
from benchmarks.experiment.methods import ANCHORED, PLAIN
from benchmarks.experiment.subject import Subject
from tests.tiny import save_tiny


def test_a_step_with_anchors_is_timed(tmp_path: Path) -> None:
    anchors = tmp_path / "anchors.jsonl"
    anchors.write_text('{"prompt": "What?", "completion": "I cannot help with that."}\n')
    models = [save_tiny(tmp_path / name, seed) for seed, name in enumerate(("a", "b"))]
    found = cost._cost(
        replace(ANCHORED, steps=5, seed=1), Subject(*models, None, {}, anchors=anchors)
    )
    assert len(found["step_ms"]) == 3 - cost.WARM_UP + 1  # between the looks after steps 1 to 4
    assert min(found["step_ms"]) > 0 and found["peak_mib"] > 0


def test_what_has_a_figure_is_not_measured_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked, found = [], {"step_ms": [2.0], "peak_mib": 3.0}

    def measure(function: Any, cell: Any, given: Subject) -> dict[str, Any]:
        asked.append((cell.method, given))
        return found

    monkeypatch.setattr(cost, "in_own_process", measure)
    subject = Subject("aligned", "shipped", None, {}, anchors=tmp_path / "anchors.jsonl")
    for methods in ({"plain": PLAIN}, {"plain": PLAIN, "anchors": ANCHORED}):
        cost.measure_costs(methods, subject, tmp_path)
    assert asked == [("plain", subject), ("pact", subject)]
    assert read_json(tmp_path / cost.COSTS_FILE) == dict.fromkeys(("plain", "anchors"), found)
