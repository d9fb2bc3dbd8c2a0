"""The KL of a tile of rows in one launch: logits, counts, gate, target, KL and its gradient.

    u, f, p = hidden W_S^T, full_hidden R_S^T, post_hidden R_S^T      (ROWS, TOKENS) each, fp32
    c       = sigmoid(alpha (k(u)/K - k(p)/K - bias)) decay(t) boost  `target.gate_value`
    m       = (1 - c) f + c p
    kl, G   = KL of q(m) to the student, d kl / d u                   `target.selection_kl`
    dHidden = (G slope) W_S                                           (ROWS, WIDTH) at a time

W_S and R_S are the heads' gathered rows of the K tokens. Every hidden state is read once; W_S and
R_S come from L2. Logits may also be given instead of states: the student's where K is too large for
registers beside a product, the reference's from a cache or a pass over its vocabulary.

Over the vocabulary the logits become log-confidences by the rows' log-sum-exps, the KL has K + 1
classes, and its gradient is share * P plus K sparse entries: the chunk loop adds both to the
gradient of its slab, so this kernel writes them instead of dHidden.

Flops: 2 N D K per product, four at most; about 300 N K beside them for two counts. Bytes: three
states and dHidden, 8 N D in 16 bits (4 N D with the reference's logits given).

Legend: N rows, D hidden size, D' that of the reference, K selected tokens.
"""

from __future__ import annotations

from typing import Any

import triton
import triton.language as tl
from torch import Tensor

from pact_kernels.chunked.spec import KlSpec
from pact_kernels.kernels.arithmetic import log, logit_slope
from pact_kernels.kernels.configs import (
    KL_VARIATIONS,
    KlConfig,
    dot_precision,
    kl_config,
    kl_rows_config,
    padded_tokens,
)
from pact_kernels.kernels.kl_tensors import KlOut, RowTensors, SelectedSource
from pact_kernels.kernels.runtime import Cost, Options, descriptor, launch, target_of
from pact_kernels.kernels.selected_tile import load_rows, selected_tile, store_grad_hidden
from pact_kernels.kernels.target import gate_value, log_rest, selection_kl, vocabulary_kl
from pact_kernels.kernels.tuning import tuned
from pact_kernels.types import GateConfig

EVEN_WIDTH = 64
"""Every configuration's step divides it."""


