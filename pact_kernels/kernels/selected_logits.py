"""Logits of K selected tokens from their gathered rows, and the gradient by the states.

    z       = softcap(logit_scale (hidden W^T + bias))      (ROWS, TOKENS) a program, fp32
    raw     = grad dz/dx                                    (N, K) fp32, x the raw products
    dHidden = raw W                                         (ROWS, WIDTH) a program, over all K

W are the head's gathered rows; products are summed in fp32. `raw` keeps the range and accuracy of
fp32, which no tensor core multiplies by 16 bits, so it is cut into pieces that one does:

    bf16        raw = high + low, two bf16 products: 16 bits of raw over the range of fp32
    fp16, fp32  W widened to fp32, three tf32 products (on AMD one of fp32). Pieces in fp16 would
                end at 6e-8, and plain tf32 cuts raw to 11 bits without rounding.

All of these compile to the tensor cores' own instructions. The gradients by W and by the bias, sums
over all rows, are formed by torch in fp32.

Flops 2 N D K each way, times the pieces. Bytes, at least: N D + K D + 4 N K each way; W, `raw`, and
the states where K > TOKENS are read again from L2.

Legend: N rows, D hidden size, K selected tokens, M slab rows.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from pact_kernels.chunked.slab import logit_slope, slabs
from pact_kernels.kernels.arithmetic import (
    dot,
    finish_logits,
    load_bias,
    load_tile,
    product_tile,
)
from pact_kernels.kernels.configs import (
    dot_precision,
    gradient_config,
    selected_config,
)
from pact_kernels.kernels.linear_logsumexp import LEAST_EVEN_WIDTH
from pact_kernels.kernels.runtime import Cost, Options, descriptor, launch, target_of, unit_stride


@triton.jit
def _selected_logits_kernel(
    hidden,  # (N, D)
    weight,  # (K, D)
    bias_ptr,  # (K,)
    out_ptr,  # (N, K) fp32
    num_rows,
    num_tokens,
    width,
    hidden_stride,
    weight_stride,
    out_stride,
    softcap,
    logit_scale,
    ROWS: tl.constexpr,
    TOKENS: tl.constexpr,
    WIDTH: tl.constexpr,
    HIDDEN_DESCRIPTOR: tl.constexpr,
    WEIGHT_DESCRIPTOR: tl.constexpr,
    EVEN_WIDTH: tl.constexpr,
    HAS_BIAS: tl.constexpr,
    SOFTCAP: tl.constexpr,
    PRECISION: tl.constexpr,
):
    first_row, first_token = tl.program_id(0) * ROWS, tl.program_id(1) * TOKENS
    x = product_tile(
        hidden, weight, first_row, first_token, num_rows, num_tokens, width,
        hidden_stride, weight_stride, ROWS, TOKENS, WIDTH,
        HIDDEN_DESCRIPTOR, WEIGHT_DESCRIPTOR, EVEN_WIDTH, PRECISION,
    )  # (ROWS, TOKENS)  # fmt: skip
    rows = (first_row + tl.arange(0, ROWS)).to(tl.int64)
    tokens = first_token + tl.arange(0, TOKENS)
    bias = load_bias(bias_ptr, tokens, num_tokens, HAS_BIAS)
    z = finish_logits(x, bias, softcap, logit_scale, SOFTCAP)
    mask = (rows < num_rows)[:, None] & (tokens < num_tokens)[None, :]
    tl.store(out_ptr + rows[:, None] * out_stride + tokens[None, :], z, mask=mask)


@triton.jit
def _selected_gradient_kernel(
    raw_ptr,  # (N, K) fp32
    weight,  # (K, D)
    out_ptr,  # (N, D)
    num_rows,
    num_tokens,
    width,
    raw_stride,
    weight_stride,
    out_stride,
    ROWS: tl.constexpr,
    TOKENS: tl.constexpr,
    WIDTH: tl.constexpr,
    WEIGHT_DESCRIPTOR: tl.constexpr,
    EVEN_WIDTH: tl.constexpr,
    PRECISION: tl.constexpr,
):
    first_row, first_column = tl.program_id(0) * ROWS, tl.program_id(1) * WIDTH
    total = tl.zeros([ROWS, WIDTH], tl.float32)
    for first_token in tl.range(0, num_tokens, TOKENS):
        # Tokens past the end: 0 times a finite row of W.
        raw = load_tile(
            raw_ptr, first_row, first_token, num_rows, num_tokens, raw_stride,
            ROWS, TOKENS, False, False,
        )  # (ROWS, TOKENS)  # fmt: skip
        w = load_tile(
            weight, first_token, first_column, num_tokens, width, weight_stride,
            TOKENS, WIDTH, WEIGHT_DESCRIPTOR, EVEN_WIDTH,
        )  # (TOKENS, WIDTH)  # fmt: skip
        total = gradient_dot(raw, w, total, PRECISION)
    rows = (first_row + tl.arange(0, ROWS)).to(tl.int64)
    columns = first_column + tl.arange(0, WIDTH)
    mask = (rows < num_rows)[:, None] & (columns < width)[None, :]
    out = out_ptr + rows[:, None] * out_stride + columns[None, :]
    tl.store(out, total.to(out_ptr.dtype.element_ty), mask=mask)


@triton.jit
def gradient_dot(raw, w, total, PRECISION: tl.constexpr):
    """total + raw @ w in fp32, `raw` in fp32 whatever the dtype of `w`."""
    if w.dtype == tl.bfloat16:
        high = raw.to(tl.bfloat16)
        low = (raw - high.to(tl.float32)).to(tl.bfloat16)
        total = dot(high, w, dot(low, w, total, PRECISION), PRECISION)
    else:
        total = dot(raw, w.to(tl.float32), total, PRECISION)
    return total


def selected_logits(
    hidden: Tensor,  # (N, D)
    selected_weight: Tensor,  # (K, D)
    selected_bias: Tensor | None,  # (K,)
    *,
    softcap: float | None,
    logit_scale: float,
    limit_bytes: int,
) -> Tensor:  # (N, K) fp32
    """softcap(logit_scale * (hidden @ selected_weight.T + selected_bias)), formed in fp32."""
    num_rows, width = hidden.shape
    out = hidden.new_empty((num_rows, selected_weight.shape[0]), dtype=torch.float32)  # (N, K)
    weight = unit_stride(selected_weight)
    slab_rows = num_rows
    if unit_stride(hidden[:1]) is not hidden[:1]:  # the copies of the rows stay within the limit
        slab_rows = limit_bytes // (hidden.element_size() * width)
    for start, stop in slabs(num_rows, max(slab_rows, 1)):
        launch_selected_logits(
            unit_stride(hidden[start:stop]),
            weight,
            selected_bias,
            out[start:stop],
            softcap=softcap,
            logit_scale=logit_scale,
        )
    return out


def selected_logits_backward(
    grad: Tensor,  # (N, K) fp32
    hidden: Tensor,  # (N, D)
    selected_weight: Tensor,  # (K, D)
    selected_bias: Tensor | None,  # (K,)
    *,
    softcap: float | None,
    logit_scale: float,
    wanted: tuple[bool, bool, bool],  # gradients by hidden, selected_weight, selected_bias
    limit_bytes: int,
) -> tuple[Tensor, Tensor, Tensor]:  # (N, D) like hidden, (K, D) fp32, (K,) fp32
    """Gradients of `selected_logits`; one that is not wanted is empty."""
    (num_rows, width), num_tokens = hidden.shape, selected_weight.shape[0]
    weight = unit_stride(selected_weight)
    grad_hidden = hidden.new_empty(hidden.shape if wanted[0] else (0,))
    grad_weight = grad.new_zeros(weight.shape if wanted[1] else (0,))
    grad_bias = grad.new_zeros(num_tokens if wanted[2] else 0)
    # Four (M, K) temporaries, and fp32 copies of the states where W learns, live at once.
    row_bytes = 4 * (4 * num_tokens + (width if wanted[1] else 0))
    for start, stop in slabs(num_rows, max(1, limit_bytes // max(row_bytes, 1))):
        rows = hidden[start:stop]  # (M, D)
        slope: Tensor | float = logit_scale
        if softcap is not None:
            z = selected_logits(
                rows,
                weight,
                selected_bias,
                softcap=softcap,
                logit_scale=logit_scale,
                limit_bytes=limit_bytes,
            )
            slope = logit_slope(z, softcap, logit_scale)
        raw = unit_stride(grad[start:stop] * slope)  # (M, K)
        if wanted[0]:
            launch_selected_gradient(raw, weight, grad_hidden[start:stop])
        if wanted[1]:
            grad_weight.addmm_(raw.T, rows.to(raw.dtype))
        if wanted[2]:
            grad_bias += raw.sum(0)
    return grad_hidden, grad_weight, grad_bias


def launch_selected_logits(
    hidden: Tensor,  # (N, D)
    selected_weight: Tensor,  # (K, D)
    selected_bias: Tensor | None,  # (K,)
    out: Tensor,  # (N, K) fp32, overwritten
    *,
    softcap: float | None,
    logit_scale: float,
) -> None:
    """The logits of all rows; the last stride of each tensor is 1."""
    device = target_of(hidden)
    (num_rows, width), num_tokens = hidden.shape, selected_weight.shape[0]
    config = selected_config(device, hidden.dtype, num_tokens, even=width % LEAST_EVEN_WIDTH == 0)
    hidden_tiles = descriptor(hidden, [config.rows, config.width], device)
    weight_tiles = descriptor(selected_weight, [config.tokens, config.width], device)
    row_tiles = triton.cdiv(num_rows, config.rows)
    launch(
        _selected_logits_kernel,
        (row_tiles, triton.cdiv(num_tokens, config.tokens)),
        Options(config.warps, config.stages),
        Cost(
            flops=2 * num_rows * width * num_tokens,
            bytes=hidden.nbytes + selected_weight.nbytes + out.nbytes,
            row_tiles=row_tiles,
        ),
        hidden=hidden_tiles,
        weight=weight_tiles,
        bias_ptr=selected_bias,
        out_ptr=out,
        num_rows=num_rows,
        num_tokens=num_tokens,
        width=width,
        hidden_stride=hidden.stride(0),
        weight_stride=selected_weight.stride(0),
        out_stride=out.stride(0),
        softcap=softcap or 1.0,
        logit_scale=logit_scale,
        ROWS=config.rows,
        TOKENS=config.tokens,
        WIDTH=config.width,
        HIDDEN_DESCRIPTOR=hidden_tiles is not hidden,
        WEIGHT_DESCRIPTOR=weight_tiles is not selected_weight,
        EVEN_WIDTH=width % config.width == 0,
        HAS_BIAS=selected_bias is not None,
        SOFTCAP=softcap is not None,
        PRECISION=dot_precision(hidden),
    )


def launch_selected_gradient(
    raw: Tensor,  # (N, K) fp32 gradient by the raw products
    selected_weight: Tensor,  # (K, D)
    out: Tensor,  # (N, D), overwritten by raw @ selected_weight
) -> None:
    """The gradient by the states; the last stride of each tensor is 1."""
    device = target_of(raw)
    (num_rows, num_tokens), width = raw.shape, selected_weight.shape[1]
    even = width % LEAST_EVEN_WIDTH == 0
    config = gradient_config(device, selected_weight.dtype, even=even)
    weight_tiles = descriptor(selected_weight, [config.tokens, config.width], device)
    row_tiles = triton.cdiv(num_rows, config.rows)
    launch(
        _selected_gradient_kernel,
        (row_tiles, triton.cdiv(width, config.width)),
        Options(config.warps, config.stages),
        Cost(
            flops=2 * num_rows * width * num_tokens,
            bytes=raw.nbytes + selected_weight.nbytes + out.nbytes,
            row_tiles=row_tiles,
        ),
        raw_ptr=raw,
        weight=weight_tiles,
        out_ptr=out,
        num_rows=num_rows,
        num_tokens=num_tokens,
        width=width,
        raw_stride=raw.stride(0),
        weight_stride=selected_weight.stride(0),
        out_stride=out.stride(0),
        ROWS=config.rows,
        TOKENS=config.tokens,
        WIDTH=config.width,
        WEIGHT_DESCRIPTOR=weight_tiles is not selected_weight,
        EVEN_WIDTH=width % config.width == 0,
        PRECISION=dot_precision(raw),
    )
