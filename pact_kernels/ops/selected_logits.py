"""Logits of a few tokens: one gather of the head's rows and one small product in fp32."""

from __future__ import annotations

from torch import Tensor

from pact_kernels.dispatch import is_naive
from pact_kernels.ops._checks.arguments import autocast_inputs, check_head, check_tokens
from pact_kernels.ops._operators import selected_logits as operator
from pact_kernels.types import Head


def selected_logits(
    hidden: Tensor,
    weight: Tensor,
    token_ids: Tensor,
    *,
    bias: Tensor | None = None,
    softcap: float | None = None,
    logit_scale: float = 1.0,
) -> Tensor:
    """z_nk = softcap(logit_scale (hidden_n . weight[id_k] + bias[id_k])), formed in fp32.

    2 NDK flops: the other rows of the head are not read.

    Args:
        hidden: (N, D) or (B, L, D).
        weight: (V, D), like hidden.
        token_ids: (K,) int64, distinct.
        bias: (V,) or None.
        softcap: cap of softcap * tanh(z / softcap), or None.
        logit_scale: factor on the logits, before the cap.

    Returns:
        (N, K) or (B, L, K), fp32 (fp64 for fp64 inputs); differentiable by hidden, weight and bias.

    Raises:
        ValueError: shapes, dtypes or numbers do not fit; on a CPU also ids outside [0, V) or given
            twice.
    """
    head = Head(weight, bias, softcap, logit_scale)
    check_head(hidden, head)
    token_ids = check_tokens(hidden, token_ids, weight.shape[0])
    if is_naive():
        from pact_kernels.naive.selected_logits import selected_logits as dense

        hidden, head = autocast_inputs(hidden, head)
        return dense(hidden, head.weight, token_ids, **head.options)
    rows, selected = autocast_inputs(hidden.reshape(-1, hidden.shape[-1]), head.select(token_ids))
    out = operator.selected_logits(rows, selected)
    return out.reshape(*hidden.shape[:-1], token_ids.numel())
