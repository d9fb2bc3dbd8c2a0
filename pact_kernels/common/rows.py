"""Which positions are rows: those whose target is not ignored.

Legend: R positions, N rows, V vocabulary.
"""

from __future__ import annotations

import torch
from torch import Tensor


def kept_rows(
    target: Tensor | None, ignore_index: int, vocabulary: int, num_rows: int | None
) -> Tensor | None:
    """(N,) positions whose target is not ignored, or None where the rows stay as they are.

    Without N, finding them waits for a GPU. With N = R nothing is looked for; another N that is not
    their number fails on the device.

    Raises:
        ValueError: on a CPU, a target is neither ignored nor in [0, V), or N is not their number.
    """
    if target is None:
        return None
    if target.device.type == "cpu":
        _check_targets(target, target != ignore_index, ignore_index, vocabulary)
    if num_rows == target.numel():
        return None
    keep = target != ignore_index
    if num_rows is not None and target.device.type != "cpu":
        torch._assert_async(keep.sum() == num_rows)
        return torch.nonzero_static(keep, size=num_rows, fill_value=0).squeeze(1)
    kept = keep.nonzero().squeeze(1)  # waits for the device
    if num_rows is not None:
        check_rows(num_rows, kept.numel(), target.numel())
    return None if kept.numel() == target.numel() else kept


def _check_targets(target: Tensor, keep: Tensor, ignore_index: int, vocabulary: int) -> None:
    wrong = keep & ((target < 0) | (target >= vocabulary))
    if bool(wrong.any()):
        at = int(wrong.nonzero()[0])
        raise ValueError(
            f"a target must lie in [0, {vocabulary}) or equal ignore_index={ignore_index}, got "
            f"{int(target[at])} at position {at}: the labels belong to another vocabulary"
        )


def check_rows(given: int, num_rows: int, num_positions: int) -> None:
    """Row tensors have one entry per kept row or one per position.

    Raises:
        ValueError: they have neither.
    """
    if given not in (num_rows, num_positions):
        raise ValueError(
            f"step, reference and row_weight must have one entry per row, {num_rows} once ignored "
            f"targets are dropped (or one per position, {num_positions}), got {given}"
        )
