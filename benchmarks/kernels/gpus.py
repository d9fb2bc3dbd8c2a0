"""What vendors document of the GPUs that kernels are compiled for: limits and peak rates.

    occupancy = warps resident on one processor / most it can hold
    roofline  = max(flops / peak, bytes / bandwidth)

A processor (streaming multiprocessor, compute unit) of either vendor has four partitions (SIMDs)
whose register file holds 512 registers per lane, given out eight at a time: 65536 registers of a
warp of 32, or 131072 of a wavefront of 64. On gfx942 the 512 count accumulation registers too.

NVIDIA's `cuda_occupancy.h` and Triton's `testing.get_max_tensorcore_tflops` know the card that is
here, of NVIDIA's alone; these tables know cards that are not, of both vendors.

Sources. Limits: the technical specifications by compute capability in NVIDIA's CUDA C++ Programming
Guide, the register and shared memory granules of `cuda_occupancy.h`; AMD's CDNA 3 instruction set
and LLVM's AMDGPU usage guide. Peaks: datasheets, dense, at boost clocks.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from fnmatch import fnmatch

import torch
from triton import cdiv

from pact_kernels.kernels._launch.runtime import KIB, Cost

PARTITIONS = 4
LANE_REGISTERS = 512
"""Registers per lane in one partition."""
REGISTER_GRANULE = 8
TENSOR_MEMORY_COLUMNS = 512
"""Columns that a processor with tcgen05 has."""


@dataclass(frozen=True)
class Gpu:
    """One card of a target: what its processors hold, and its peak rates."""

    card: str
    shared_bytes: int
    """Shared memory (LDS) of a processor."""
    tensor_operations: tuple[str, ...]
    """Patterns of the matrix instructions, the fastest class first."""
    half_tflops: float
    """Matrix product of bf16 or fp16, accumulated in fp32."""
    single_tflops: float
    """Matrix product that fp32 operands are formed by: of tf32, or on AMD of fp32."""
    vector_tflops: float
    """fp32 outside the matrix units."""
    bandwidth_tb_per_s: float
    warps: int = 64
    """Most warps (wavefronts) resident on a processor."""
    programs: int = 32
    """Most programs (blocks, workgroups) resident on a processor."""
    single_products: int = 3
    """Such products per product of fp32 operands."""
    shared_granule: int = 128
    shared_reserved_bytes: int = KIB
    """What the driver keeps of a processor's shared memory for each program."""


GPUS = {
    # card, shared memory, matrix instructions; half, single, vector Tflop/s; TB/s
    "sm_80": Gpu("A100 80GB SXM", 164 * KIB, ("HMMA",), 312.0, 156.0, 19.5, 2.039),
    "sm_89": Gpu("RTX 4090", 100 * KIB, ("HMMA",), 165.2, 82.6, 82.6, 1.008, warps=48, programs=24),
    # wgmma multiplies 64 rows at least; smaller row tiles take the older instruction.
    "sm_90": Gpu("H100 SXM", 228 * KIB, ("HGMMA", "HMMA"), 989.4, 494.7, 66.9, 3.35),
    "sm_100": Gpu("B200", 228 * KIB, ("UTC*MMA", "HMMA"), 2250.0, 1100.0, 75.0, 8.0),
    "gfx942": replace(
        Gpu("MI300X", 64 * KIB, ("MFMA", "SMFMAC"), 1307.4, 163.4, 163.4, 5.3, warps=32),
        single_products=1,
        shared_granule=512,
        shared_reserved_bytes=0,
    ),
}
"""By the name of the target."""


def resident_programs(
    gpu: Gpu, *, warps: int, registers: int, shared_bytes: int, tensor_memory_columns: int = 0
) -> int:
    """How many programs of `warps` warps a processor holds at a time.

    Args:
        registers: per thread; on AMD vector and accumulation registers together.
        shared_bytes: of a program.
        tensor_memory_columns: of a program; none before sm_100.
    """
    granules = max(cdiv(registers, REGISTER_GRANULE), 1)
    resident = LANE_REGISTERS // (granules * REGISTER_GRANULE)
    limits = [PARTITIONS * min(resident, gpu.warps // PARTITIONS) // warps, gpu.programs]
    shared_bytes = (
        cdiv(shared_bytes + gpu.shared_reserved_bytes, gpu.shared_granule) * gpu.shared_granule
    )
    if shared_bytes > 0:
        limits.append(gpu.shared_bytes // shared_bytes)
    if tensor_memory_columns > 0:
        limits.append(TENSOR_MEMORY_COLUMNS // tensor_memory_columns)
    return min(limits)


def roofline_us(gpu: Gpu, cost: Cost, dtype: torch.dtype, *, product: bool) -> float:
    """Least time of a launch in microseconds, at the card's peak rates.

    Args:
        product: its flops are of matrix products.
    """
    if not product:
        tflops = gpu.vector_tflops
    elif dtype.itemsize == 2:
        tflops = gpu.half_tflops
    else:
        tflops = gpu.single_tflops / gpu.single_products
    return max(cost.flops / tflops, cost.bytes / gpu.bandwidth_tb_per_s) * 1e-6


def has_tensor_operation(gpu: Gpu, operations: dict[str, int], *, fastest: bool = False) -> bool:
    """Whether some instruction is of the card's own matrix classes, or of the fastest of them."""
    patterns = gpu.tensor_operations[:1] if fastest else gpu.tensor_operations
    return any(fnmatch(name, pattern) for name in operations for pattern in patterns)
