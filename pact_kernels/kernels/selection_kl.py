"""The KL over the K selected tokens alone: values and gradients of any number of rows.

Nothing of size V is touched; see `pact_kl` for the kernel and its bytes. With a trainable head its
gathered rows get their gradient from the (rows, K) gradient of the logits, slab by slab in fp32.

Legend: N rows, D hidden size, K selected tokens, M slab rows.
"""

from __future__ import annotations

import torch
from torch import Tensor

from pact_kernels.chunked.selection_kl import SelectionKl
from pact_kernels.chunked.slab import slabs
from pact_kernels.chunked.spec import KlSpec
from pact_kernels.kernels.kl_rows import KlRows, StudentHead
from pact_kernels.kernels.kl_tensors import KlOut
from pact_kernels.kernels.runtime import unit_stride

LEAST_SLAB_ROWS = 64
"""A row tile of the kernel, however small the workspace."""


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
    if row_grad is not None:
        row_grad = row_grad.contiguous()  # that of a sum is one number, expanded
    head = StudentHead(unit_stride(selected_weight), selected_bias, softcap, logit_scale)
    kl_rows = KlRows(kl, head, None, num_rows)
    fp32 = torch.float32
    out = SelectionKl(
        hidden.new_empty(num_rows, dtype=fp32),
        hidden.new_empty(num_rows, dtype=fp32),
        hidden.new_empty((num_rows, width) if wanted[0] else (0,)),
        hidden.new_zeros(selected_weight.shape if wanted[1] else (0,), dtype=fp32),
        hidden.new_zeros(selected_weight.shape[:1] if wanted[2] else (0,), dtype=fp32),
    )
    head_gradient = wanted[1] or wanted[2]
    # In one launch with a frozen head nothing but the outputs is written: no need for slabs.
    slab_rows = num_rows
    if head_gradient or not kl_rows.in_one_launch:
        row_bytes = kl_rows.row_bytes() + (4 * width if wanted[1] else 0)
        slab_rows = max(LEAST_SLAB_ROWS, limit_bytes // row_bytes)
    for start, stop in slabs(num_rows, max(slab_rows, 1)):
        index = slice(start, stop)
        rows = hidden[index]  # (M, D)
        gradient = None
        if head_gradient:
            gradient = rows.new_empty((stop - start, selected_weight.shape[0]), dtype=fp32)
        kl_rows(
            unit_stride(rows),
            index,
            KlOut(
                out.kl[index],
                out.gate[index],
                out.grad_hidden[index] if wanted[0] else None,
                gradient,
                None,
            ),
            row_grad=None if row_grad is None else row_grad[index],
            by_product=True,
        )
        if wanted[1] and gradient is not None:
            out.grad_weight.addmm_(gradient.T, rows.float())
        if wanted[2] and gradient is not None:
            out.grad_bias.add_(gradient.sum(0))
    return out
