"""Device functions around the products of the selected-token KL: one row tile, all K tokens.

Legend: N rows, D hidden size, K selected tokens.
"""

from __future__ import annotations

import triton
import triton.language as tl

from pact_kernels.kernels._device.arithmetic import dot, load_tile, logit_tile
from pact_kernels.kernels._device.target import gate_value, log_rest, mix


@triton.jit
def selected_tile(
    inputs,  # Matrix: states (N, D) where the head has a weight, else logits (N, K)
    head,  # (K, D)
    numbers,  # the head whose softcap and scale hold: the student's
    first_row,
    num_rows,
    num_tokens,
    width,  # D
    TILE: tl.constexpr,  # ProductTile
):
    """(rows, columns) fp32 logits of the selected tokens, formed from states or read."""
    BLOCK_M: tl.constexpr = TILE.rows
    BLOCK_N: tl.constexpr = TILE.columns
    if head.weight is not None:
        z = logit_tile(inputs, head, numbers, first_row, 0, num_rows, num_tokens, width, TILE)
    else:
        tokens = tl.arange(0, BLOCK_N)
        rows = (first_row + tl.arange(0, BLOCK_M)).to(tl.int64)
        mask = (rows < num_rows)[:, None] & (tokens < num_tokens)[None, :]
        pointers = inputs.tiles + rows[:, None] * inputs.stride + tokens[None, :]
        z = tl.load(pointers, mask=mask, other=0.0)
    return z.to(tl.float32)


@triton.jit
def load_rows(pointer, rows, num_rows, other):
    """(BLOCK_M,) fp32 entries of a row tensor, or `other` where there is none."""
    if pointer is not None:
        values = tl.load(pointer + rows, mask=rows < num_rows, other=0.0).to(tl.float32)
    else:
        values = tl.zeros_like(rows).to(tl.float32) + other
    return values


@triton.jit
def student_and_mixed(
    student,  # Matrix: states (N, D), or logits (N, K) where its head has no weight
    head,  # (K, D)
    full,  # Matrix: states (N, D'), or logits (N, K)
    post,  # likewise, or None without a gate
    reference,  # its head (K, D'), capped and scaled as the student's
    rows,  # RowTensors
    gate_numbers,  # Gate
    first_row,
    num_rows,
    num_tokens,
    TILE: tl.constexpr,  # KlTile
):
    """The student's logits and the references' mixture, the mixture's log-rest, and the gate.

    Over the vocabulary the mixture is of log-confidences, else of logits; its rest is 0 there.
    """
    STUDENT: tl.constexpr = TILE.student
    REFERENCE: tl.constexpr = TILE.reference
    DECAY: tl.constexpr = TILE.decay
    BLOCK_M: tl.constexpr = TILE.student.rows
    BLOCK_N: tl.constexpr = TILE.student.columns
    row = first_row + tl.arange(0, BLOCK_M)
    is_token = (tl.arange(0, BLOCK_N) < num_tokens)[None, :]
    u = selected_tile(
        student, head, head, first_row, num_rows, num_tokens, student.columns, STUDENT
    )
    gate = tl.zeros([BLOCK_M], tl.float32)
    mixed_rest = tl.zeros([BLOCK_M], tl.float32)
    if post is not None:
        p = selected_tile(
            post, reference, head, first_row, num_rows, num_tokens, full.columns, REFERENCE
        )
        step = tl.load(rows.step + row, mask=row < num_rows, other=0)
        gate = gate_value(u, p, step, is_token, num_tokens, gate_numbers, DECAY)
    mixed = selected_tile(
        full, reference, head, first_row, num_rows, num_tokens, full.columns, REFERENCE
    )
    if TILE.over_vocabulary:
        mixed -= load_rows(rows.full_lse, row, num_rows, 0.0)[:, None]
        mixed_rest = log_rest(mixed, is_token)
        if post is not None:
            p -= load_rows(rows.post_lse, row, num_rows, 0.0)[:, None]
            mixed_rest = mix(mixed_rest, log_rest(p, is_token), gate)
    if post is not None:
        mixed = mix(mixed, p, gate[:, None])
    return u, mixed, mixed_rest, gate


@triton.jit
def store_grad_hidden(
    grad_hidden,  # Matrix (N, D)
    weight,  # Matrix (K, D)
    g,  # (rows, columns) gradient by the raw products
    scale,  # (rows,)
    first_row,
    num_rows,
    num_tokens,
    width,  # D
    TILE: tl.constexpr,  # ProductTile of the student
):
    """(g @ weight) * scale by row: the scale stays outside, where fp16 cannot underflow by it."""
    BLOCK_M: tl.constexpr = TILE.rows
    BLOCK_N: tl.constexpr = TILE.columns
    BLOCK_K: tl.constexpr = TILE.width
    DESCRIPTOR: tl.constexpr = TILE.right_descriptor
    EVEN_WIDTH: tl.constexpr = TILE.even_width
    PRECISION: tl.constexpr = TILE.precision
    rows = (first_row + tl.arange(0, BLOCK_M)).to(tl.int64)
    dtype = grad_hidden.tiles.dtype.element_ty
    g = g.to(dtype)
    for column in tl.range(0, width, BLOCK_K):
        w = load_tile(
            weight,
            0,
            column,
            num_tokens,
            width,
            BLOCK_N,
            BLOCK_K,
            DESCRIPTOR,
            EVEN_WIDTH,
        )
        d = dot(g, w, tl.zeros([BLOCK_M, BLOCK_K], tl.float32), PRECISION)
        d = d * scale[:, None]
        columns = column + tl.arange(0, BLOCK_K)
        mask = (rows < num_rows)[:, None] & (columns < width)[None, :]
        pointers = grad_hidden.tiles + rows[:, None] * grad_hidden.stride + columns[None, :]
        tl.store(pointers, d.to(dtype), mask=mask)
