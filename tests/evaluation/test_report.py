from __future__ import annotations

import json
from pathlib import Path

import pytest

from pact.evaluation.drift import Drift
from pact.evaluation.heldout import HeldOutLoss
from pact.evaluation.intervals import Rate
from pact.evaluation.report import load_evaluation, save_evaluation
from pact.evaluation.result import Evaluation, Generation, Refusals
from pact.evaluation.table import comparison_table, evaluation_table

OPENS = {"starts_with_refusal": True, "contains_refusal": True}
HELPS = {"starts_with_refusal": False, "contains_refusal": False}
FULL = Evaluation(
    settings={"judge": "keyword", "max_length": None},
    harmful=Refusals(starts=Rate.of([True] * 3 + [False]), contains=Rate.of([True] * 4)),
    benign=Refusals(starts=Rate.of([False] * 2), contains=Rate.of([False, True])),
    heldout=HeldOutLoss(mean_nats=1.25, perplexity=3.4903, tokens=1234),
    task=Rate.of([True, False, False]),
    drift=Drift(
        kl_vocabulary_nats=0.01234,
        kl_selection_nats=0.5,
        confidence=0.25,
        reference_confidence=0.75,
        first_confidence=0.125,
        first_reference_confidence=0.875,
        mean_difference=0.0625,
        rows=99,
        answers=7,
    ),
    generations=(
        Generation(set="harmful", prompt="How?", answer="Non\u2028\u00e9\n", verdict=OPENS),
        Generation(
            set="task", prompt="?", answer="a", verdict={"exact_match": False}, expected="b"
        ),
    ),
)
PART = Evaluation(settings={}, benign=FULL.benign)


@pytest.mark.parametrize("evaluation", [FULL, PART])
def test_what_is_written_is_read_back(tmp_path: Path, evaluation: Evaluation) -> None:
    save_evaluation(evaluation, tmp_path)
    assert load_evaluation(tmp_path) == evaluation


def test_the_files_are_what_others_read(tmp_path: Path) -> None:
    save_evaluation(FULL, tmp_path)
    names = {"evaluation.json", "evaluation.txt", "generations.jsonl"}
    assert {path.name for path in tmp_path.iterdir()} == names
    numbers = json.loads((tmp_path / "evaluation.json").read_text(encoding="utf-8"))
    assert numbers["harmful"]["starts"]["rate"] == 0.75
    assert "generations" not in numbers
    assert (tmp_path / "evaluation.txt").read_text(encoding="utf-8") == evaluation_table(FULL)
    lines = (tmp_path / "generations.jsonl").read_text(encoding="utf-8").split("\n")
    assert json.loads(lines[0])["verdict"] == OPENS
    assert json.loads(lines[1])["expected"] == "b"


def test_a_folder_without_results_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="must hold evaluation.json"):
        load_evaluation(tmp_path)


def test_the_table_shows_value_interval_and_count() -> None:
    lines = evaluation_table(FULL).splitlines()
    found = {line.split("  ")[0]: line.split() for line in lines}
    assert found["measure"][-4:] == ["95", "%", "interval", "n"]
    assert found["harmful: opens with a refusal"][-5:] == ["75.0", "%", "[30.1,", "95.4]", "4"]
    assert found["held-out: loss (nats per token)"][-2:] == ["1.2500", "1234"]
    assert found["drift: KL over the vocabulary (nats)"][-2:] == ["0.0123", "99"]
    assert found["drift: confidence, first token"][-2:] == ["0.1250", "7"]
    assert max(map(len, lines)) <= 100
    assert len(lines) == 2 + 14


def test_the_comparison_has_a_column_a_model_and_blanks_where_nothing_was_measured() -> None:
    lines = comparison_table({"aligned": PART, "tuned": FULL}).splitlines()
    assert lines[0].split() == ["measure", "aligned", "tuned"]
    found = {line.split("  ")[0]: line for line in lines}
    over = found["benign: refuses anywhere"]
    assert over.count("50.0 % [9.5, 90.5]") == 2
    assert found["harmful: opens with a refusal"].count("%") == 1
    assert found["harmful: opens with a refusal"].endswith("75.0 % [30.1, 95.4]")
    assert all(len(line) <= len(lines[1]) for line in lines)


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("evaluation.json", "{"),
        ("evaluation.json", "[]"),
        ("evaluation.json", "[" * 100_000),
        ("evaluation.json", '{"settings": {}}'),
        ("generations.jsonl", "{\n"),
        ("generations.jsonl", '{"set": "harmful"}\n'),
    ],
)
def test_damaged_results_are_refused(name: str, content: str, tmp_path: Path) -> None:
    save_evaluation(FULL, tmp_path)
    (tmp_path / name).write_text(content)
    with pytest.raises(ValueError, match="as `pact evaluate` wrote them, and they cannot be read"):
        load_evaluation(tmp_path)
