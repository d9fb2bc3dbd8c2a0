"""torch.compile of the dense formulas: what a user gets for one more line."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Sequence
from importlib.util import find_spec
from typing import Any

import torch

from benchmarks.cases.case import OPS, Case, Inputs
from benchmarks.peers import dense
from benchmarks.peers.calls import op_call
from benchmarks.peers.peer import Call, Peer, Setting

MOST_VERSIONS = 256
"""Versions of one function in a process of many cases; torch's limit, 8, would end it there."""


class Compiled(Peer):
    """Rows: answer rows alone, gathered ahead of the graph, which is whole and of fixed shape."""

    name = "torch.compile"
    ops = OPS

    def __init__(self, backend: str | Callable[..., Any] = "inductor") -> None:
        self.backend = backend
        """torch's own, but in tests."""

    def unsuited(self, case: Case, device: torch.device) -> str | None:
        return cannot_compile(device)

    def settings(self, case: Case, device: torch.device) -> Sequence[Setting]:
        # Autotuning every product takes minutes a shape on a card, and finds the vendor's again.
        return [{"mode": "default"}]

    def prepare(self, case: Case, inputs: Inputs, setting: Setting) -> Call:
        mode = setting["mode"] if self.backend == "inductor" else None
        function = torch.compile(
            getattr(dense, case.op), fullgraph=True, dynamic=False, backend=self.backend, mode=mode
        )
        return compile_now(op_call(case, inputs, function))


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
