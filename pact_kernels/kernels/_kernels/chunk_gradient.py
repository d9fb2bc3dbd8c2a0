"""The gradient of a chunk's row losses by its raw products, in place of them.

    P_v = exp(z_v - m) / l
    g_v = (a P_v - (1 - e) [v = y] - e / V + s_v) slope_v row_grad

m and l come from `chunk_loss`, with lse = m + log l; f, the KL's factor on the softmax, and its K
sparse entries s from `pact_kl`, 0 without one. The factor a is 1 + 2 z_loss lse + f for a
cross-entropy, 1 + f for a log-sum-exp and f for a KL alone; e is the label smoothing.
The raw products of the K tokens are read before the row is overwritten and their entries written
after it, behind a barrier, so each is rounded once. Every row is stored, an ignored one as zeros:
the products that follow never read what a chunk held before.

Bytes: 4 M V of a 16-bit chunk (read once, written once) and 4 M K. About 5 M V operations: bound by
memory.

Legend: M chunk rows, V vocabulary, K selected tokens.
"""

from __future__ import annotations

from typing import NamedTuple

import triton
import triton.language as tl
from torch import Tensor

from pact_kernels.common.requests import TermRequest
from pact_kernels.kernels._device.arithmetic import exp, finish_logits, log, logit_slope
from pact_kernels.kernels._device.operands import NO_KL, Softmax, SparseKl
from pact_kernels.kernels._launch.configs import chunk_config, padded_tokens
from pact_kernels.kernels._launch.operands import matrix, without_weight
from pact_kernels.kernels._launch.runtime import Cost, Options, launch
from pact_kernels.types import Head


class GradientNumbers(NamedTuple):
    """The numbers of a `TermRequest`, as its gradient needs them."""

    ignore_index: int
    term_scale: float
    """1 where the term is a cross-entropy or a log-sum-exp, else 0."""
    one_hot: float
    """1 - e for a cross-entropy, else 0."""
    smoothing: float
    """e / V"""
    z_loss: float


@triton.jit
def _load_logits(row_ptr, head, tokens, mask):
    """Logits of some tokens of a row, in fp32."""
    x = tl.load(row_ptr + tokens, mask=mask, other=0.0).to(tl.float32)
    bias = 0.0
    if head.bias is not None:
        bias = tl.load(head.bias + tokens, mask=mask, other=0.0).to(tl.float32)
    return finish_logits(x, bias, head)


@triton.jit
def _gradient(z, tokens, target, alpha, row_max, sparse, scale, numbers, head):
    """g of some tokens of a row, from their logits."""
    g = alpha * exp(z - row_max) - numbers.smoothing + sparse
    g = tl.where(tokens == target, g - numbers.one_hot, g)
    return g * logit_slope(z, head) * scale


@triton.jit
def _chunk_gradient_kernel(
    chunk,  # Matrix (M, V) raw products; the gradient afterwards
    head,  # its bias and numbers
    target_ptr,  # (M,) int64, or None
    softmax,  # Softmax (M,)
    row_grad_ptr,  # (M,), or None
    kl,  # SparseKl
    numbers,  # GradientNumbers
    num_tokens,
    BLOCK: tl.constexpr,
    BLOCK_N: tl.constexpr,
):
    row = tl.program_id(0).to(tl.int64)
    row_ptr = chunk.tiles + row * chunk.stride
    dtype = chunk.tiles.dtype.element_ty
    target = numbers.ignore_index - 1
    if target_ptr is not None:
        target = tl.load(target_ptr + row)
    if target == numbers.ignore_index:
        for first in tl.range(0, chunk.columns, BLOCK):
            tokens = first + tl.arange(0, BLOCK)
            zeros = tl.zeros([BLOCK], dtype)
            tl.store(row_ptr + tokens, zeros, mask=tokens < chunk.columns)
    else:
        row_max = tl.load(softmax.max + row)
        sum_exp = tl.load(softmax.sum_exp + row)
        alpha = numbers.term_scale * (1.0 + 2.0 * numbers.z_loss * (row_max + log(sum_exp)))
        if kl.softmax_factor is not None:
            alpha += tl.load(kl.softmax_factor + row)
        alpha = alpha / sum_exp
        scale = 1.0
        if row_grad_ptr is not None:
            scale = tl.load(row_grad_ptr + row).to(tl.float32)
        if kl.token_ids is not None:
            places = tl.arange(0, BLOCK_N)
            is_place = places < num_tokens
            at = kl.token_ids + row * kl.ids_stride + places
            ids = tl.load(at, mask=is_place, other=0)
            at_ids = _load_logits(row_ptr, head, ids, is_place)
            sparse = tl.load(kl.sparse + row * num_tokens + places, mask=is_place, other=0.0)
            selected = _gradient(
                at_ids, ids, target, alpha, row_max, sparse, scale, numbers, head
            ).to(dtype)
            tl.debug_barrier()  # every thread has read before one overwrites
        for first in tl.range(0, chunk.columns, BLOCK):
            tokens = first + tl.arange(0, BLOCK)
            is_token = tokens < chunk.columns
            z = _load_logits(row_ptr, head, tokens, is_token)
            g = _gradient(z, tokens, target, alpha, row_max, 0.0, scale, numbers, head)
            tl.store(row_ptr + tokens, g.to(dtype), mask=is_token)
        if kl.token_ids is not None:
            tl.debug_barrier()  # the row is written before its K entries are
            tl.store(row_ptr + ids, selected, mask=is_place)


def launch_chunk_gradient(
    products: Tensor,  # (M, V) raw, overwritten
    head: Head,  # (V, D)
    target: Tensor | None,  # (M,) int64
    softmax: Softmax,
    row_grad: Tensor | None,  # (M,)
    kl: SparseKl | None,
    *,
    request: TermRequest,
) -> None:
    """The gradient of sum_m row_grad_m loss_m, in the chunk."""
    num_rows, vocabulary = products.shape
    config = chunk_config(products.dtype, crowded=head.softcap is not None)
    num_tokens = 0 if kl is None else kl.sparse.shape[1]
    cross_entropy = request.kind == "cross_entropy"
    launch(
        _chunk_gradient_kernel,
        (num_rows,),
        Options(config.warps, stages=2),
        Cost(
            flops=5 * num_rows * vocabulary,
            bytes=2 * products.element_size() * num_rows * vocabulary + 4 * num_rows * num_tokens,
            row_tiles=num_rows,
            logit_bytes=2 * products.element_size(),
        ),
        chunk=matrix(products),
        head=without_weight(head),
        target_ptr=target,
        softmax=softmax,
        row_grad_ptr=row_grad,
        kl=kl or NO_KL,
        numbers=GradientNumbers(
            ignore_index=request.ignore_index,
            term_scale=0.0 if request.kind == "none" else 1.0,
            one_hot=1.0 - request.label_smoothing if cross_entropy else 0.0,
            smoothing=request.label_smoothing / vocabulary if cross_entropy else 0.0,
            z_loss=float(request.z_loss) if cross_entropy else 0.0,
        ),
        num_tokens=num_tokens,
        BLOCK=config.block,
        BLOCK_N=padded_tokens(max(num_tokens, 1)),
    )
