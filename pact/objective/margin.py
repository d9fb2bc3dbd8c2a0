"""A reference that is surer of the safety tokens than the frozen model, by a margin.

Why: where the fine-tuning data hold nothing harmful, the student meets the reference's confidence
on its own rows by a shift of their logits that is much the same for every prompt. On a harmful
prompt that shift takes refusals down further than any row of the data shows. The margin makes up
for it.

With P the reference's softmax and S = sum_s P_s over the safety tokens, the odds of each safety
token against the rest are multiplied by exp(margin):

    P'_s = P_s exp(margin) / Z,   rest' = (1 - S) / Z,   Z = 1 + (exp(margin) - 1) S

Legend: N rows, D hidden size, V vocabulary, K safety tokens.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

import pact_kernels as pk
from pact_kernels.types import Head

MOST = 1 - 1e-6
"""The most mass on the safety tokens: the rest is at least 1e-6, as in the KL."""


@torch.no_grad()
def with_margin(
    reference: pk.ReferenceLogits | pk.ReferenceStates, head: Head, token_ids: Tensor, margin: float
) -> pk.ReferenceLogits:
    """The reference's log-confidences with the margin, as logits whose log-sum-exp is 0.

    Args:
        reference: of N rows; logits bring their log-sum-exp over the vocabulary.
        head: the student's, for the soft cap, the logit scale, and the bias of states without one.
        token_ids: (K,) int64.
        margin: in nats.
    """
    if isinstance(reference, pk.ReferenceLogits):
        (full, post, full_lse, post_lse) = reference
        assert full_lse is not None
        full = full - full_lse[:, None]
        if post is not None:
            assert post_lse is not None
            post = post - post_lse[:, None]
    else:
        bias = head.bias if reference.bias is None else reference.bias
        head = head._replace(weight=reference.weight, bias=bias)
        full = log_confidences(reference.full_hidden, head, token_ids)
        post = reference.post_hidden
        if post is not None:
            post = log_confidences(post, head, token_ids)
    zero = full.new_zeros(full.shape[0])  # (N,)
    return pk.ReferenceLogits(
        _raised(full, margin),
        None if post is None else _raised(post, margin),
        zero,
        None if post is None else zero,
    )


def log_confidences(hidden: Tensor, head: Head, token_ids: Tensor) -> Tensor:
    """(N, D) -> (N, K) fp32 log-probabilities of the tokens."""
    hidden = hidden.to(head.weight.dtype)
    logits = pk.selected_logits(hidden, head.weight, token_ids, **head.options)  # (N, K)
    lse = pk.linear_logsumexp(hidden, head.weight, **head.options)  # (N,)
    return (logits - lse[:, None]).float()


def _raised(log_confidence: Tensor, margin: float) -> Tensor:
    """(N, K) -> (N, K): log P'_s."""
    mass = log_confidence.exp().sum(-1, keepdim=True).clamp(max=MOST)  # (N, 1)
    return log_confidence + margin - torch.log1p(math.expm1(margin) * mass)