@triton.jit(do_not_specialize=["num_rows"])
def _pact_kl_kernel(
    student,  # (N, D), or logits (N, K)
    weight,  # (K, D)
    bias_ptr,  # (K,)
    full,  # (N, D'), or logits (N, K)
    post,  # likewise
    reference_weight,  # (K, D')
    reference_bias_ptr,  # (K,)
    log_weight_ptr,  # (K,) fp32
    step_ptr,  # (N,) int
    row_weight_ptr,  # (N,)
    row_grad_ptr,  # (N,)
    target_ptr,  # (N,) int64
    largest_ptr,  # (N,) of the student's logits
    total_ptr,  # (N,) sum_v exp(z_v - largest)
    full_lse_ptr,  # (N,)
    post_lse_ptr,  # (N,)
    kl_ptr,  # (N,) fp32
    gate_ptr,  # (N,) fp32
    grad_hidden_ptr,  # (N, D)
    gradient_ptr,  # (N, K) fp32
    share_ptr,  # (N,) fp32
    num_rows,
    num_tokens,
    width,
    reference_width,
    student_stride,
    weight_stride,
    full_stride,
    post_stride,
    reference_weight_stride,
    grad_stride,
    softcap,
    logit_scale,
    ignore_index,
    temperature,
    kl_weight,
    top_p,
    alpha,
    gate_bias,
    gate_temperature,
    prefix_length,
    decay_tau,
    prefix_boost,
    ROWS: tl.constexpr,
    TOKENS: tl.constexpr,
    WIDTH: tl.constexpr,
    VOCABULARY: tl.constexpr,
    GATE: tl.constexpr,
    DECAY: tl.constexpr,
    STUDENT_STATES: tl.constexpr,
    REFERENCE_STATES: tl.constexpr,
    STUDENT_DESCRIPTOR: tl.constexpr,
    WEIGHT_DESCRIPTOR: tl.constexpr,
    REFERENCE_DESCRIPTOR: tl.constexpr,
    REFERENCE_WEIGHT_DESCRIPTOR: tl.constexpr,
    EVEN: tl.constexpr,
    REFERENCE_EVEN: tl.constexpr,
    SOFTCAP: tl.constexpr,
    SLOPE: tl.constexpr,
    PRECISION: tl.constexpr,
):
    first_row = tl.program_id(0) * ROWS
    rows = first_row + tl.arange(0, ROWS)
    is_row = rows < num_rows
    tokens = tl.arange(0, TOKENS)
    is_token = (tokens < num_tokens)[None, :]
    u = selected_tile(
        student, weight, bias_ptr, first_row, num_rows, num_tokens, width, student_stride,
        weight_stride, softcap, logit_scale, ROWS, TOKENS, WIDTH, STUDENT_STATES,
        STUDENT_DESCRIPTOR, WEIGHT_DESCRIPTOR, EVEN, bias_ptr is not None, SOFTCAP, PRECISION,
    )  # fmt: skip
    gate = tl.zeros([ROWS], tl.float32)
    if GATE:
        p = selected_tile(
            post, reference_weight, reference_bias_ptr, first_row, num_rows, num_tokens,
            reference_width, post_stride, reference_weight_stride, softcap, logit_scale,
            ROWS, TOKENS, WIDTH, REFERENCE_STATES, REFERENCE_DESCRIPTOR,
            REFERENCE_WEIGHT_DESCRIPTOR, REFERENCE_EVEN, reference_bias_ptr is not None,
            SOFTCAP, PRECISION,
        )  # fmt: skip
        step = tl.load(step_ptr + rows, mask=is_row, other=0)
        gate = gate_value(
            u, p, step, is_token, num_tokens, top_p, alpha, gate_bias, gate_temperature,
            prefix_length, decay_tau, prefix_boost, DECAY,
        )  # fmt: skip
    mixed = selected_tile(
        full, reference_weight, reference_bias_ptr, first_row, num_rows, num_tokens,
        reference_width, full_stride, reference_weight_stride, softcap, logit_scale,
        ROWS, TOKENS, WIDTH, REFERENCE_STATES, REFERENCE_DESCRIPTOR,
        REFERENCE_WEIGHT_DESCRIPTOR, REFERENCE_EVEN, reference_bias_ptr is not None,
        SOFTCAP, PRECISION,
    )  # fmt: skip
    if VOCABULARY:
        mixed -= load_rows(full_lse_ptr, rows, num_rows, 0.0, True)[:, None]
        mixed_rest, _ = log_rest(mixed, is_token)
        if GATE:
            p -= load_rows(post_lse_ptr, rows, num_rows, 0.0, True)[:, None]
            post_rest, _ = log_rest(p, is_token)
            mixed_rest += gate * (post_rest - mixed_rest)
    if GATE:
        mixed += gate[:, None] * (p - mixed)
    kept = is_row
    if target_ptr is not None:
        kept = tl.load(target_ptr + rows, mask=is_row, other=ignore_index) != ignore_index
    row_weight = load_rows(row_weight_ptr, rows, num_rows, 1.0, row_weight_ptr is not None)
    if VOCABULARY:
        u -= load_rows(largest_ptr, rows, num_rows, 0.0, True)[:, None]
        u -= log(load_rows(total_ptr, rows, num_rows, 0.0, True))[:, None]
        kl, share, g = vocabulary_kl(u, mixed, mixed_rest, is_token)
        share = tl.where(kept, share * row_weight * kl_weight, 0.0)
        tl.store(share_ptr + rows, share, mask=is_row)
    else:
        log_weight = tl.load(log_weight_ptr + tokens, mask=tokens < num_tokens, other=0.0)[None, :]
        kl, g = selection_kl(u, mixed, log_weight, is_token, temperature)
    tl.store(kl_ptr + rows, tl.where(kept, kl * row_weight, 0.0), mask=is_row)
    tl.store(gate_ptr + rows, tl.where(kept, gate, 0.0), mask=is_row)
    scale = load_rows(row_grad_ptr, rows, num_rows, 1.0, row_grad_ptr is not None)
    scale = scale * row_weight * kl_weight
    if not VOCABULARY:
        g = tl.where(kept[:, None], g, 0.0)
        if SLOPE:
            g = g * logit_slope(u, softcap, logit_scale, SOFTCAP)
    if gradient_ptr is not None:
        at = rows.to(tl.int64)[:, None] * num_tokens + tokens[None, :]
        scaled = tl.where(kept[:, None], g * scale[:, None], 0.0)
        tl.store(gradient_ptr + at, scaled, mask=is_row[:, None] & is_token)
    if grad_hidden_ptr is not None:
        store_grad_hidden(
            grad_hidden_ptr, weight, g, scale, first_row, num_rows, num_tokens, width,
            weight_stride, grad_stride, ROWS, TOKENS, WIDTH, WEIGHT_DESCRIPTOR, EVEN, PRECISION,
        )  # fmt: skip


