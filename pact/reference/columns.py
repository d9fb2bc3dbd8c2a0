"""The token ids and labels of a data set as flat arrays, without a Python object per token.

Legend: E examples, T tokens of all examples together.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import pyarrow.compute as pc

from pact.data.anchors import anchors_of
from pact.data.spans import IGNORE

MASK = "attention_mask"


class Columns(NamedTuple):
    """All examples, one after the other."""

    input_ids: np.ndarray
    """(T,) int32."""
    labels: np.ndarray
    """(T,) int32."""
    offsets: np.ndarray
    """(E + 1,) int64: where each example begins, and the end."""

    @property
    def lengths(self) -> np.ndarray:
        """(E,) int64: tokens of each example."""
        return np.diff(self.offsets)

    def example(self, index: int) -> dict[str, np.ndarray]:
        """One example, as a collator takes it."""
        place = slice(self.offsets[index], self.offsets[index + 1])
        return {"input_ids": self.input_ids[place].copy(), "labels": self.labels[place].copy()}

    def row_counts(self) -> np.ndarray:
        """(E,) int64: answer rows of each example, as `pact.data.spans.answer_rows` finds them."""
        predicted = self.labels != IGNORE  # (T,)
        predicted[self.offsets[:-1][self.lengths > 0]] = False  # no state predicts the first
        before = np.concatenate(([0], np.cumsum(predicted)))  # (T + 1,)
        return np.diff(before[self.offsets])


def read_columns(dataset: Sequence[Mapping[str, Any]] | Any, anchors_only: bool = False) -> Columns:
    """Read `input_ids` and `labels`; from a `datasets.Dataset` as Arrow keeps them, in its order.

    Args:
        dataset: the examples.
        anchors_only: whether those that are no anchors lose their labels, and with them their rows.

    Raises:
        ValueError: there are no examples, one has not one label per token, or some are padded.
    """
    if len(dataset) == 0:
        raise ValueError("the data must hold at least one example, got none")
    if hasattr(dataset, "with_format"):
        table = dataset.with_format("arrow")[:]
        if MASK in table.column_names:
            _check_unpadded(pc.list_flatten(table[MASK]).to_numpy())
        ids, labels = (pc.list_flatten(table[name]).to_numpy() for name in Columns._fields[:2])
        sizes = [pc.list_value_length(table[name]).to_numpy() for name in Columns._fields[:2]]
    else:
        masks = [np.asarray(example[MASK]) for example in dataset if MASK in example]
        _check_unpadded(np.concatenate(masks) if masks else np.ones(0))
        parts = [[np.asarray(example[name]) for example in dataset] for name in Columns._fields[:2]]
        ids, labels = (np.concatenate(part) for part in parts)
        sizes = [np.array([len(line) for line in part]) for part in parts]
    if not np.array_equal(*sizes):
        index = int(np.flatnonzero(sizes[0] != sizes[1])[0])
        raise ValueError(
            f"an example must have one label per token, got {sizes[0][index]} ids and "
            f"{sizes[1][index]} labels in example {index}: encode it with "
            "pact.data.template.encode"
        )
    offsets = np.concatenate(([0], np.cumsum(sizes[0], dtype=np.int64)))
    if anchors_only:
        labels = np.where(np.repeat(anchors_of(dataset), sizes[0]), labels, IGNORE)
    return Columns(ids.astype(np.int32), labels.astype(np.int32), offsets)


def _check_unpadded(mask: np.ndarray) -> None:
    """Refuse padding in the data, which a cache would take for tokens."""
    if not mask.all():
        raise ValueError(
            f"data whose values are kept must not be padded, got zeros in {MASK}: leave padding "
            "to the collator, as pact.data.dataset.encode_examples does"
        )
