"""Log-sum-exp, target logit and row loss of a chunk of logits, in one online pass over each row.

    z    = softcap(logit_scale (chunk + bias))
    lse  = m + log l,   block by block the running maximum m and l = sum_v exp(z_v - m)
    term = (1 - e)(lse - z_y) + e (lse - mean_v z_v) + z_loss lse^2       or lse itself

m and l are kept apart: beside large logits a rounded lse would cost the probabilities digits. A
program reads its row once, in 16-byte pieces (the chunk's rows start at multiples of 16 bytes, see
`head_loss`); a row that is ignored is not read at all.

Bytes: 2 M V of a 16-bit chunk read, 12 M written. About 5 M V operations: bound by memory.

Legend: M chunk rows, V vocabulary.
"""

from __future__ import annotations

import triton
import triton.language as tl
from torch import Tensor

from pact_kernels.common.requests import TermRequest
from pact_kernels.kernels._device.arithmetic import exp, finish_logits, log
from pact_kernels.kernels._device.operands import Softmax
from pact_kernels.kernels._launch.configs import chunk_config
from pact_kernels.kernels._launch.operands import matrix, without_weight
from pact_kernels.kernels._launch.runtime import Cost, Options, launch
from pact_kernels.types import Head


@triton.jit
def _chunk_loss_kernel(
    chunk,  # Matrix (M, V) raw products
    head,  # its bias and numbers
    target_ptr,  # (M,) int64, or None
    term_ptr,  # (M,) fp32
    softmax,  # Softmax (M,)
    ignore_index,
    label_smoothing,
    z_loss,
    BLOCK: tl.constexpr,
    CROSS_ENTROPY: tl.constexpr,
    SMOOTHED: tl.constexpr,  # label_smoothing > 0
):
    row = tl.program_id(0).to(tl.int64)
    target = ignore_index - 1  # no target: every row counts
    if target_ptr is not None:
        target = tl.load(target_ptr + row)
    if target == ignore_index:
        tl.store(term_ptr + row, 0.0)
        tl.store(softmax.max + row, 0.0)
        tl.store(softmax.sum_exp + row, 1.0)
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
                term += label_smoothing * ((row_max - logits / chunk.columns) + log_sum_exp - term)
            term += z_loss * lse * lse
        tl.store(term_ptr + row, term)
        tl.store(softmax.max + row, row_max)
        tl.store(softmax.sum_exp + row, sum_exp)


def launch_chunk_loss(
    products: Tensor,  # (M, V) raw
    head: Head,  # (V, D)
    target: Tensor | None,  # (M,) int64
    term: Tensor,  # (M,) fp32, written
    softmax: Softmax,  # written
    *,
    request: TermRequest,
) -> None:
    """Row losses beside the KL (log-sum-exps where there is no cross-entropy), and the softmax."""
    num_rows, vocabulary = products.shape
    config = chunk_config(products.dtype, crowded=head.softcap is not None)
    launch(
        _chunk_loss_kernel,
        (num_rows,),
        Options(config.warps, stages=2),
        Cost(
            flops=5 * num_rows * vocabulary,
            bytes=products.element_size() * num_rows * vocabulary + 12 * num_rows,
            row_tiles=num_rows,
        ),
        chunk=matrix(products),
        head=without_weight(head),
        target_ptr=target,
        term_ptr=term,
        softmax=softmax,
        ignore_index=request.ignore_index,
        label_smoothing=float(request.label_smoothing),
        z_loss=float(request.z_loss),
        BLOCK=config.block,
        CROSS_ENTROPY=request.kind == "cross_entropy" and target is not None,
        SMOOTHED=request.label_smoothing > 0,
    )
