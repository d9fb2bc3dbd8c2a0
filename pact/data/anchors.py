"""Anchors: prompts with the reference's own answers, at whose first tokens the model is held to it.

Nothing of them is learnt: their rows have the pull on the safety tokens alone. Requests that the
reference refuses keep its refusals where the data have none; harmless ones beside them keep it from
refusing more than it did.
"""

from __future__ import annotations

import random
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from datasets import Dataset, Features, List, Value, concatenate_datasets

from pact.data.spans import IGNORE, answer_rows

ANCHOR = "anchor"
"""The column that says of every example whether it is one."""


def anchors_of(dataset: Any) -> np.ndarray:
    """(E,) bool: which examples are anchors, of a `datasets.Dataset` or another sequence."""
    if hasattr(dataset, "column_names"):
        known = ANCHOR in dataset.column_names
        return np.array(dataset[ANCHOR][:] if known else [False] * len(dataset), bool)
    examples = (dataset[index] for index in range(len(dataset)))
    return np.array([bool(example.get(ANCHOR, False)) for example in examples], bool)


def with_anchors(
    dataset: Dataset, anchors: Dataset, share: float, steps: int, seed: int
) -> Dataset:
    """The examples, then anchors drawn by the seed so that these are `share` of all.

        count = round(len(dataset) share / (1 - share))

    Every anchor is drawn as often as every other, or once more: a few are enough.

    Args:
        dataset: encoded examples, with `input_ids` and `labels`.
        anchors: encoded likewise, the labels on the reference's own answers.
        share: in (0, 1).
        steps: tokens of each anchor's last answer that keep their label; what comes after them is
            cut off.
        seed: of the draw.
    """
    count = round(len(dataset) * share / (1.0 - share))
    stream = random.Random(f"anchors {seed}")
    places: list[int] = []
    while len(places) < count:
        places += stream.sample(range(len(anchors)), len(anchors))
    beginnings = [_beginning(example, steps) for example in anchors]
    ids = List(Value("int32"))
    features = Features({"input_ids": ids, "labels": ids, ANCHOR: Value("bool")})
    drawn = {
        "input_ids": [beginnings[place][0] for place in places[:count]],
        "labels": [beginnings[place][1] for place in places[:count]],
        ANCHOR: [True] * count,
    }
    marked = dataset.add_column(ANCHOR, [False] * len(dataset)).cast(features)
    return concatenate_datasets([marked, Dataset.from_dict(drawn, features=features)])


def _beginning(example: Mapping[str, Any], steps: int) -> tuple[list[int], list[int]]:
    """Ids and labels up to `steps` tokens of the last answer, which alone are labelled."""
    given = torch.tensor(example["labels"])  # (L,)
    rows = answer_rows(given[None])
    of_last = rows.position[(rows.answer == rows.answer.max()) & (rows.step < steps)] + 1
    labels = torch.full_like(given, IGNORE)
    labels[of_last] = given[of_last]
    end = int(of_last.max()) + 1
    return list(example["input_ids"][:end]), labels[:end].tolist()
