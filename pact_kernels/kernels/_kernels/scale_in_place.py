"""gradient *= scale where it must: a program whose scale is 1 returns.

So the usual call moves nothing. The gradient was formed for the incoming gradient that is nearly
always there, 1; what came is known to the device alone, and nobody waits for it.
"""

from __future__ import annotations

import triton
import triton.language as tl
from torch import Tensor

from pact_kernels.kernels._launch.runtime import Cost, Options, launch

BLOCK = 8192
"""Entries of a program."""


@triton.jit
def _scale_in_place_kernel(
    gradient_ptr,  # of any dtype
    scale_ptr,  # ()
    numel,
    BLOCK: tl.constexpr,
):
    scale = tl.load(scale_ptr).to(tl.float32)
    if scale != 1.0:
        at = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
        values = tl.load(gradient_ptr + at, mask=at < numel, other=0.0)
        scaled = (values.to(tl.float32) * scale).to(values.dtype)
        tl.store(gradient_ptr + at, scaled, mask=at < numel)


def launch_scale_in_place(gradient: Tensor, scale: Tensor) -> None:
    """Multiply a contiguous gradient by a 0-d tensor."""
    numel = gradient.numel()
    launch(
        _scale_in_place_kernel,
        (triton.cdiv(numel, BLOCK),),
        Options(warps=8, stages=1),
        Cost(flops=numel, bytes=0),
        gradient_ptr=gradient,
        scale_ptr=scale,
        numel=numel,
        BLOCK=BLOCK,
    )
