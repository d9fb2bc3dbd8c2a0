"""Anchors: how many, which tokens keep a label, and what a batch knows of them."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from datasets import Dataset

from pact.data.anchors import ANCHOR, with_anchors
from pact.data.collate import Collator, count_rows, denominator, learnt_rows
from pact.data.packing import PackedCollator
from pact.data.spans import IGNORE

ONE = {"input_ids": [1, 2, 3, 4], "labels": [IGNORE, IGNORE, 3, 4]}
LONG = {"input_ids": list(range(10, 20)), "labels": [IGNORE] * 3 + list(range(13, 20))}
TWO_ANSWERS = {
    "input_ids": list(range(20, 28)),
    "labels": [IGNORE, 21, 22, IGNORE, IGNORE, 25, 26, IGNORE],
}


def columns(*examples: dict[str, list[int]]) -> Dataset:
    return Dataset.from_dict({name: [e[name] for e in examples] for name in ONE})


def mixed(share: float, steps: int, *anchors: dict[str, list[int]], seed: int = 0) -> Dataset:
    return with_anchors(columns(*[ONE] * 6), columns(*anchors), share, steps, seed)


@pytest.mark.parametrize("share, count", [(0.25, 2), (0.4, 4), (0.9, 54)])
def test_the_share_is_of_all_however_few_anchors_there_are(share: float, count: int) -> None:
    data = mixed(share, 3, LONG, TWO_ANSWERS)
    assert data[ANCHOR] == [False] * 6 + [True] * count
    assert data[:6]["labels"] == [ONE["labels"]] * 6
    starts = [ids[0] for ids in data[6:]["input_ids"]]
    assert starts.count(10) == starts.count(20) == count // 2


def test_the_seed_draws() -> None:
    anchors = [{**ONE, "input_ids": [n, 2, 3, 4]} for n in range(9)]
    drawn = {str(mixed(0.4, 1, *anchors, seed=seed)[:]["input_ids"]) for seed in range(4)}
    assert len(drawn) > 1


def test_the_first_tokens_of_the_last_answer_are_held() -> None:
    data = mixed(0.25, 3, LONG, TWO_ANSWERS)[6:]
    found = dict(zip(map(len, data["input_ids"]), data["labels"], strict=True))
    assert found == {
        6: [IGNORE] * 3 + [13, 14, 15],  # cut behind the third
        7: [IGNORE] * 5 + [25, 26],  # the other answer is its context
    }


@pytest.mark.parametrize("packed", [False, True])
def test_a_batch_knows_its_rows(packed: bool) -> None:
    collator = (PackedCollator if packed else Collator)((), 0, post_only=False)
    examples: list[dict[str, Any]] = [
        {**ONE, ANCHOR: False},
        {**LONG, "labels": [*LONG["labels"][:5], *[IGNORE] * 5], ANCHOR: True},
        {**ONE, ANCHOR: False},
    ]
    batch = collator(examples)
    assert batch["row_learnt"].tolist() == [0, 1, 4, 5]
    assert batch["row_held"].tolist() == [2, 3]
    assert batch["row_target"].tolist() == [3, 4, IGNORE, IGNORE, 3, 4]
    assert batch["row_step"].tolist() == [0, 1] * 3
    assert learnt_rows(batch) == 4
    plain = collator(examples[:1])
    assert "row_held" not in plain and learnt_rows(plain) == 2
    assert torch.equal(plain["row_target"], torch.tensor([3, 4]))


@pytest.mark.parametrize(
    "rows, expected", [([[4, 2], [3, 0]], 7), ([[0, 3], [0, 2]], 5), ([[0, 0]], 1)], ids=str
)
def test_a_step_of_anchors_alone_is_a_mean_over_them(rows: list[list[int]], expected: int) -> None:
    batches = []
    for learnt, held in rows:
        examples = [{**ONE, ANCHOR: False}] * (learnt // 2) + [{**ONE, ANCHOR: True}] * (held // 2)
        odd = {"input_ids": [1, 2], "labels": [IGNORE, 2]}
        examples += [{**odd, ANCHOR: False}] * (learnt % 2) + [{**odd, ANCHOR: True}] * (held % 2)
        batches.append(
            Collator((), 0, post_only=False)(examples or [{**ONE, "labels": [IGNORE] * 4}])
        )
    counted = count_rows(batches, torch.device("cpu"))
    assert counted.tolist() == [sum(column) for column in zip(*rows, strict=True)]
    assert int(denominator(counted)) == expected
