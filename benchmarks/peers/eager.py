"""torch as it is: the dense formulas on answer rows, with full logits."""

from __future__ import annotations

from benchmarks.cases.case import OPS, Case, Inputs
from benchmarks.peers import dense
from benchmarks.peers.calls import Operands, make_call
from benchmarks.peers.peer import Call, Peer, Setting


class Eager(Peer):
    """Rows: answer rows alone."""

    name = "eager"
    ops = OPS

    def prepare(self, case: Case, inputs: Inputs, setting: Setting) -> Call:
        forward = Operands(case, inputs).forward(getattr(dense, case.op))
        return make_call(case, inputs, forward)
