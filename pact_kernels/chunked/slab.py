"""Cuts of the rows into slabs, and the logits of one slab.

Legend: N rows, D hidden size, V vocabulary, M slab rows.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

MAX_SLAB_ROWS = 1024
"""Past these the head, read once a slab, is hardly seen (2 cores, fp32, 576 x 49152)."""


def accumulator_dtype(dtype: torch.dtype) -> torch.dtype:
    """float64 for float64, float32 for everything else."""
    return torch.float64 if dtype == torch.float64 else torch.float32


def balanced_rows(num_rows: int, bytes_per_row: int, limit_bytes: int) -> int:
    """Rows per slab so that a slab stays within the limit and all slabs are about equally long."""
    most = max(1, min(limit_bytes // max(bytes_per_row, 1), MAX_SLAB_ROWS))
    count = max(1, -(-num_rows // most))
    return max(1, -(-num_rows // count))


def bytes_left(limit_bytes: int, taken_bytes: int) -> int:
    """The limit less what a whole call takes; half of it at least, or slabs would be of one row."""
    return max(limit_bytes - taken_bytes, limit_bytes // 2)


def slabs(num_rows: int, rows_per_slab: int) -> Iterator[tuple[int, int]]:
    """(start, stop) of every slab."""
    for start in range(0, num_rows, rows_per_slab):
        yield start, min(start + rows_per_slab, num_rows)


def finish_logits_(
    logits: Tensor,  # (M, V) hidden @ weight.T, overwritten
    bias: Tensor | None,  # (V,)
    softcap: float | None,
    logit_scale: float,
) -> Tensor:
    """softcap * tanh(logit_scale * (logits + bias) / softcap), in place."""
    if bias is not None:
        logits += bias
    if logit_scale != 1.0:
        logits *= logit_scale
    if softcap is not None:
        logits.div_(softcap).tanh_().mul_(softcap)
    return logits


def logit_slope(logits: Tensor, softcap: float | None, logit_scale: float) -> Tensor | float:
    """Derivative of the finished logits by the raw product.

    It is logit_scale * (1 - (logits / softcap)^2).
    """
    if softcap is None:
        return logit_scale
    return (logits / softcap).square_().neg_().add_(1.0).mul_(logit_scale)
