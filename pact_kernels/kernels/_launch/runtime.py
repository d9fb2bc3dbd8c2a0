"""How a kernel runs: compiled on a GPU, interpreted on CPU tensors, recorded on meta tensors.

A launcher names its kernel, grid, options and arguments once, through `launch`. What happens next
depends on where its tensors live:

    cuda    Triton compiles the kernel and the GPU runs it
    cpu     Triton's interpreter runs it with numpy: slow, exact enough to test the kernel's logic
    meta    inside `recording`, the launch is noted and nothing runs: `benchmarks.kernel_report`
            compiles what the launchers would have launched, for GPUs that are not there
"""

from __future__ import annotations

import inspect
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cache
from types import SimpleNamespace
from typing import Any

import torch
import triton.language as tl
from torch import Tensor
from triton.runtime.interpreter import InterpretedFunction, _patch_lang
from triton.runtime.jit import JITFunction
from triton.tools.tensor_descriptor import TensorDescriptor

from pact_kernels.kernels._device.operands import Layout, Matrix

KIB = 1024


@dataclass(frozen=True, kw_only=True)
class Target:
    """What the launchers need to know of a GPU."""

    name: str
    """The family whose kernel configurations are used."""
    arch: int | str
    """Compute capability times ten, or the gfx name."""
    processors: int
    """Streaming multiprocessors, or compute units."""
    shared_bytes: int
    """Most shared memory (LDS) of one program."""
    tensor_descriptors: bool = False
    """Whether tiles are fetched by the bulk copy engine (TMA)."""

    @property
    def backend(self) -> str:
        """Triton's name of the vendor."""
        return "hip" if isinstance(self.arch, str) else "cuda"

    @property
    def warp_size(self) -> int:
        """Threads of a warp (wavefront)."""
        return 64 if self.backend == "hip" else 32


# The cards whose processors these are: A100, RTX 4090 (also sm_86 and sm_120), H100, B200, MI300X.
TARGETS = {
    target.name: target
    for target in (
        Target(name="sm_80", arch=80, processors=108, shared_bytes=163 * KIB),
        Target(name="sm_89", arch=89, processors=128, shared_bytes=99 * KIB),
        Target(
            name="sm_90",
            arch=90,
            processors=132,
            shared_bytes=227 * KIB,
            tensor_descriptors=True,
        ),
        Target(
            name="sm_100",
            arch=100,
            processors=148,
            shared_bytes=227 * KIB,
            tensor_descriptors=True,
        ),
        Target(name="gfx942", arch="gfx942", processors=304, shared_bytes=64 * KIB),
    )
}
INTERPRETED = TARGETS["sm_90"]
"""Whose configurations the interpreter runs."""


@dataclass(frozen=True)
class Options:
    """Compiler options of a launch."""

    warps: int
    stages: int

    def keywords(self) -> dict[str, Any]:
        """As Triton's compiler takes them."""
        return {"num_warps": self.warps, "num_stages": self.stages, "enable_fp_fusion": True}


@dataclass(frozen=True)
class Cost:
    """Least work of a launch: what its roofline is drawn from."""

    flops: int
    bytes: int
    row_tiles: int = 1
    """Row tiles that share it evenly."""
    logit_bytes: int = 0
    """Those of its bytes that are of one logit of a chunk (M, V): each read and each write."""


@dataclass(frozen=True)
class Launch:
    """A launch that was recorded instead of run."""

    kernel: Any
    grid: tuple[int, ...]
    options: Options
    cost: Cost
    arguments: dict[str, Any]


@dataclass
class _Recorder:
    target: Target
    launches: list[Launch] = field(default_factory=list)


_recorder: _Recorder | None = None
_interpreted_as = INTERPRETED


@contextmanager
def recording(target: Target) -> Iterator[list[Launch]]:
    """Note launches on meta tensors as `target` would make them."""
    global _recorder
    previous, _recorder = _recorder, _Recorder(target)
    try:
        yield _recorder.launches
    finally:
        _recorder = previous


@contextmanager
def interpreting(target: Target) -> Iterator[None]:
    """Interpret with another target's configurations."""
    global _interpreted_as
    previous, _interpreted_as = _interpreted_as, target
    try:
        yield
    finally:
        _interpreted_as = previous


def is_interpreted(tensor: Tensor) -> bool:
    """Whether a launch on this tensor is interpreted."""
    return tensor.device.type == "cpu"


def target_of(tensor: Tensor) -> Target:
    """The target whose configurations a launch on this tensor takes."""
    if tensor.device.type == "meta" and _recorder is not None:
        return _recorder.target
    if is_interpreted(tensor):
        return _interpreted_as
    return _gpu_target(tensor.device.index or 0)


@cache
def _gpu_target(index: int) -> Target:
    properties = torch.cuda.get_device_properties(index)
    if torch.version.hip is not None:
        family = TARGETS["gfx942"]
    else:
        # 8.6, 8.7, 8.9 and 12.x have less shared memory, and no wgmma or tcgen05.
        families = {(8, 0): "sm_80", (9, 0): "sm_90", (10, 0): "sm_100", (10, 3): "sm_100"}
        family = TARGETS[families.get((properties.major, properties.minor), "sm_89")]
    return Target(
        name=family.name,
        arch=family.arch,
        processors=properties.multi_processor_count,
        shared_bytes=family.shared_bytes,
        tensor_descriptors=family.tensor_descriptors,
    )


