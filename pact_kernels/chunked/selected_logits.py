"""Logits of K selected tokens, formed in fp32 from their gathered rows, chunk by chunk.

Legend: N rows, D hidden size, K selected tokens, M chunk rows.
"""

from __future__ import annotations

import torch
from torch import Tensor

from pact_kernels.common.chunks import accumulator_dtype, balanced_rows, chunks
from pact_kernels.common.requests import NeedsGrad
from pact_kernels.types import Head


def selected_logits(
    hidden: Tensor,  # (N, D)
    selected: Head,  # (K, D)
    *,
    limit_bytes: int,
) -> Tensor:  # (N, K) fp32
    """The head's logits at its K tokens, formed in fp32."""
    dtype = accumulator_dtype(hidden.dtype)
    weight = selected.weight.to(dtype)  # (K, D)
    num_rows, width = hidden.shape
    out = hidden.new_empty((num_rows, weight.shape[0]), dtype=dtype)  # (N, K)
    rows_per_chunk = balanced_rows(num_rows, dtype.itemsize * width, limit_bytes)
    for start, stop in chunks(num_rows, rows_per_chunk):
        torch.mm(hidden[start:stop].to(dtype), weight.T, out=out[start:stop])
    return selected.finish_(out)


def selected_logits_backward(
    grad_output: Tensor,  # (N, K) fp32
    hidden: Tensor,  # (N, D)
    selected: Head,  # (K, D)
    *,
    needs_grad: NeedsGrad,
    limit_bytes: int,
) -> tuple[Tensor, Tensor, Tensor]:  # (N, D) like hidden, (K, D) fp32, (K,) fp32
    """Gradients of `selected_logits`; one that is not needed is empty."""
    dtype = accumulator_dtype(hidden.dtype)
    head = selected._replace(weight=selected.weight.to(dtype))
    num_rows, width = hidden.shape
    grad_hidden = hidden.new_empty(hidden.shape if needs_grad[0] else (0,))
    grad_weight = head.weight.new_zeros(head.weight.shape if needs_grad[1] else (0,))
    grad_bias = head.weight.new_zeros(head.weight.shape[:1] if needs_grad[2] else (0,))
    # fp32 copies of the states and of their gradient, and four (M, K) temporaries, live at once.
    row_bytes = dtype.itemsize * (2 * width + 4 * head.weight.shape[0])
    for start, stop in chunks(num_rows, balanced_rows(num_rows, row_bytes, limit_bytes)):
        rows = hidden[start:stop].to(dtype)  # (M, D)
        slope = head.logit_scale if head.softcap is None else head.slope(head.logits(rows))
        products_grad = grad_output[start:stop].to(dtype) * slope  # (M, K)
        if needs_grad[0]:
            grad_hidden[start:stop] = products_grad @ head.weight
        if needs_grad[1]:
            grad_weight.addmm_(products_grad.T, rows)
        if needs_grad[2]:
            grad_bias += products_grad.sum(0)
    return grad_hidden, grad_weight, grad_bias
