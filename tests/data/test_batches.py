"""Batches of similar length."""

from __future__ import annotations

import pytest

from pact.data.batches import length_batches


@pytest.mark.parametrize(
    ("limits", "expected"),
    [
        ({"batch_size": 2}, [[1, 3], [4, 0], [2]]),
        ({"max_tokens": 14}, [[1, 3], [4, 0, 2]]),  # 2 x 7, then 3 x 4
        ({"max_tokens": 13}, [[1], [3, 4], [0, 2]]),  # 2 x 7 is one too many
        ({"max_tokens": 5}, [[1], [3], [4], [0, 2]]),  # 7 and 6 alone exceed the limit
        ({"batch_size": 2, "max_tokens": 14}, [[1, 3], [4, 0], [2]]),
        ({"batch_size": 9}, [[1, 3, 4, 0, 2]]),
    ],
)
def test_batches_by_hand(limits: dict[str, int], expected: list[list[int]]) -> None:
    assert length_batches([2, 7, 1, 6, 4], **limits) == expected


def test_equal_lengths_keep_their_order_and_none_gives_none() -> None:
    assert length_batches([3, 3, 3], batch_size=2) == [[0, 1], [2]]
    assert length_batches([], max_tokens=4) == []


def test_every_example_is_in_one_batch_within_the_limits() -> None:
    lengths = [(37 * n) % 23 + 1 for n in range(50)]  # 1 .. 23, in no order
    batches = length_batches(lengths, batch_size=7, max_tokens=60)
    assert sorted(index for batch in batches for index in batch) == list(range(50))
    for batch in batches:
        assert len(batch) <= 7
        assert len(batch) * max(lengths[index] for index in batch) <= 60


@pytest.mark.parametrize(
    ("limits", "message"),
    [
        ({}, "got neither batch_size nor max_tokens"),
        ({"batch_size": 0}, "batch_size must be at least 1, got 0"),
        ({"max_tokens": -1}, "max_tokens must be at least 1, got -1"),
    ],
)
def test_limits_are_checked(limits: dict[str, int], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        length_batches([1], **limits)
