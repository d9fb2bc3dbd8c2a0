"""Batches of similar length."""

from __future__ import annotations

import numpy as np
import pytest

from pact.data.batches import bucketed_order, length_batches


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


def skewed_lengths(count: int) -> list[int]:
    """1 .. 97, in no order."""
    return [(37 * n) % 97 + 1 for n in range(count)]


@pytest.mark.parametrize("count", [0, 1, 7, 8, 100, 256])  # none, less than a batch, one, ragged
@pytest.mark.parametrize("window", [1, 4, 1000])  # one batch, several, more than there are
def test_a_bucketed_order_holds_every_index_once(count: int, window: int) -> None:
    lengths = skewed_lengths(count)
    order = bucketed_order(lengths, 8, seed=3, window=window)
    assert sorted(order) == list(range(count))
    assert all(isinstance(index, int) for index in order)
    assert order == bucketed_order(lengths, 8, seed=3, window=window)
    if count > 8:  # one whole batch is sorted, whatever the seed
        assert order != bucketed_order(lengths, 8, seed=4, window=window)


def test_bucketed_batches_have_similar_lengths_in_no_order() -> None:
    lengths = skewed_lengths(1000)

    def spread(order: list[int]) -> float:
        """Mean distance of the longest and the shortest of a full batch."""
        batches = [[lengths[i] for i in order[n : n + 8]] for n in range(0, 1000 - 7, 8)]
        return sum(max(batch) - min(batch) for batch in batches) / len(batches)

    random = list(np.random.default_rng(0).permutation(1000))
    order = bucketed_order(lengths, 8, seed=0, window=16)
    assert spread(random) > 60
    assert spread(order) < 0.25 * spread(random)
    assert spread(order) > spread(bucketed_order(lengths, 8, seed=0, window=1000))
    means = [sum(lengths[i] for i in order[n : n + 8]) / 8 for n in range(0, 1000, 8)]
    assert abs(np.corrcoef(means, range(len(means)))[0, 1]) < 0.3  # from short to long it is 1


@pytest.mark.parametrize("share", [0.1, 0.5])
def test_batches_have_of_two_kinds_alike(share: float) -> None:
    """The one kind is as short as anchors: by length alone its examples would be batches."""
    count = round(1000 * share)
    lengths = skewed_lengths(1000 - count) + [1 + n % 3 for n in range(count)]
    strata = np.arange(1000) >= 1000 - count
    order = bucketed_order(lengths, 8, seed=0, strata=strata)
    assert sorted(order) == list(range(1000))
    batches = np.array(order).reshape(-1, 8)
    found = strata[batches].sum(axis=1)  # of the second kind
    # a window has its own share, which is drawn: 32 batches of 8 are within 4 sigma of it
    assert abs(found - 8 * share).max() <= 1 + 8 * 4 * (share * (1 - share) / 256) ** 0.5
    spreads = [np.ptp([lengths[i] for i in batch if not strata[i]] or [0]) for batch in batches]
    assert np.mean(spreads) < 20  # of 96
    kinds = strata[np.array(bucketed_order(lengths, 8, seed=0))].reshape(-1, 8).sum(axis=1)
    assert kinds.max() == 8  # as it would be


def test_what_fills_no_batch_is_of_any_length() -> None:
    """Each of 9 examples in batches of 8 is the last one in its turn."""
    lengths = [10 * n for n in range(9)]
    last = {bucketed_order(lengths, 8, seed)[-1] for seed in range(100)}
    assert last == set(range(9))


def test_bucket_sizes_are_checked() -> None:
    with pytest.raises(ValueError, match="batch_size must be at least 1, got 0"):
        bucketed_order([1], 0, seed=0)
    with pytest.raises(ValueError, match="window must be at least 1, got 0"):
        bucketed_order([1], 1, seed=0, window=0)
