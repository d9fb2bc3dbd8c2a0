"""Log-sum-exp of a linear head's logits, without them."""

from __future__ import annotations

from torch import Tensor

from pact_kernels.implementation import is_naive
from pact_kernels.ops.head_loss import head_loss
from pact_kernels.ops.validation import autocast_inputs, check_head, check_numbers


def linear_logsumexp(
    hidden: Tensor,
    weight: Tensor,
    *,
    bias: Tensor | None = None,
    softcap: float | None = None,
    logit_scale: float = 1.0,
) -> Tensor:
    """lse_n = log sum_v exp(z_nv), z = softcap(logit_scale (hidden weight^T + bias)).

    Args:
        hidden: (N, D) or (B, L, D).
        weight: (V, D), like hidden.
        bias: (V,) or None.
        softcap: cap of softcap * tanh(z / softcap), or None.
        logit_scale: factor on the logits, before the cap.

    Returns:
        (N,) or (B, L), fp32 (fp64 for fp64 inputs), in nats; differentiable by hidden, weight and
        bias.

    Raises:
        ValueError: shapes, dtypes or numbers do not fit.
    """
    check_head(hidden, weight, bias)
    check_numbers(softcap=softcap, logit_scale=logit_scale)
    hidden, weight, bias = autocast_inputs(hidden, weight, bias)
    if is_naive():
        from pact_kernels.naive.linear_logsumexp import linear_logsumexp as dense

        return dense(hidden, weight, bias=bias, softcap=softcap, logit_scale=logit_scale)
    rows = hidden.reshape(-1, hidden.shape[-1])
    lse = streamed_logsumexp(rows, weight, bias=bias, softcap=softcap, logit_scale=logit_scale)
    return lse.reshape(hidden.shape[:-1])


def streamed_logsumexp(
    rows: Tensor,
    weight: Tensor,
    *,
    target: Tensor | None = None,
    num_rows: int | None = None,
    bias: Tensor | None,
    softcap: float | None,
    logit_scale: float,
) -> Tensor:
    """(N, D), (V, D) -> (N,); 0 where a target (N,) is given and is -100: no product there."""
    return head_loss(
        False,
        hidden=rows,
        weight=weight,
        target=target,
        bias=bias,
        term="logsumexp",
        num_rows=num_rows,
        softcap=softcap,
        logit_scale=logit_scale,
    ).loss
