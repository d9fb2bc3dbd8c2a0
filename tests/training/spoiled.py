"""Examples whose loss is not finite: faults that a resumed run meets again."""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

import pytest
import torch
from torch import Tensor

from pact.training import student
from tests.training.problem import Problem


def spoil(
    patch: pytest.MonkeyPatch, given: Problem, examples: Collection[int], value: float = torch.nan
) -> None:
    """Let the loss of every batch that holds one of `examples` be `value`, and its gradient NaN."""
    marked = [torch.tensor(given.dataset[index]["input_ids"]) for index in examples]
    own = student.batch_loss

    def lost(model: Any, objective: Any, reference: Any, batch: Any, num_items: Any = None) -> Any:
        found = own(model, objective, reference, batch, num_items)
        if not any(_holds(batch["input_ids"], ids) for ids in marked):
            return found
        return found._replace(loss=found.loss * value)

    patch.setattr(student, "batch_loss", lost)


def _holds(lines: Tensor, ids: Tensor) -> bool:
    """Whether a padded batch has a line of these ids."""
    if lines.shape[1] < len(ids):
        return False
    return bool((lines[:, : len(ids)] == ids).all(dim=1).any())
