"""Device functions around the products of the selected-token KL: one row tile, all K tokens.

Legend: N rows, D hidden size, K selected tokens.
"""

from __future__ import annotations

import triton
import triton.language as tl

from pact_kernels.kernels.arithmetic import (
    dot,
    finish_logits,
    load_bias,
    load_tile,
    product_tile,
)


@triton.jit
def selected_tile(
    values, weight, bias_ptr, first_row, num_rows, num_tokens, width, stride, weight_stride,
    softcap, logit_scale,
    ROWS: tl.constexpr, TOKENS: tl.constexpr, WIDTH: tl.constexpr, STATES: tl.constexpr,
    DESCRIPTOR: tl.constexpr, WEIGHT_DESCRIPTOR: tl.constexpr, EVEN: tl.constexpr,
    HAS_BIAS: tl.constexpr, SOFTCAP: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """(ROWS, TOKENS) fp32 logits, formed from states or read."""
    tokens = tl.arange(0, TOKENS)
    if STATES:
        x = product_tile(
            values, weight, first_row, 0, num_rows, num_tokens, width, stride, weight_stride,
            ROWS, TOKENS, WIDTH, DESCRIPTOR, WEIGHT_DESCRIPTOR, EVEN, PRECISION,
        )  # fmt: skip
        bias = load_bias(bias_ptr, tokens, num_tokens, HAS_BIAS)
        z = finish_logits(x, bias, softcap, logit_scale, SOFTCAP)
    else:
        rows = (first_row + tl.arange(0, ROWS)).to(tl.int64)
        mask = (rows < num_rows)[:, None] & (tokens < num_tokens)[None, :]
        z = tl.load(values + rows[:, None] * stride + tokens[None, :], mask=mask, other=0.0)
    return z.to(tl.float32)


@triton.jit
def load_rows(pointer, rows, num_rows, other, GIVEN: tl.constexpr):
    """(ROWS,) fp32 entries of a row tensor, or `other` where there is none."""
    if GIVEN:
        values = tl.load(pointer + rows, mask=rows < num_rows, other=0.0).to(tl.float32)
    else:
        values = tl.zeros_like(rows).to(tl.float32) + other
    return values


@triton.jit
def store_grad_hidden(
    grad_hidden_ptr, weight, g, scale, first_row, num_rows, num_tokens, width,
    weight_stride, grad_stride,
    ROWS: tl.constexpr, TOKENS: tl.constexpr, WIDTH: tl.constexpr,
    WEIGHT_DESCRIPTOR: tl.constexpr, EVEN: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """(g @ weight) * scale by row: the scale stays outside, where fp16 cannot underflow by it."""
    rows = (first_row + tl.arange(0, ROWS)).to(tl.int64)
    g = g.to(grad_hidden_ptr.dtype.element_ty)
    for column in tl.range(0, width, WIDTH):
        w = load_tile(
            weight, 0, column, num_tokens, width, weight_stride, TOKENS, WIDTH,
            WEIGHT_DESCRIPTOR, EVEN,
        )  # (TOKENS, WIDTH)  # fmt: skip
        d = dot(g, w, tl.zeros([ROWS, WIDTH], tl.float32), PRECISION) * scale[:, None]
        columns = column + tl.arange(0, WIDTH)
        mask = (rows < num_rows)[:, None] & (columns < width)[None, :]
        out = grad_hidden_ptr + rows[:, None] * grad_stride + columns[None, :]
        tl.store(out, d.to(grad_hidden_ptr.dtype.element_ty), mask=mask)
