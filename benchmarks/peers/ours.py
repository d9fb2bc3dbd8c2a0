"""pact_kernels' public ops with their defaults: Triton on a GPU, chunked on a CPU.

No setting is searched. The workspace is a documented knob, but what a user gets is what is timed.
"""

from __future__ import annotations

import pact_kernels as pk
from benchmarks.cases.case import OPS, Case, Inputs
from benchmarks.peers.calls import op_call
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
        return op_call(case, inputs, getattr(pk, case.op), batched=True)
