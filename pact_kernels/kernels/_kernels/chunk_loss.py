"""Log-sum-exp, target logit and row loss of a chunk of logits, in one online pass over each row.

    z    = softcap(logit_scale (chunk + bias))
    lse  = m + log l,   block by block the running maximum m and l = sum_v exp(z_v - m)
    term = (1 - e)(lse - z_y) + e (lse - mean_v z_v) + z_loss lse^2       or lse itself
    kl, f, s    over the vocabulary, K + 1 classes: `target.vocabulary_kl` of u - lse and the
                references' mixed log-confidences

m and l are kept apart: beside large logits a rounded lse would cost the probabilities digits. A
program reads its row once, in 16-byte pieces (the chunk's rows start at multiples of 16 bytes, see
`head_loss`); a row that is ignored is not read at all.

Bytes: 2 M V of a 16-bit chunk read, 12 M written; 12 M K with a KL. About 5 M V operations:
bound by memory.

Legend: M chunk rows, V vocabulary, K selected tokens.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import triton
import triton.language as tl
from torch import Tensor

from pact_kernels.common.requests import TermRequest
from pact_kernels.kernels._device.arithmetic import exp, finish_logits, log
from pact_kernels.kernels._device.operands import NO_TARGET, MixedTarget, Softmax
from pact_kernels.kernels._device.target import vocabulary_kl
from pact_kernels.kernels._launch.configs import chunk_config, padded_tokens
from pact_kernels.kernels._launch.operands import matrix, without_weight
from pact_kernels.kernels._launch.runtime import Cost, Options, launch
from pact_kernels.types import Head


class VocabularyKl(NamedTuple):
    """A KL over the vocabulary that the rows' log-sum-exps complete."""

    target: MixedTarget
    """(M, K)"""
    row_weight: Any
    """(M,), or None"""
    kl_weight: float
    kl: Any
    """(M,) fp32, written: times row_weight."""
    sparse: Any
    """(M, K) fp32, written: entries of the gradient, times row_weight and kl_weight."""
    softmax_factor: Any
    """(M,) fp32, written: the gradient's factor on the softmax, times both."""


class LossNumbers(NamedTuple):
    """The numbers of a `TermRequest`."""

    ignore_index: int
    label_smoothing: float
    z_loss: float


NO_VOCABULARY_KL = VocabularyKl(NO_TARGET, None, 0.0, None, None, None)


@triton.jit
def _classes_kl(kl, row, row_max, log_sum_exp, num_tokens, BLOCK_N: tl.constexpr):
    """The K + 1 classes of a row: its KL, and what that adds to the row's gradient."""
    tokens = tl.arange(0, BLOCK_N)
    is_token = tokens < num_tokens
    at = row * num_tokens + tokens
    u = tl.load(kl.target.student + at, mask=is_token, other=0.0) - row_max - log_sum_exp
    mixed = tl.load(kl.target.mixed + at, mask=is_token, other=0.0)
    mixed_rest = tl.load(kl.target.mixed_rest + row)
    row_weight = 1.0
    if kl.row_weight is not None:
        row_weight = tl.load(kl.row_weight + row).to(tl.float32)
    # One row, as a tile of rows.
    loss, factor, sparse = vocabulary_kl(
        u[None, :], mixed[None, :], tl.zeros([1], tl.float32) + mixed_rest, is_token[None, :]
    )
    scale = row_weight * kl.kl_weight
    tl.store(kl.kl + row, tl.sum(loss, 0) * row_weight)
    tl.store(kl.softmax_factor + row, tl.sum(factor, 0) * scale)
    tl.store(kl.sparse + at, tl.sum(sparse, 0) * scale, mask=is_token)


