"""gradient * incoming scalar: the backward of an op that forms its gradient in the forward."""

from __future__ import annotations

import torch
from torch import Tensor

from pact_kernels.common.chunks import chunks
from pact_kernels.ops._operators.library import register


def _run(gradient: Tensor, scale: Tensor, dtype: torch.dtype, limit_bytes: int) -> Tensor:
    out = gradient.new_empty(gradient.shape, dtype=dtype)
    flat_gradient, flat_out = gradient.reshape(-1), out.view(-1)
    # A 0-d scale may be rounded to the gradient's 16 bits, where a loss scale of 65536 is infinite
    # in fp16. As a vector it raises the product to fp32: in pieces, for the sake of its copies.
    scale = scale.reshape(1)
    for start, stop in chunks(flat_out.numel(), max(1, limit_bytes // (2 * scale.itemsize))):
        torch.mul(flat_gradient[start:stop], scale, out=flat_out[start:stop])
    return out


def _fake(gradient: Tensor, scale: Tensor, dtype: torch.dtype, limit_bytes: int) -> Tensor:
    return gradient.new_empty(gradient.shape, dtype=dtype)


scale_gradient = register(
    "scale_gradient",
    "(Tensor gradient, Tensor scale, ScalarType dtype, int workspace_bytes) -> Tensor",
    _run,
    _fake,
)
