"""Logits of K selected tokens, formed in fp32 from their gathered rows, slab by slab.

Legend: N rows, D hidden size, K selected tokens, M slab rows.
"""

from __future__ import annotations

import torch
from torch import Tensor

from pact_kernels.chunked.slab import (
    accumulator_dtype,
    balanced_rows,
    finish_logits_,
    logit_slope,
    slabs,
)


def selected_logits(
    hidden: Tensor,  # (N, D)
    selected_weight: Tensor,  # (K, D) the selected rows of the head
    selected_bias: Tensor | None,  # (K,)
    *,
    softcap: float | None,
    logit_scale: float,
    limit_bytes: int,
) -> Tensor:  # (N, K) fp32
    """softcap(logit_scale * (hidden @ selected_weight.T + selected_bias)) in the accumulator dtype."""
    dtype = accumulator_dtype(hidden.dtype)
    weight = selected_weight.to(dtype)  # (K, D)
    out = hidden.new_empty((hidden.shape[0], weight.shape[0]), dtype=dtype)  # (N, K)
    for start, stop in _row_slabs(hidden, limit_bytes):
        torch.mm(hidden[start:stop].to(dtype), weight.T, out=out[start:stop])
    return finish_logits_(out, selected_bias, softcap, logit_scale)


def selected_logits_backward(
    grad: Tensor,  # (N, K) fp32
    hidden: Tensor,  # (N, D)
    selected_weight: Tensor,  # (K, D)
    selected_bias: Tensor | None,  # (K,)
    *,
    softcap: float | None,
    logit_scale: float,
    limit_bytes: int,
) -> tuple[Tensor, Tensor, Tensor]:  # (N, D) like hidden, (K, D) fp32, (K,) fp32
    """Gradients of `selected_logits` by hidden, selected_weight and selected_bias."""
    dtype = accumulator_dtype(hidden.dtype)
    weight = selected_weight.to(dtype)
    grad_hidden = torch.empty_like(hidden, memory_format=torch.contiguous_format)  # (N, D)
    grad_weight = torch.zeros_like(weight)  # (K, D)
    grad_bias = weight.new_zeros(weight.shape[0])  # (K,)
    for start, stop in _row_slabs(hidden, limit_bytes):
        rows = hidden[start:stop].to(dtype)  # (M, D)
        logits = finish_logits_(rows @ weight.T, selected_bias, softcap, logit_scale)  # (M, K)
        raw = grad[start:stop].to(dtype) * logit_slope(logits, softcap, logit_scale)  # (M, K)
        grad_hidden[start:stop] = raw @ weight
        grad_weight.addmm_(raw.T, rows)
        grad_bias += raw.sum(0)
    return grad_hidden, grad_weight, grad_bias


def _row_slabs(hidden: Tensor, limit_bytes: int) -> list[tuple[int, int]]:
    """Slabs whose fp32 copies of hidden states fit the limit (two copies at most live at once)."""
    num_rows, width = hidden.shape
    itemsize = accumulator_dtype(hidden.dtype).itemsize
    return list(slabs(num_rows, balanced_rows(num_rows, 2 * itemsize * width, limit_bytes)))
