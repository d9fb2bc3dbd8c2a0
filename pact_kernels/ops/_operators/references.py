"""The reference of a KL, as the operators take it.

Legend: N rows, D hidden size, V vocabulary, K selected tokens.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from pact_kernels.ops._checks.arguments import autocast_inputs, check_head
from pact_kernels.ops._operators.head_loss import streamed_logsumexp
from pact_kernels.types import Head, ReferenceLogits, ReferenceStates


@torch.no_grad()
def reference_tensors(
    reference: ReferenceLogits | ReferenceStates,
    token_ids: Tensor,
    head: Head,
    *,
    over: str,
    counted: Tensor | None = None,
    num_rows: int | None = None,
) -> dict[str, Tensor | None]:
    """Operator arguments of a flat reference: logits or states, its rows of the K tokens, and lse.

    From states the K logits are formed inside the operator; their log-sum-exp is streamed here,
    over the counted rows alone where a mask (N,) is given; num_rows is `num_rows_hint` of it. The
    reference's logits are capped and scaled as those of `head`, the student's.
    """
    if isinstance(reference, ReferenceLogits):
        return {
            "reference_full": reference.full,
            "reference_post": reference.post,
            "full_lse": reference.full_lse,
            "post_lse": reference.post_lse,
        }
    if reference.bias is None:
        reference = reference._replace(bias=head.bias)
    lse: dict[str, Tensor | None] = {}
    if over == "vocabulary":
        reference = in_one_dtype(reference)
        full, post, weight, bias = reference
        own = head._replace(weight=weight, bias=bias)
        rows: dict[str, Any] = {}
        if counted is not None:
            rows = {"target": torch.where(counted, 0, -100), "num_rows": num_rows}
        check_head(full, own, "reference.full_hidden")
        lse["full_lse"] = streamed_logsumexp(full, own, **rows)
        lse["post_lse"] = None if post is None else streamed_logsumexp(post, own, **rows)
    selected = Head(reference.weight, reference.bias).select(token_ids)
    full, post, weight, bias = in_one_dtype(
        reference._replace(weight=selected.weight, bias=selected.bias)
    )
    return {
        "reference_full": full,
        "reference_post": post,
        "reference_weight": weight,
        "reference_bias": bias,
        **lse,
    }


def in_one_dtype(states: ReferenceStates) -> ReferenceStates:
    """States and head in the head's dtype, or in autocast's."""
    full, (weight, bias, _, _) = autocast_inputs(
        states.full_hidden, Head(states.weight, states.bias)
    )
    post = states.post_hidden
    return ReferenceStates(
        full.to(weight.dtype), None if post is None else post.to(weight.dtype), weight, bias
    )
