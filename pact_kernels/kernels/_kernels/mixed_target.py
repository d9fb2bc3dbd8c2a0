"""A KL over the vocabulary up to the student's log-sum-exp: its logits, the target, the gate.

    u      = hidden W_S^T                                        (BLOCK_M, BLOCK_N)
    f, p   = full_hidden R_S^T - lse, post_hidden R_S^T - lse    log-confidences; r() their log-rest
    m      = (1 - c) f + c p, and m_rest = (1 - c) r(f) + c r(p), with c the gate as in `pact_kl`

The K + 1 classes follow where a chunk's row sums are known: `chunk_loss`, `finish_chunk`. The rows
need one launch, whatever the chunks. `launch_pact_kl` launches it.

Bytes: three states, and 8 N K written in fp32.

Legend: N rows, D hidden size, K selected tokens.
"""

from __future__ import annotations

import triton
import triton.language as tl

from pact_kernels.kernels._device.operands import Matrix
from pact_kernels.kernels._device.selected_tile import student_and_mixed
from pact_kernels.types import Head


@triton.jit(do_not_specialize=["num_rows"])
def mixed_target_kernel(
    student,  # as for `_pact_kl_kernel`
    student_tiles,
    head,
    head_weight_tiles,
    full,
    full_tiles,
    post,
    post_tiles,
    reference,
    reference_weight_tiles,
    rows,  # RowTensors
    out,  # MixedTarget
    kl,  # KlNumbers
    num_rows,
    num_tokens,
    TILE: tl.constexpr,  # KlTile
):
    BLOCK_M: tl.constexpr = TILE.student.rows
    BLOCK_N: tl.constexpr = TILE.student.columns
    student = Matrix(student_tiles, student.stride, student.columns)
    if head_weight_tiles is not None:
        weight = Matrix(head_weight_tiles, head.weight.stride, head.weight.columns)
        head = Head(weight, head.bias, head.softcap, head.logit_scale)  # type: ignore[arg-type]
    full = Matrix(full_tiles, full.stride, full.columns)
    if post_tiles is not None:
        post = Matrix(post_tiles, post.stride, post.columns)
    if reference_weight_tiles is not None:
        weight = Matrix(reference_weight_tiles, reference.weight.stride, reference.weight.columns)
        reference = Head(weight, reference.bias, reference.softcap, reference.logit_scale)  # type: ignore[arg-type]
    first_row = tl.program_id(0) * BLOCK_M
    row = first_row + tl.arange(0, BLOCK_M)
    is_row = row < num_rows
    tokens = tl.arange(0, BLOCK_N)
    is_token = (tokens < num_tokens)[None, :]
    u, mixed, mixed_rest, gate = student_and_mixed(
        student, head, full, post, reference, rows, kl.gate, first_row, num_rows, num_tokens, TILE
    )
    kept = is_row
    if rows.target is not None:
        target = tl.load(rows.target + row, mask=is_row, other=rows.ignore_index)
        kept = target != rows.ignore_index
    at = row.to(tl.int64)[:, None] * num_tokens + tokens[None, :]
    mask = is_row[:, None] & is_token
    tl.store(out.student + at, u, mask=mask)
    tl.store(out.mixed + at, mixed, mask=mask)
    tl.store(out.mixed_rest + row, mixed_rest, mask=is_row)
    tl.store(out.gate + row, tl.where(kept, gate, 0.0), mask=is_row)
