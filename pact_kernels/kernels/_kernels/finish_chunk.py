"""From the sums of a chunk's exponentials to its losses, and to the K + 1 entries that E lacks.

    l    = sum of s,  lse = c + log l
    term = (1 - e)(lse - z_y) + e (lse - mean_v z_v) + z_loss lse^2
    a    = 1 + 2 z_loss lse + f                f: the KL's factor on the softmax
    rho  = row_grad logit_scale a / l          what the product with E is multiplied by, by row
    E_y += -(1 - e) cap_y l / a,   E_k += s_k cap_k l / a          the one-hot and the KL's entries

so that rho E is the gradient by the raw products, but for label smoothing's constant, with cap_v
the slope of the soft cap. An entry is rounded to bf16 once, with a relative error. Where the target
has the smaller part of the mass its entry would be by far the largest of the row, and the product's
result, in 16 bits, would be rounded as coarsely: there E_y stays what it was, and what it lacks is
handed on in fp32, as a factor on W_y (`scale_states`, which also puts the entry in place for the
gradient by the weight). Where it has the larger part the entry is a small difference, and is
patched. Where a nearly vanishes the entries would pass bf16's range, so |a| is taken as at least
LEAST_FACTOR: of the softmax that is less than a rounding.

Over the vocabulary the KL's K + 1 classes are formed here, where the log-sum-exp is known, from the
student's K logits and the references' mixed log-confidences.

Bytes: 4 V M / BLOCK_N of sums, and a sector for each of the K + 1 entries of a row.

Legend: M chunk rows, V vocabulary, K selected tokens.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import triton
import triton.language as tl
from torch import Tensor

from pact_kernels.common.chunks import ceil_div
from pact_kernels.common.requests import TermRequest
from pact_kernels.kernels._device.arithmetic import LOG2E, cap_slope, log
from pact_kernels.kernels._device.operands import NO_TARGET, MixedTarget
from pact_kernels.kernels._device.selected_tile import load_rows
from pact_kernels.kernels._device.target import vocabulary_kl
from pact_kernels.kernels._kernels.exponential_chunk import RowShift, sum_of_tiles
from pact_kernels.kernels._launch.configs import padded_tokens
from pact_kernels.kernels._launch.operands import matrix, without_weight
from pact_kernels.kernels._launch.runtime import Cost, Options, launch
from pact_kernels.types import Head

LEAST_FACTOR = tl.constexpr(1e-6)
MOST_ENTRIES = 2048
"""Entries of K tokens that a program holds of each kind."""
MOST_ROWS = 16


class ChunkRows(NamedTuple):
    """What is known of a chunk's rows, and what is found; (M,) each, None where there is none."""

    target: Any
    """int64; None without a cross-entropy."""
    target_logit: Any
    mean_logit: Any
    """Without label smoothing None."""
    row_grad: Any
    row_weight: Any
    term: Any
    """Written, with what follows."""
    kl: Any
    """Over the vocabulary; else it is there before."""
    scale: Any
    """rho"""
    target_scale: Any
    """The factor on W_y beside rho E W."""
    target_entry: Any
    """What E_y is in the gradient by the weight."""


class ChunkKl(NamedTuple):
    """The KL of a chunk's rows: entries that are known, or what they are formed from."""

    token_ids: Any
    """(K,) int64, or (M, K); None without a KL."""
    ids_stride: int
    """Between rows' tokens: K, or 0 where all rows have the same."""
    entries: Any
    """(M, K) fp32 by the raw products; None over the vocabulary."""
    target: MixedTarget


class FinishNumbers(NamedTuple):
    """The numbers of a row loss."""

    ignore_index: int
    term_scale: float
    """0 without a term beside the KL, else 1."""
    one_hot: float
    """1 - e, or 0 without a cross-entropy."""
    smoothing: float
    """e"""
    z_loss: float
    kl_weight: float


NO_CHUNK_KL = ChunkKl(None, 0, None, NO_TARGET)


