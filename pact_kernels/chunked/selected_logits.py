"""Logits of K selected tokens, formed in fp32 from their gathered rows, slab by slab.

Legend: N rows, D hidden size, K selected tokens, M slab rows.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from pact_kernels.chunked.slab import (
    accumulator_dtype,
    balanced_rows,
    finish_logits_,
    logit_slope,
    slabs,
)


class SelectedHead(NamedTuple):
    """The selected rows of a head, in the accumulator dtype."""

    weight: Tensor  # (K, D)
    bias: Tensor | None  # (K,)
    softcap: float | None
    logit_scale: float

    def logits(self, states: Tensor) -> Tensor:
        """(M, D) in any dtype -> (M, K) in the accumulator dtype."""
        logits = states.to(self.weight.dtype) @ self.weight.T
        return finish_logits_(logits, self.bias, self.softcap, self.logit_scale)

    def slope(self, logits: Tensor) -> Tensor | float:
        """Derivative of the logits (M, K) by the raw products."""
        return logit_slope(logits, self.softcap, self.logit_scale)


def selected_logits(
    hidden: Tensor,  # (N, D)
    selected_weight: Tensor,  # (K, D)
    selected_bias: Tensor | None,  # (K,)
    *,
    softcap: float | None,
    logit_scale: float,
    limit_bytes: int,
) -> Tensor:  # (N, K) fp32
    """softcap(logit_scale * (hidden @ selected_weight.T + selected_bias)), formed in fp32."""
    dtype = accumulator_dtype(hidden.dtype)
    weight = selected_weight.to(dtype)  # (K, D)
    num_rows, width = hidden.shape
    out = hidden.new_empty((num_rows, weight.shape[0]), dtype=dtype)  # (N, K)
    for start, stop in slabs(
        num_rows, balanced_rows(num_rows, dtype.itemsize * width, limit_bytes)
    ):
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
    wanted: tuple[bool, bool, bool],  # gradients by hidden, selected_weight, selected_bias
    limit_bytes: int,
) -> tuple[Tensor, Tensor, Tensor]:  # (N, D) like hidden, (K, D) fp32, (K,) fp32
    """Gradients of `selected_logits`; one that is not wanted is empty."""
    dtype = accumulator_dtype(hidden.dtype)
    head = SelectedHead(selected_weight.to(dtype), selected_bias, softcap, logit_scale)
    num_rows, width = hidden.shape
    grad_hidden = hidden.new_empty(hidden.shape if wanted[0] else (0,))
    grad_weight = head.weight.new_zeros(head.weight.shape if wanted[1] else (0,))
    grad_bias = head.weight.new_zeros(head.weight.shape[:1] if wanted[2] else (0,))
    # fp32 copies of the states and of their gradient, and four (M, K) temporaries, live at once.
    row_bytes = dtype.itemsize * (2 * width + 4 * head.weight.shape[0])
    for start, stop in slabs(num_rows, balanced_rows(num_rows, row_bytes, limit_bytes)):
        rows = hidden[start:stop].to(dtype)  # (M, D)
        slope = logit_scale if softcap is None else head.slope(head.logits(rows))  # (M, K)
        raw = grad[start:stop].to(dtype) * slope  # (M, K)
        if wanted[0]:
            grad_hidden[start:stop] = raw @ head.weight
        if wanted[1]:
            grad_weight.addmm_(raw.T, rows)
        if wanted[2]:
            grad_bias += raw.sum(0)
    return grad_hidden, grad_weight, grad_bias
