"""The released PACT step's head part, re-implemented from the paper's formulas.

Full-vocabulary logits of the student and of both references on every position, prompts and padding
included, fp32 copies, and only then the K columns. It is the baseline of `pact_loss` beyond its own
objective too: what the released step costs is what a user leaves, whichever objective comes after.

Legend: B sequences, L positions, P post-only positions, N answer rows, D hidden size, V vocabulary,
K selected tokens.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional

from benchmarks.cases.case import Case, Inputs
from benchmarks.peers.calls import make_call
from benchmarks.peers.peer import Call, Peer, Setting
from pact_kernels import GateConfig
from pact_kernels.naive.pact_kl import gate_value, selection_target


class Batch(NamedTuple):
    """One training batch after the backbones; the row tensors name the answer rows in it."""

    hidden: Tensor  # (B, L, D) the student's
    weight: Tensor  # (V, D) the student's head
    target: Tensor  # (B, L) shifted, -100 outside the answers
    reference_full: Tensor  # (B, L, D)
    reference_post: Tensor  # (B, P, D)
    reference_weight: Tensor  # (V, D)
    post_rows: Tensor  # (N,) positions in (B P) of the answer rows, in the order of target
    step: Tensor  # (N,)
    token_ids: Tensor  # (K,)
    token_weights: Tensor  # (K,)


def released_loss(batch: Batch, gate: GateConfig, temperature: float = 2.0) -> Tensor:
    """Cross-entropy + KL, both means over the answer rows, as the released step forms them."""
    logits = functional.linear(batch.hidden, batch.weight).float()  # (B, L, V)
    with torch.no_grad():
        full = functional.linear(batch.reference_full, batch.reference_weight).float()
        post = functional.linear(batch.reference_post, batch.reference_weight).float()
    vocabulary = batch.weight.shape[0]
    cross_entropy = functional.cross_entropy(logits.flatten(0, 1), batch.target.flatten())
    keep = (batch.target != -100).flatten()
    u = logits.reshape(-1, vocabulary)[:, batch.token_ids][keep]  # (N, K)
    f = full.reshape(-1, vocabulary)[:, batch.token_ids][keep]
    p = post.reshape(-1, vocabulary)[:, batch.token_ids][batch.post_rows]
    c = gate_value(u.detach(), p, batch.step, gate)[:, None]  # (N, 1)
    q = selection_target((1 - c) * f + c * p, batch.token_weights, temperature)
    log_student = torch.log_softmax(u / temperature, -1)
    kl = temperature**2 * (q * (q.clamp(min=1e-12).log() - log_student)).sum(-1)
    return cross_entropy + kl.mean()


class Released(Peer):
    """Rows: all positions, prompts included, as the released code has it."""

    name = "released"
    ops = ("pact_loss",)

    def other_objective(self, case: Case) -> str | None:
        if case.over == "selection":
            return None
        return "matches confidences over the selection; the case's are over the vocabulary"

    def unsuited(self, case: Case, device: torch.device) -> str | None:
        return None if case.gated else "the released step always has its gate"

    def prepare(self, case: Case, inputs: Inputs, setting: Setting) -> Call:
        batch, gate = released_batch(case, inputs), GateConfig()
        shape = batch.reference_full.shape

        def forward() -> dict[str, torch.Tensor]:
            hidden = inputs.hidden.view(shape)
            return {"loss": released_loss(batch._replace(hidden=hidden), gate)}

        return make_call(case, inputs, forward)


def released_batch(case: Case, inputs: Inputs) -> Batch:
    """Views of a case's tensors: its sequences are the batch, its answers the post-only inputs."""
    sequences, length, width = case.sequences, case.length, case.hidden
    return Batch(
        hidden=inputs.hidden.view(sequences, length, width),
        weight=inputs.weight,
        target=inputs.target.view(sequences, length),
        reference_full=inputs.reference_hidden.view(sequences, length, width),
        reference_post=inputs.reference_post.view(sequences, length - case.prompt_length, width),
        reference_weight=inputs.reference_weight,
        post_rows=torch.arange(case.rows, device=inputs.hidden.device),
        step=inputs.step,
        token_ids=inputs.token_ids,
        token_weights=inputs.token_weights,
    )
