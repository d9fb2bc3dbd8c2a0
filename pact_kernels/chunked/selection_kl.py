"""KL over the K selected tokens alone: no product with the vocabulary.

4 NDK flops for the student's side, 2 NDK for each context of a reference that comes as states.

Legend: N rows, D hidden size, K selected tokens, M chunk rows.
"""

from __future__ import annotations

from torch import Tensor

from pact_kernels.chunked._kl_rows import KlRows
from pact_kernels.common.chunks import accumulator_dtype, balanced_rows, bytes_left, chunks
from pact_kernels.common.requests import KlRequest, NeedsGrad
from pact_kernels.common.results import SelectionKl
from pact_kernels.types import Head


def selection_kl(
    hidden: Tensor,  # (N, D)
    selected: Head,  # (K, D)
    *,
    kl: KlRequest,
    row_grad: Tensor | None,  # (N,) factor on each row's gradient; None is 1
    needs_grad: NeedsGrad,
    limit_bytes: int,
) -> SelectionKl:
    """Row KLs and, where needed, the gradient of sum_n row_grad_n kl_n."""
    num_rows, width = hidden.shape
    dtype = accumulator_dtype(hidden.dtype)
    kl_rows = KlRows(kl, selected, None, None, num_rows)
    head = kl_rows.head
    assert head is not None
    weight = head.weight  # (K, D)
    out = SelectionKl(
        hidden.new_zeros(num_rows, dtype=dtype),
        hidden.new_zeros(num_rows, dtype=dtype),
        hidden.new_zeros(hidden.shape if needs_grad[0] else (0,)),
        weight.new_zeros(weight.shape if needs_grad[1] else (0,)),
        weight.new_zeros(weight.shape[:1] if needs_grad[2] else (0,)),
    )
    row_bytes = kl_rows.row_bytes() + dtype.itemsize * width  # and a product, gradient @ weight
    left = bytes_left(limit_bytes, kl_rows.shared_bytes())
    for start, stop in chunks(num_rows, balanced_rows(num_rows, row_bytes, left)):
        index = slice(start, stop)
        rows = hidden[index].to(dtype)  # (M, D)
        value = kl_rows(rows, index)
        out.kl[index] = value.kl
        if value.gate is not None:
            out.gate[index] = value.gate
        if not any(needs_grad):
            continue
        gradient = value.sparse * head.slope(value.student)  # (M, K)
        if row_grad is not None:
            gradient *= row_grad[index, None].to(dtype)
        if needs_grad[0]:
            out.grad_hidden[index] = gradient @ weight
        if needs_grad[1]:
            out.grad_weight.addmm_(gradient.T, rows)
        if needs_grad[2]:
            out.grad_bias.add_(gradient.sum(0))
    return out
