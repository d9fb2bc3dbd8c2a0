"""gradient * incoming scalar: the backward of an op that forms its gradient in the forward."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from pact_kernels.common.chunks import chunks
from pact_kernels.ops._operators.library import register


def _run(
    gradient: Tensor, scale: Tensor, dtype: torch.dtype, limit_bytes: int, implementation: str
) -> Tensor:
    out = gradient.new_empty(gradient.shape, dtype=dtype)
    # On a CPU kernels are interpreted, where a conversion to bf16 truncates.
    if implementation == "triton" and gradient.is_contiguous() and gradient.device.type != "cpu":
        from pact_kernels.kernels._kernels.scale_gradient import launch_scale_gradient

        launch_scale_gradient(gradient, scale, out)
        return out
    flat_gradient, flat_out = gradient.reshape(-1), out.view(-1)
    # A 0-d scale may be rounded to the gradient's 16 bits, where a loss scale of 65536 is infinite
    # in fp16. As a vector it raises the product to fp32: in pieces, for the sake of its copies.
    scale = scale.reshape(1)
    for start, stop in chunks(flat_out.numel(), max(1, limit_bytes // (2 * scale.itemsize))):
        torch.mul(flat_gradient[start:stop], scale, out=flat_out[start:stop])
    return out


def _fake(
    gradient: Tensor, scale: Tensor, dtype: torch.dtype, limit_bytes: int, implementation: str
) -> Tensor:
    return gradient.new_empty(gradient.shape, dtype=dtype)


scale_gradient = register(
    "scale_gradient",
    "(Tensor gradient, Tensor scale, ScalarType dtype, int workspace_bytes, str implementation)"
    " -> Tensor",
    _run,
    _fake,
)


def scaled_gradients(
    formed: list[Tensor],
    grad: Tensor,
    dtypes: list[Any],
    needs_grad: list[bool],
    *,
    implementation: str,
    limit_bytes: int,
    keep_graph: bool,
) -> list[Tensor | None]:
    """The gradients that are needed, times `grad` () and in their leaves' dtypes.

    A graph that is kept for another backward keeps them as they were formed, and gives copies out;
    otherwise they are scaled where they lie (kernels), or given out as they are for a 1.
    """
    plain = type(grad) is Tensor  # another type is being traced, and has no value to look at
    in_place = plain and implementation == "triton" and not keep_graph
    unscaled = plain and implementation != "triton" and bool(grad == 1)
    results: list[Tensor | None] = []
    for gradient, dtype, needed in zip(formed, dtypes, needs_grad, strict=True):
        if not needed:
            results.append(None)
        elif unscaled:
            results.append(gradient.to(dtype, copy=keep_graph))
        elif in_place and gradient.dtype == dtype:
            from pact_kernels.kernels._kernels.scale_gradient import launch_scale_gradient

            launch_scale_gradient(gradient, grad)
            results.append(gradient)
        else:
            results.append(scale_gradient(gradient, grad, dtype, limit_bytes, implementation))
    return results
