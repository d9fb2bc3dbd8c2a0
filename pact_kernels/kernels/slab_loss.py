"""Log-sum-exp, target logit and row loss of a slab of logits, in one online pass over each row.

    z    = softcap(logit_scale (slab + bias))
    lse  = m + log l,   block by block the running maximum m and l = sum_v exp(z_v - m)
    term = (1 - e)(lse - z_y) + e (lse - mean_v z_v) + z_loss lse^2       or lse itself

m and l are kept apart: beside large logits a rounded lse would cost the probabilities digits. A
program reads its row once, in 16-byte pieces (the slab's rows start at multiples of 16 bytes, see
`head_loss`); a row that is ignored is not read at all.

Bytes: 2 M V of a 16-bit slab read, 12 M written. About 5 M V operations: bound by memory.

Legend: M slab rows, V vocabulary.
"""

from __future__ import annotations

from typing import NamedTuple

import triton
import triton.language as tl
from torch import Tensor

from pact_kernels.chunked.spec import HeadSpec
from pact_kernels.kernels.arithmetic import exp, finish_logits, log
from pact_kernels.kernels.configs import slab_config
from pact_kernels.kernels.runtime import Cost, Options, launch


class Softmax(NamedTuple):
    """What makes probabilities of a row's logits: P_v = exp(z_v - largest) / total."""

    largest: Tensor  # (M,) fp32
    total: Tensor  # (M,) fp32


@triton.jit
def _slab_loss_kernel(
    slab_ptr,  # (M, V) raw products
    bias_ptr,  # (V,)
    target_ptr,  # (M,) int64
    term_ptr,  # (M,) fp32
    largest_ptr,  # (M,) fp32
    total_ptr,  # (M,) fp32
    vocabulary,
    slab_stride,
    ignore_index,
    softcap,
    logit_scale,
    label_smoothing,
    z_loss,
    BLOCK: tl.constexpr,
    CROSS_ENTROPY: tl.constexpr,
    SMOOTHED: tl.constexpr,  # label_smoothing > 0
    SOFTCAP: tl.constexpr,
):
    row = tl.program_id(0).to(tl.int64)
    target = ignore_index - 1  # no target: every row counts
    if target_ptr is not None:
        target = tl.load(target_ptr + row)
    if target == ignore_index:
        tl.store(term_ptr + row, 0.0)
        tl.store(largest_ptr + row, 0.0)
        tl.store(total_ptr + row, 1.0)
    else:
        slab_ptr += row * slab_stride
        largest = float("-inf")
        total = 0.0
        logits = 0.0  # their sum
        for first in tl.range(0, vocabulary, BLOCK):
            tokens = first + tl.arange(0, BLOCK)
            is_token = tokens < vocabulary
            x = tl.load(slab_ptr + tokens, mask=is_token, other=0.0).to(tl.float32)
            bias = 0.0
            if bias_ptr is not None:
                bias = tl.load(bias_ptr + tokens, mask=is_token, other=0.0).to(tl.float32)
            z = finish_logits(x, bias, softcap, logit_scale, SOFTCAP)
            if SMOOTHED:
                logits += tl.sum(tl.where(is_token, z, 0.0), 0)
            z = tl.where(is_token, z, float("-inf"))
            new = tl.maximum(largest, tl.max(z, 0))
            shift = tl.where(new == float("-inf"), 0.0, new)
            total = total * exp(largest - shift) + tl.sum(exp(z - shift), 0)
            largest = new
        log_total = log(total)
        lse = largest + log_total
        term = lse
        if CROSS_ENTROPY:
            bias = 0.0
            if bias_ptr is not None:
                bias = tl.load(bias_ptr + target).to(tl.float32)
            x = tl.load(slab_ptr + target).to(tl.float32)
            # One element, as a vector: what finishes tiles takes no scalar.
            z = finish_logits(tl.zeros([1], tl.float32) + x, bias, softcap, logit_scale, SOFTCAP)
            term = (largest - tl.sum(z, 0)) + log_total
            if SMOOTHED:
                term += label_smoothing * ((largest - logits / vocabulary) + log_total - term)
            term += z_loss * lse * lse
        tl.store(term_ptr + row, term)
        tl.store(largest_ptr + row, largest)
        tl.store(total_ptr + row, total)


def launch_slab_loss(
    slab: Tensor,  # (M, V) raw products
    bias: Tensor | None,  # (V,)
    target: Tensor | None,  # (M,) int64
    term: Tensor,  # (M,) fp32, written
    softmax: Softmax,  # written
    *,
    spec: HeadSpec,
) -> None:
    """Row losses beside the KL (log-sum-exps where there is no cross-entropy), and the softmax."""
    num_rows, vocabulary = slab.shape
    config = slab_config(slab.dtype, crowded=spec.softcap is not None)
    launch(
        _slab_loss_kernel,
        (num_rows,),
        Options(config.warps, stages=2),
        Cost(
            flops=5 * num_rows * vocabulary,
            bytes=slab.element_size() * num_rows * vocabulary + 12 * num_rows,
            row_tiles=num_rows,
        ),
        slab_ptr=slab,
        bias_ptr=bias,
        target_ptr=target,
        term_ptr=term,
        largest_ptr=softmax.largest,
        total_ptr=softmax.total,
        vocabulary=vocabulary,
        slab_stride=slab.stride(0),
        ignore_index=spec.ignore_index,
        softcap=spec.softcap or 1.0,
        logit_scale=spec.logit_scale,
        label_smoothing=spec.label_smoothing,
        z_loss=spec.z_loss,
        BLOCK=config.block,
        CROSS_ENTROPY=spec.term == "cross_entropy" and target is not None,
        SMOOTHED=spec.label_smoothing > 0,
        SOFTCAP=spec.softcap is not None,
    )
