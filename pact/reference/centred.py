"""Reference logits up to the shift that the objective does not see, so that 16 bits hold them.

With f, p the reference's K logits of a row, m = (1 - c) f + c p and k the gate's token count:

    over="selection"   f and p enter by softmax(m / T) and k(p) alone; adding a to all f_s and b to
                       all p_s adds (1 - c) a + c b to all m_s, and changes neither. Kept is
                       f - max_s f_s.
    over="vocabulary"  f and p enter by f - lse_f, p - lse_p and k(p) alone. Kept is f - lse_f, the
                       log-confidences, whose log-sum-exp over the vocabulary is 0.

Either way the largest entries, which bear the probability, are the closest to 0. Half precision
rounds a kept value x by at most 2^-11 |x| (2^-25 where |x| < 2^-14).

Legend: N rows, D hidden size, V vocabulary, K selected tokens.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

import pact_kernels as pk
from pact.objective.margin import log_confidences
from pact_kernels.types import Head


class CentredLogits(NamedTuple):
    """The kept values of N rows, fp32; as a cache reads them, in its dtype."""

    full: Tensor  # (N, K)
    post: Tensor | None  # (N, K)


def centred_reference(
    reference: pk.ReferenceStates | pk.ReferenceLogits, head: Head, token_ids: Tensor, over: str
) -> CentredLogits:
    """The centred logits of what a reference yields for a batch.

    Args:
        reference: of N rows; states bring their own head, and its bias if it has one.
        head: for the soft cap, the logit scale, and the bias of a reference without one.
        token_ids: (K,) int64.
        over: "selection" or "vocabulary".
    """
    if isinstance(reference, pk.ReferenceLogits):
        full = _shifted(reference.full, reference.full_lse, over)
        post = reference.post
        return CentredLogits(
            full, None if post is None else _shifted(post, reference.post_lse, over)
        )
    bias = head.bias if reference.bias is None else reference.bias
    head = head._replace(weight=reference.weight, bias=bias)
    post = reference.post_hidden
    return CentredLogits(
        centred_logits(reference.full_hidden, head, token_ids, over),
        None if post is None else centred_logits(post, head, token_ids, over),
    )


@torch.no_grad()
def centred_logits(hidden: Tensor, head: Head, token_ids: Tensor, over: str) -> Tensor:
    """(N, K) fp32 centred logits of states (N, D)."""
    if over == "vocabulary":
        return log_confidences(hidden, head, token_ids)
    hidden = hidden.to(head.weight.dtype)
    return _shifted(pk.selected_logits(hidden, head.weight, token_ids, **head.options), None, over)


def _shifted(logits: Tensor, lse: Tensor | None, over: str) -> Tensor:
    if over == "selection":
        return (logits - logits.amax(-1, keepdim=True)).float()
    assert lse is not None
    return (logits - lse[:, None]).float()