@triton.jit
def _chunk_loss_kernel(
    chunk,  # Matrix (M, V) raw products
    head,  # its bias and numbers
    target_ptr,  # (M,) int64, or None
    term_ptr,  # (M,) fp32
    softmax,  # Softmax (M,)
    kl,  # VocabularyKl
    numbers,  # LossNumbers
    num_tokens,
    BLOCK: tl.constexpr,
    BLOCK_N: tl.constexpr,  # K padded
    CROSS_ENTROPY: tl.constexpr,
    SMOOTHED: tl.constexpr,  # label_smoothing > 0
):
    row = tl.program_id(0).to(tl.int64)
    target = numbers.ignore_index - 1  # no target: every row counts
    if target_ptr is not None:
        target = tl.load(target_ptr + row)
    if target == numbers.ignore_index:
        tl.store(term_ptr + row, 0.0)
        tl.store(softmax.max + row, 0.0)
        tl.store(softmax.sum_exp + row, 1.0)
        if kl.sparse is not None:
            tl.store(kl.kl + row, 0.0)  # `chunk_gradient` reads nothing else of this row
    else:
        row_ptr = chunk.tiles + row * chunk.stride
        row_max = float("-inf")
        sum_exp = 0.0
        logits = 0.0  # their sum
        for first in tl.range(0, chunk.columns, BLOCK):
            tokens = first + tl.arange(0, BLOCK)
            is_token = tokens < chunk.columns
            x = tl.load(row_ptr + tokens, mask=is_token, other=0.0).to(tl.float32)
            bias = 0.0
            if head.bias is not None:
                bias = tl.load(head.bias + tokens, mask=is_token, other=0.0).to(tl.float32)
            z = finish_logits(x, bias, head)
            if SMOOTHED:
                logits += tl.sum(tl.where(is_token, z, 0.0), 0)
            z = tl.where(is_token, z, float("-inf"))
            new = tl.maximum(row_max, tl.max(z, 0))
            shift = tl.where(new == float("-inf"), 0.0, new)
            sum_exp = sum_exp * exp(row_max - shift) + tl.sum(exp(z - shift), 0)
            row_max = new
        log_sum_exp = log(sum_exp)
        lse = row_max + log_sum_exp
        term = lse
        if CROSS_ENTROPY:
            bias = 0.0
            if head.bias is not None:
                bias = tl.load(head.bias + target).to(tl.float32)
            x = tl.load(row_ptr + target).to(tl.float32)
            # One element, as a vector: what finishes tiles takes no scalar.
            z = finish_logits(tl.zeros([1], tl.float32) + x, bias, head)
            term = (row_max - tl.sum(z, 0)) + log_sum_exp
            if SMOOTHED:
                # Apart, not as a difference: both are infinite where the target's logit is -inf.
                to_mean = (row_max - logits / chunk.columns) + log_sum_exp
                term = (1.0 - numbers.label_smoothing) * term + numbers.label_smoothing * to_mean
            term += numbers.z_loss * lse * lse
        tl.store(term_ptr + row, term)
        tl.store(softmax.max + row, row_max)
        tl.store(softmax.sum_exp + row, sum_exp)
        if kl.sparse is not None:
            _classes_kl(kl, row, row_max, log_sum_exp, num_tokens, BLOCK_N)


def launch_chunk_loss(
    products: Tensor,  # (M, V) raw
    head: Head,  # (V, D)
    target: Tensor | None,  # (M,) int64
    term: Tensor,  # (M,) fp32, written
    softmax: Softmax,  # written
    kl: VocabularyKl = NO_VOCABULARY_KL,
    *,
    request: TermRequest,
) -> None:
    """Row losses (log-sum-exps where there is no cross-entropy), the softmax, and the KL's."""
    num_rows, vocabulary = products.shape
    num_tokens = 0 if kl.sparse is None else kl.sparse.shape[1]
    config = chunk_config(products.dtype, crowded=head.softcap is not None)
    launch(
        _chunk_loss_kernel,
        (num_rows,),
        Options(config.warps, stages=2),
        Cost(
            flops=num_rows * (5 * vocabulary + 30 * num_tokens),
            bytes=products.element_size() * num_rows * vocabulary
            + 12 * num_rows * (num_tokens + 1),
            row_tiles=num_rows,
            logit_bytes=products.element_size(),
        ),
        chunk=matrix(products),
        head=without_weight(head),
        target_ptr=target,
        term_ptr=term,
        softmax=softmax,
        kl=kl,
        numbers=LossNumbers(
            request.ignore_index, float(request.label_smoothing), float(request.z_loss)
        ),
        num_tokens=num_tokens,
        BLOCK=config.block,
        BLOCK_N=padded_tokens(max(num_tokens, 1)),
        CROSS_ENTROPY=request.kind == "cross_entropy" and target is not None,
        SMOOTHED=request.label_smoothing > 0,
    )
