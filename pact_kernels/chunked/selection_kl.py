"""KL over the K selected tokens alone: no product with the vocabulary, 4 NDK flops.

Legend: N rows, D hidden size, K selected tokens, M slab rows.
"""

from __future__ import annotations

from typing import Any, NamedTuple

from torch import Tensor

from pact_kernels.chunked import target as kl_target
from pact_kernels.chunked.selected_logits import selected_logits
from pact_kernels.chunked.slab import accumulator_dtype, balanced_rows, logit_slope, slabs
from pact_kernels.chunked.spec import KlSpec


class SelectionKl(NamedTuple):
    """Row values and gradients of the selected-token KL; an absent gradient is empty."""

    kl: Tensor  # (N,) fp32, times row_weight
    gate: Tensor  # (N,)
    grad_hidden: Tensor  # (N, D) like hidden
    grad_weight: Tensor  # (K, D) fp32
    grad_bias: Tensor  # (K,) fp32


def selection_kl(
    hidden: Tensor,  # (N, D)
    selected_weight: Tensor,  # (K, D)
    selected_bias: Tensor | None,  # (K,)
    *,
    kl: KlSpec,
    softcap: float | None,
    logit_scale: float,
    row_grad: Tensor | None,  # (N,) factor on each row's gradient; None is 1
    wanted: tuple[bool, bool, bool],  # gradients by hidden, selected_weight, selected_bias
    limit_bytes: int,
) -> SelectionKl:
    """Row KLs and, where wanted, the gradient of sum_n row_grad_n kl_n."""
    num_rows, width = hidden.shape
    dtype = accumulator_dtype(hidden.dtype)
    weight = selected_weight.to(dtype)  # (K, D)
    log_weight = kl.log_weight(dtype)  # (K,)
    out = SelectionKl(
        hidden.new_zeros(num_rows, dtype=dtype),
        hidden.new_zeros(num_rows, dtype=dtype),
        hidden.new_zeros(hidden.shape if wanted[0] else (0,)),
        weight.new_zeros(weight.shape if wanted[1] else (0,)),
        weight.new_zeros(weight.shape[:1] if wanted[2] else (0,)),
    )
    head: dict[str, Any] = {
        "softcap": softcap,
        "logit_scale": logit_scale,
        "limit_bytes": limit_bytes,
    }
    # fp32 copies of three hidden states and a dozen (M, K) temporaries live at once.
    row_bytes = dtype.itemsize * (3 * width + 12 * weight.shape[0])
    for start, stop in slabs(num_rows, balanced_rows(num_rows, row_bytes, limit_bytes)):
        index = slice(start, stop)
        rows = hidden[index].to(dtype)  # (M, D)
        student = selected_logits(rows, weight, selected_bias, **head)  # (M, K)
        full, post = kl.reference_logits(index, dtype=dtype, **head)
        gate = None
        if kl.gate is not None and post is not None:
            gate = kl_target.gate_value(student, post, kl.step[index], kl.gate)
            out.gate[index] = gate
        mixed = kl_target.mix(full, post, gate)
        value, gradient = kl_target.selection_kl(student, mixed, log_weight, kl.temperature)
        out.kl[index] = value
        if kl.row_weight is not None:
            row_weight = kl.row_weight[index].to(dtype)  # (M,)
            out.kl[index] *= row_weight
            gradient *= row_weight[:, None]
        if not any(wanted):
            continue
        if row_grad is not None:
            gradient *= row_grad[index, None].to(dtype)
        gradient *= logit_slope(student, softcap, logit_scale)
        if wanted[0]:
            out.grad_hidden[index] = gradient @ weight
        if wanted[1]:
            out.grad_weight.addmm_(gradient.T, rows)
        if wanted[2]:
            out.grad_bias.add_(gradient.sum(0))
    return out
