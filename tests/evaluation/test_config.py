from __future__ import annotations

from typing import Any

import pytest

from pact.evaluation.config import EvaluateConfig


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({}, "needs data, got none"),
        ({"drift": "d.jsonl"}, "needs the safety tokens, got tokens unset"),
        ({"benign": "b.jsonl", "tokens": "t"}, "tokens is for drift alone, got tokens='t'"),
        ({"benign": "b.jsonl", "reference": "r"}, "reference is for drift alone"),
        ({"benign": "b.jsonl", "max_new_tokens": 0}, "max_new_tokens must be at least 1, got 0"),
        ({"benign": "b.jsonl", "batch_size": 0}, "batch_size must be at least 1, got 0"),
        ({"benign": "b.jsonl", "max_length": 1}, "max_length must be at least 2, or unset, got 1"),
        ({"benign": "b.jsonl", "dtype": "fp8"}, "dtype must be .* got 'fp8'"),
    ],
)
def test_settings_that_do_not_fit_are_refused(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        EvaluateConfig(model="m", output_dir="o", **settings)


@pytest.mark.parametrize("source", ["harmful", "benign", "heldout", "task"])
def test_one_source_is_enough(source: str) -> None:
    config = EvaluateConfig(model="m", output_dir="o", **{source: "data.jsonl"})
    assert getattr(config, source) == "data.jsonl"
