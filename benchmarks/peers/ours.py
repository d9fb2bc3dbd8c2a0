"""pact_kernels' public ops with their defaults: Triton on a GPU, chunked on a CPU.

No setting is searched. The workspace is a documented knob, but what a user gets is what is timed.
"""

from __future__ import annotations

import pact_kernels as pk
from benchmarks.cases.case import OPS, Case, Inputs
from benchmarks.peers.calls import Operands, make_call
from benchmarks.peers.peer import Call, Peer, Setting


class Ours(Peer):
    """Rows: losses with a target take all positions and drop prompts themselves; the other ops are
    given answer rows.
    """

    name = "pact-kernels"
    ops = OPS
    distribution = "pact-kernels"

    def version(self) -> str:
        return super().version() or "not installed, from its source"

    def prepare(self, case: Case, inputs: Inputs, setting: Setting) -> Call:
        operands = Operands(case, inputs, batched=True)
        return make_call(case, inputs, operands.forward(getattr(pk, case.op)))
