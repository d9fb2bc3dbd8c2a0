"""Logits of K selected tokens and their gradients, chunk by chunk where copies are needed.

Legend: N rows, D hidden size, K selected tokens, M chunk rows.
"""

from __future__ import annotations

import torch
from torch import Tensor

from pact_kernels.common.chunks import chunks
from pact_kernels.common.requests import NeedsGrad
from pact_kernels.kernels._kernels.selected_logits import (
    launch_selected_gradient,
    launch_selected_logits,
)
from pact_kernels.kernels._launch.runtime import unit_stride
from pact_kernels.types import Head


def selected_logits(
    hidden: Tensor,  # (N, D)
    selected: Head,  # (K, D)
    *,
    limit_bytes: int,
) -> Tensor:  # (N, K) fp32
    """The head's logits at its K tokens, summed in fp32."""
    num_rows, width = hidden.shape
    out = hidden.new_empty((num_rows, selected.weight.shape[0]), dtype=torch.float32)  # (N, K)
    selected = selected._replace(weight=unit_stride(selected.weight))
    chunk_rows = num_rows
    if unit_stride(hidden[:1]) is not hidden[:1]:  # the copies of the rows stay within the limit
        chunk_rows = limit_bytes // (hidden.element_size() * width)
    for start, stop in chunks(num_rows, max(chunk_rows, 1)):
        launch_selected_logits(unit_stride(hidden[start:stop]), selected, out[start:stop])
    return out


def selected_logits_backward(
    grad_output: Tensor,  # (N, K) fp32
    hidden: Tensor,  # (N, D)
    selected: Head,  # (K, D)
    *,
    needs_grad: NeedsGrad,
    limit_bytes: int,
) -> tuple[Tensor, Tensor, Tensor]:  # (N, D) like hidden, (K, D) fp32, (K,) fp32
    """Gradients of `selected_logits`; one that is not needed is empty."""
    (num_rows, width), num_tokens = hidden.shape, selected.weight.shape[0]
    head = selected._replace(weight=unit_stride(selected.weight))
    grad_hidden = hidden.new_empty(hidden.shape if needs_grad[0] else (0,))
    grad_weight = grad_output.new_zeros(head.weight.shape if needs_grad[1] else (0,))
    grad_bias = grad_output.new_zeros(num_tokens if needs_grad[2] else 0)
    # Four (M, K) temporaries, and fp32 copies of the states where W learns, live at once.
    row_bytes = 4 * (4 * num_tokens + (width if needs_grad[1] else 0))
    for start, stop in chunks(num_rows, max(1, limit_bytes // max(row_bytes, 1))):
        rows = hidden[start:stop]  # (M, D)
        slope: Tensor | float = head.logit_scale
        if head.softcap is not None:
            slope = head.slope(selected_logits(rows, head, limit_bytes=limit_bytes))
        raw = unit_stride(grad_output[start:stop] * slope)  # (M, K)
        if needs_grad[0]:
            launch_selected_gradient(raw, head.weight, grad_hidden[start:stop])
        if needs_grad[1]:
            grad_weight.addmm_(raw.T, rows.to(raw.dtype))
        if needs_grad[2]:
            grad_bias += raw.sum(0)
    return grad_hidden, grad_weight, grad_bias
