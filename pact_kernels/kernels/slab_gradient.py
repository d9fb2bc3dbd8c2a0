"""The gradient of a slab's row losses by its raw products, in place of them.

    P_v = exp(z_v - m) / l
    g_v = (a P_v - (1 - e) [v = y] - e / V + s_v) slope_v row_grad

With m and l from `slab_loss` and lse = m + log l,
a = 1 + 2 z_loss lse + share for a cross-entropy, 1 + share for a log-sum-exp, share for a KL alone;
share and the K sparse entries s come from `pact_kl` and are 0 elsewhere; e is the label smoothing.
The raw products of the K tokens are read before the row is overwritten and their entries written
after it, behind a barrier, so each is rounded once. Every row is stored, an ignored one as zeros:
the products that follow never read what a slab held before.

Bytes: 4 M V of a 16-bit slab (read once, written once) and 4 M K. About 5 M V operations: bound by
memory.

Legend: M slab rows, V vocabulary, K selected tokens.
"""

from __future__ import annotations

from typing import NamedTuple

import triton
import triton.language as tl
from torch import Tensor

from pact_kernels.chunked.spec import HeadSpec
from pact_kernels.kernels.arithmetic import exp, finish_logits, log, logit_slope
from pact_kernels.kernels.configs import padded_tokens, slab_config
from pact_kernels.kernels.runtime import Cost, Options, launch
from pact_kernels.kernels.slab_loss import Softmax


class SparseKl(NamedTuple):
    """What the KL adds to a slab's gradient."""

    token_ids: Tensor  # (K,) int64
    sparse: Tensor  # (M, K) fp32
    share: Tensor | None  # (M,) fp32


@triton.jit
def _load_logits(slab_ptr, bias_ptr, tokens, mask, softcap, logit_scale, SOFTCAP: tl.constexpr):
    """Logits of some tokens of a row, in fp32."""
    x = tl.load(slab_ptr + tokens, mask=mask, other=0.0).to(tl.float32)
    bias = 0.0
    if bias_ptr is not None:
        bias = tl.load(bias_ptr + tokens, mask=mask, other=0.0).to(tl.float32)
    return finish_logits(x, bias, softcap, logit_scale, SOFTCAP)


@triton.jit
def _gradient(
    z, tokens, target, alpha, largest, sparse, scale, smoothing, one_hot, softcap, logit_scale,
    SOFTCAP: tl.constexpr,
):  # fmt: skip
    """g of some tokens of a row, from their logits."""
    g = alpha * exp(z - largest) - smoothing + sparse
    g = tl.where(tokens == target, g - one_hot, g)
    return g * logit_slope(z, softcap, logit_scale, SOFTCAP) * scale