@triton.jit(do_not_specialize=["num_rows"])
def _finish_chunk_kernel(
    chunk,  # Matrix (M, V)
    head,  # its numbers
    shift,  # RowShift (M,)
    sum_ptr,  # (tiles, M) fp32
    rows,  # ChunkRows
    kl,  # ChunkKl
    numbers,  # FinishNumbers
    num_rows,
    num_sums,
    num_tokens,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,  # K padded
):
    row = tl.program_id(0) * BLOCK_M + tl.arange(0, BLOCK_M)
    is_row = row < num_rows
    sum_exp = sum_of_tiles(sum_ptr, row, num_rows, num_sums, BLOCK_M)
    at_shift = tl.load(shift.log2 + row, mask=is_row, other=float("inf"))
    kept = is_row & (at_shift != float("inf"))
    sum_exp = tl.where(kept, sum_exp, 1.0)
    log_sum_exp = log(sum_exp)
    above = load_rows(shift.above_target, row, num_rows, 0.0)  # c - z_y
    target_logit = load_rows(rows.target_logit, row, num_rows, 0.0)
    lse = target_logit + (above + log_sum_exp)
    if rows.target is not None:
        # A target of probability 0 has an infinite loss and a plain log-sum-exp.
        lse = tl.where(target_logit == float("-inf"), at_shift / LOG2E + log_sum_exp, lse)
    term = above + log_sum_exp
    if rows.mean_logit is not None:
        mean = load_rows(rows.mean_logit, row, num_rows, 0.0)
        # Apart, not as a difference: both are infinite where the target's logit is -inf.
        term = (1.0 - numbers.smoothing) * term + numbers.smoothing * (lse - mean)
    term += numbers.z_loss * lse * lse
    tl.store(rows.term + row, tl.where(kept, numbers.term_scale * term, 0.0), mask=is_row)
    factor = numbers.term_scale * (1.0 + 2.0 * numbers.z_loss * lse)  # a

    tokens = tl.arange(0, BLOCK_N)
    is_token = (tokens < num_tokens)[None, :]
    wide = row.to(tl.int64)
    is_entry = kept[:, None] & is_token
    at_entry = wide[:, None] * num_tokens + tokens[None, :]
    if kl.token_ids is not None:
        if kl.entries is not None:
            entries = tl.load(kl.entries + at_entry, mask=is_entry, other=0.0) / head.logit_scale
        else:
            u = tl.load(kl.target.student + at_entry, mask=is_entry, other=0.0)
            mixed = tl.load(kl.target.mixed + at_entry, mask=is_entry, other=0.0)
            mixed_rest = tl.load(kl.target.mixed_rest + row, mask=kept, other=0.0)
            row_weight = load_rows(rows.row_weight, row, num_rows, 1.0)
            loss, softmax_factor, entries = vocabulary_kl(
                u - lse[:, None], mixed, mixed_rest, is_token
            )
            tl.store(rows.kl + row, tl.where(kept, loss * row_weight, 0.0), mask=is_row)
            factor += softmax_factor * row_weight * numbers.kl_weight
            entries = entries * (row_weight * numbers.kl_weight)[:, None] * cap_slope(u, head)
    # A factor of 0 has a sign, too.
    least = tl.where(factor < 0.0, -LEAST_FACTOR, LEAST_FACTOR)
    factor = tl.where(tl.abs(factor) < LEAST_FACTOR, least, factor)
    scale = load_rows(rows.row_grad, row, num_rows, 1.0) * head.logit_scale * factor / sum_exp
    scale = tl.where(kept, scale, 0.0)
    tl.store(rows.scale + row, scale, mask=is_row)
    inverse = sum_exp / factor

    row_ptr = chunk.tiles + wide * chunk.stride
    if kl.token_ids is not None:
        at_id = wide[:, None] * kl.ids_stride + tokens[None, :]
        ids = tl.load(kl.token_ids + at_id, mask=is_entry, other=0)  # (BLOCK_M, BLOCK_N)
        old = tl.load(row_ptr[:, None] + ids, mask=is_entry, other=0.0).to(tl.float32)
        new = old + entries * inverse[:, None]
    if rows.target is not None:
        target = tl.load(rows.target + row, mask=kept, other=-1)
        slope = cap_slope(target_logit, head)
        exponential = tl.exp2(-above * LOG2E) * slope
        own = exponential - numbers.one_hot * slope * inverse
        if kl.token_ids is not None:
            is_target = (ids == target[:, None]) & is_entry
            selected = tl.sum(tl.where(is_target, entries, 0.0), 1) * inverse
            own += selected
        smaller = tl.where(tl.abs(own) < tl.abs(exponential), own, exponential)
        stored = smaller.to(tl.bfloat16)
        if kl.token_ids is not None:
            new = tl.where(is_target, smaller[:, None], new)
        # Over the K entries, the target's comes out as it does alone: either store writes it.
        tl.store(row_ptr + target, stored, mask=kept)
        left = (own - stored.to(tl.float32)) * scale
        tl.store(rows.target_scale + row, tl.where(kept, left, 0.0), mask=is_row)
        tl.store(rows.target_entry + row, own, mask=is_row)
    if kl.token_ids is not None:
        tl.store(row_ptr[:, None] + ids, new.to(tl.bfloat16), mask=is_entry)


def launch_finish_chunk(
    chunk: Tensor,  # (M, V) bf16 exponentials; the gradient by the raw products over `scale` after
    head: Head,  # (V, D)
    shift: RowShift,  # (M,)
    sums: Tensor,  # (tiles, M) fp32
    rows: ChunkRows,
    kl: ChunkKl,
    *,
    request: TermRequest,
    kl_weight: float,
) -> None:
    """Losses and scales of the rows, and the chunk's own entries."""
    num_sums, num_rows = sums.shape
    num_tokens = 0 if kl.token_ids is None else kl.token_ids.shape[-1]
    tokens = padded_tokens(max(num_tokens, 1))
    block = max(1, min(MOST_ROWS, MOST_ENTRIES // tokens))
    cross_entropy = request.kind == "cross_entropy"
    launch(
        _finish_chunk_kernel,
        (ceil_div(num_rows, block),),
        Options(warps=4 if tokens <= 1024 else 8, stages=2),
        Cost(
            flops=num_rows * (num_sums + 30 * num_tokens),
            bytes=sums.nbytes + 12 * num_rows * num_tokens,
            row_tiles=num_rows,
        ),
        chunk=matrix(chunk),
        head=without_weight(head),
        shift=shift,
        sum_ptr=sums,
        rows=rows,
        kl=kl,
        numbers=FinishNumbers(
            ignore_index=request.ignore_index,
            term_scale=0.0 if request.kind == "none" else 1.0,
            one_hot=1.0 - request.label_smoothing if cross_entropy else 0.0,
            smoothing=float(request.label_smoothing),
            z_loss=float(request.z_loss),
            kl_weight=float(kl_weight),
        ),
        num_rows=num_rows,
        num_sums=num_sums,
        num_tokens=num_tokens,
        BLOCK_M=block,
        BLOCK_N=tokens,
    )
