"""Packed lines by hand, and against the padded batch row by row."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from pact.data.collate import Collator
from pact.data.packing import PackedCollator, evened_bins, first_fit_decreasing
from pact.data.spans import IGNORE

HEADER = [90, 91]
PAD = 2  # also the token that ends an answer
_ = IGNORE

# Lengths 3, 5 and 2; the last example's answer begins at position 0.
EXAMPLES = [
    {"input_ids": [5, 9, 2], "labels": [_, 9, 2]},
    {"input_ids": [5, 6, 7, 8, 2], "labels": [_, _, 7, 8, 2]},
    {"input_ids": [4, 2], "labels": [4, 2]},
]


def listed(batch: dict[str, Tensor]) -> dict[str, list]:
    return {name: value.tolist() for name, value in batch.items()}


def test_two_lines_by_hand() -> None:
    """5 tokens in a line, 3 and 2 in another; post-only 4 in a line, 3 and 3 in another."""
    batch = PackedCollator(HEADER, PAD, pack_length=7)(EXAMPLES)
    assert listed(batch) == {
        "input_ids": [[5, 6, 7, 8, 2], [5, 9, 2, 4, 2]],
        "attention_mask": [[1, 1, 1, 1, 1], [1, 1, 1, 1, 1]],
        "labels": [[_, _, 7, 8, 2], [_, 9, 2, _, 2]],  # the 4 follows another example's end
        "position_ids": [[0, 1, 2, 3, 4], [0, 1, 2, 0, 1]],
        "row_sequence": [1, 1, 0, 0, 0, 1],
        "row_position": [0, 1, 1, 2, 3, 3],
        "row_step": [0, 1, 0, 1, 2, 1],
        "row_answer": [0, 0, 1, 1, 1, 2],
        "row_target": [9, 2, 7, 8, 2, 2],
        "post_input_ids": [[90, 91, 7, 8, 2, 2], [90, 91, 9, 90, 91, 4]],
        "post_attention_mask": [[1, 1, 1, 1, 0, 0], [1, 1, 1, 1, 1, 1]],
        "post_position_ids": [[0, 1, 2, 3, 0, 1], [0, 1, 2, 0, 1, 2]],
        "post_sequence": [1, 1, 0, 0, 0, 1],
        "post_position": [1, 2, 1, 2, 3, 5],
    }
    assert {value.dtype for value in batch.values()} == {torch.int64}


def test_without_post_only_no_header_is_needed() -> None:
    batch = PackedCollator([], PAD, post_only=False, pack_length=7)(EXAMPLES)
    whole = listed(PackedCollator(HEADER, PAD, pack_length=7)(EXAMPLES))
    assert listed(batch) == {k: v for k, v in whole.items() if not k.startswith("post_")}


def test_examples_keep_their_names() -> None:
    """One each, in the order given, not one a line."""
    named = [{**example, "example": 10 + n} for n, example in enumerate(EXAMPLES)]
    batch = PackedCollator(HEADER, PAD, pack_length=7)(named)
    assert batch["example"].tolist() == [10, 11, 12]
    assert "example" not in PackedCollator(HEADER, PAD, pack_length=7)(EXAMPLES)


def test_an_unset_length_is_the_longest_examples() -> None:
    """5 tokens beside 3 and 2; post-only 4, 3 and 3, of which no two share a line of 4."""
    batch = PackedCollator(HEADER, PAD)(EXAMPLES)
    assert batch["position_ids"].tolist() == [[0, 1, 2, 3, 4], [0, 1, 2, 0, 1]]
    assert batch["post_position_ids"].tolist() == [[0, 1, 2, 3], [0, 1, 2, 0], [0, 1, 2, 0]]


def test_an_example_longer_than_a_line_has_its_own() -> None:
    batch = PackedCollator([], PAD, post_only=False, pack_length=3)(EXAMPLES)
    assert batch["attention_mask"].sum(dim=1).tolist() == [5, 3, 2]
    with pytest.raises(ValueError, match="pack_length must be at least 1, or unset, got 0"):
        PackedCollator([], PAD, pack_length=0)


def test_no_rows_give_no_post_only_lines() -> None:
    batch = PackedCollator(HEADER, PAD)([{"input_ids": [5, 6], "labels": [_, _]}])
    assert batch["row_target"].shape == (0,)
    assert batch["post_input_ids"].shape == batch["post_position_ids"].shape == (0, 0)


def random_examples(seed: int, count: int = 12) -> list[dict[str, list[int]]]:
    """1 to 30 tokens, each labelled by chance, so that answers begin and end anywhere."""
    draw = torch.Generator().manual_seed(seed)
    examples = []
    for share in torch.linspace(0, 1, count).tolist():  # from no label at all to every label
        length = int(torch.randint(1, 31, (), generator=draw))
        ids = torch.randint(3, 80, (length,), generator=draw)
        labels = torch.where(torch.rand(length, generator=draw) < share, ids, IGNORE)
        examples.append({"input_ids": ids.tolist(), "labels": labels.tolist()})
    return examples


@pytest.mark.parametrize("pack_length", [None, 1, 37, 500])  # the longest, none, several, one line
@pytest.mark.parametrize("seed", range(3))
def test_rows_are_those_of_the_padded_batch(seed: int, pack_length: int | None) -> None:
    """In order: what is predicted, and all that the row's state sees, also without the prompt."""
    examples = random_examples(seed)
    padded = Collator(HEADER, PAD)(examples)
    packed = PackedCollator(HEADER, PAD, pack_length=pack_length)(examples)
    for name in ("row_step", "row_answer", "row_target"):
        assert torch.equal(packed[name], padded[name]), name
    for prefix, kind in (("", "row_"), ("post_", "post_")):
        ids, positions = packed[f"{prefix}input_ids"], packed[f"{prefix}position_ids"]
        rows = packed[f"{kind}sequence"], packed[f"{kind}position"]
        places = padded[f"{kind}sequence"], padded[f"{kind}position"]
        assert torch.equal(positions[rows], places[1])
        for line, end, sequence, position in zip(*rows, *places, strict=True):
            seen = ids[line, end - position : end + 1]
            assert torch.equal(seen, padded[f"{prefix}input_ids"][sequence, : position + 1])
            assert packed[f"{prefix}attention_mask"][line, end - position : end + 1].all()
        tokens = padded[f"{prefix}attention_mask"].sum()
        assert packed[f"{prefix}attention_mask"].sum() == tokens
        longest = int(padded[f"{prefix}attention_mask"].sum(dim=1).max())
        assert positions.max() == longest - 1  # padding too: a model may have learned no more
        if pack_length is not None:
            assert ids.shape[1] <= max(pack_length, longest)