def fits_registers(*weights: Tensor) -> bool:
    """Whether logits by these gathered rows (K, D) can be formed beside their KL."""
    return _formed_config(*weights, crowded=False) is not None


def _formed_config(*weights: Tensor, crowded: bool) -> KlConfig | None:
    weight = weights[0]
    even = all(w.shape[1] % EVEN_WIDTH == 0 for w in weights)
    return kl_config(target_of(weight), weight.dtype, weight.shape[0], crowded=crowded, even=even)


def launch_pact_kl(
    student: SelectedSource,
    full: SelectedSource,
    post: SelectedSource | None,
    out: KlOut,
    *,
    kl: KlSpec,
    rows: RowTensors,
    softcap: float | None,
    logit_scale: float,
    by_product: bool,
) -> None:
    """Fill `out` for all rows of the sources.

    Args:
        kl: what is asked for; its row tensors are not read, `rows` are.
        by_product: `out.gradient` is by the raw products and carries row_grad; else it is by the
            logits.
    """
    states, num_tokens = student.values, kl.token_weights.numel()
    config = kl_rows_config(num_tokens)
    if student.weight is not None:
        sources = [s.weight for s in (student, full) if s.weight is not None]
        config = _formed_config(*sources, crowded=softcap is not None) or config

    def run(config: KlConfig) -> None:
        _launch(
            student,
            full,
            post,
            out,
            kl=kl,
            rows=rows,
            softcap=softcap,
            logit_scale=logit_scale,
            by_product=by_product,
            config=config,
        )

    if student.weight is not None:
        key = ("pact_kl", *states.shape, num_tokens, kl.over, full.weight is None, post is None)
        config = tuned(key, config, KL_VARIATIONS, run, states)
    run(config)


