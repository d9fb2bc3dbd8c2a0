"""Device functions that the kernels share: the head's map, and a tile of a product with it.

Logits are softcap * tanh(logit_scale * (x + bias) / softcap), x a raw product in fp32. Exponentials
are powers of two: exp(z) = exp2(z log2 e), one instruction and one product.

Legend: N rows, V vocabulary (or K selected tokens), D hidden size.
"""

from __future__ import annotations

import triton
import triton.language as tl

LOG2E = tl.constexpr(1.4426950408889634)
LN2 = tl.constexpr(0.6931471805599453)
SMALL = tl.constexpr(0.125)
"""Below it tanh is its series."""
MOST_QUICK_CAP = 64.0
"""Up to this cap the error of `quick_tanh` is less than a logit's own rounding in fp32."""


@triton.jit
def exp(x):
    """e^x by the hardware's power of two."""
    return tl.exp2(x * LOG2E)


@triton.jit
def log(x):
    """Natural logarithm by the hardware's base-two one."""
    return tl.log2(x) * LN2


@triton.jit
def tanh(x):
    """tanh x = sign(x) (1 - e^-2|x|) / (1 + e^-2|x|), sound for every finite x.

    Near 0 the difference has lost its digits, which a cap far above the logits would multiply: the
    series x - x^3/3 + 2 x^5/15 - 17 x^7/315, off by 2e-9 of x at SMALL, takes its place.
    """
    decay = tl.exp2(tl.abs(x) * (-2.0 * LOG2E))
    size = (1.0 - decay) / (1.0 + decay)
    square = x * x
    series = x + x * square * (-1.0 / 3 + square * (2.0 / 15 - square * (17.0 / 315)))
    return tl.where(tl.abs(x) < SMALL, series, tl.where(x < 0, -size, size))


@triton.jit
def quick_tanh(exponent):
    """tanh x = 1 - 2 / (1 + e^2x), of 2 x log2 e; off by about 1e-7 in all.

    That is enough under a cap of MOST_QUICK_CAP, in half the instructions of `tanh`, which counts
    where every logit of a head passes through it.
    """
    return 1.0 - 2.0 / (1.0 + tl.exp2(exponent))


@triton.jit
def finish_logits(x, bias, head):
    """Raw products to logits; `bias` broadcasts, 0 where there is none."""
    z = (x + bias) * head.logit_scale
    if head.softcap is not None:
        z = tanh(z / head.softcap) * head.softcap
    return z


@triton.jit
def logit_slope(z, head):
    """Derivative of a logit by its raw product: logit_scale (1 - (z / softcap)^2)."""
    slope = tl.zeros_like(z) + head.logit_scale
    if head.softcap is not None:
        t = z / head.softcap
        slope = slope * (1.0 - t * t)
    return slope


@triton.jit
def cap_slope(z, head):
    """Derivative of a logit by what is capped: 1 - (z / softcap)^2, or 1 without a cap."""
    slope = tl.zeros_like(z) + 1.0
    if head.softcap is not None:
        t = z / head.softcap
        slope = slope - t * t
    return slope


@triton.jit
def load_bias(head, tokens, num_tokens):
    """(1, BLOCK_N) fp32 bias of some tokens, or 0."""
    if head.bias is not None:
        bias = tl.load(head.bias + tokens, mask=tokens < num_tokens, other=0.0)
        bias = bias.to(tl.float32)[None, :]
    else:
        bias = 0.0
    return bias


@triton.jit
def dot(a, b, acc, PRECISION: tl.constexpr):
    """acc + a @ b in fp32; numpy knows no bf16, so the interpreter widens the operands."""
    if PRECISION == "interpreted":
        acc = tl.dot(a.to(tl.float32), b.to(tl.float32), acc)
    else:
        acc = tl.dot(a, b, acc, input_precision=PRECISION)
    return acc


@triton.jit
def load_tile(
    source,  # Matrix
    first_row,  # int
    first_column,  # int
    num_rows,
    num_columns,
    BLOCK_ROWS: tl.constexpr,
    BLOCK_COLUMNS: tl.constexpr,
    DESCRIPTOR: tl.constexpr,
    EVEN_COLUMNS: tl.constexpr,  # BLOCK_COLUMNS divides num_columns
):
    """A tile of the matrix: 0 past the last column, anything finite past the last row."""
    if DESCRIPTOR:
        tile = source.tiles.load([first_row, first_column])
    else:
        # Rows past the end repeat the last one, which costs no mask; who stores knows better.
        rows = tl.minimum(first_row + tl.arange(0, BLOCK_ROWS), num_rows - 1)
        columns = first_column + tl.arange(0, BLOCK_COLUMNS)
        pointers = source.tiles + rows.to(tl.int64)[:, None] * source.stride + columns[None, :]
        if EVEN_COLUMNS:
            tile = tl.load(pointers)
        else:
            tile = tl.load(pointers, mask=columns[None, :] < num_columns, other=0.0)
    return tile


@triton.jit
def product_tile(
    left,  # Matrix (., D)
    right,  # Matrix (., D)
    first_left,
    first_right,
    num_left,  # rows
    num_right,
    width,  # D
    TILE: tl.constexpr,  # ProductTile
):
    """left[first_left:][:rows] @ right[first_right:][:columns].T, (rows, columns) in fp32."""
    BLOCK_M: tl.constexpr = TILE.rows
    BLOCK_N: tl.constexpr = TILE.columns
    BLOCK_K: tl.constexpr = TILE.width
    LEFT_DESCRIPTOR: tl.constexpr = TILE.left_descriptor
    RIGHT_DESCRIPTOR: tl.constexpr = TILE.right_descriptor
    EVEN_WIDTH: tl.constexpr = TILE.even_width
    PRECISION: tl.constexpr = TILE.precision
    acc = tl.zeros([BLOCK_M, BLOCK_N], tl.float32)
    for column in tl.range(0, width, BLOCK_K):
        a = load_tile(
            left,
            first_left,
            column,
            num_left,
            width,
            BLOCK_M,
            BLOCK_K,
            LEFT_DESCRIPTOR,
            EVEN_WIDTH,
        )
        b = load_tile(
            right,
            first_right,
            column,
            num_right,
            width,
            BLOCK_N,
            BLOCK_K,
            RIGHT_DESCRIPTOR,
            EVEN_WIDTH,
        )
        acc = dot(a, tl.trans(b), acc, PRECISION)
    return acc


@triton.jit
def logit_tile(
    hidden,  # Matrix (N, D)
    head,  # (V, D)
    numbers,  # the head whose softcap and scale hold
    first_row,
    first_token,
    num_rows,
    num_tokens,
    width,  # D
    TILE: tl.constexpr,  # ProductTile
):
    """(rows, columns) logits in fp32; anything finite past the last row or token."""
    BLOCK_N: tl.constexpr = TILE.columns
    x = product_tile(hidden, head.weight, first_row, first_token, num_rows, num_tokens, width, TILE)
    tokens = first_token + tl.arange(0, BLOCK_N)
    return finish_logits(x, load_bias(head, tokens, num_tokens), numbers)
