"""The gradient by a trained bias, E^T rho, in fp32: a pass over the chunk that nothing else needs.

Bytes: 2 M V read, 4 V written. Legend: M chunk rows, V vocabulary.
"""

from __future__ import annotations

import triton
import triton.language as tl
from torch import Tensor

from pact_kernels.common.chunks import ceil_div
from pact_kernels.kernels._launch.operands import matrix
from pact_kernels.kernels._launch.runtime import Cost, Options, launch

BLOCK_M = 32
BLOCK_N = 128


@triton.jit(do_not_specialize=["num_rows"])
def _column_sums_kernel(
    chunk,  # Matrix (M, V)
    scale_ptr,  # (M,) fp32
    out_ptr,  # (V,) fp32, added to
    num_rows,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
):
    tokens = tl.program_id(0) * BLOCK_N + tl.arange(0, BLOCK_N)
    is_token = tokens < chunk.columns
    sums = tl.zeros([BLOCK_N], tl.float32)
    for first in tl.range(0, num_rows, BLOCK_M):
        rows = first + tl.arange(0, BLOCK_M)
        is_row = rows < num_rows
        scale = tl.load(scale_ptr + rows, mask=is_row, other=0.0)
        pointers = chunk.tiles + rows.to(tl.int64)[:, None] * chunk.stride + tokens[None, :]
        e = tl.load(pointers, mask=is_row[:, None] & is_token[None, :], other=0.0)
        sums += tl.sum(e.to(tl.float32) * scale[:, None], 0)
    before = tl.load(out_ptr + tokens, mask=is_token, other=0.0)
    tl.store(out_ptr + tokens, before + sums, mask=is_token)


def launch_column_sums(
    chunk: Tensor,  # (M, V)
    scale: Tensor,  # (M,) fp32
    out: Tensor,  # (V,) fp32, added to
) -> None:
    """out += chunk^T scale."""
    num_rows, vocabulary = chunk.shape
    launch(
        _column_sums_kernel,
        (ceil_div(vocabulary, BLOCK_N),),
        Options(warps=4, stages=3),
        Cost(
            flops=2 * num_rows * vocabulary,
            bytes=2 * num_rows * vocabulary + 8 * vocabulary,
            logit_bytes=2,
        ),
        chunk=matrix(chunk),
        scale_ptr=scale,
        out_ptr=out,
        num_rows=num_rows,
        BLOCK_M=BLOCK_M,
        BLOCK_N=BLOCK_N,
    )
