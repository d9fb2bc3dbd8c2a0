"""Logits of K selected tokens from their gathered rows, and the gradient by the states.

    z       = softcap(logit_scale (hidden W^T + bias))      (BLOCK_M, BLOCK_N) a program, fp32
    raw     = grad dz/dx                                    (N, K) fp32, x the raw products
    dHidden = raw W                                         (BLOCK_M, BLOCK_K) a program, over all K

W are the head's gathered rows; products are summed in fp32. `raw` keeps the range and accuracy of
fp32, which no tensor core multiplies by 16 bits, so it is cut into pieces that one does:

    bf16        raw = high + low, two bf16 products: 16 bits of raw over the range of fp32
    fp16, fp32  W widened to fp32, three tf32 products (on AMD one of fp32). Pieces in fp16 would
                end at 6e-8, and plain tf32 cuts raw to 11 bits without rounding.

All of these compile to the tensor cores' own instructions. The gradients by W and by the bias, sums
over all rows, are formed by torch in fp32.

Flops 2 N D K each way, times the pieces. Bytes, at least: N D + K D + 4 N K each way; W, `raw`, and
the states where K > BLOCK_N are read again from L2.

Legend: N rows, D hidden size, K selected tokens.
"""

from __future__ import annotations

from typing import NamedTuple

import triton
import triton.language as tl
from torch import Tensor

from pact_kernels.common.chunks import ceil_div
from pact_kernels.kernels._device.arithmetic import (
    dot,
    load_tile,
    logit_tile,
)
from pact_kernels.kernels._device.operands import Matrix
from pact_kernels.kernels._kernels.linear_logsumexp import LEAST_EVEN_WIDTH
from pact_kernels.kernels._launch.configs import dot_precision, gradient_config, selected_config
from pact_kernels.kernels._launch.operands import matrix, product
from pact_kernels.kernels._launch.runtime import Cost, Options, launch, target_of
from pact_kernels.types import Head


class GradientTile(NamedTuple):
    """What the compiler knows of the gradient's product."""

    rows: int
    tokens: int
    """Tokens of a step."""
    width: int
    """Columns of a tile."""
    even_width: bool
    """Whether it divides D."""
    weight_descriptor: bool
    precision: str


@triton.jit
def _selected_logits_kernel(
    hidden,  # Matrix (N, D)
    hidden_tiles,
    head,  # (K, D)
    head_weight_tiles,
    out,  # Matrix (N, K) fp32
    num_rows,
    num_tokens,
    TILE: tl.constexpr,  # ProductTile
):
    BLOCK_M: tl.constexpr = TILE.rows
    BLOCK_N: tl.constexpr = TILE.columns
    hidden = Matrix(hidden_tiles, hidden.stride, hidden.columns)
    weight = Matrix(head_weight_tiles, head.weight.stride, head.weight.columns)
    head = Head(weight, head.bias, head.softcap, head.logit_scale)  # type: ignore[arg-type]
    first_row, first_token = tl.program_id(0) * BLOCK_M, tl.program_id(1) * BLOCK_N
    z = logit_tile(
        hidden, head, head, first_row, first_token, num_rows, num_tokens, hidden.columns, TILE
    )
    rows = (first_row + tl.arange(0, BLOCK_M)).to(tl.int64)
    tokens = first_token + tl.arange(0, BLOCK_N)
    mask = (rows < num_rows)[:, None] & (tokens < num_tokens)[None, :]
    tl.store(out.tiles + rows[:, None] * out.stride + tokens[None, :], z, mask=mask)


