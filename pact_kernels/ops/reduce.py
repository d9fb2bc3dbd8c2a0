"""Means whose denominator may belong to a larger step than the rows at hand."""

from __future__ import annotations

from torch import Tensor


def mean_of(
    total: Tensor, num_rows: int | Tensor, num_items: int | float | Tensor | None
) -> Tensor:
    """total / num_items, or total / num_rows without it; a mean over no row is 0."""
    if num_items is not None:
        return total / num_items
    return total / (num_rows.clamp(min=1) if isinstance(num_rows, Tensor) else max(num_rows, 1))
