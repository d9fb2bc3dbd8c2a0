"""torch.compile, as far as it has to be watched."""

from __future__ import annotations

import os
import shutil
from importlib.util import find_spec

import torch

from benchmarks.peers.peer import Call

MOST_VERSIONS = 256
"""Versions of one function in a process of many cases; torch's limit, 8, would end it there."""


def cannot_compile(device: torch.device) -> str | None:
    """Why torch.compile has nothing to make machine code with; None where it has."""
    if device.type == "cpu":
        compiler = os.environ.get("CXX", "g++")
        found = shutil.which(compiler)
        return None if found else f"torch.compile needs a C++ compiler: there is no {compiler}"
    return None if find_spec("triton") else "torch.compile needs triton, which is not installed"


def compile_now(call: Call) -> Call:
    """The call, made once: whatever is compiled at a first call has been, backward included."""
    with torch._dynamo.config.patch(recompile_limit=MOST_VERSIONS):
        call()
    return call
