"""Tile shapes and compiler options of every kernel, by target and dtype: data, in one place.

Chosen from what the compiler makes of them (`python -m benchmarks.kernel_report`): no spills, the
product on the tensor cores, shared memory within the target's limit.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from pact_kernels.kernels._launch.runtime import Target, is_interpreted, target_of


@dataclass(frozen=True, kw_only=True)
class StreamConfig:
    """Tiles of a product whose logits are consumed tile by tile."""

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
    flatten: bool = False
    """One loop over tiles and steps: the next tile's loads run ahead of this one's end."""


_STREAM_16 = {
    "sm_80": StreamConfig(rows=128, tokens=128, width=64, warps=8, stages=4),
    "sm_89": StreamConfig(rows=128, tokens=128, width=32, warps=8, stages=4),
    "sm_90": StreamConfig(rows=128, tokens=256, width=64, warps=8, stages=4, flatten=True),
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

STREAM_VARIATIONS = {"tokens": (128, 256), "stages": (3, 4), "group": (4, 8, 16)}
"""What autotuning tries."""


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


@dataclass(frozen=True, kw_only=True)
class ExponentialConfig(StreamConfig):
    """Tiles of the product whose epilogue writes exponentials."""

    parts: int = 2
    """In how many, 1, 2 or 4, a tile is exponentiated: fewer registers at once."""


_EXPONENTIAL = {
    "sm_80": ExponentialConfig(rows=128, tokens=128, width=64, warps=8, stages=3, parts=1),
    "sm_89": ExponentialConfig(rows=128, tokens=128, width=32, warps=8, stages=3, parts=1),
    "sm_90": ExponentialConfig(
        rows=128, tokens=256, width=64, warps=8, stages=3, group=16, flatten=True
    ),
    "sm_100": ExponentialConfig(
        rows=128, tokens=256, width=64, warps=8, stages=3, group=16, flatten=True
    ),
    "gfx942": ExponentialConfig(rows=128, tokens=128, width=64, warps=8, stages=2, parts=1),
}
_EXPONENTIAL_SHORT = {
    "sm_90": ExponentialConfig(
        rows=128,
        tokens=128,
        width=64,
        warps=4,
        stages=3,
        group=16,
        programs_per_processor=2,
        flatten=True,
    ),
}
"""Where a tile's exponentials take long beside its product: one program's run during another's."""
SHORT_WIDTH, SHORT_CAPPED_WIDTH = 1023, 3584
"""Hidden sizes up to which they do, without and with a soft cap. On an H200 2.7 % faster at 640 and
4 % at 2304 with a cap, 4 % slower at 2304 without."""
TAKES_EXPONENTIALS = {
    "sm_80": False,
    "sm_89": False,
    "sm_90": True,  # measured on an H200
    "sm_100": False,
    "gfx942": False,
}
"""Where a 16-bit head's chunks are exponentials by default; elsewhere no card has shown a gain."""
LEAST_EXPONENTIAL_FLOPS = 1e12
"""What a call's two products must come to for that, 4 N D V. Below it the host takes longer than
the device, and chunks of logits are two launches fewer: with D 4096 and V 128256 an H200 took 1.73
ms for logits and 2.28 for exponentials at 256 rows (0.5e12), 3.35 and 3.28 at 1024 (2.2e12)."""


def exponential_config(
    target: Target, width: int, *, crowded: bool, even: bool
) -> ExponentialConfig:
    """For a chunk of exponentials of hidden size `width`; `even` as for the streaming log-sum-exp.

    Args:
        crowded: a soft cap's slope takes registers beside the exponentials.
    """
    is_short = width <= (SHORT_CAPPED_WIDTH if crowded else SHORT_WIDTH)
    if is_short and target.name in _EXPONENTIAL_SHORT:
        return _EXPONENTIAL_SHORT[target.name]
    config = _EXPONENTIAL[target.name]
    if crowded and config.parts > 1:
        config = replace(config, parts=2 * config.parts)
    if not even and not target.tensor_descriptors:
        return replace(config, rows=64, tokens=64)
    return config


@dataclass(frozen=True, kw_only=True)
class KlConfig:
    """Tiles of the fused selected-token KL."""

    rows: int
    """Rows of a program; the K tokens stand beside them in registers."""
    width: int
    """Columns of the hidden size that one step multiplies, in both directions."""
    warps: int
    stages: int


def padded_tokens(num_tokens: int) -> int:
    """K rounded up to a power of two that a tensor core takes."""
    return max(16, 1 << (num_tokens - 1).bit_length())


# By the largest padded K, ascending; more tokens do not fit in registers beside a product.
_KL_16 = {
    64: KlConfig(rows=64, width=64, warps=4, stages=3),
    128: KlConfig(rows=64, width=64, warps=8, stages=3),
    256: KlConfig(rows=32, width=64, warps=8, stages=2),
}
_KL_16_HIP = {
    64: KlConfig(rows=64, width=32, warps=4, stages=2),
    128: KlConfig(rows=64, width=32, warps=8, stages=2),
    256: KlConfig(rows=16, width=32, warps=8, stages=2),
}
_KL_32 = {
    16: KlConfig(rows=16, width=32, warps=2, stages=2),
    64: KlConfig(rows=16, width=32, warps=4, stages=2),
    128: KlConfig(rows=16, width=32, warps=8, stages=2),
}
_KL_MASKED = {64: KlConfig(rows=16, width=32, warps=4, stages=1)}
"""Where a step's columns are masked one by one."""

