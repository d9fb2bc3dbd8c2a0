"""Sums of products in fp32 by the vendor's GEMM: the gradient by a trained head.

Legend: M chunk rows, D hidden size, V vocabulary.
"""

from __future__ import annotations

from functools import cache

import torch
from torch import Tensor

from pact_kernels.common.chunks import chunks

COPY_FRACTION = 1 / 8
"""The part of the workspace for fp32 copies of a 16-bit chunk's gradient."""


def accumulates_in_gemm(tensor: Tensor) -> bool:
    """Whether the vendor's product of 16-bit operands adds to an fp32 matrix here."""
    if tensor.is_meta:  # a launch that is recorded stands for a GPU's
        return tensor.dtype.itemsize == 2
    return tensor.is_cuda and tensor.dtype.itemsize == 2 and _gemm_accumulates(tensor.device.index)


@cache
def _gemm_accumulates(index: int) -> bool:
    """Tried once: neither every torch nor every vendor's library offers it."""
    total = torch.zeros((16, 16), device=f"cuda:{index}")
    try:
        for first in (True, False):
            _gemm_accumulate_(total, total.bfloat16(), total.bfloat16(), first=first)
    except (RuntimeError, TypeError):
        return False
    return True


def _gemm_accumulate_(total: Tensor, a: Tensor, b: Tensor, *, first: bool) -> None:
    if first:
        torch.mm(a, b, out_dtype=torch.float32, out=total)
    else:
        torch.addmm(total, a, b, out_dtype=torch.float32, out=total)


def add_product_(
    total: Tensor, gradient: Tensor, rows: Tensor, limit_bytes: int, *, first: bool = False
) -> None:
    """total (V, D) += gradient (M, V)^T rows (M, D), summed in fp32; the first fills `total`."""
    if accumulates_in_gemm(rows):
        _gemm_accumulate_(total, gradient.T, rows, first=first)
    else:
        add_by_copies_(total, gradient, rows, limit_bytes, beta=0.0 if first else 1.0)


def add_by_copies_(
    total: Tensor, gradient: Tensor, rows: Tensor, limit_bytes: int, *, beta: float = 1.0
) -> None:
    """The same where no product of the inputs' dtype sums in fp32: from fp32 copies of tiles."""
    if gradient.dtype == total.dtype:
        total.addmm_(gradient.T, rows, beta=beta)
        return
    rows = rows.to(total.dtype)
    row_bytes = gradient.shape[0] * total.dtype.itemsize  # of a row of the tile
    tile = max(1, int(limit_bytes * COPY_FRACTION) // row_bytes)
    for low, high in chunks(total.shape[0], tile):
        total[low:high].addmm_(gradient[:, low:high].T.to(total.dtype), rows, beta=beta)
