"""Log-sum-exp of a linear head's logits, without them."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from pact_kernels.dispatch import is_naive
from pact_kernels.ops._checks.arguments import autocast_inputs, check_head, whole_or_local
from pact_kernels.ops._operators.head_loss import streamed_logsumexp
from pact_kernels.types import Head


def linear_logsumexp(
    hidden: Tensor,
    weight: Tensor,
    *,
    bias: Tensor | None = None,
    softcap: float | None = None,
    logit_scale: float = 1.0,
    process_group: Any = None,
) -> Tensor:
    """lse_n = log sum_v exp(z_nv), z = softcap(logit_scale (hidden weight^T + bias)).

    Args:
        hidden: (N, D) or (B, L, D).
        weight: (V, D), like hidden.
        bias: (V,) or None.
        softcap: cap of softcap * tanh(z / softcap), or None.
        logit_scale: factor on the logits, before the cap.
        process_group: over which the head's rows are sharded, see `vocabulary-parallel heads` in
            docs/guides/operators.md; weight and bias are then this process's part, or DTensors.

    Returns:
        (N,) or (B, L), fp32 (fp64 for fp64 inputs), in nats; differentiable by hidden, weight and
        bias.

    Raises:
        ValueError: shapes, dtypes or numbers do not fit.
    """
    head = whole_or_local(Head(weight, bias, softcap, logit_scale), process_group)
    check_head(hidden, head)
    hidden, head = autocast_inputs(hidden, head)
    if process_group is not None:
        from pact_kernels.ops._parallel.losses import logsumexp_rows

        rows = hidden.reshape(-1, hidden.shape[-1])
        return logsumexp_rows(rows, head, process_group).reshape(hidden.shape[:-1])
    if is_naive():
        from pact_kernels.naive.linear_logsumexp import linear_logsumexp as dense

        return dense(hidden, head.weight, **head.options)
    rows = hidden.reshape(-1, hidden.shape[-1])
    return streamed_logsumexp(rows, head).reshape(hidden.shape[:-1])
