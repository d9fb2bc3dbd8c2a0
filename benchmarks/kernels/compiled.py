"""Compile a recorded launch for a GPU that is not there, and read what came out.

A `Configuration` is all that the compiled kernel depends on, in plain values: it travels to another
process, and launches with equal ones share a kernel. It is formed by Triton's own steps, those of a
launch, so that pointers, ones, multiples of 16 and 32-bit ranges mean here what they mean on a GPU.

Triton's ahead-of-time `tools.compile` takes one kernel and a signature by hand, and ends where a
compiler aborts; what the launchers launch is not known to it.
"""

from __future__ import annotations

import multiprocessing
import subprocess
import tempfile
from collections.abc import Iterable
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass, replace
from importlib import import_module
from pathlib import Path
from typing import Any

import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource, make_backend
from triton.runtime.jit import create_function_from_signature

from benchmarks.kernels.machine_code import Compiled, read_amd, read_nvidia
from benchmarks.measuring.process import in_own_process
from pact_kernels.kernels._launch.runtime import TARGETS, Launch, Options, Target

CUOBJDUMP = Path(triton.__file__).parent / "backends/nvidia/bin/cuobjdump"
MOST_OF_AN_ERROR = 600
"""Characters; what went wrong stands at the end of a compiler's message."""


@dataclass(frozen=True, kw_only=True)
class Configuration:
    """A kernel, specialised to the arguments of a launch, and how it is compiled."""

    module: str
    kernel: str
    target: str
    options: Options
    signature: tuple[tuple[str, str | tuple[Any, ...]], ...]
    """Type of each argument; of a tuple, those of its entries."""
    constants: tuple[tuple[tuple[int, ...], Any], ...]
    """Values known to the compiler, by position."""
    attributes: tuple[tuple[tuple[int, ...], tuple[tuple[str, int], ...]], ...]
    """What else it may rely on, by position: alignment, 32-bit range."""


def specialise(launch: Launch, target: Target) -> Configuration:
    """As a launch on this target would."""
    kernel, backend = launch.kernel, make_backend(_gpu_target(target))
    bind = create_function_from_signature(kernel.signature, kernel.params, backend)
    bound, specialization, keywords = bind(**launch.arguments, **launch.options.keywords())
    _, signature, constants, attributes = kernel._pack_args(
        backend, keywords, bound, specialization, keywords
    )
    return Configuration(
        module=kernel.fn.__module__,
        kernel=kernel.fn.__name__,
        target=target.name,
        options=launch.options,
        signature=tuple(signature.items()),
        constants=tuple(constants.items()),
        attributes=tuple(
            (position, tuple((name, value) for name, value in pairs))
            for position, pairs in attributes.items()
        ),
    )


def compile_or_error(configuration: Configuration) -> Compiled | str:
    """What the compiler made of it, or the end of its complaint.

    Triton's cache on disk answers when it has been done before. A complaint is its first cause:
    Triton raises once more for every call that encloses the line at fault.
    """
    try:
        return _compile(configuration)
    except Exception as raised:  # compilers raise what they like
        error: BaseException = raised
        while error.__cause__ is not None:
            error = error.__cause__
        return f"{type(error).__name__}: {str(error).strip()[-MOST_OF_AN_ERROR:]}"


def compile_all(
    configurations: Iterable[Configuration], jobs: int
) -> dict[Configuration, Compiled | str]:
    """Each once, in `jobs` processes."""
    results: dict[Configuration, Compiled | str] = {}
    with ProcessPoolExecutor(jobs, mp_context=multiprocessing.get_context("spawn")) as pool:
        distinct = dict.fromkeys(configurations)
        futures = {each: pool.submit(compile_or_error, each) for each in distinct}
    # A compiler that aborts takes its process and the pool along: find which by a process for each.
    for configuration, future in futures.items():
        try:
            results[configuration] = (
                in_own_process(compile_or_error, configuration)
                if isinstance(future.exception(), BrokenProcessPool)
                else future.result()
            )
        except BrokenProcessPool:
            results[configuration] = "the compiler aborted; its complaint is on stderr"
    return results


def _compile(configuration: Configuration) -> Compiled:
    for name, kind in configuration.signature:
        if isinstance(kind, tuple) and "tensordesc" in str(kind):  # launched, Triton 3.6 fails
            raise TypeError(f"{name} holds a tensor descriptor: pass it as a parameter of its own")
    kernel = getattr(import_module(configuration.module), configuration.kernel)
    source = ASTSource(
        kernel,
        dict(configuration.signature),
        dict(configuration.constants),
        {at: [list(pair) for pair in pairs] for at, pairs in configuration.attributes},
    )
    target = _gpu_target(TARGETS[configuration.target])
    compiled = triton.compile(source, target=target, options=configuration.options.keywords())
    nvidia = target.backend == "cuda"
    assembly = compiled.asm
    return replace(
        read_nvidia(_disassembled(assembly["cubin"])) if nvidia else read_amd(assembly["amdgcn"]),
        shared_bytes=compiled.metadata.shared,
        tensor_memory_columns=compiled.metadata.tmem_size if nvidia else 0,
        has_product="tt.dot" in assembly["ttir"],
    )


def _gpu_target(target: Target) -> GPUTarget:
    return GPUTarget(target.backend, target.arch, target.warp_size)


def _disassembled(cubin: bytes) -> str:
    """Resource usage and instructions, by the tool that comes with Triton."""
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(cubin)
        file.flush()
        command = [str(CUOBJDUMP), "--dump-resource-usage", "--dump-sass", file.name]
        done = subprocess.run(command, capture_output=True, text=True, check=True)
    return done.stdout
