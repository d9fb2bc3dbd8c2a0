"""The head part of the released PACT step, re-implemented from the paper's formulas.

Full-vocabulary logits of the student and of both references on every position, prompts and padding
included, fp32 copies, and only then the K columns.

Legend: B sequences, L positions, P post-only positions, N answer rows, D hidden size, V vocabulary,
K selected tokens.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional

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
