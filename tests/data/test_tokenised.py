"""Rows that are token ids already."""

from __future__ import annotations

import logging
from typing import Any

import pytest

from pact.data.tokenised import tokenised_dataset

IDS = [5, 6, 7, 8]


def dataset(*rows: Any, **options: Any) -> list[dict[str, list[int]]]:
    numbered = [(f"row {n}", row) for n, row in enumerate(rows)]
    return list(tokenised_dataset(numbered, "here", 10, **{"max_length": None, **options}))


@pytest.mark.parametrize(
    "row",
    [
        {"labels": [-100, -100, 7, 8]},
        {"completion_mask": [0, 0, 1, 1]},
        {"assistant_masks": [False, False, True, True]},
        {"completion_mask": [0, 1, 1, 1], "assistant_masks": [1, 0, 1, 1]},
        {"labels": [-100, -100, 7, 8], "attention_mask": [1, 1, 1, 1]},
    ],
)
def test_labels_and_masks(row: dict[str, Any]) -> None:
    assert dataset({"input_ids": IDS, **row}) == [{"input_ids": IDS, "labels": [-100, -100, 7, 8]}]


def test_padding_and_length() -> None:
    padded = {"input_ids": [0, *IDS, 0], "labels": [-100, *IDS, -100]}
    (row,) = dataset({**padded, "attention_mask": [0, 1, 1, 1, 1, 0]}, max_length=3)
    assert row == {"input_ids": IDS[:3], "labels": IDS[:3]}


def test_rows_without_a_label_are_left_out(caplog: pytest.LogCaptureFixture) -> None:
    empty = {"input_ids": IDS, "labels": [-100] * 4}
    (row,) = dataset(
        empty,
        {"input_ids": IDS, "labels": IDS},
        {"input_ids": IDS, "labels": IDS[:3]},
        skip_bad_rows=True,
    )
    assert row["labels"] == IDS
    assert "left out 2 of 3 rows of here" in caplog.text
    with pytest.raises(ValueError, match="at least one row of here must have a label"):
        dataset(empty)


def test_the_log_names_columns_that_nothing_reads(caplog: pytest.LogCaptureFixture) -> None:
    row = {"input_ids": IDS, "labels": IDS, "attention_mask": [1] * 4, "seq_lengths": None}
    with caplog.at_level(logging.INFO):
        dataset(row)
        assert not caplog.records
        dataset(row | {"text": "x"}, row | {"completion_mask": [0] * 4})
    (record,) = caplog.records
    assert record.getMessage() == "here: nothing reads the columns completion_mask, text"


@pytest.mark.parametrize(
    ("row", "said"),
    [
        ({"input_ids": IDS}, "row 0 must say which tokens are learnt"),
        ({"input_ids": [5, 10], "labels": [5, 10]}, r"in \[0, 10\), got 5 to 10"),
        # int32 and int64 would make 6 of these, and IGNORE of the label
        ({"input_ids": [5, 2**32 + 6], "labels": [5, 6]}, "got 5 to 4294967302"),
        ({"input_ids": [5, 2**64 + 6], "labels": [5, 6]}, "input_ids must be a list of integers"),
        ({"input_ids": [5, 6], "labels": [2**32 - 100, 6]}, "a label must be its token"),
        ({"input_ids": [5, 6], "labels": [2**64 - 100, 6]}, "labels must be a list of integers"),
        ({"input_ids": [5, -1], "labels": [5, -1]}, r"in \[0, 10\), got -1 to 5"),
        ({"input_ids": IDS, "labels": [6, 7, 8, -100]}, "labels are not shifted here"),
        ({"input_ids": IDS, "labels": IDS[:2]}, "one entry per token, got 2 of 4"),
        ({"input_ids": IDS, "completion_mask": [1]}, "completion_mask must have one entry"),
        ({"input_ids": "abcd", "labels": IDS}, "input_ids must be a list of integers"),
        ({"input_ids": [5.5], "labels": [5.5]}, "input_ids must be a list of integers"),
        ({"input_ids": [[5], [6, 7]], "labels": IDS}, "input_ids must be a list of integers"),
        ({"input_ids": IDS, "labels": IDS, "seq_lengths": [2, 2]}, "must be one sequence"),
        ({"input_ids": IDS, "labels": IDS, "attention_mask": [1, 0, 1, 1]}, "got a gap"),
        ({"messages": []}, "must hold input_ids as the rows before it"),
    ],
)
def test_refused(row: dict[str, Any], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        dataset(row)
