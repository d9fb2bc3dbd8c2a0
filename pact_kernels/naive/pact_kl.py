"""KL of the selected tokens to the gated mixture of both references, by its formula.

Legend: N rows, D hidden size, V vocabulary, K selected tokens.
"""

from __future__ import annotations

from typing import Any, Unpack

import torch
from torch import Tensor

from pact_kernels.naive.linear_logsumexp import linear_logsumexp
from pact_kernels.naive.logits import reduce_rows
from pact_kernels.naive.selected_logits import selected_logits
from pact_kernels.types import GateConfig, HeadOptions, ReferenceLogits, ReferenceStates


def top_p_count(logits: Tensor, top_p: float, temperature: float) -> Tensor:
    """(..., K) -> (...): entries of the softmax, largest first, until their sum reaches top_p."""
    mass = torch.softmax(logits / temperature, -1).sort(-1, descending=True).values.cumsum(-1)
    reached = mass >= top_p
    first = reached.int().argmax(-1) + 1
    return torch.where(reached.any(-1), first, logits.shape[-1])


def gate_value(student: Tensor, post: Tensor, step: Tensor, gate: GateConfig) -> Tensor:
    """(N, K), (N, K), (N,) -> (N,) the gate c."""
    width = student.shape[-1]
    k_student = top_p_count(student, gate.top_p, gate.temperature).to(student.dtype)
    k_post = top_p_count(post, gate.top_p, gate.temperature).to(student.dtype)
    c = torch.sigmoid(gate.alpha * (k_student / width - k_post / width - gate.bias))
    if gate.decay_tau > 0:
        past = (step - gate.prefix_length).clamp(min=0).to(student.dtype)
        decay = torch.exp(-past / gate.decay_tau)
    else:
        decay = (step < gate.prefix_length).to(student.dtype)
    return (c * decay * gate.prefix_boost).detach()


def mix(full: Tensor, post: Tensor, c: Tensor) -> Tensor:
    """(1 - c) full + c post; -inf where either is, unless c leaves it out (0 times anything is 0).

    A token that a reference rules out has no part in the target, even where a boost lifts c over 1.
    """
    mixed = torch.where(full == -torch.inf, full, (1 - c) * full + c * post)
    return torch.where(c == 0, full, torch.where(c == 1, post, mixed))


def selection_target(mixed: Tensor, token_weights: Tensor, temperature: float) -> Tensor:
    """(N, K), (K,) -> (N, K): q = normalise(softmax(m / T) * max(weight, 0))."""
    weighted = torch.softmax(mixed / temperature, -1) * token_weights.clamp(min=0)
    return weighted / weighted.sum(-1, keepdim=True)


def pact_kl_rows(
    hidden: Tensor,
    weight: Tensor,
    token_ids: Tensor,
    token_weights: Tensor,
    step: Tensor,
    reference: ReferenceLogits | ReferenceStates,
    *,
    gate: GateConfig | None,
    temperature: float,
    over: str,
    row_weight: Tensor | None = None,
    **head: Unpack[HeadOptions],
) -> tuple[Tensor, Tensor]:
    """-> KL (N,) and gate (N,)."""
    u = selected_logits(hidden, weight, token_ids, **head)
    known = _reference_logits(reference, token_ids, over, head)
    f, p = known.full.to(u.dtype), None if known.post is None else known.post.to(u.dtype)
    c = torch.zeros_like(u[:, 0])
    if gate is not None and p is not None:
        c = gate_value(u.detach(), p, step, gate)
    mixing = c[:, None]
    if over == "selection":
        m = f if gate is None or p is None else mix(f, p, mixing)
        q = selection_target(m, token_weights.to(u.dtype), temperature)
        log_student = torch.log_softmax(u / temperature, -1)
        kl = temperature**2 * _expected(q, q.clamp(min=1e-12).log() - log_student)
    else:
        log_p = _with_rest(u - linear_logsumexp(hidden, weight, **head)[:, None]).log_softmax(-1)
        assert known.full_lse is not None
        m = _with_rest(f - known.full_lse[:, None])
        if gate is not None and p is not None and known.post_lse is not None:
            m = mix(m, _with_rest(p - known.post_lse[:, None]), mixing)
        log_q = torch.log_softmax(m, -1)
        kl = _expected(log_q.exp(), log_q - log_p)
    return (kl if row_weight is None else kl * row_weight), c


def pact_kl(
    hidden: Tensor,
    weight: Tensor,
    *args: Any,
    reduction: str = "mean",
    num_items: int | float | Tensor | None = None,
    **options: Any,
) -> Tensor:
    """`pact_kl_rows`, reduced."""
    rows, _ = pact_kl_rows(hidden, weight, *args, **options)
    return reduce_rows(rows, None, reduction, num_items)


def _expected(q: Tensor, values: Tensor) -> Tensor:
    """(N,) sum of q times values, where a probability of 0 counts nothing, whatever its value."""
    return torch.where(q == 0, 0.0, q * values).sum(-1)


def _with_rest(log_confidence: Tensor) -> Tensor:
    """(N, K) log-confidences -> (N, K + 1) with the rest of the mass, at least 1e-6."""
    rest = (1 - log_confidence.exp().sum(-1, keepdim=True)).clamp(min=1e-6)
    return torch.cat((log_confidence, rest.log()), -1)


@torch.no_grad()
def _reference_logits(
    reference: ReferenceLogits | ReferenceStates, token_ids: Tensor, over: str, head: HeadOptions
) -> ReferenceLogits:
    if isinstance(reference, ReferenceLogits):
        return reference
    if reference.bias is not None:
        head = {**head, "bias": reference.bias}
    weight = reference.weight

    def formed(states: Tensor | None) -> tuple[Tensor | None, Tensor | None]:
        if states is None:
            return None, None
        lse = linear_logsumexp(states, weight, **head) if over == "vocabulary" else None
        return selected_logits(states, weight, token_ids, **head), lse

    full, full_lse = formed(reference.full_hidden)
    post, post_lse = formed(reference.post_hidden)
    assert full is not None
    return ReferenceLogits(full, post, full_lse, post_lse)
