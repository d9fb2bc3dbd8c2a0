"""Examples with nothing to predict, or nothing at all: finite beside others, refused alone."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from datasets import Dataset
from transformers import TrainingArguments

from pact.data.spans import IGNORE
from pact.objective import PactConfig
from pact.training import PactTrainer
from pact.training.config import FitConfig
from pact.training.schedule import Plan
from tests.objectives import matching
from tests.rounding import SUMS
from tests.tiny import tiny_llama
from tests.training.problem import Problem, largest_error, one_step, parameters_of, problem

OBJECTIVES = {"plain": None, "vocabulary": PactConfig(), "selection": matching("selection")}
EMPTY: dict[str, list[int]] = {"input_ids": [], "labels": []}
SINGLE = {"input_ids": [5], "labels": [5]}
"""No state predicts its only token."""


def rows_of(given: Problem, ignored: Any = ()) -> list[dict[str, Any]]:
    """The examples, some of them without a label."""
    return [
        {
            "input_ids": row["input_ids"],
            "labels": [IGNORE] * len(row["labels"]) if place in ignored else row["labels"],
        }
        for place, row in enumerate(given.dataset)
    ]


@pytest.mark.parametrize("pack_length", [None, 400])
@pytest.mark.parametrize("pact", OBJECTIVES.values(), ids=OBJECTIVES)
def test_an_example_without_a_row_changes_nothing(
    pact: PactConfig | None, pack_length: int | None
) -> None:
    """It is a micro-batch of its own, at first, in the middle and at last; so is a single token."""
    given = problem(pact, count=4)
    made = given if pack_length is None else given.packed(pack_length)
    reference = given.reference(tiny_llama(seed=1))
    settings = {"batch_size": 8, "micro_batch_size": 1}
    expected, gradients = one_step(made, tiny_llama(), reference, **settings)
    rows = rows_of(given)
    silent = rows_of(given, {0, 1, 2})
    more = made._replace(dataset=[*silent[:2], *rows, SINGLE, silent[2]])
    record, found = one_step(more, tiny_llama(), reference, **settings)
    for name in ("loss", "kl", "rows", "grad_norm"):
        assert record[name] == pytest.approx(expected[name], rel=SUMS), name
    assert largest_error(found, gradients) < SUMS


@pytest.mark.parametrize("pact", OBJECTIVES.values(), ids=OBJECTIVES)
def test_a_later_step_without_a_row_is_finite(pact: PactConfig | None) -> None:
    """Its loss is 0."""
    given = problem(pact, count=8)
    config = FitConfig(max_steps=2, batch_size=4, micro_batch_size=2, warmup_ratio=0.0)
    silent = Plan(config, 8).indices(1)
    model = tiny_llama()
    records = given._replace(dataset=rows_of(given, silent)).fit(model, config)
    assert records[0]["loss"] > 1.0
    assert (records[1]["loss"], records[1]["rows"], records[1]["grad_norm"]) == (0.0, 0.0, 0.0)
    assert all(bool(value.isfinite().all()) for value in parameters_of(model).values())


def trainer(given: Problem, rows: list[dict[str, Any]], folder: Path) -> PactTrainer:
    data = Dataset.from_list(rows)
    settings = {
        "max_steps": 1,
        "per_device_train_batch_size": 2,
        "gradient_accumulation_steps": 4,
        "per_device_eval_batch_size": 2,
        "logging_steps": 1,
        "report_to": "none",
        "save_strategy": "no",
        "use_cpu": True,
        "disable_tqdm": True,
    }
    return PactTrainer(
        tiny_llama(),
        TrainingArguments(str(folder), **settings),
        objective=given.objective,
        data_collator=given.collator,
        train_dataset=data,
        eval_dataset=data,
    )


@pytest.mark.parametrize("pact", OBJECTIVES.values(), ids=OBJECTIVES)
def test_a_trainers_batch_without_a_row_changes_nothing(
    pact: PactConfig | None, tmp_path: Path
) -> None:
    """Both of its examples are silent, in the middle of an evaluation."""
    given = problem(pact, count=8)
    rows, silent = rows_of(given), rows_of(given, {2, 3})
    mixed = trainer(given, silent, tmp_path)
    without = trainer(given, [*rows[:2], *rows[4:]], tmp_path)
    found, expected = mixed.evaluate(), without.evaluate()
    assert found["eval_loss"] == pytest.approx(expected["eval_loss"], rel=SUMS)
    mixed.train()
    (entry,) = [entry for entry in mixed.state.log_history if "loss" in entry]
    assert float(entry["loss"]) == pytest.approx(float(expected["eval_loss"]), rel=SUMS)


REFUSED = {
    "nothing is labelled": ([SINGLE] * 4, "must have answer tokens to predict, got none in the"),
    "nothing at all": ([EMPTY] * 4, "an example must have at least one token, got none"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_data_without_a_row_are_refused(name: str, tmp_path: Path) -> None:
    rows, message = REFUSED[name]
    given = problem(None)
    with pytest.raises(ValueError, match=message):
        given._replace(dataset=rows).fit(tiny_llama(), FitConfig(max_steps=1))
    with pytest.raises(ValueError, match=message):
        trainer(given, rows, tmp_path).train()


def test_one_empty_example_is_refused(tmp_path: Path) -> None:
    """In a batch with others, whose line would be padding alone."""
    given = problem(None, count=3)
    rows = [*rows_of(given), EMPTY]
    with pytest.raises(ValueError, match="an example must have at least one token, got none"):
        given._replace(dataset=rows).fit(tiny_llama(), FitConfig(max_steps=1))
    with pytest.raises(ValueError, match="an example must have at least one token, got none"):
        trainer(given, rows, tmp_path).train()
