"""Means whose denominator may belong to a larger step than the rows at hand."""

from __future__ import annotations

from torch import Tensor


def mean_of(
    total: Tensor, num_rows: int | Tensor, num_items: int | float | Tensor | None
) -> Tensor:
    """total / num_items, or total / num_rows without it; 0 of them count as 1."""
    if num_items is None:
        num_items = num_rows.clamp(min=1) if isinstance(num_rows, Tensor) else max(num_rows, 1)
    elif isinstance(num_items, Tensor):  # a number is known to be positive
        num_items = (num_items + (num_items == 0)).to(total.dtype)
    return total / num_items