KL_VARIATIONS = {"rows": (16, 32, 64), "warps": (4, 8), "stages": (2, 3)}
"""What autotuning tries."""


def kl_config(
    target: Target, dtype: torch.dtype, num_tokens: int, *, crowded: bool, even: bool
) -> KlConfig | None:
    """For a KL whose logits are formed from states; None where K is too large for that.

    Args:
        crowded: the logits are capped, which takes registers.
        even: a step of any configuration divides the hidden sizes.
    """
    if not even and not target.tensor_descriptors:
        table = _KL_MASKED
    elif dtype.itemsize == 4:
        table = _KL_32
    else:
        table = _KL_16_HIP if target.backend == "hip" else _KL_16
    tokens = padded_tokens(num_tokens)
    config = next((config for most, config in table.items() if tokens <= most), None)
    if config is not None and crowded and target.backend == "hip":
        return replace(config, stages=1)
    return config


def kl_rows_config(num_tokens: int) -> KlConfig:
    """For a KL whose logits are given: a few thousand of each kind to a program, no product."""
    tokens = padded_tokens(num_tokens)
    return KlConfig(
        rows=max(1, 2048 // tokens), width=16, warps=4 if tokens <= 1024 else 8, stages=1
    )


@dataclass(frozen=True, kw_only=True)
class ChunkConfig:
    """Blocks of the row kernels on a chunk of logits."""

    block: int
    """Logits of a row that a program holds at once."""
    warps: int


def chunk_config(dtype: torch.dtype, *, crowded: bool) -> ChunkConfig:
    """As much of a row as eight warps hold without spilling, the same on every target.

    Args:
        crowded: the logits are capped, which takes registers.
    """
    block = 4096 if dtype.itemsize == 4 or crowded else 8192
    return ChunkConfig(block=block, warps=8)


@dataclass(frozen=True, kw_only=True)
class ScoreConfig:
    """Tiles of the token scores: one of both models at once."""

    rows: int
    """Rows of a tile."""
    tokens: int
    """Vocabulary entries of a tile."""
    width: int
    """Columns of a hidden size that one step multiplies."""
    warps: int
    stages: int


_SCORE_16 = {
    "sm_80": ScoreConfig(rows=128, tokens=128, width=64, warps=8, stages=4),
    "sm_89": ScoreConfig(rows=128, tokens=128, width=32, warps=8, stages=4),
    "sm_90": ScoreConfig(rows=128, tokens=128, width=64, warps=8, stages=4),
    "sm_100": ScoreConfig(rows=64, tokens=128, width=64, warps=8, stages=4),
    "gfx942": ScoreConfig(rows=128, tokens=128, width=64, warps=8, stages=2),
}
_SCORE_32 = {
    "sm_80": ScoreConfig(rows=64, tokens=128, width=32, warps=8, stages=3),
    "sm_89": ScoreConfig(rows=64, tokens=128, width=32, warps=8, stages=3),
    "sm_90": ScoreConfig(rows=64, tokens=128, width=32, warps=8, stages=3),
    "sm_100": ScoreConfig(rows=64, tokens=128, width=32, warps=8, stages=3),
    "gfx942": ScoreConfig(rows=64, tokens=64, width=32, warps=8, stages=2),
}


def score_config(target: Target, dtype: torch.dtype, *, crowded: bool, even: bool) -> ScoreConfig:
    """For the token scores.

    Args:
        crowded: the logits are capped, which takes registers.
        even: as for the streaming log-sum-exp, of both models' hidden sizes.
    """
    config = (_SCORE_32 if dtype.itemsize == 4 else _SCORE_16)[target.name]
    if not even and not target.tensor_descriptors:
        return replace(config, rows=64, tokens=64, width=64 // dtype.itemsize)
    return replace(config, rows=64) if crowded else config


FEW_TOKENS = 256
"""Up to this many selected tokens a product is bound by reading the states: small tiles, many."""


def selected_config(
    target: Target, dtype: torch.dtype, num_tokens: int, *, even: bool
) -> StreamConfig:
    """For the logits of selected tokens; `even` as for the streaming log-sum-exp."""
    if num_tokens > FEW_TOKENS:
        return stream_config(target, dtype, crowded=True, even=even)
    step_bytes = 128 if even else 64  # masks take registers
    return StreamConfig(rows=64, tokens=64, width=step_bytes // dtype.itemsize, warps=4, stages=3)


@dataclass(frozen=True, kw_only=True)
class GradientConfig:
    """Tiles of the product of an (N, K) gradient with the selected rows of a head."""

    rows: int
    """Rows of a tile."""
    tokens: int
    """Selected tokens that one step multiplies."""
    width: int
    """Columns of a tile."""
    warps: int
    stages: int


def gradient_config(target: Target, dtype: torch.dtype, *, even: bool) -> GradientConfig:
    """For the gradient by the states: two products of bf16 pieces, or three in tf32.

    Args:
        even: as for the streaming log-sum-exp.
    """
    rows = 128 if dtype == torch.bfloat16 else 64
    stages = 2 if even or target.backend == "cuda" else 1
    return GradientConfig(rows=rows, tokens=32, width=128, warps=8, stages=stages)


def dot_precision(operand: Tensor) -> str:
    """How a product is formed: fp32 operands by three tf32 products, or on AMD in fp32 itself.

    Plain tf32 would keep 11 bits of them. 16-bit operands are exact in any case.
    """
    if is_interpreted(operand):
        return "interpreted"
    tensor_float = operand.dtype == torch.float32 and target_of(operand).backend == "cuda"
    return "tf32x3" if tensor_float else "ieee"
