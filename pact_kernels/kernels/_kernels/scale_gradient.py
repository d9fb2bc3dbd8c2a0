"""gradient * scale: where it lies, or into another dtype or place.

Where it lies a program whose scale is 1 returns, so the usual call moves nothing. The gradient was
formed for the incoming gradient that is nearly always there, 1; what came is known to the device
alone, and nobody waits for it. A trained head's gradient is formed in fp32 and rounded to the
head's dtype on its way out, once.

Bytes: none in place by 1; else the gradient read and written.
"""

from __future__ import annotations

import triton
import triton.language as tl
from torch import Tensor

from pact_kernels.common.chunks import ceil_div
from pact_kernels.kernels._launch.runtime import Cost, Options, launch

BLOCK = 8192
"""Entries of a program."""


@triton.jit
def _scale_gradient_kernel(
    gradient_ptr,  # of any dtype
    out_ptr,  # likewise; None in place
    scale_ptr,  # ()
    numel,
    BLOCK: tl.constexpr,
):
    scale = tl.load(scale_ptr).to(tl.float32)
    if out_ptr is not None:
        at = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
        values = tl.load(gradient_ptr + at, mask=at < numel, other=0.0)
        scaled = (values.to(tl.float32) * scale).to(out_ptr.dtype.element_ty)
        tl.store(out_ptr + at, scaled, mask=at < numel)
    elif scale != 1.0:
        at = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
        values = tl.load(gradient_ptr + at, mask=at < numel, other=0.0)
        scaled = (values.to(tl.float32) * scale).to(values.dtype)
        tl.store(gradient_ptr + at, scaled, mask=at < numel)


def launch_scale_gradient(gradient: Tensor, scale: Tensor, out: Tensor | None = None) -> None:
    """Multiply a contiguous gradient by a 0-d tensor, in place or into a contiguous `out`."""
    numel = gradient.numel()
    launch(
        _scale_gradient_kernel,
        (ceil_div(numel, BLOCK),),
        Options(warps=8, stages=1),
        Cost(flops=numel, bytes=0 if out is None else gradient.nbytes + out.nbytes),
        gradient_ptr=gradient,
        out_ptr=out,
        scale_ptr=scale,
        numel=numel,
        BLOCK=BLOCK,
    )
