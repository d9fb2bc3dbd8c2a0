"""Those that have every op: this package, and torch as it is and compiled."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch

import pact_kernels as pk
from benchmarks.cases.case import OPS, Case, Inputs
from benchmarks.peers import dense
from benchmarks.peers.calls import op_call
from benchmarks.peers.peer import Call, Peer, Setting, compile_now


class Ours(Peer):
    """pact_kernels' public ops with their defaults: Triton on a GPU, chunked on a CPU.

    Rows: losses with a target take all positions and drop prompts themselves; the other ops are
    given answer rows. No setting is searched: what a user gets is what is timed.
    """

    name = distribution = "pact-kernels"
    ops = OPS

    def version(self) -> str:
        return super().version() or "not installed, from its source"

    def prepare(self, case: Case, inputs: Inputs, setting: Setting) -> Call:
        return op_call(case, inputs, getattr(pk, case.op), batched=True)


class Eager(Peer):
    """torch as it is: the dense formulas on answer rows alone, with full logits."""

    name = "eager"
    ops = OPS
    logit_bytes = 16

    def prepare(self, case: Case, inputs: Inputs, setting: Setting) -> Call:
        return op_call(case, inputs, getattr(dense, case.op))


class Compiled(Peer):
    """torch.compile of the dense formulas: what a user gets for one more line.

    Rows: answer rows alone, gathered ahead of the graph, which is whole and of fixed shape.
    """

    name = "torch.compile"
    ops = OPS
    logit_bytes = 16
    compiles = True

    def __init__(self, backend: str | Callable[..., Any] = "inductor") -> None:
        self.backend = backend
        """torch's own, but in tests."""

    def settings(self, case: Case, device: torch.device) -> Sequence[Setting]:
        # Autotuning every product takes minutes a shape on a card, and finds the vendor's again.
        return [{"mode": "default"}]

    def prepare(self, case: Case, inputs: Inputs, setting: Setting) -> Call:
        mode = setting["mode"] if self.backend == "inductor" else None
        function = torch.compile(
            getattr(dense, case.op), fullgraph=True, dynamic=False, backend=self.backend, mode=mode
        )
        return compile_now(op_call(case, inputs, function))
