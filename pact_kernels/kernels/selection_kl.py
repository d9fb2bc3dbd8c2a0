"""The KL over the K selected tokens alone: values and gradients of any number of rows.

Nothing of size V is touched; see `pact_kl` for the kernel and its bytes. With a trainable head its
gathered rows get their gradient from the (rows, K) gradient of the logits, chunk by chunk in fp32.

Legend: N rows, D hidden size, K selected tokens, M chunk rows.
"""

from __future__ import annotations

import torch
from torch import Tensor

from pact_kernels.common.chunks import chunks
from pact_kernels.common.requests import KlRequest, NeedsGrad
from pact_kernels.common.results import SelectionKl
from pact_kernels.kernels._device.operands import KlOut
from pact_kernels.kernels._kl_rows import KlRows
from pact_kernels.kernels._launch.runtime import unit_stride
from pact_kernels.types import Head

LEAST_CHUNK_ROWS = 64
"""A row tile of the kernel, however small the workspace."""


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
    if row_grad is not None:
        row_grad = row_grad.contiguous()  # that of a sum is one number, expanded
    head = selected._replace(weight=unit_stride(selected.weight))
    kl_rows = KlRows(kl, head, None, None, num_rows)
    fp32 = torch.float32
    out = SelectionKl(
        hidden.new_empty(num_rows, dtype=fp32),
        hidden.new_empty(num_rows, dtype=fp32),
        hidden.new_empty((num_rows, width) if needs_grad[0] else (0,)),
        hidden.new_zeros(head.weight.shape if needs_grad[1] else (0,), dtype=fp32),
        hidden.new_zeros(head.weight.shape[:1] if needs_grad[2] else (0,), dtype=fp32),
    )
    head_gradient = needs_grad[1] or needs_grad[2]
    # In one launch with a frozen head nothing but the outputs is written: no need for chunks.
    chunk_rows = num_rows
    if head_gradient or not kl_rows.in_one_launch:
        row_bytes = kl_rows.row_bytes() + (4 * width if needs_grad[1] else 0)
        chunk_rows = max(LEAST_CHUNK_ROWS, limit_bytes // row_bytes)
    for start, stop in chunks(num_rows, max(chunk_rows, 1)):
        index = slice(start, stop)
        rows = hidden[index]  # (M, D)
        gradient = None
        if head_gradient:
            gradient = rows.new_empty((stop - start, head.weight.shape[0]), dtype=fp32)
        kl_rows(
            unit_stride(rows),
            index,
            KlOut(
                out.kl[index],
                out.gate[index],
                out.grad_hidden[index] if needs_grad[0] else None,
                gradient,
            ),
            row_grad=None if row_grad is None else row_grad[index],
            by_product=True,
        )
        if needs_grad[1] and gradient is not None:
            out.grad_weight.addmm_(gradient.T, rows.float())
        if needs_grad[2] and gradient is not None:
            out.grad_bias.add_(gradient.sum(0))
    return out
