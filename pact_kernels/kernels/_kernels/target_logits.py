"""The logit of each row's target, a gathered dot product: its exponentials are taken against it.

    z_y  = softcap(logit_scale (h . W_y + b_y))
    mean = logit_scale (h . sum_v W_v + sum_v b_v) / V             where labels are smoothed

A program forms one row in fp32. The rows are read where they lie, through their positions.

Bytes: 2 N D of the states and 2 N D of the head. Legend: N rows, D hidden size, V vocabulary.
"""

from __future__ import annotations

from typing import NamedTuple

import triton
import triton.language as tl
from torch import Tensor

from pact_kernels.kernels._device.arithmetic import LOG2E, finish_logits
from pact_kernels.kernels._kernels.exponential_chunk import RowShift
from pact_kernels.kernels._launch.operands import matrix, numbers
from pact_kernels.kernels._launch.runtime import Cost, Options, launch
from pact_kernels.types import Head

BLOCK = 1024
"""Columns of the hidden size that a step multiplies."""


class HeadSums(NamedTuple):
    """What a mean over the vocabulary needs of a head."""

    weight: Tensor
    """(D,) fp32, the sum of the weight's rows."""
    bias: Tensor | None
    """() fp32, the sum of the bias."""


@triton.jit
def _target_logits_kernel(
    hidden,  # Matrix (R, D)
    head,  # Matrix (V, D) for a weight
    head_sums,  # HeadSums, its fields None without smoothing
    kept_ptr,  # (N,) int64 positions of the rows, or None where every position is a row
    target_ptr,  # (N,) int64
    shift,  # RowShift (N,)
    target_logit_ptr,  # (N,) fp32
    mean_logit_ptr,  # (N,) fp32, or None
    ignore_index,
    vocabulary,
    BLOCK: tl.constexpr,
):
    row = tl.program_id(0).to(tl.int64)
    target = tl.load(target_ptr + row)
    tl.store(shift.above_target + row, 0.0)
    if target == ignore_index:
        tl.store(shift.log2 + row, float("inf"))
        tl.store(target_logit_ptr + row, 0.0)
        if mean_logit_ptr is not None:
            tl.store(mean_logit_ptr + row, 0.0)
    else:
        position = row
        if kept_ptr is not None:
            position = tl.load(kept_ptr + row)
        product = tl.zeros([BLOCK], tl.float32)
        mean = tl.zeros([BLOCK], tl.float32)
        for first in tl.range(0, hidden.columns, BLOCK):
            columns = first + tl.arange(0, BLOCK)
            mask = columns < hidden.columns
            h = tl.load(hidden.tiles + position * hidden.stride + columns, mask=mask, other=0.0)
            w = tl.load(
                head.weight.tiles + target * head.weight.stride + columns, mask=mask, other=0.0
            )
            product += h.to(tl.float32) * w.to(tl.float32)
            if mean_logit_ptr is not None:
                sums = tl.load(head_sums.weight + columns, mask=mask, other=0.0)
                mean += h.to(tl.float32) * sums
        bias = 0.0
        if head.bias is not None:
            bias = tl.load(head.bias + target).to(tl.float32)
        # One element, as a vector: what finishes tiles takes no scalar.
        z = tl.sum(finish_logits(tl.zeros([1], tl.float32) + tl.sum(product, 0), bias, head), 0)
        # A target that its bias rules out has no finite logit to take exponentials against.
        at = tl.where(tl.abs(z) < float("inf"), z, 0.0)
        tl.store(shift.log2 + row, at * LOG2E)
        tl.store(shift.above_target + row, at - z)
        tl.store(target_logit_ptr + row, z)
        if mean_logit_ptr is not None:
            total = tl.sum(mean, 0)
            if head_sums.bias is not None:
                total += tl.load(head_sums.bias)
            tl.store(mean_logit_ptr + row, total * head.logit_scale / vocabulary)


def launch_target_logits(
    hidden: Tensor,  # (R, D)
    head: Head,  # (V, D)
    head_sums: HeadSums | None,
    kept: Tensor | None,  # (N,) int64
    target: Tensor,  # (N,) int64
    shift: RowShift,  # (N,), written
    target_logit: Tensor,  # (N,) fp32, written
    mean_logit: Tensor | None,  # (N,) fp32, written; None without smoothing
    *,
    ignore_index: int,
) -> None:
    """Fill the rows' target logits, and take exponentials against them."""
    num_rows, width = target.numel(), hidden.shape[1]
    launch(
        _target_logits_kernel,
        (num_rows,),
        Options(warps=4, stages=2),
        Cost(flops=2 * num_rows * width, bytes=4 * num_rows * width, row_tiles=num_rows),
        hidden=matrix(hidden),
        head=numbers(head)._replace(weight=matrix(head.weight)),  # type: ignore[arg-type]
        head_sums=head_sums or HeadSums(None, None),  # type: ignore[arg-type]
        kept_ptr=kept,
        target_ptr=target,
        shift=shift,
        target_logit_ptr=target_logit,
        mean_logit_ptr=mean_logit,
        ignore_index=ignore_index,
        vocabulary=head.weight.shape[0],
        BLOCK=BLOCK,
    )
