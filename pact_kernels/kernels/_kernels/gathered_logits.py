"""Each row's own K logits, gathered dot products: a set of tokens for every row.

    z_nk = softcap(logit_scale (h_n . W_{id_nk} + b_{id_nk}))

A program forms 16 logits of one row in fp32: the row of states once, and 16 rows of the head, which
no other row has to share. Bytes: 2 N K D of the head in 16 bits, and 2 N D ceil(K / 16) of the
states, from L2 but for the first. Flops 2 N K D.

Legend: N rows, D hidden size, V vocabulary, K selected tokens.
"""

from __future__ import annotations

import triton
import triton.language as tl
from torch import Tensor

from pact_kernels.common.chunks import ceil_div
from pact_kernels.kernels._device.arithmetic import finish_logits
from pact_kernels.kernels._launch.operands import matrix, numbers
from pact_kernels.kernels._launch.runtime import Cost, Options, launch
from pact_kernels.types import Head

BLOCK_N = 16
"""Tokens of a program."""
BLOCK_K = 256
"""Columns of the hidden size that a step multiplies."""


@triton.jit
def _gathered_logits_kernel(
    states,  # Matrix (N, D)
    head,  # Matrix (V, D) for a weight
    ids_ptr,  # (N, K) int64
    out_ptr,  # (N, K) fp32
    num_tokens,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
):
    row = tl.program_id(0).to(tl.int64)
    tokens = tl.program_id(1) * BLOCK_N + tl.arange(0, BLOCK_N)
    is_token = tokens < num_tokens
    ids = tl.load(ids_ptr + row * num_tokens + tokens, mask=is_token, other=0)
    product = tl.zeros([BLOCK_N], tl.float32)
    for first in tl.range(0, states.columns, BLOCK_K):
        columns = first + tl.arange(0, BLOCK_K)
        is_column = columns < states.columns
        h = tl.load(states.tiles + row * states.stride + columns, mask=is_column, other=0.0)
        at = ids[:, None] * head.weight.stride + columns[None, :]
        mask = is_token[:, None] & is_column[None, :]
        w = tl.load(head.weight.tiles + at, mask=mask, other=0.0)
        product += tl.sum(w.to(tl.float32) * h.to(tl.float32)[None, :], 1)
    bias = 0.0
    if head.bias is not None:
        bias = tl.load(head.bias + ids, mask=is_token, other=0.0).to(tl.float32)
    z = finish_logits(product, bias, head)
    tl.store(out_ptr + row * num_tokens + tokens, z, mask=is_token)


def launch_gathered_logits(
    states: Tensor,  # (N, D)
    head: Head,  # (V, D)
    token_ids: Tensor,  # (N, K) int64
    out: Tensor,  # (N, K) fp32, written
) -> None:
    """Fill `out` with each row's logits of its own tokens."""
    (num_rows, num_tokens), width = token_ids.shape, states.shape[1]
    launch(
        _gathered_logits_kernel,
        (num_rows, ceil_div(num_tokens, BLOCK_N)),
        Options(warps=4, stages=2),
        Cost(
            flops=2 * num_rows * num_tokens * width,
            bytes=num_rows * width * (num_tokens + 1) * states.element_size(),
            row_tiles=num_rows,
        ),
        states=matrix(states),
        head=numbers(head)._replace(weight=matrix(head.weight)),  # type: ignore[arg-type]
        ids_ptr=token_ids.contiguous(),
        out_ptr=out,
        num_tokens=num_tokens,
        BLOCK_N=BLOCK_N,
        BLOCK_K=BLOCK_K,
    )
