"""The rows of a chunk of exponentials that left bf16's range, formed again.

    z      = softcap(logit_scale (hidden weight^T + bias))
    c      = lse(z), in place of the target's logit
    E, s   = as in `exponential_chunk`

A program reads the sums of 16 rows and returns where none of them is far from 1. Else it streams
their log-sum-exp, takes it for c, and writes E and s anew: the same map, in two products more of
those rows alone. Nothing waits for the device.

Legend: M chunk rows, D hidden size, V vocabulary.
"""

from __future__ import annotations

import triton
import triton.language as tl
from torch import Tensor

from pact_kernels.common.chunks import ceil_div
from pact_kernels.kernels._device.arithmetic import LN2, LOG2E, cap_slope, exp, log, logit_tile
from pact_kernels.kernels._device.operands import Matrix, ProductTile
from pact_kernels.kernels._kernels.exponential_chunk import RowShift, sum_of_tiles
from pact_kernels.kernels._launch.configs import ExponentialConfig, dot_precision
from pact_kernels.kernels._launch.operands import matrix, numbers
from pact_kernels.kernels._launch.runtime import Cost, Options, launch
from pact_kernels.types import Head

REDO_ROWS = 16
"""Rows of a program: the fewest that a tensor core takes."""
FARTHEST = tl.constexpr(1e20)
"""Sums up to this, or its inverse, leave E room in bf16 beside the K entries that are patched."""


@triton.jit(do_not_specialize=["num_rows"])
def _redo_rows_kernel(
    hidden,  # Matrix (M, D)
    hidden_tiles,
    head,  # (V, D)
    head_weight_tiles,
    chunk,  # Matrix (M, V)
    shift,  # RowShift
    sum_ptr,  # (tiles, M) fp32
    num_rows,
    vocabulary,
    num_sums,  # tiles
    TILE: tl.constexpr,  # ProductTile
):
    BLOCK_M: tl.constexpr = TILE.rows
    BLOCK_N: tl.constexpr = TILE.columns
    hidden = Matrix(hidden_tiles, hidden.stride, hidden.columns)
    weight = Matrix(head_weight_tiles, head.weight.stride, head.weight.columns)
    head = Head(weight, head.bias, head.softcap, head.logit_scale)  # type: ignore[arg-type]
    first_row = tl.program_id(0) * BLOCK_M
    rows = first_row + tl.arange(0, BLOCK_M)
    is_row = rows < num_rows
    at_shift = tl.load(shift.log2 + rows, mask=is_row, other=float("inf"))
    sums = sum_of_tiles(sum_ptr, rows, num_rows, num_sums, BLOCK_M)
    # NaN compares false: such a row is formed again, and stays NaN.
    near = (sums < FARTHEST) & (sums > 1.0 / FARTHEST)
    far = is_row & (at_shift != float("inf")) & ~near
    if tl.max(far.to(tl.int32), 0) > 0:
        row_max = tl.full([BLOCK_M], float("-inf"), tl.float32)
        sum_exp = tl.zeros([BLOCK_M], tl.float32)
        for first_token in tl.range(0, vocabulary, BLOCK_N):
            z = logit_tile(
                hidden,
                head,
                head,
                first_row,
                first_token,
                num_rows,
                vocabulary,
                hidden.columns,
                TILE,
            )
            tokens = first_token + tl.arange(0, BLOCK_N)
            z = tl.where(tokens[None, :] < vocabulary, z, float("-inf"))
            new = tl.maximum(row_max, tl.max(z, 1))
            base = tl.where(new == float("-inf"), 0.0, new)
            sum_exp = sum_exp * exp(row_max - base) + tl.sum(exp(z - base[:, None]), 1)
            row_max = new
        lse = row_max + log(sum_exp)
        moved = lse * LOG2E
        sums = tl.zeros([BLOCK_M], tl.float32)
        wide = rows.to(tl.int64)
        for first_token in tl.range(0, vocabulary, BLOCK_N):
            z = logit_tile(
                hidden,
                head,
                head,
                first_row,
                first_token,
                num_rows,
                vocabulary,
                hidden.columns,
                TILE,
            )
            tokens = first_token + tl.arange(0, BLOCK_N)
            is_token = (tokens < vocabulary)[None, :]
            # The maximum is taken off first: beside large logits a rounded lse costs digits.
            e = exp(z - row_max[:, None]) / sum_exp[:, None]
            e = tl.where(is_token, e, 0.0)
            sums += tl.sum(e, 1)
            if head.softcap is not None:
                e = e * cap_slope(z, head)
            pointers = chunk.tiles + wide[:, None] * chunk.stride + tokens[None, :]
            tl.store(pointers, e.to(tl.bfloat16), mask=far[:, None] & is_token)
        tl.store(shift.log2 + rows, moved, mask=far)
        above = tl.load(shift.above_target + rows, mask=far, other=0.0)
        tl.store(shift.above_target + rows, above + (lse - at_shift * LN2), mask=far)
        for tile in tl.range(0, num_sums):
            value = tl.where(tile == 0, sums, 0.0)
            tl.store(sum_ptr + tile * num_rows + rows, value, mask=far)


def launch_redo_rows(
    rows: Tensor,  # (M, D) bf16
    head: Head,  # (V, D)
    chunk: Tensor,  # (M, V) bf16, written where a row's sum is far from 1
    shift: RowShift,  # (M,), likewise
    sums: Tensor,  # (tiles, M) fp32, likewise
    *,
    config: ExponentialConfig,
) -> None:
    """Form the rows again whose sums are out of range; a program without one returns at once."""
    num_rows, width = rows.shape
    states = matrix(rows)
    weight = matrix(head.weight, [config.tokens, config.width])
    tile = ProductTile(
        rows=REDO_ROWS,
        columns=config.tokens,
        width=config.width,
        even_width=width % config.width == 0,
        left_descriptor=False,
        right_descriptor=weight.has_descriptor,
        precision=dot_precision(rows),
    )
    launch(
        _redo_rows_kernel,
        (ceil_div(num_rows, REDO_ROWS),),
        Options(config.warps, 2),
        Cost(flops=0, bytes=sums.nbytes),
        hidden=states,
        head=numbers(head)._replace(weight=weight),  # type: ignore[arg-type]
        chunk=matrix(chunk),
        shift=shift,
        sum_ptr=sums,
        num_rows=num_rows,
        vocabulary=head.weight.shape[0],
        num_sums=sums.shape[0],
        TILE=tile,
    )