@triton.jit
def _selected_gradient_kernel(
    raw,  # Matrix (N, K) fp32
    weight,  # Matrix (K, D)
    weight_tiles,
    out,  # Matrix (N, D)
    num_rows,
    num_tokens,
    TILE: tl.constexpr,  # GradientTile
):
    BLOCK_M: tl.constexpr = TILE.rows
    BLOCK_N: tl.constexpr = TILE.tokens
    BLOCK_K: tl.constexpr = TILE.width
    DESCRIPTOR: tl.constexpr = TILE.weight_descriptor
    EVEN_WIDTH: tl.constexpr = TILE.even_width
    PRECISION: tl.constexpr = TILE.precision
    weight = Matrix(weight_tiles, weight.stride, weight.columns)
    first_row, first_column = tl.program_id(0) * BLOCK_M, tl.program_id(1) * BLOCK_K
    acc = tl.zeros([BLOCK_M, BLOCK_K], tl.float32)
    for first_token in tl.range(0, num_tokens, BLOCK_N):
        # Tokens past the end: 0 times a finite row of W.
        g = load_tile(
            raw, first_row, first_token, num_rows, num_tokens, BLOCK_M, BLOCK_N, False, False
        )
        w = load_tile(
            weight,
            first_token,
            first_column,
            num_tokens,
            out.columns,
            BLOCK_N,
            BLOCK_K,
            DESCRIPTOR,
            EVEN_WIDTH,
        )
        acc = gradient_dot(g, w, acc, PRECISION)
    rows = (first_row + tl.arange(0, BLOCK_M)).to(tl.int64)
    columns = first_column + tl.arange(0, BLOCK_K)
    mask = (rows < num_rows)[:, None] & (columns < out.columns)[None, :]
    pointers = out.tiles + rows[:, None] * out.stride + columns[None, :]
    tl.store(pointers, acc.to(out.tiles.dtype.element_ty), mask=mask)


@triton.jit
def gradient_dot(raw, w, acc, PRECISION: tl.constexpr):
    """acc + raw @ w in fp32, `raw` in fp32 whatever the dtype of `w`."""
    if w.dtype == tl.bfloat16:
        high = raw.to(tl.bfloat16)
        low = (raw - high.to(tl.float32)).to(tl.bfloat16)
        acc = dot(high, w, dot(low, w, acc, PRECISION), PRECISION)
    else:
        acc = dot(raw, w.to(tl.float32), acc, PRECISION)
    return acc


def launch_selected_logits(
    hidden: Tensor,  # (N, D)
    selected: Head,  # (K, D)
    out: Tensor,  # (N, K) fp32, overwritten
) -> None:
    """The logits of all rows; the last stride of each tensor is 1."""
    (num_rows, width), num_tokens = hidden.shape, selected.weight.shape[0]
    config = selected_config(
        target_of(hidden), hidden.dtype, num_tokens, even=width % LEAST_EVEN_WIDTH == 0
    )
    states, head, tile = product(hidden, selected, config)
    row_tiles = ceil_div(num_rows, config.rows)
    launch(
        _selected_logits_kernel,
        (row_tiles, ceil_div(num_tokens, config.tokens)),
        Options(config.warps, config.stages),
        Cost(
            flops=2 * num_rows * width * num_tokens,
            bytes=hidden.nbytes + selected.weight.nbytes + out.nbytes,
            row_tiles=row_tiles,
        ),
        hidden=states,
        head=head,
        out=matrix(out),
        num_rows=num_rows,
        num_tokens=num_tokens,
        TILE=tile,
    )


def launch_selected_gradient(
    raw: Tensor,  # (N, K) fp32 gradient by the raw products
    weight: Tensor,  # (K, D)
    out: Tensor,  # (N, D), overwritten by raw @ weight
) -> None:
    """The gradient by the states; the last stride of each tensor is 1."""
    (num_rows, num_tokens), width = raw.shape, weight.shape[1]
    even = width % LEAST_EVEN_WIDTH == 0
    config = gradient_config(target_of(raw), weight.dtype, even=even)
    rows_of_weight = matrix(weight, [config.tokens, config.width])
    row_tiles = ceil_div(num_rows, config.rows)
    launch(
        _selected_gradient_kernel,
        (row_tiles, ceil_div(width, config.width)),
        Options(config.warps, config.stages),
        Cost(
            flops=2 * num_rows * width * num_tokens,
            bytes=raw.nbytes + weight.nbytes + out.nbytes,
            row_tiles=row_tiles,
        ),
        raw=matrix(raw),
        weight=rows_of_weight,
        out=matrix(out),
        num_rows=num_rows,
        num_tokens=num_tokens,
        TILE=GradientTile(
            rows=config.rows,
            tokens=config.tokens,
            width=config.width,
            even_width=width % config.width == 0,
            weight_descriptor=rows_of_weight.has_descriptor,
            precision=dot_precision(raw),
        ),
    )
