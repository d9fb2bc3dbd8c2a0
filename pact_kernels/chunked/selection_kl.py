"""KL over the K selected tokens alone: no product with the vocabulary.

4 NDK flops for the student's side, 2 NDK for each context of a reference that comes as states.

Legend: N rows, D hidden size, K selected tokens, M slab rows.
"""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor

from pact_kernels.chunked.kl_rows import KlRows
from pact_kernels.chunked.selected_logits import SelectedHead
from pact_kernels.chunked.slab import accumulator_dtype, balanced_rows, bytes_left, slabs
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
    kl_rows = KlRows(kl, SelectedHead(weight, selected_bias, softcap, logit_scale), None, num_rows)
    out = SelectionKl(
        hidden.new_zeros(num_rows, dtype=dtype),
        hidden.new_zeros(num_rows, dtype=dtype),
        hidden.new_zeros(hidden.shape if wanted[0] else (0,)),
        weight.new_zeros(weight.shape if wanted[1] else (0,)),
        weight.new_zeros(weight.shape[:1] if wanted[2] else (0,)),
    )
    row_bytes = kl_rows.row_bytes() + dtype.itemsize * width  # and a product, gradient @ weight
    left = bytes_left(limit_bytes, kl_rows.shared_bytes())
    for start, stop in slabs(num_rows, balanced_rows(num_rows, row_bytes, left)):
        index = slice(start, stop)
        rows = hidden[index].to(dtype)  # (M, D)
        value = kl_rows(rows, index)
        out.kl[index] = value.kl
        if value.gate is not None:
            out.gate[index] = value.gate
        if not any(wanted):
            continue
        gradient = value.sparse * kl_rows.head.slope(value.student)  # (M, K)
        if row_grad is not None:
            gradient *= row_grad[index, None].to(dtype)
        if wanted[0]:
            out.grad_hidden[index] = gradient @ weight
        if wanted[1]:
            out.grad_weight.addmm_(gradient.T, rows)
        if wanted[2]:
            out.grad_bias.add_(gradient.sum(0))
    return out
