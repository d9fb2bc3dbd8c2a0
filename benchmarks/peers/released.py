"""The released PACT step's head part, re-implemented from the paper's formulas.

Full-vocabulary logits of the student and of both references on every position, prompts and padding
included, fp32 copies, and only then the K columns. It is the baseline of `pact_loss` beyond its own
objective too: what the released step costs is what a user leaves, whichever objective comes after.

Legend: B sequences, L positions, P post-only positions, N answer rows, V vocabulary, K selected
tokens.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

from benchmarks.cases.case import IGNORE, Case, Inputs
from benchmarks.peers.calls import make_call
from benchmarks.peers.peer import Call, Peer, Setting
from pact_kernels import GateConfig
from pact_kernels.naive.pact_kl import gate_value, selection_target

TEMPERATURE = 2.0
"""The KL's."""


def released_loss(
    inputs: Inputs, gate: GateConfig, post_rows: Tensor | slice = slice(None)
) -> Tensor:
    """Cross-entropy + KL, both means over the answer rows, as the released step forms them.

    Args:
        inputs: of a batch; `reference_post` may have positions beside the answer rows' (B P).
        gate: of the mixture of both references.
        post_rows: (N,) the answer rows' positions there, in the order of the target.
    """
    ids = inputs.token_ids
    logits = functional.linear(inputs.hidden, inputs.weight).float()  # (B L, V)
    with torch.no_grad():
        full = functional.linear(inputs.reference_hidden, inputs.reference_weight).float()
        post = functional.linear(inputs.reference_post, inputs.reference_weight).float()
    cross_entropy = functional.cross_entropy(logits, inputs.target)
    keep = inputs.target != IGNORE
    u, f, p = logits[:, ids][keep], full[:, ids][keep], post[:, ids][post_rows]  # (N, K)
    c = gate_value(u.detach(), p, inputs.step, gate)[:, None]  # (N, 1)
    q = selection_target((1 - c) * f + c * p, inputs.token_weights, TEMPERATURE)
    log_student = torch.log_softmax(u / TEMPERATURE, -1)
    kl = TEMPERATURE**2 * (q * (q.clamp(min=1e-12).log() - log_student)).sum(-1)
    return cross_entropy + kl.mean()


class Released(Peer):
    """Rows: all positions, prompts included, as the released code has it."""

    name = "released"
    ops = ("pact_loss",)
    logit_bytes = 20  # in fp32 it was seen to take 16

    def needed_bytes(self, case: Case) -> int:
        return self.logit_bytes * case.positions * case.vocabulary

    def other_objective(self, case: Case) -> str | None:
        if case.over == "selection":
            return None
        return "matches confidences over the selection; the case's are over the vocabulary"

    def unsuited(self, case: Case, device: torch.device) -> str | None:
        return None if case.gated else "the released step always has its gate"

    def prepare(self, case: Case, inputs: Inputs, setting: Setting) -> Call:
        gate = GateConfig()
        return make_call(case, inputs, lambda: released_loss(inputs, gate))
