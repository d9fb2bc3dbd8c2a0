"""The splits of a streaming log-sum-exp, put together row by row.

    m = max_s m_s,  l = sum_s l_s exp(m_s - m)

One program runs over the splits of 32 rows in their order: the same bits on every run. Bytes: 8 N S
read, 8 N written.

Legend: N rows, S splits.
"""

from __future__ import annotations

import triton
import triton.language as tl
from torch import Tensor

from pact_kernels.common.chunks import ceil_div
from pact_kernels.kernels._device.arithmetic import exp
from pact_kernels.kernels._device.operands import Softmax
from pact_kernels.kernels._launch.runtime import Cost, Options, launch

FINAL_ROWS = 32
"""Rows of a program."""


@triton.jit(do_not_specialize=["num_rows"])
def _finish_logsumexp_kernel(
    partial,  # Softmax of (S, N) fp32
    out,  # Softmax of (N,) fp32
    num_rows,
    num_splits,
    BLOCK_M: tl.constexpr,
):
    rows = tl.program_id(0) * BLOCK_M + tl.arange(0, BLOCK_M)
    is_row = rows < num_rows
    row_max = tl.full([BLOCK_M], float("-inf"), tl.float32)
    sum_exp = tl.zeros([BLOCK_M], tl.float32)
    for split in tl.range(0, num_splits):
        at = tl.cast(split, tl.int64) * num_rows + rows
        part = tl.load(partial.max + at, mask=is_row, other=float("-inf"))
        new = tl.maximum(row_max, part)
        shift = tl.where(new == float("-inf"), 0.0, new)
        sum_exp = sum_exp * exp(row_max - shift)
        sum_exp += tl.load(partial.sum_exp + at, mask=is_row, other=0.0) * exp(part - shift)
        row_max = new
    tl.store(out.max + rows, row_max, mask=is_row)
    tl.store(out.sum_exp + rows, sum_exp, mask=is_row)


def launch_finish_logsumexp(partial: Tensor, out: Softmax) -> None:
    """(2, S, N) partials into the rows' largest logits and sums, (N,) each."""
    _, splits, num_rows = partial.shape
    launch(
        _finish_logsumexp_kernel,
        (ceil_div(num_rows, FINAL_ROWS),),
        Options(warps=1, stages=1),
        Cost(flops=6 * splits * num_rows, bytes=4 * (partial.numel() + 2 * num_rows)),
        partial=Softmax(partial[0], partial[1]),
        out=out,
        num_rows=num_rows,
        num_splits=splits,
        BLOCK_M=FINAL_ROWS,
    )