@pytest.mark.parametrize("seed", range(3))
def test_labels_of_the_lines_are_the_rows(seed: int) -> None:
    """Shifted by one, as transformers' own loss takes them: no state predicts another example."""
    batch = PackedCollator(HEADER, PAD, pack_length=64)(random_examples(seed))
    labels = batch["labels"]
    assert (labels[batch["position_ids"] == 0] == IGNORE).all()
    line, position = (labels[:, 1:] != IGNORE).nonzero(as_tuple=True)
    found = sorted(zip(line.tolist(), position.tolist(), strict=True))
    rows = batch["row_sequence"].tolist(), batch["row_position"].tolist()
    assert found == sorted(zip(*rows, strict=True))
    assert torch.equal(labels[rows[0], batch["row_position"] + 1], batch["row_target"])


def test_less_is_padding_than_in_a_padded_batch() -> None:
    """For random lengths, where half of a padded batch is padding."""
    shares: list[list[float]] = [[], [], []]
    for seed in range(5):
        examples = random_examples(seed, count=32)
        collators: tuple[Any, ...] = (
            Collator([], PAD, post_only=False),
            PackedCollator([], PAD, post_only=False),
            PackedCollator([], PAD, post_only=False, pack_length=128),
        )
        for share, collator in zip(shares, collators, strict=True):
            share.append(1 - collator(examples)["attention_mask"].float().mean().item())
    padded, longest, long = (max(share) for share in shares)
    assert min(shares[0]) > 0.3 and padded > 0.4
    assert longest < 0.15  # lines of 30 tokens
    assert long < 0.05  # lines of 128, of which a batch fills four or five alike


def test_first_fit_decreasing_by_hand() -> None:
    assert first_fit_decreasing([4, 8, 1, 4, 2, 1], capacity=10) == [[1, 4], [0, 3, 2, 5]]
    assert first_fit_decreasing([3, 3, 3], capacity=6) == [[0, 1], [2]]  # equal ones keep order
    assert first_fit_decreasing([7, 0, 2], capacity=5) == [[0], [2, 1]]  # 7 is larger than a bin
    assert first_fit_decreasing([], capacity=5) == []


def test_bins_are_filled_alike_where_that_fits() -> None:
    assert evened_bins([4, 8, 1, 4, 2, 1], capacity=10) == [[1, 4], [0, 3, 2, 5]]  # 10 and 10
    assert evened_bins([4, 4, 4, 1, 1], capacity=12) == [[0, 2], [1, 3, 4]]  # 8 and 6, not 12 and 2
    assert evened_bins([3, 3, 2, 2, 2], capacity=6) == [[0, 1], [2, 3, 4]]  # alike would be 7 and 5
    assert evened_bins([9, 3, 3, 2, 2, 2], capacity=6) == [[0], [1, 2], [3, 4, 5]]  # 9 on its own
    assert evened_bins([], capacity=5) == []


@pytest.mark.parametrize("capacity", [1, 30, 64, 200])  # none together, the longest, several, more
def test_bins_hold_every_item_once_within_the_capacity(capacity: int) -> None:
    lengths = [(37 * n) % 31 for n in range(50)]  # 0 .. 30, in no order
    bins = evened_bins(lengths, capacity)
    assert sorted(item for items in bins for item in items) == list(range(50))
    assert len(bins) == len(first_fit_decreasing(lengths, capacity))
    assert max(sum(lengths[item] for item in items) for items in bins) <= max(capacity, 30)