def _launch(
    student: SelectedSource,
    full: SelectedSource,
    post: SelectedSource | None,
    out: KlOut,
    *,
    kl: KlSpec,
    rows: RowTensors,
    softcap: float | None,
    logit_scale: float,
    by_product: bool,
    config: KlConfig,
) -> None:
    """The launch itself."""
    states, device = student.values, target_of(student.values)
    num_rows, width = states.shape
    num_tokens = kl.token_weights.numel()
    tokens = padded_tokens(num_tokens)
    reference_width = full.values.shape[1]
    gate = kl.gate or GateConfig()
    block, weight_block = [config.rows, config.width], [tokens, config.width]

    def tiles(source: SelectedSource) -> tuple[Any, Any]:
        if source.weight is None:
            return source.values, None
        return descriptor(source.values, block, device), descriptor(
            source.weight, weight_block, device
        )

    student_tiles, weight_tiles = tiles(student)
    full_tiles, reference_tiles = tiles(full)
    post_tiles = None if post is None else tiles(post)[0]
    is_tiles = full_tiles is not full.values and (post is None or post_tiles is not post.values)
    if not is_tiles:  # both contexts by one way: one is a switch of the kernel
        full_tiles, post_tiles = full.values, None if post is None else post.values
    launch(
        _pact_kl_kernel,
        (triton.cdiv(num_rows, config.rows),),
        Options(config.warps, config.stages),
        _cost(student, full, post, out, num_tokens, config.rows),
        student=student_tiles,
        weight=weight_tiles,
        bias_ptr=student.bias,
        full=full_tiles,
        post=post_tiles,
        reference_weight=reference_tiles,
        reference_bias_ptr=full.bias,
        log_weight_ptr=rows.log_weight,
        step_ptr=rows.step,
        row_weight_ptr=rows.row_weight,
        row_grad_ptr=rows.row_grad,
        target_ptr=rows.target,
        largest_ptr=rows.largest,
        total_ptr=rows.total,
        full_lse_ptr=rows.full_lse,
        post_lse_ptr=rows.post_lse,
        kl_ptr=out.kl,
        gate_ptr=out.gate,
        grad_hidden_ptr=out.grad_hidden,
        gradient_ptr=out.gradient,
        share_ptr=out.share,
        num_rows=num_rows,
        num_tokens=num_tokens,
        width=width,
        reference_width=reference_width,
        student_stride=states.stride(0),
        weight_stride=student.weight.stride(0) if student.weight is not None else 0,
        full_stride=full.values.stride(0),
        post_stride=post.values.stride(0) if post is not None else 0,
        reference_weight_stride=full.weight.stride(0) if full.weight is not None else 0,
        grad_stride=out.grad_hidden.stride(0) if out.grad_hidden is not None else 0,
        softcap=softcap or 1.0,
        logit_scale=logit_scale,
        ignore_index=rows.ignore_index,
        temperature=kl.temperature,
        kl_weight=kl.kl_weight,
        top_p=gate.top_p,
        alpha=gate.alpha,
        gate_bias=gate.bias,
        gate_temperature=gate.temperature,
        prefix_length=gate.prefix_length,
        decay_tau=gate.decay_tau,
        prefix_boost=gate.prefix_boost,
        ROWS=config.rows,
        TOKENS=tokens,
        WIDTH=config.width,
        VOCABULARY=kl.over == "vocabulary",
        GATE=post is not None,
        DECAY=gate.decay_tau > 0,
        STUDENT_STATES=student.weight is not None,
        REFERENCE_STATES=full.weight is not None,
        STUDENT_DESCRIPTOR=student_tiles is not states,
        WEIGHT_DESCRIPTOR=weight_tiles is not student.weight,
        REFERENCE_DESCRIPTOR=is_tiles,
        REFERENCE_WEIGHT_DESCRIPTOR=reference_tiles is not full.weight,
        EVEN=width % config.width == 0,
        REFERENCE_EVEN=reference_width % config.width == 0,
        SOFTCAP=softcap is not None,
        SLOPE=by_product,
        PRECISION=dot_precision(states),
    )


def _cost(
    student: SelectedSource,
    full: SelectedSource,
    post: SelectedSource | None,
    out: KlOut,
    num_tokens: int,
    rows: int,
) -> Cost:
    """Products of the sources that are states, and one read or write of everything."""
    num_rows = student.values.shape[0]
    sources = [source for source in (student, full, post) if source is not None]
    widths = [source.values.shape[1] for source in sources if source.weight is not None]
    if out.grad_hidden is not None:
        widths.append(out.grad_hidden.shape[1])
    read = sum(source.values.nbytes for source in sources)
    written = sum(tensor.nbytes for tensor in out if tensor is not None)
    return Cost(
        flops=2 * num_rows * num_tokens * sum(widths),
        bytes=read + written,
        row_tiles=triton.cdiv(num_rows, rows),
    )
