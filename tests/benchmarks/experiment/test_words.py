"""Settings are told from the cell."""

from __future__ import annotations

from dataclasses import replace
from typing import get_args

from benchmarks.experiment.cell import Cell, Method
from benchmarks.experiment.document import METHODS, describe, listed
from tests.benchmarks.experiment import synthetic

OURS = synthetic.METHODS[synthetic.LABEL]


def test_settings_are_told_from_the_cell() -> None:
    raised = replace(OURS, pact=replace(OURS.pact, kl_margin=1.5))
    assert "the reference raised by a margin of 1.5 nats" in describe(raised)
    assert describe(replace(OURS, token_source="random", full_finetuning=True)) == (
        "cross-entropy and the KL of the true confidences on K = 200 random safety tokens, "
        "lambda 2.5, those of positive weight alone, answer step t weighs exp(-t / 4), no gate; "
        "all weights"
    )
    assert describe(replace(OURS, weighted=False)).endswith("all tokens weigh the same")
    assert describe(Cell(method="full_kl", strength=0.7)).endswith("lambda 0.7")
    assert describe(Cell(method="mixing", refusal_share=0.05)).endswith("share 0.05")
    assert describe(Cell(method="first_tokens", strength=1.5)).endswith("strength 1.5")
    steps = describe(replace(OURS, anchor_share=0.5, anchor_steps=3))
    assert steps.endswith("held at the first 3 tokens of anchors, share 0.5")
    warm = describe(replace(OURS, pact=replace(OURS.pact, over="selection", kl_temperature=2.0)))
    assert "lambda 2.5, temperature 2," in warm


def test_every_method_has_its_words() -> None:
    assert set(get_args(Method)) - set(METHODS) == {"pact"}  # told by what its KL is over


def test_a_list_of_words() -> None:
    assert [listed(x) for x in ([1], [1, 2], "abc")] == ["1", "1 and 2", "a, b and c"]
