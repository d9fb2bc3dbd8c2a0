"""Tile shapes and compiler options of every kernel, by target and dtype: data, in one place.

Chosen from what the compiler makes of them (`python -m benchmarks.kernel_report`): no spills, the
product on the tensor cores, shared memory within the target's limit.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from pact_kernels.kernels.runtime import Target, target_of


@dataclass(frozen=True, kw_only=True)
class StreamConfig:
    """Of a product whose logits are consumed tile by tile."""

    rows: int
    """Rows of a tile."""
    tokens: int
    """Vocabulary entries of a tile."""
    width: int
    """Columns of the hidden size that one step multiplies."""
    warps: int
    stages: int
    """Steps in flight."""
    group: int = 8
    """Row tiles that walk the vocabulary side by side."""
    programs_per_processor: int = 1
    """Programs of the persistent grid."""


_STREAM_16 = {
    "sm_80": StreamConfig(rows=128, tokens=128, width=64, warps=8, stages=4),
    "sm_89": StreamConfig(rows=128, tokens=128, width=32, warps=8, stages=4),
    "sm_90": StreamConfig(rows=128, tokens=256, width=64, warps=8, stages=4),
    "sm_100": StreamConfig(rows=128, tokens=256, width=64, warps=8, stages=4),
    "gfx942": StreamConfig(rows=128, tokens=128, width=64, warps=8, stages=2),
}
_STREAM_32 = {
    "sm_80": StreamConfig(rows=64, tokens=128, width=32, warps=8, stages=3),
    "sm_89": StreamConfig(rows=64, tokens=128, width=32, warps=8, stages=3),
    "sm_90": StreamConfig(rows=64, tokens=128, width=32, warps=8, stages=3),
    "sm_100": StreamConfig(rows=64, tokens=128, width=32, warps=8, stages=3),
    "gfx942": StreamConfig(rows=64, tokens=128, width=32, warps=8, stages=2),
}


def stream_config(target: Target, dtype: torch.dtype, *, crowded: bool, even: bool) -> StreamConfig:
    """For the streaming log-sum-exp.

    Args:
        crowded: a tile shares the registers with more than its sums.
        even: the width of a step divides the hidden size; else pointer loads carry masks.
    """
    config = (_STREAM_32 if dtype.itemsize == 4 else _STREAM_16)[target.name]
    if not even and not target.tensor_descriptors:
        return replace(config, rows=64, tokens=64)
    if crowded and dtype.itemsize == 2:
        return replace(config, tokens=64 if target.backend == "hip" else 128)
    return config


def dot_precision(operand: Tensor) -> str:
    """How a product is formed: fp32 operands by three tf32 products, or on AMD in fp32 itself.

    Plain tf32 would keep 11 bits of them. 16-bit operands are exact in any case.
    """
    if operand.device.type == "cpu":
        return "interpreted"
    tensor_float = operand.dtype == torch.float32 and target_of(operand).backend == "cuda"
    return "tf32x3" if tensor_float else "ieee"
