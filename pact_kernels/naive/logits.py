"""All logits of the head: the (N, V) tensor that every other implementation avoids.

Legend: N rows, D hidden size, V vocabulary.
"""

from __future__ import annotations

import torch
from torch import Tensor


def logits(
    hidden: Tensor,  # (..., D)
    weight: Tensor,  # (V, D)
    bias: Tensor | None = None,  # (V,)
    softcap: float | None = None,
    logit_scale: float = 1.0,
) -> Tensor:  # (..., V) in fp32, or float64 for float64 inputs
    """softcap * tanh(logit_scale * (hidden weight^T + bias) / softcap)."""
    with torch.autocast(hidden.device.type, enabled=False):
        z = torch.nn.functional.linear(hidden, weight)
    if z.dtype != torch.float64:
        z = z.float()
    if bias is not None:
        z = z + bias
    z = z * logit_scale
    return z if softcap is None else softcap * torch.tanh(z / softcap)


def reduce_rows(
    rows: Tensor, keep: Tensor | None, reduction: str, num_items: int | float | Tensor | None
) -> Tensor:
    """Mean (by num_items, or by the number of kept rows; 0 counts as 1), sum, or the rows."""
    if reduction == "none":
        return rows
    total = rows.sum()
    if reduction == "sum":
        return total
    count = (rows.numel() if keep is None else keep.sum()) if num_items is None else num_items
    return total / torch.as_tensor(count + (count == 0), dtype=total.dtype)
