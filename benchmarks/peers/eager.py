"""torch as it is: the dense formulas on answer rows, with full logits."""

from __future__ import annotations

from benchmarks.cases.case import OPS, Case, Inputs
from benchmarks.peers import dense
from benchmarks.peers.calls import op_call
from benchmarks.peers.peer import Call, Peer, Setting


class Eager(Peer):
    """Rows: answer rows alone."""

    name = "eager"
    ops = OPS

    def prepare(self, case: Case, inputs: Inputs, setting: Setting) -> Call:
        return op_call(case, inputs, getattr(dense, case.op))
