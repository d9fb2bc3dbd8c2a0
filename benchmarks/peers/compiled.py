"""torch.compile of the dense formulas: what a user gets for one more line."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch

from benchmarks.cases.case import OPS, Case, Inputs
from benchmarks.peers.calls import make_call
from benchmarks.peers.compiling import cannot_compile, compile_now
from benchmarks.peers.eager import formula_of, forward_of
from benchmarks.peers.peer import Call, Setting


class Compiled:
    """Rows: answer rows alone, gathered ahead of the graph, which is whole and of fixed shape."""

    name = "torch.compile"
    ops = OPS

    def __init__(self, backend: str | Callable[..., Any] = "inductor") -> None:
        self.backend = backend
        """torch's own, but in tests."""

    def version(self) -> str | None:
        return torch.__version__

    def other_objective(self, case: Case) -> str | None:
        return None

    def unavailable(self, case: Case, device: torch.device) -> str | None:
        return cannot_compile(device)

    def settings(self, case: Case, device: torch.device) -> Sequence[Setting]:
        # Autotuning every product takes minutes a shape on a card, and finds the vendor's again.
        return [{"mode": "default"}]

    def prepare(self, case: Case, inputs: Inputs, setting: Setting) -> Call:
        formula = formula_of(case, inputs)
        mode = setting["mode"] if self.backend == "inductor" else None
        function = torch.compile(
            formula.function, fullgraph=True, dynamic=False, backend=self.backend, mode=mode
        )
        forward = forward_of(case, formula._replace(function=function))
        return compile_now(make_call(case, inputs, forward))
