"""Occupancy and roofline against values worked out by hand."""

from __future__ import annotations

import pytest
import torch

from benchmarks.kernels.gpus import GPUS, has_tensor_operation, resident_programs, roofline_us
from pact_kernels.kernels._launch.runtime import KIB, TARGETS, Cost


@pytest.mark.parametrize(
    "registers, programs",
    [
        (0, 8),  # a kernel that needs none still takes a granule
        (64, 8),  # 512 / 64 = 8 warps on each of the four partitions: eight programs of four
        (65, 7),  # rounds up to 72: 512 / 72 = 7.1
        (96, 5),
        (128, 4),
        (129, 3),  # 136
        (168, 3),
        (169, 2),  # 176
        (255, 2),  # NVIDIA's most
        (257, 1),  # only where accumulation registers count
    ],
)
def test_registers_limit_the_warps_of_a_partition(registers: int, programs: int) -> None:
    found = resident_programs(GPUS["gfx942"], warps=4, registers=registers, shared_bytes=0)
    assert found == programs


@pytest.mark.parametrize(
    "target, warps, registers, shared_bytes, columns, programs, share",
    [
        ("sm_80", 8, 128, 0, 0, 2, 0.25),  # 65536 / (128 * 32) = 16 warps of 64
        ("sm_80", 8, 129, 0, 0, 1, 0.125),  # 12 warps, of which a second program lacks four
        ("sm_80", 4, 32, 40 * KIB, 0, 4, 0.25),  # 164 / (40 + 1 reserved)
        ("sm_80", 4, 32, 40 * KIB + 1, 0, 3, 0.1875),  # one byte more takes 128
        ("sm_80", 4, 32, 163 * KIB, 0, 1, 0.0625),
        ("sm_80", 4, 32, 163 * KIB + 1, 0, 0, 0.0),  # does not fit at all
        ("sm_80", 1, 16, 0, 0, 32, 0.5),  # programs, before warps
        ("sm_89", 1, 16, 0, 0, 24, 0.5),
        ("sm_89", 8, 16, 0, 0, 6, 1.0),  # 48 warps
        ("sm_90", 8, 40, 227 * KIB, 0, 1, 0.125),
        ("sm_100", 4, 32, 0, 256, 2, 0.125),  # 512 columns of tensor memory
        ("gfx942", 8, 64, 32 * KIB, 0, 2, 0.5),  # nothing is reserved of 64 KiB
    ],
)
def test_the_scarcest_resource_limits_the_programs(
    target: str,
    warps: int,
    registers: int,
    shared_bytes: int,
    columns: int,
    programs: int,
    share: float,
) -> None:
    found = resident_programs(
        GPUS[target],
        warps=warps,
        registers=registers,
        shared_bytes=shared_bytes,
        tensor_memory_columns=columns,
    )
    assert (found, found * warps / GPUS[target].warps) == (programs, share)


def test_a_program_of_the_largest_size_fits_every_target() -> None:
    for name, target in TARGETS.items():
        for extra, programs in ((0, 1), (1, 0)):
            shared_bytes = target.shared_bytes + extra
            found = resident_programs(GPUS[name], warps=4, registers=32, shared_bytes=shared_bytes)
            assert found == programs, name


@pytest.mark.parametrize(
    "target, dtype, product, flops, moved_bytes",
    [
        ("sm_90", torch.bfloat16, True, 989_400_000, 0),  # 989.4 Tflop/s for a microsecond
        ("sm_90", torch.float16, True, 989_400_000, 3_349_999),  # 3.35 TB/s would take less
        ("sm_90", torch.bfloat16, True, 989_399_999, 3_350_000),
        ("sm_90", torch.float32, True, 164_900_000, 0),  # three tf32 products at 494.7
        ("sm_90", torch.bfloat16, False, 66_900_000, 0),  # no matrix unit
        ("gfx942", torch.float32, True, 163_400_000, 0),  # one product of fp32
    ],
)
def test_the_roofline_is_the_longer_of_two_times(
    target: str, dtype: torch.dtype, product: bool, flops: int, moved_bytes: int
) -> None:
    cost = Cost(flops=flops, bytes=moved_bytes)
    assert roofline_us(GPUS[target], cost, dtype, product=product) == pytest.approx(1.0, rel=1e-12)


def test_a_card_has_its_own_matrix_classes_and_one_is_the_fastest() -> None:
    for name, operations, some, fastest in (
        ("sm_80", {"HMMA": 1}, True, True),
        ("sm_90", {"HMMA": 1}, True, False),
        ("sm_90", {"HMMA": 1, "HGMMA": 1}, True, True),
        ("sm_90", {"UTCHMMA": 1}, False, False),
        ("sm_100", {"UTCQMMA": 1}, True, True),
        ("sm_100", {"HMMA": 1}, True, False),
        ("gfx942", {"MFMA": 1}, True, True),
        ("gfx942", {}, False, False),
    ):
        assert has_tensor_operation(GPUS[name], operations) is some, (name, operations)
        assert has_tensor_operation(GPUS[name], operations, fastest=True) is fastest