@triton.jit
def _slab_gradient_kernel(
    slab_ptr,  # (M, V) raw products; the gradient afterwards
    bias_ptr,  # (V,)
    target_ptr,  # (M,) int64
    largest_ptr,  # (M,) fp32
    total_ptr,  # (M,) fp32
    row_grad_ptr,  # (M,)
    token_ids_ptr,  # (K,) int64
    sparse_ptr,  # (M, K) fp32
    share_ptr,  # (M,) fp32
    vocabulary,
    num_tokens,
    slab_stride,
    ignore_index,
    softcap,
    logit_scale,
    term_scale,  # 1 where the term is a cross-entropy or a log-sum-exp
    one_hot,  # 1 - e for a cross-entropy
    smoothing,  # e / V
    z_loss,
    BLOCK: tl.constexpr,
    TOKENS: tl.constexpr,
    SOFTCAP: tl.constexpr,
):
    row = tl.program_id(0).to(tl.int64)
    slab_ptr += row * slab_stride
    target = ignore_index - 1
    if target_ptr is not None:
        target = tl.load(target_ptr + row)
    if target == ignore_index:
        for first in tl.range(0, vocabulary, BLOCK):
            tokens = first + tl.arange(0, BLOCK)
            zeros = tl.zeros([BLOCK], slab_ptr.dtype.element_ty)
            tl.store(slab_ptr + tokens, zeros, mask=tokens < vocabulary)
    else:
        largest = tl.load(largest_ptr + row)
        total = tl.load(total_ptr + row)
        alpha = term_scale * (1.0 + 2.0 * z_loss * (largest + log(total)))
        if share_ptr is not None:
            alpha += tl.load(share_ptr + row)
        alpha = alpha / total
        scale = 1.0
        if row_grad_ptr is not None:
            scale = tl.load(row_grad_ptr + row).to(tl.float32)
        if sparse_ptr is not None:
            places = tl.arange(0, TOKENS)
            is_place = places < num_tokens
            ids = tl.load(token_ids_ptr + places, mask=is_place, other=0)
            at_ids = _load_logits(slab_ptr, bias_ptr, ids, is_place, softcap, logit_scale, SOFTCAP)
            sparse = tl.load(sparse_ptr + row * num_tokens + places, mask=is_place, other=0.0)
            selected = _gradient(
                at_ids, ids, target, alpha, largest, sparse, scale, smoothing, one_hot,
                softcap, logit_scale, SOFTCAP,
            ).to(slab_ptr.dtype.element_ty)  # fmt: skip
            tl.debug_barrier()  # every thread has read before one overwrites
        for first in tl.range(0, vocabulary, BLOCK):
            tokens = first + tl.arange(0, BLOCK)
            is_token = tokens < vocabulary
            z = _load_logits(slab_ptr, bias_ptr, tokens, is_token, softcap, logit_scale, SOFTCAP)
            g = _gradient(
                z, tokens, target, alpha, largest, 0.0, scale, smoothing, one_hot,
                softcap, logit_scale, SOFTCAP,
            )  # fmt: skip
            tl.store(slab_ptr + tokens, g.to(slab_ptr.dtype.element_ty), mask=is_token)
        if sparse_ptr is not None:
            tl.debug_barrier()  # the row is written before its K entries are
            tl.store(slab_ptr + ids, selected, mask=is_place)


def launch_slab_gradient(
    slab: Tensor,  # (M, V) raw products, overwritten
    bias: Tensor | None,  # (V,)
    target: Tensor | None,  # (M,) int64
    softmax: Softmax,
    row_grad: Tensor | None,  # (M,)
    kl: SparseKl | None,
    *,
    spec: HeadSpec,
) -> None:
    """The gradient of sum_m row_grad_m loss_m, in the slab."""
    num_rows, vocabulary = slab.shape
    config = slab_config(slab.dtype, crowded=spec.softcap is not None)
    num_tokens = 0 if kl is None else kl.sparse.shape[1]
    cross_entropy = spec.term == "cross_entropy"
    launch(
        _slab_gradient_kernel,
        (num_rows,),
        Options(config.warps, stages=2),
        Cost(
            flops=5 * num_rows * vocabulary,
            bytes=2 * slab.element_size() * num_rows * vocabulary + 4 * num_rows * num_tokens,
            row_tiles=num_rows,
        ),
        slab_ptr=slab,
        bias_ptr=bias,
        target_ptr=target,
        largest_ptr=softmax.largest,
        total_ptr=softmax.total,
        row_grad_ptr=row_grad,
        token_ids_ptr=None if kl is None else kl.token_ids,
        sparse_ptr=None if kl is None else kl.sparse,
        share_ptr=None if kl is None else kl.share,
        vocabulary=vocabulary,
        num_tokens=num_tokens,
        slab_stride=slab.stride(0),
        ignore_index=spec.ignore_index,
        softcap=spec.softcap or 1.0,
        logit_scale=spec.logit_scale,
        term_scale=0.0 if spec.term == "none" else 1.0,
        one_hot=1.0 - spec.label_smoothing if cross_entropy else 0.0,
        smoothing=spec.label_smoothing / vocabulary if cross_entropy else 0.0,
        z_loss=spec.z_loss if cross_entropy else 0.0,
        BLOCK=config.block,
        TOKENS=padded_tokens(max(num_tokens, 1)),
        SOFTCAP=spec.softcap is not None,
    )
