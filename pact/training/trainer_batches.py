"""What `PactTrainer` asks of data sets and of the batches that are made of them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from pact.training.checks import check_tokens

COLUMNS = ("input_ids", "labels")


@dataclass(frozen=True)
class CheckedCollator:
    """A collator whose batches have answer rows, with token ids that the model has."""

    collator: Callable[[list[Any]], dict[str, Tensor]]
    """Makes the batches."""
    vocabulary: int
    """Rows of the model's head."""

    def __call__(self, examples: list[Any]) -> dict[str, Tensor]:
        """Collate, and look at what came of it while it is on the CPU."""
        check_tokens(examples)
        batch = self.collator(examples)
        if "row_target" not in batch:
            raise ValueError(
                "data_collator must make answer rows, as pact.data.collate.Collator and "
                f"pact.data.packing.PackedCollator do, got a batch of {sorted(batch)}: give one of "
                "these, or processing_class alone"
            )
        largest = max(int(batch["input_ids"].max()), int(batch["labels"].max()))
        if largest >= self.vocabulary:
            raise ValueError(
                f"every token id must be below the model's vocabulary of {self.vocabulary}, got "
                f"{largest}: encode the data with the tokenizer of this model"
            )
        return batch


def check_columns(name: str, dataset: Any) -> None:
    """Refuse a data set that names its columns and lacks what a batch is made of.

    Raises:
        ValueError: a column is missing; data of several sets are looked at one by one.
    """
    if isinstance(dataset, Mapping):
        for part, each in dataset.items():
            check_columns(f"{name}[{part!r}]", each)
        return
    columns = getattr(dataset, "column_names", None)
    if isinstance(columns, list) and not set(COLUMNS) <= set(columns):
        raise ValueError(
            f"{name} must have the columns {' and '.join(COLUMNS)}, got {columns}: encode "
            "conversations with pact.data.dataset.encode_examples"
        )


def first_examples(batch: Mapping[str, Any], count: int) -> dict[str, Any]:
    """A collated batch without the rows of all examples from `count` on."""
    if count >= len(batch["labels"]):
        return dict(batch)
    kept = batch["row_sequence"] < count  # (N,)
    rows = kept.numel()
    changed = dict(batch)
    for name, value in batch.items():
        is_of_rows = name.startswith(("row_", "post_sequence", "post_position"))
        if name in ("row_learnt", "row_held"):  # places of rows, of which some are gone
            changed[name] = (kept.cumsum(0) - 1)[value[kept[value]]]
        elif is_of_rows and isinstance(value, Tensor) and value.shape == (rows,):
            changed[name] = value[kept]
    if "example" in batch:  # names those that have rows to a cached reference
        changed["example"] = torch.as_tensor(batch["example"])[:count]
    return changed
