"""Every op as a competent user writes it in torch: all logits of the answer rows, in the dtype of
the states, and softmax in fp32.

One product serves cross-entropy and KL. Where the formula needs K columns of the head alone, no
more are formed, unless `every_column` asks for what the released implementation does.

Hand-written beside the oracle, `pact_kernels.naive`, which upcasts and materialises more than a
user would, and beside Liger's and TRL's references, which have no gate and no selection.

Legend: N rows, D hidden size, V vocabulary, K selected tokens.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from pact_kernels import GateConfig, ReferenceLogits, ReferenceStates
from pact_kernels.naive.pact_kl import gate_value, selection_target

LEAST_REST = 1e-6
"""The least mass that is on no selected token."""


def logits(hidden: Tensor, weight: Tensor, softcap: float | None = None) -> Tensor:
    """(N, D), (V, D) -> (N, V) fp32."""
    z = functional.linear(hidden, weight).float()
    return z if softcap is None else softcap * (z / softcap).tanh()


def selected_logits(
    hidden: Tensor, weight: Tensor, token_ids: Tensor, every_column: bool = False
) -> Tensor:
    """(N, D), (V, D), (K,) -> (N, K) fp32."""
    if every_column:
        return logits(hidden, weight)[:, token_ids]
    return logits(hidden, weight[token_ids])


def linear_cross_entropy(
    hidden: Tensor, weight: Tensor, target: Tensor, softcap: float | None
) -> Tensor:
    """Mean over the rows."""
    return functional.cross_entropy(logits(hidden, weight, softcap), target)


def linear_logsumexp(hidden: Tensor, weight: Tensor, softcap: float | None) -> Tensor:
    """(N,)"""
    return logits(hidden, weight, softcap).logsumexp(-1)


def selected_confidences(hidden: Tensor, weight: Tensor, token_ids: Tensor, over: str) -> Tensor:
    """(N, K)"""
    if over == "selection":
        return selected_logits(hidden, weight, token_ids).softmax(-1)
    return logits(hidden, weight).softmax(-1)[:, token_ids]


def token_scores(
    aligned_hidden: Tensor,
    aligned_weight: Tensor,
    base_hidden: Tensor,
    base_weight: Tensor,
    sample: Tensor,  # (N,) ascending
) -> tuple[Tensor, Tensor]:
    """-> difference and confidence, (V,) each: means over samples of the means over their rows."""
    rows_of = torch.zeros_like(sample).scatter_add(0, sample, torch.ones_like(sample))
    share = 1.0 / (rows_of[sample] * (sample[-1] + 1))  # (N,)
    confidence = share @ logits(aligned_hidden, aligned_weight).softmax(-1)
    return confidence - share @ logits(base_hidden, base_weight).softmax(-1), confidence


def pact_kl(
    hidden: Tensor,
    weight: Tensor,
    token_ids: Tensor,
    *rest: Any,
    over: str,
    every_column: bool = False,
    **options: Any,
) -> Tensor:
    """Mean over the rows; the rest is as `pact_kernels.pact_kl` takes it."""
    if over == "selection":
        u = selected_logits(hidden, weight, token_ids, every_column)
    else:
        u = logits(hidden, weight).log_softmax(-1)[:, token_ids]
    return _kl(u, token_ids, *rest, over=over, every_column=every_column, **options)


def pact_loss(
    hidden: Tensor,
    weight: Tensor,
    target: Tensor,
    token_ids: Tensor,
    *rest: Any,
    over: str,
    **options: Any,
) -> Tensor:
    """Cross-entropy + KL, means over the rows, from one product with the student's head."""
    z = logits(hidden, weight)  # (N, V)
    if over == "vocabulary":
        z = z.log_softmax(-1)
    kl = _kl(z[:, token_ids], token_ids, *rest, over=over, **options)
    cross_entropy = functional.cross_entropy if over == "selection" else functional.nll_loss
    return cross_entropy(z, target) + kl


def _kl(
    u: Tensor,  # (N, K) the student's logits or, over the vocabulary, its log-confidences
    token_ids: Tensor,
    token_weights: Tensor,
    step: Tensor,
    reference: ReferenceStates | ReferenceLogits,
    *,
    over: str,
    gate: GateConfig | None,
    temperature: float,
    every_column: bool = False,
) -> Tensor:
    known = _known(reference, token_ids, over, every_column)
    m = _target(known.full, known.full_lse)
    if gate is not None and known.post is not None:
        # The gate counts entries of a softmax over K: a shift by the log-sum-exp is nothing to it.
        c = gate_value(u.detach(), known.post, step, gate)[:, None]
        m = (1 - c) * m + c * _target(known.post, known.post_lse)
    if over == "selection":
        q = selection_target(m, token_weights, temperature)
        log_student = (u / temperature).log_softmax(-1)
        return temperature**2 * (q * (q.clamp(min=1e-12).log() - log_student)).sum(-1).mean()
    log_q = m.log_softmax(-1)
    return (log_q.exp() * (log_q - _with_rest(u).log_softmax(-1))).sum(-1).mean()


@torch.no_grad()
def _known(
    reference: ReferenceStates | ReferenceLogits, token_ids: Tensor, over: str, every_column: bool
) -> ReferenceLogits:
    if isinstance(reference, ReferenceLogits):
        return reference
    full, post, weight, _ = reference

    def formed(states: Tensor) -> tuple[Tensor, Tensor | None]:
        if over == "selection":
            return selected_logits(states, weight, token_ids, every_column), None
        z = logits(states, weight)  # (N, V)
        return z[:, token_ids], z.logsumexp(-1)

    selected, lse = formed(full)
    post_selected, post_lse = (None, None) if post is None else formed(post)
    return ReferenceLogits(selected, post_selected, lse, post_lse)


def _target(selected: Tensor, lse: Tensor | None) -> Tensor:
    """(N, K) as they are or, over the vocabulary, (N, K + 1) log-confidences."""
    return selected if lse is None else _with_rest(selected - lse[:, None])


def _with_rest(log_p: Tensor) -> Tensor:
    rest = (1 - log_p.exp().sum(-1, keepdim=True)).clamp(min=LEAST_REST)
    return torch.cat((log_p, rest.log()), -1)
