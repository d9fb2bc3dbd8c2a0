"""Real compilations for GPUs that are not there: good kernels pass, bad ones are caught."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import triton
import triton.language as tl

from benchmarks.kernel_report import Reading, problems
from benchmarks.kernels.cases import CASES, meta
from benchmarks.kernels.compiled import compile_all, compile_or_error, specialise
from benchmarks.kernels.gpus import GPUS, has_tensor_operation
from benchmarks.kernels.machine_code import Compiled
from pact_kernels.kernels._device.operands import Matrix
from pact_kernels.kernels._launch.runtime import (
    TARGETS,
    Cost,
    Launch,
    Options,
    descriptor,
    recording,
)

CASE = next(case for case in CASES if str(case) == "linear_logsumexp bf16 lse")
CONTRACT = ("sm_80", "sm_90", "sm_100", "gfx942")


@triton.jit
def _product_kernel(
    a_ptr,  # (SIZE, SIZE)
    b_ptr,  # (SIZE, SIZE)
    out_ptr,  # (SIZE, SIZE)
    SIZE: tl.constexpr,
    PRECISION: tl.constexpr,
):
    at = tl.arange(0, SIZE)[:, None] * SIZE + tl.arange(0, SIZE)[None, :]
    product = tl.dot(tl.load(a_ptr + at), tl.load(b_ptr + at), input_precision=PRECISION)
    tl.store(out_ptr + at, product)


@triton.jit
def _centre_kernel(
    x_ptr,  # (SIZE,)
    out_ptr,  # (SIZE,)
    length,
    SIZE: tl.constexpr,
):
    """Keeps all of a row in registers, for the mean and again after it."""
    at = tl.arange(0, SIZE)
    x = tl.load(x_ptr + at, mask=at < length, other=0.0)
    tl.store(out_ptr + at, x - tl.sum(x, 0) / length, mask=at < length)


@triton.jit
def _copy_kernel(
    source,  # Matrix
    out_ptr,  # (SIZE, SIZE)
    SIZE: tl.constexpr,
):
    at = tl.arange(0, SIZE)[:, None] * SIZE + tl.arange(0, SIZE)[None, :]
    tl.store(out_ptr + at, source.tiles.load([0, 0]))


def launch_of(kernel: Any, warps: int = 4, **arguments: Any) -> Launch:
    options, cost = Options(warps=warps, stages=1), Cost(flops=1, bytes=1)
    return Launch(kernel, (1,), options, cost, arguments)


def product(dtype: torch.dtype, precision: str, size: int = 32) -> Launch:
    a, b, out = (meta(size, size, dtype=each) for each in (dtype, dtype, torch.float32))
    return launch_of(_product_kernel, a_ptr=a, b_ptr=b, out_ptr=out, SIZE=size, PRECISION=precision)


def found_problems(launch: Launch, target: str) -> list[str]:
    configuration = specialise(launch, TARGETS[target])
    result = compile_or_error(configuration)
    return problems(Reading(configuration, launch.cost, torch.float32, (CASE,), result))


@pytest.mark.parametrize("target", CONTRACT)
def test_the_streaming_logsumexp_multiplies_on_tensor_cores_and_spills_nothing(target: str) -> None:
    with recording(TARGETS[target]) as launches:
        CASE.launch()
    stream, finish = (specialise(launch, TARGETS[target]) for launch in launches)
    name = "flat" if target == "sm_90" else "linear"  # see `StreamConfig.flatten`
    assert (stream.kernel, finish.kernel) == (
        f"_{name}_logsumexp_kernel",
        "_finish_logsumexp_kernel",
    )
    compiled = compile_or_error(stream)
    assert isinstance(compiled, Compiled), compiled
    assert compiled.has_product
    assert has_tensor_operation(GPUS[target], compiled.tensor_operations, fastest=True)
    assert not compiled.spills
    assert 0 < compiled.shared_bytes <= TARGETS[target].shared_bytes
    finished = compile_or_error(finish)
    assert isinstance(finished, Compiled), finished
    assert not finished.has_product and not finished.tensor_operations


def test_a_product_of_fp32_as_it_stands_leaves_the_tensor_cores() -> None:
    """On NVIDIA; AMD multiplies fp32 on its matrix units."""
    exact = product(torch.float32, "ieee")
    assert [line.rpartition(": ")[2] for line in found_problems(exact, "sm_80")] == [
        "forms a product without HMMA"
    ]
    assert found_problems(product(torch.float32, "tf32x3"), "sm_80") == []
    assert found_problems(exact, "gfx942") == []


def test_a_row_beyond_the_registers_of_a_warp_is_caught_spilling() -> None:
    size = 16384  # 512 values for each of 32 lanes, which have 255 registers
    x = meta(size, dtype=torch.float32)
    launch = launch_of(_centre_kernel, warps=1, x_ptr=x, out_ptr=x, length=size, SIZE=size)
    (problem,) = found_problems(launch, "sm_80")
    assert "spills registers" in problem


def test_a_tile_beyond_the_registers_and_the_lds_is_caught_on_amd() -> None:
    # 512 sums for each of 2 x 64 lanes, which have 512 registers; one operand alone takes 128 KiB.
    large = replace(product(torch.bfloat16, "ieee", size=256), options=Options(warps=2, stages=1))
    spills, shared = found_problems(large, "gfx942")
    assert "spills registers" in spills
    assert "asks for 131072 bytes of shared memory, 65536 are there" in shared


def test_a_complaint_is_the_first_cause() -> None:
    (problem,) = found_problems(product(torch.float32, "approximate"), "sm_80")
    assert "does not compile" in problem and "approximate" in problem


def test_arguments_are_specialised_as_a_launch_would() -> None:
    x = meta(64, dtype=torch.bfloat16)

    def configuration(length: int, target: str = "sm_80", warps: int = 4) -> Any:
        launch = launch_of(_centre_kernel, warps, x_ptr=x, out_ptr=x, length=length, SIZE=64)
        return specialise(launch, TARGETS[target])

    types = ("*bf16", "*bf16", "i32", "constexpr")
    assert tuple(kind for _, kind in configuration(48).signature) == types
    assert configuration(48) == configuration(32)  # multiples of 16 share a kernel
    assert len({configuration(48), configuration(49), configuration(1)}) == 3
    assert configuration(1).signature[2] == ("length", "constexpr")
    assert configuration(48, warps=8) != configuration(48)
    # 64 values lie within 32-bit offsets: AMD's buffer instructions can reach them.
    assert ("tt.pointer_range", 32) in dict(configuration(48, "gfx942").attributes)[(0,)]


def test_a_compiler_that_aborts_is_a_complaint_and_no_crash(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "aborting_kernels.py").write_text("import os\nos._exit(1)\n")
    monkeypatch.syspath_prepend(tmp_path)
    sound = specialise(product(torch.bfloat16, "ieee"), TARGETS["gfx942"])
    aborting = replace(sound, module="aborting_kernels")
    assert compile_all([aborting], jobs=1) == {
        aborting: "the compiler aborted; its complaint is on stderr"
    }


def test_a_descriptor_within_a_tuple_is_caught() -> None:
    """It compiles, and Triton 3.6 fails an assertion when it is launched."""
    tile = descriptor(meta(16, 16, dtype=torch.float16), [16, 16], TARGETS["sm_90"])
    launch = launch_of(
        _copy_kernel,
        source=Matrix(tile, 16, 16),
        out_ptr=meta(16, 16, dtype=torch.float16),
        SIZE=16,
    )
    (problem,) = found_problems(launch, "sm_90")
    assert "source holds a tensor descriptor" in problem
