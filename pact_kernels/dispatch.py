"""Which code runs an op, and how much memory it may take: two settings, each a context manager."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from importlib.util import find_spec

import torch
from torch import Tensor

IMPLEMENTATIONS = ("naive", "chunked", "triton")
MIB = 2**20
DEFAULT_WORKSPACE_MIB = {"cpu": 64.0, "cuda": 1024.0}
GRADIENT_FRACTION = 1.05
"""The least of a GPU's default cap, as a part of a trained head's fp32 gradient: each chunk reads
and writes the whole of it, so chunks are few."""

_override: str | None = None
_autotuning = False
_workspace_mib: float | None = None


@contextmanager
def implementation(name: str) -> Iterator[None]:
    """Run every op inside the block with one implementation instead of the device's default.

    The default is "triton" on a GPU where triton is installed, else "chunked". fp64 tensors always
    take "chunked": the kernels accumulate in fp32.

    An op's backward runs with the implementation, and the workspace, of its forward, wherever it is
    called. What activation checkpointing computes again is another forward, and follows the block
    that the backward is called in.

    Args:
        name: "naive" (the dense formula, the oracle of the tests), "chunked" (bounded workspace,
            any device) or "triton" (the kernels; on CPU tensors Triton's interpreter, which is slow
            and there for tests).

    Raises:
        ValueError: the name is unknown, or "triton" where triton is not installed.
    """
    global _override
    if name not in IMPLEMENTATIONS:
        raise ValueError(f"implementation must be one of {IMPLEMENTATIONS}, got {name!r}")
    if name == "triton" and not _has_triton():
        raise ValueError(
            "implementation('triton') needs triton, which is not installed: pip install triton"
        )
    previous, _override = _override, name
    try:
        yield
    finally:
        _override = previous


@contextmanager
def workspace(mib: float) -> Iterator[None]:
    """Cap the memory that an op may take beyond its inputs and outputs inside the block.

    Args:
        mib: the cap in MiB; the default is 64 on a CPU and 1024 on a GPU, or 1.05 times a trained
            head's fp32 gradient where that is more, for chunks of two rows for each entry of the
            hidden size. However small it is, an op holds one row of the vocabulary (on a CPU 64
            tokens of it, unless the head is trainable), the head's K selected rows in fp32, and
            some 50 bytes per row of the input.
            What the library takes within a matrix product is not in it: on a processor without
            instructions for 16 bits that is an fp32 copy of the product's result.

    Raises:
        ValueError: the cap is not positive and finite.
    """
    global _workspace_mib
    if not 0 < mib < math.inf:
        raise ValueError(f"workspace must be positive and finite, got {mib} MiB")
    previous, _workspace_mib = _workspace_mib, float(mib)
    try:
        yield
    finally:
        _workspace_mib = previous


@contextmanager
def autotune() -> Iterator[None]:
    """Try a few configurations of each kernel that runs inside the block, and keep the fastest.

    Needs a GPU, and takes seconds for every kernel and size. The choices hold for the process,
    after the block too; outside any block the package's own configurations are used.
    """
    global _autotuning
    previous, _autotuning = _autotuning, True
    try:
        yield
    finally:
        _autotuning = previous


def is_autotuning() -> bool:
    """Whether kernels are to be timed."""
    return _autotuning


def is_naive() -> bool:
    """Whether the dense formula was asked for."""
    return _override == "naive"


def uses_triton(tensor: Tensor) -> bool:
    """Whether an op on `tensor` runs through the Triton kernels."""
    if tensor.dtype == torch.float64:
        return False
    if _override is not None:
        return _override == "triton"
    return tensor.device.type == "cuda" and _has_triton()


def operator_implementation(tensor: Tensor) -> str:
    """ "triton" or "chunked": what an operator on `tensor` runs, which its arguments keep."""
    return "triton" if uses_triton(tensor) else "chunked"


@cache
def _has_triton() -> bool:
    return find_spec("triton") is not None


def workspace_bytes(device: torch.device, gradient_bytes: int = 0) -> int:
    """The cap in force for `device`, in bytes; `gradient_bytes` are those of a trained head's."""
    if _workspace_mib is not None:
        return int(_workspace_mib * MIB)
    mib = DEFAULT_WORKSPACE_MIB.get(device.type, DEFAULT_WORKSPACE_MIB["cuda"])
    if device.type == "cpu":
        gradient_bytes = 0
    return max(int(mib * MIB), int(gradient_bytes * GRADIENT_FRACTION))
