"""Peak memory of a call beyond its inputs.

On a GPU the allocator counts it. On a CPU it is the peak of a process that builds the inputs and
makes the call twice: the high-water mark of the second less what was resident before it, so that
what libraries and compilers keep for good is not counted.
"""

from __future__ import annotations

import ctypes
import gc
from concurrent.futures.process import BrokenProcessPool
from typing import NamedTuple

import torch

from benchmarks.cases.case import Case, make_inputs
from benchmarks.measuring.process import (
    MIB,
    STATUS,
    in_own_process,
    peak_mib,
    preload,
    reset_peak,
    resident_mib,
)
from benchmarks.peers.peer import Call, Outputs, Peer, Setting

REGISTRY = "benchmarks.peers.registry"
COMPILER = ("torch._dynamo", "torch._inductor.compile_fx")
"""Seconds of imports for every process that compiles."""
MOST_OF_A_REASON = 300
"""Characters of another's error."""


class Memory(NamedTuple):
    """What a call takes of memory."""

    extra_mib: float | None
    """Peak beyond the inputs, outputs included; None where it could not be read."""
    remark: str = ""
    """Why."""


def output_mib(outputs: Outputs) -> float:
    """What a call returns."""
    tensors = {each.untyped_storage().data_ptr(): each for each in outputs.values()}
    return sum(tensor.nbytes for tensor in tensors.values()) / MIB


def gpu_memory(call: Call, device: torch.device) -> Memory:
    """By the allocator's statistics, of a call that has run before."""
    torch.cuda.synchronize(device)
    before = torch.cuda.memory_allocated(device)
    torch.cuda.reset_peak_memory_stats(device)
    call()
    torch.cuda.synchronize(device)
    return Memory((torch.cuda.max_memory_allocated(device) - before) / MIB)


def cpu_memory(case: Case, peer: Peer, setting: Setting) -> Memory:
    """In a process of its own, which makes the case's inputs."""
    if not STATUS.exists():
        return Memory(None, "this system does not say what is resident")
    preload(__name__, REGISTRY)
    try:
        return in_own_process(_measure, case, peer, setting)
    except BrokenProcessPool:
        return Memory(None, "the process that measures memory was killed")
    except Exception as error:  # what another's code raised there
        text = f"the process that measures memory failed: {type(error).__name__}: {error}"
        return Memory(None, text[:MOST_OF_A_REASON])


def preload_compiler() -> None:
    """Import what torch.compile needs once for all processes: worth its seconds for more than one
    peer, ahead of the first measurement.
    """
    preload(*COMPILER)


def _measure(case: Case, peer: Peer, setting: Setting) -> Memory:
    call = peer.prepare(case, make_inputs(case), setting)
    call()
    gc.collect()  # or the second call would find what the first has freed, and look smaller
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)  # glibc has it
    if trim is not None:
        trim(0)
    before_mib, permitted = resident_mib(), reset_peak()
    highest_mib = peak_mib()
    call()
    after_mib = peak_mib()
    if not permitted and after_mib <= highest_mib:
        return Memory(None, "the peak before the call hides its own, and may not be reset")
    return Memory(after_mib - before_mib)
