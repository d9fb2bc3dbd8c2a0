"""The reference of a KL, as the operators take it.

Legend: N rows, D hidden size, V vocabulary, K selected tokens.
"""

from __future__ import annotations

import torch
from torch import Tensor

from pact_kernels.ops._checks.arguments import autocast_inputs, check_head
from pact_kernels.ops._operators.head_loss import streamed_logsumexp
from pact_kernels.ops._operators.kl_arguments import ReferenceArguments
from pact_kernels.types import Head, ReferenceLogits, ReferenceStates


@torch.no_grad()
def reference_arguments(
    reference: ReferenceLogits | ReferenceStates,
    token_ids: Tensor,
    head: Head,
    *,
    over: str,
    counted: Tensor | None = None,
    num_rows: int | None = None,
) -> ReferenceArguments:
    """Operator arguments of a flat reference: logits or states, its rows of the K tokens, and lse.

    From states the K logits are formed inside the operator; their log-sum-exp is streamed here,
    over the counted rows alone where a mask (N,) is given; num_rows is `num_rows_hint` of it. The
    reference's logits are capped and scaled as those of `head`, the student's.
    """
    if isinstance(reference, ReferenceLogits):
        full, post, full_lse, post_lse = reference
        return ReferenceArguments(full, post, full_lse=full_lse, post_lse=post_lse)
    if reference.bias is None:
        reference = reference._replace(bias=head.bias)
    full_lse = post_lse = None
    if over == "vocabulary":
        reference = in_one_dtype(reference)
        full, post, weight, bias = reference
        own = head._replace(weight=weight, bias=bias)
        target = None if counted is None else torch.where(counted, 0, -100)
        hint = None if counted is None else num_rows
        check_head(full, own, "reference.full_hidden")
        full_lse = streamed_logsumexp(full, own, target=target, num_rows=hint)
        if post is not None:
            post_lse = streamed_logsumexp(post, own, target=target, num_rows=hint)
    selected = Head(reference.weight, reference.bias).select(token_ids)
    full, post, weight, bias = in_one_dtype(
        reference._replace(weight=selected.weight, bias=selected.bias)
    )
    return ReferenceArguments(full, post, weight, bias, full_lse, post_lse)


def in_one_dtype(states: ReferenceStates) -> ReferenceStates:
    """States and head in the head's dtype, or in autocast's."""
    full, (weight, bias, _, _) = autocast_inputs(
        states.full_hidden, Head(states.weight, states.bias)
    )
    post = states.post_hidden
    return ReferenceStates(
        full.to(weight.dtype), None if post is None else post.to(weight.dtype), weight, bias
    )
