"""What the K selected logits of a chunk are pulled to: gate, mixed target, KL and its gradient.

All functions work in the accumulator dtype on tensors the size of M x K.

Legend: M rows, K selected tokens.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from pact_kernels.common.constants import LEAST_PROBABILITY, LEAST_REST
from pact_kernels.types import GateConfig


class VocabularyKl(NamedTuple):
    """KL of K + 1 classes, and its gradient by the logits: softmax_factor * P + sparse."""

    kl: Tensor  # (M,)
    softmax_factor: Tensor  # (M,)
    sparse: Tensor  # (M, K)


def top_p_count(logits: Tensor, top_p: float, temperature: float) -> Tensor:
    """(M,) entries of softmax(logits / temperature), largest first, until they sum to top_p."""
    mass = (logits / temperature).softmax(-1).sort(-1, descending=True).values.cumsum_(-1)  # (M, K)
    # Logits of no distribution, all -inf, reach nothing: K of them.
    missing = logits.shape[-1] - (mass >= top_p).sum(-1)
    return missing.add_(1).clamp_(max=logits.shape[-1])


def normaliser(lse: Tensor, selected: Tensor) -> Tensor:
    """(M,) the log-sum-exp, but no less than that of the K selected logits (M, K) alone.

    Where it was summed from rounded logits it may be less: in 16 bits a logit of 1e4 is off by 4
    (fp16) or 32 (bf16), and a confidence would be e^4 or e^32.
    """
    return torch.maximum(lse, selected.logsumexp(-1))


def gate_value(student: Tensor, post: Tensor, step: Tensor, gate: GateConfig) -> Tensor:
    """(M,) the gate c, from (M, K) logits of the student and of the post-only reference."""
    width = student.shape[-1]
    count = top_p_count(student, gate.top_p, gate.temperature)
    difference = (count - top_p_count(post, gate.top_p, gate.temperature)).to(student.dtype) / width
    past = (step - gate.prefix_length).to(student.dtype)  # (M,)
    if gate.decay_tau > 0:
        decay = torch.exp(past.clamp_(min=0.0) / -gate.decay_tau)
    else:
        decay = (past < 0).to(student.dtype)
    return torch.sigmoid(gate.alpha * (difference - gate.bias)) * decay * gate.prefix_boost


def mix(full: Tensor, post: Tensor | None, c: Tensor | None) -> Tensor:
    """(1 - c) full + c post, or full itself without a gate.

    It is -inf where either is, unless c leaves that one out: 0 times anything is 0.
    """
    if post is None or c is None:
        return full
    c = c.unsqueeze(-1)
    mixed = torch.where(full == -torch.inf, full, full + c * (post - full))
    return torch.where(c == 0, full, torch.where(c == 1, post, mixed))


def selection_kl(
    student: Tensor,  # (M, K)
    mixed: Tensor,  # (M, K)
    log_weight: Tensor,  # (K,) log of the tokens' weights, -inf where a weight is not positive
    temperature: float,
) -> tuple[Tensor, Tensor]:  # (M,), (M, K)
    """KL over the K tokens and its gradient T (softmax(u / T) - q) by the student's logits.

    q = normalise(softmax(m / T) w) is formed as softmax(m / T + log w): equal, and sound where the
    product would underflow.
    """
    target = (mixed / temperature + log_weight).softmax(-1)  # (M, K)
    log_student = (student / temperature).log_softmax(-1)
    log_target = target.clamp(min=LEAST_PROBABILITY).log_()
    kl = temperature**2 * _expected(target, log_target - log_student)
    return kl, temperature * (log_student.exp_() - target)


def vocabulary_kl(
    student: Tensor,  # (M, K) log-confidences
    full: Tensor,  # (M, K)
    post: Tensor | None,  # (M, K)
    c: Tensor | None,  # (M,)
) -> VocabularyKl:
    """KL of the K confidences and the rest of the mass, and its gradient by the full logits.

    The K + 1 classes are normalised: where the rest is clamped they would sum to Z, more than 1.
    With r = q_rest / P_rest, or 1 / Z where the student's rest is clamped and passes no gradient,

        d kl / d z_v = softmax_factor P_v (+ r P_v - q_v on the K tokens)
        softmax_factor = sum_k (q_k - r P_k)

    The factor is 1 - r where nothing is clamped, and formed as that it would keep few digits: with
    K of many tokens both sums are small.
    """
    mass = student.exp()  # (M, K)
    selected = mass.sum(-1, keepdim=True)  # (M, 1)
    rest = 1.0 - selected  # (M, 1)
    least = rest.clamp(min=LEAST_REST)
    log_p = torch.cat((student, least.log()), -1).log_softmax(-1)  # (M, K + 1)
    mixed = mix(_with_rest(full), None if post is None else _with_rest(post), c)
    log_q = mixed.log_softmax(-1)
    q = log_q.exp()
    kl = _expected(q, log_q - log_p)
    ratio = torch.where(rest <= LEAST_REST, 1.0 / (selected + least), q[:, -1:] / rest)  # (M, 1)
    sparse = ratio * mass - q[:, :-1]  # (M, K)
    return VocabularyKl(kl, -sparse.sum(-1), sparse)


def _expected(q: Tensor, values: Tensor) -> Tensor:
    """(M,) sum of q times values, where a probability of 0 counts nothing, whatever its value."""
    return (q * values).masked_fill_(q == 0, 0.0).sum(-1)


def _with_rest(log_confidence: Tensor) -> Tensor:
    """(M, K + 1) log-confidences with the log of the remaining mass appended."""
    rest = 1.0 - log_confidence.exp().sum(-1, keepdim=True)
    return torch.cat((log_confidence, rest.clamp(min=LEAST_REST).log()), -1)
