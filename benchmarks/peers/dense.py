"""Every op as a competent user writes it in torch: all logits of the answer rows, in the dtype of
the states, and softmax in fp32.

One product serves cross-entropy and KL. Where the formula needs K columns of the head alone, no
more are formed, unless `every_column` asks for what the released implementation does.

Hand-written beside the oracle, `pact_kernels.naive`, which upcasts and materialises more than a
user would, and beside Liger's and TRL's references, which have no gate and no selection.

Legend: N rows, D hidden size, V vocabulary, K selected tokens.
"""

from __future__ import annotations

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
    token_weights: Tensor,
    step: Tensor,
    reference: ReferenceStates | ReferenceLogits,
    over: str,
    gate: GateConfig | None,
    temperature: float,
    every_column: bool = False,
) -> Tensor:
    """Mean over the rows."""
    known = _known(reference, token_ids, over, every_column)
    if over == "selection":
        u = selected_logits(hidden, weight, token_ids, every_column)
        return _over_selection(u, token_weights, step, known, gate, temperature)
    log_p = logits(hidden, weight).log_softmax(-1)
    return _over_vocabulary(log_p[:, token_ids], step, known, gate)


def pact_loss(
    hidden: Tensor,
    weight: Tensor,
    target: Tensor,
    token_ids: Tensor,
    token_weights: Tensor,
    step: Tensor,
    reference: ReferenceStates | ReferenceLogits,
    over: str,
    gate: GateConfig | None,
    temperature: float,
) -> Tensor:
    """Cross-entropy + KL, means over the rows, from one product with the student's head."""
    known = _known(reference, token_ids, over)
    z = logits(hidden, weight)  # (N, V)
    if over == "selection":
        kl = _over_selection(z[:, token_ids], token_weights, step, known, gate, temperature)
        return functional.cross_entropy(z, target) + kl
    log_p = z.log_softmax(-1)
    kl = _over_vocabulary(log_p[:, token_ids], step, known, gate)
    return functional.nll_loss(log_p, target) + kl


@torch.no_grad()
def _known(
    reference: ReferenceStates | ReferenceLogits,
    token_ids: Tensor,
    over: str,
    every_column: bool = False,
) -> ReferenceLogits:
    if isinstance(reference, ReferenceLogits):
        return reference
    full, post, weight, _ = reference
    if over == "selection":
        return ReferenceLogits(
            selected_logits(full, weight, token_ids, every_column),
            None if post is None else selected_logits(post, weight, token_ids, every_column),
        )
    z = logits(full, weight)  # (N, V)
    known = ReferenceLogits(z[:, token_ids], full_lse=z.logsumexp(-1))
    if post is None:
        return known
    z = logits(post, weight)
    return known._replace(post=z[:, token_ids], post_lse=z.logsumexp(-1))


def _over_selection(
    u: Tensor,  # (N, K)
    token_weights: Tensor,
    step: Tensor,
    known: ReferenceLogits,
    gate: GateConfig | None,
    temperature: float,
) -> Tensor:
    m = known.full  # (N, K)
    if gate is not None and known.post is not None:
        c = gate_value(u.detach(), known.post, step, gate)[:, None]
        m = (1 - c) * m + c * known.post
    q = selection_target(m, token_weights, temperature)
    log_student = (u / temperature).log_softmax(-1)
    return temperature**2 * (q * (q.clamp(min=1e-12).log() - log_student)).sum(-1).mean()


def _over_vocabulary(
    log_p: Tensor,  # (N, K) the student's log-confidences
    step: Tensor,
    known: ReferenceLogits,
    gate: GateConfig | None,
) -> Tensor:
    assert known.full_lse is not None
    m = _with_rest(known.full - known.full_lse[:, None])  # (N, K + 1)
    if gate is not None and known.post is not None and known.post_lse is not None:
        # The gate counts entries of a softmax over K: a shift by the log-sum-exp is nothing to it.
        c = gate_value(log_p.detach(), known.post, step, gate)[:, None]
        m = (1 - c) * m + c * _with_rest(known.post - known.post_lse[:, None])
    log_q = m.log_softmax(-1)
    return (log_q.exp() * (log_q - _with_rest(log_p).log_softmax(-1))).sum(-1).mean()


def _with_rest(log_p: Tensor) -> Tensor:
    rest = (1 - log_p.exp().sum(-1, keepdim=True)).clamp(min=LEAST_REST)
    return torch.cat((log_p, rest.log()), -1)
