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
    """tanh x = sign(x) (1 - e^-2|x|) / (1 + e^-2|x|), sound for every finite x."""
    decay = tl.exp2(tl.abs(x) * (-2.0 * LOG2E))
    size = (1.0 - decay) / (1.0 + decay)
    return tl.where(x < 0, -size, size)


@triton.jit
def finish_logits(x, bias, softcap, logit_scale, SOFTCAP: tl.constexpr):
    """Raw products to logits; `bias` broadcasts, 0 where there is none."""
    z = (x + bias) * logit_scale
    if SOFTCAP:
        z = tanh(z / softcap) * softcap
    return z


@triton.jit
def logit_slope(z, softcap, logit_scale, SOFTCAP: tl.constexpr):
    """Derivative of a logit by its raw product: logit_scale (1 - (z / softcap)^2)."""
    slope = tl.zeros_like(z) + logit_scale
    if SOFTCAP:
        t = z / softcap
        slope = slope * (1.0 - t * t)
    return slope


@triton.jit
def load_bias(bias_ptr, tokens, num_tokens, HAS_BIAS: tl.constexpr):
    """(1, TOKENS) fp32 bias of some tokens, or 0."""
    if HAS_BIAS:
        bias = tl.load(bias_ptr + tokens, mask=tokens < num_tokens, other=0.0)
        bias = bias.to(tl.float32)[None, :]
    else:
        bias = 0.0
    return bias


@triton.jit
def dot(a, b, total, PRECISION: tl.constexpr):
    """total + a @ b in fp32; numpy knows no bf16, so the interpreter widens the operands."""
    if PRECISION == "interpreted":
        total = tl.dot(a.to(tl.float32), b.to(tl.float32), total)
    else:
        total = tl.dot(a, b, total, input_precision=PRECISION)
    return total


@triton.jit
def load_tile(
    source,  # (rows, columns): a pointer, or a descriptor whose block is (ROWS, COLUMNS)
    first_row,  # int
    first_column,  # int
    num_rows,
    num_columns,
    stride,  # elements between rows
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
    DESCRIPTOR: tl.constexpr,
    EVEN_COLUMNS: tl.constexpr,  # COLUMNS divides num_columns
):
    """A (ROWS, COLUMNS) tile: 0 past the last column, anything finite past the last row."""
    if DESCRIPTOR:
        tile = source.load([first_row, first_column])
    else:
        # Rows past the end repeat the last one, which costs no mask; who stores knows better.
        rows = tl.minimum(first_row + tl.arange(0, ROWS), num_rows - 1)
        columns = first_column + tl.arange(0, COLUMNS)
        pointers = source + rows.to(tl.int64)[:, None] * stride + columns[None, :]
        if EVEN_COLUMNS:
            tile = tl.load(pointers)
        else:
            tile = tl.load(pointers, mask=columns[None, :] < num_columns, other=0.0)
    return tile


@triton.jit
def product_tile(
    hidden,  # (N, D)
    weight,  # (V, D)
    first_row,
    first_token,
    num_rows,  # N
    num_tokens,  # V
    width,  # D
    hidden_stride,
    weight_stride,
    ROWS: tl.constexpr,
    TOKENS: tl.constexpr,
    WIDTH: tl.constexpr,  # columns of a step
    HIDDEN_DESCRIPTOR: tl.constexpr,
    WEIGHT_DESCRIPTOR: tl.constexpr,
    EVEN_WIDTH: tl.constexpr,
    PRECISION: tl.constexpr,  # of an fp32 product
):
    """hidden[first_row:][:ROWS] @ weight[first_token:][:TOKENS].T, (ROWS, TOKENS) in fp32."""
    total = tl.zeros([ROWS, TOKENS], tl.float32)
    for column in tl.range(0, width, WIDTH):
        h = load_tile(
            hidden, first_row, column, num_rows, width, hidden_stride,
            ROWS, WIDTH, HIDDEN_DESCRIPTOR, EVEN_WIDTH,
        )  # fmt: skip
        w = load_tile(
            weight, first_token, column, num_tokens, width, weight_stride,
            TOKENS, WIDTH, WEIGHT_DESCRIPTOR, EVEN_WIDTH,
        )  # fmt: skip
        total = dot(h, tl.trans(w), total, PRECISION)
    return total