def launch(
    kernel: Any, grid: tuple[int, ...], options: Options, cost: Cost, **arguments: Any
) -> None:
    """Run `kernel` over `grid`, or note that it would run.

    The tiles of a matrix among the arguments, or within one of them, go to the kernel's parameter
    named after its path, `head_weight_tiles` for head.weight, where there is one.
    """
    if 0 in grid:
        return
    arguments = _with_tiles_beside(kernel, arguments)
    tensor = next(tensors(arguments.values()))
    if tensor.device.type == "meta" and _recorder is not None:
        _recorder.launches.append(Launch(kernel, grid, options, cost, arguments))
    elif is_interpreted(tensor):
        _interpret(kernel, grid, arguments)
    else:
        with torch.cuda.device(tensor.device):
            kernel[grid](**arguments, **options.keywords())


def _with_tiles_beside(kernel: Any, arguments: dict[str, Any]) -> dict[str, Any]:
    """The arguments with tiles taken out of their matrices to parameters of their own."""
    for name, owner, path in _tile_parameters(kernel):
        arguments[owner], arguments[name] = _apart(arguments[owner], path)
    return arguments


def _apart(value: Any, path: str) -> tuple[Any, Any]:
    """A matrix, or what holds one at `path`, without its tiles; and those."""
    if isinstance(value, Matrix):
        return Layout(value.stride, value.columns), value.tiles
    if value is None:
        return None, None
    name = next(name for name in value._fields if f"{path}_".startswith(f"{name}_"))
    part, tiles = _apart(getattr(value, name), path[len(name) + 1 :])
    return value._replace(**{name: part}), tiles


@cache
def _tile_parameters(kernel: Any) -> list[tuple[str, str, str]]:
    """Parameters for tiles: name, the argument they are taken from, and their path in it."""
    names = list(inspect.signature(kernel.fn).parameters)
    found = []
    for name in names:
        path = name.removesuffix("_tiles")
        if path != name:
            owner = next(owner for owner in names if f"{path}_".startswith(f"{owner}_"))
            found.append((name, owner, path[len(owner) + 1 :]))
    return found


def tensors(operands: Iterable[Any]) -> Iterator[Tensor]:
    """Every tensor among operands, those in tuples and behind descriptors too."""
    for operand in operands:
        if isinstance(operand, TensorDescriptor):
            yield operand.base
        elif isinstance(operand, Tensor):
            yield operand
        elif isinstance(operand, tuple):
            yield from tensors(operand)


def descriptor(tensor: Tensor, block: list[int], target: Target) -> Tensor | TensorDescriptor:
    """A tensor descriptor over (rows, columns) where the target and the strides allow, else itself.

    The bulk copy engine asks for a 16-byte aligned start, contiguous rows, and rows that start at
    multiples of 16 bytes.
    """
    row_bytes = tensor.stride(0) * tensor.element_size()
    fits = tensor.stride(1) == 1 and row_bytes > 0 and row_bytes % 16 == 0 and tensor.numel() > 0
    aligned = tensor.device.type == "meta" or tensor.data_ptr() % 16 == 0
    if not (target.tensor_descriptors and fits and aligned):
        return tensor
    return TensorDescriptor(tensor, list(tensor.shape), list(tensor.stride()), block)


def unit_stride(tensor: Tensor) -> Tensor:
    """Itself where neighbours in the last dimension are neighbours in memory, else a copy."""
    return tensor if tensor.stride(-1) == 1 else tensor.contiguous()


def _interpret(kernel: Any, grid: tuple[int, ...], arguments: dict[str, Any]) -> None:
    """Run a kernel with numpy, on CPU tensors."""
    import numpy

    function = InterpretedFunction(kernel.fn) if isinstance(kernel, JITFunction) else kernel
    # Masked lanes overflow and divide by zero on the way to a store that drops them.
    with _device_functions_callable(), numpy.errstate(all="ignore"):
        function[grid](**arguments)


@contextmanager
def _device_functions_callable() -> Iterator[None]:
    """While a kernel is interpreted, the functions it calls are plain Python calls too.

    Triton's own are among them. In a process with TRITON_INTERPRET=1 none is a JITFunction. The
    language is made numpy's once for all of them, and the compiler's again at the end: Triton's
    interpreter does it anew for every call, which takes half of its time, and leaves it so.
    """

    def call(function: Any, *args: Any, **kwargs: Any) -> Any:
        return _interpreted(function.fn).rewrite()(*args, **kwargs)

    original = JITFunction.__call__
    JITFunction.__call__ = call
    patched = _patch_lang(SimpleNamespace(__globals__={"tl": tl, "core": tl.core}))
    try:
        yield
    finally:
        patched.restore()
        JITFunction.__call__ = original


@cache
def _interpreted(function: Any) -> Any:
    return InterpretedFunction(function)
