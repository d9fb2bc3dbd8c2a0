"""Cross-entropy of all logits, with label smoothing and z-loss."""

from __future__ import annotations

from typing import Unpack

import torch
from torch import Tensor

from pact_kernels.naive.logits import logits, reduce_rows
from pact_kernels.types import HeadOptions


def linear_cross_entropy(
    hidden: Tensor,
    weight: Tensor,
    target: Tensor,
    *,
    ignore_index: int = -100,
    reduction: str = "mean",
    label_smoothing: float = 0.0,
    z_loss: float = 0.0,
    num_items: int | float | Tensor | None = None,
    **head: Unpack[HeadOptions],
) -> Tensor:
    """(1 - e)(lse - z_y) + e (lse - mean z) + z_loss lse^2; 0 where the target is ignored."""
    z = logits(hidden, weight, **head)
    lse = z.logsumexp(-1)
    keep = target != ignore_index
    at_target = z.gather(-1, target.where(keep, 0).unsqueeze(-1)).squeeze(-1)
    rows = (1 - label_smoothing) * (lse - at_target) + z_loss * lse.square()
    if label_smoothing:
        rows = rows + label_smoothing * (lse - z.mean(-1))
    return reduce_rows(torch.where(keep, rows, 0.0), keep, reduction, num_items)
