"""The reference of a KL, as the operators take it.

Legend: N rows, D hidden size, V vocabulary, K selected tokens.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from pact_kernels.ops.linear_logsumexp import streamed_logsumexp
from pact_kernels.ops.validation import autocast_inputs, check_head
from pact_kernels.types import ReferenceLogits, ReferenceStates


@torch.no_grad()
def reference_tensors(
    reference: ReferenceLogits | ReferenceStates,
    token_ids: Tensor,
    *,
    over: str,
    counted: Tensor | None = None,
    num_rows: int | None = None,
    bias: Tensor | None,
    softcap: float | None,
    logit_scale: float,
) -> dict[str, Tensor | None]:
    """Operator arguments of a flat reference: logits or states, its rows of the K tokens, and lse.

    From states the K logits are formed inside the operator; their log-sum-exp is streamed here,
    over the counted rows alone where a mask (N,) is given; num_rows is `known_rows` of it.
    """
    if isinstance(reference, ReferenceLogits):
        return {
            "reference_full": reference.full,
            "reference_post": reference.post,
            "full_lse": reference.full_lse,
            "post_lse": reference.post_lse,
        }
    if reference.bias is None:
        reference = reference._replace(bias=bias)
    lse: dict[str, Tensor | None] = {}
    if over == "vocabulary":
        reference = in_one_dtype(reference)
        full, post, weight, bias = reference
        head: dict[str, Any] = {"bias": bias, "softcap": softcap, "logit_scale": logit_scale}
        if counted is not None:
            head["target"] = torch.where(counted, 0, -100)
            head["num_rows"] = num_rows
        check_head(full, weight, bias, "reference.full_hidden")
        lse["full_lse"] = streamed_logsumexp(full, weight, **head)
        lse["post_lse"] = None if post is None else streamed_logsumexp(post, weight, **head)
    full, post, weight, bias = in_one_dtype(_of_tokens(reference, token_ids))
    return {
        "reference_full": full,
        "reference_post": post,
        "reference_weight": weight,
        "reference_bias": bias,
        **lse,
    }


def in_one_dtype(states: ReferenceStates) -> ReferenceStates:
    """States and head in the head's dtype, or in autocast's."""
    full, weight, bias = autocast_inputs(states.full_hidden, states.weight, states.bias)
    post = states.post_hidden
    return ReferenceStates(
        full.to(weight.dtype), None if post is None else post.to(weight.dtype), weight, bias
    )


def _of_tokens(states: ReferenceStates, token_ids: Tensor) -> ReferenceStates:
    """The same states with the head's rows of the selected tokens alone."""
    bias = states.bias
    return states._replace(
        weight=states.weight.index_select(0, token_ids),
        bias=None if bias is None else bias.index_select(0, token_ids),
    )
