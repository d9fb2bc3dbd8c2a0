"""The reference of a KL, as the operators take it."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from pact_kernels.ops.linear_logsumexp import linear_logsumexp
from pact_kernels.ops.validation import check_head
from pact_kernels.types import GateConfig, ReferenceLogits, ReferenceStates


@torch.no_grad()
def reference_tensors(
    reference: ReferenceLogits | ReferenceStates,
    token_ids: Tensor,
    *,
    gate: GateConfig | None,
    over: str,
    bias: Tensor | None,
    softcap: float | None,
    logit_scale: float,
) -> dict[str, Tensor | None]:
    """Operator arguments of a flat reference: logits or states, its rows of the K tokens, and lse.

    From states the K logits are formed inside the operator; their log-sum-exp is streamed here.
    """
    if isinstance(reference, ReferenceLogits):
        post = reference.post if gate is not None else None
        post_lse = reference.post_lse if gate is not None else None
        return {
            "reference_full": reference.full,
            "reference_post": post,
            "full_lse": reference.full_lse,
            "post_lse": post_lse,
        }
    full, post, weight, own_bias = reference
    bias = bias if own_bias is None else own_bias
    weight = weight.detach()
    full = full.to(weight.dtype)
    post = post.to(weight.dtype) if post is not None and gate is not None else None
    check_head(full, weight, bias, "reference.full_hidden")
    tensors: dict[str, Tensor | None] = {
        "reference_full": full,
        "reference_post": post,
        "reference_weight": weight.index_select(0, token_ids),
        "reference_bias": None if bias is None else bias.detach().index_select(0, token_ids),
    }
    if over == "vocabulary":
        head: dict[str, Any] = {"bias": bias, "softcap": softcap, "logit_scale": logit_scale}
        tensors["full_lse"] = linear_logsumexp(full, weight, **head)
        tensors["post_lse"] = None if post is None else linear_logsumexp(post, weight, **head)
    return tensors
