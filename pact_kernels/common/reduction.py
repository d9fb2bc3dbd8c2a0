"""How row losses become one: a sum, or a mean whose denominator may belong to a larger step.

Legend: N rows.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from pact_kernels.common.chunks import accumulator_dtype


class Reduction(NamedTuple):
    """What an operator does with its rows' losses."""

    kind: str
    """"none", "sum" or "mean"."""
    num_items: Tensor | None = None
    """() the mean's denominator; None with no `number` is the number of rows."""
    number: float | None = None
    """The denominator where the host knows it."""

    def denominator(self, num_rows: int | Tensor) -> float | Tensor | None:
        """What the sum is divided by, 0 counting as 1; None where by nothing."""
        if self.kind != "mean":
            return None
        if self.number is not None:
            return self.number
        if self.num_items is not None:  # a number is known to be positive
            return self.num_items + (self.num_items == 0)
        return num_rows.clamp(min=1) if isinstance(num_rows, Tensor) else float(max(num_rows, 1))


def reduction_of(kind: str, num_items: int | float | Tensor | None) -> Reduction:
    """The reduction that an op's arguments ask for."""
    if isinstance(num_items, Tensor):
        return Reduction(kind, num_items.detach())
    return Reduction(kind, None, None if num_items is None else float(num_items))


def mean_of(
    total: Tensor, num_rows: int | Tensor, num_items: int | float | Tensor | None
) -> Tensor:
    """total / num_items, or total / num_rows without it; 0 of them count as 1."""
    return divided(total, reduction_of("mean", num_items).denominator(num_rows))


def divided(total: Tensor, denominator: float | Tensor | None) -> Tensor:
    """total / denominator in the dtype of the total, whatever the denominator's."""
    if isinstance(denominator, Tensor):
        return total / denominator.to(total.dtype)
    return total if denominator is None else total / denominator


def row_factor(denominator: float | Tensor | None, hidden: Tensor) -> Tensor | None:
    """(N,) expanded 1 / denominator, a factor on the gradient of every row of hidden (N, D).

    None is 1; so it is in fp16, where the gradient of a mean may underflow, and backward divides.
    """
    if denominator is None or hidden.dtype == torch.float16:
        return None
    dtype = accumulator_dtype(hidden.dtype)
    if isinstance(denominator, Tensor):
        factor = denominator.to(dtype).reciprocal()
    else:
        factor = torch.full((), 1.0 / denominator, dtype=dtype, device=hidden.device)
    return factor.expand(hidden.shape[0])
