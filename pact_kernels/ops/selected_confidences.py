"""Softmax confidences of a few tokens, without the full logits."""

from __future__ import annotations

import torch
from torch import Tensor

from pact_kernels.dispatch import is_naive, operator_implementation
from pact_kernels.ops._checks.arguments import (
    autocast_inputs,
    check_head,
    check_temperature,
    check_tokens,
)
from pact_kernels.ops._operators.selected_log_confidences import selected_log_confidences
from pact_kernels.ops.linear_logsumexp import linear_logsumexp
from pact_kernels.ops.selected_logits import selected_logits
from pact_kernels.types import Head


def selected_confidences(
    hidden: Tensor,
    weight: Tensor,
    token_ids: Tensor,
    *,
    over: str = "vocabulary",
    temperature: float = 1.0,
    bias: Tensor | None = None,
    softcap: float | None = None,
    logit_scale: float = 1.0,
) -> Tensor:
    """Softmax of the logits / temperature at the selected tokens.

        over="vocabulary":  exp(z_k / T - log sum_{v in V} exp(z_v / T))
        over="selection":   exp(z_k / T - log sum_{s in S} exp(z_s / T))

    Args:
        hidden: (N, D) or (B, L, D).
        weight: (V, D), like hidden.
        token_ids: (K,) int64, distinct.
        over: what the softmax runs over.
        temperature: T, positive.
        bias: (V,) or None.
        softcap: cap of softcap * tanh(z / softcap), or None.
        logit_scale: factor on the logits, before the cap.

    Returns:
        (N, K) or (B, L, K), fp32 (fp64 for fp64 inputs); differentiable by hidden, weight and bias.
        On a CPU, over the vocabulary, 16-bit inputs round the logits of the log-sum-exp to 16 bits,
        and a confidence is off by as much; the K of a row sum to 1 at most.

    Raises:
        ValueError: shapes, dtypes or numbers do not fit.
    """
    if over not in ("selection", "vocabulary"):
        raise ValueError(f"over must be 'selection' or 'vocabulary', got {over!r}")
    check_temperature(temperature)
    head = Head(weight, bias, softcap, logit_scale)
    check_head(hidden, head)
    if is_naive():
        from pact_kernels.naive.selected_confidences import selected_confidences as dense

        hidden, head = autocast_inputs(hidden, head)
        token_ids = check_tokens(hidden, token_ids, head.weight.shape[0])
        return dense(
            hidden, head.weight, token_ids, over=over, temperature=temperature, **head.options
        )
    if over == "vocabulary":  # the selection alone needs no more than K rows of the head cast
        hidden, head = autocast_inputs(hidden, head)
    head = head.at_temperature(temperature)
    leaves = [leaf for leaf in (hidden, head.weight, head.bias) if leaf is not None]
    differentiable = torch.is_grad_enabled() and any(leaf.requires_grad for leaf in leaves)
    if over == "vocabulary" and not differentiable:
        token_ids = check_tokens(hidden, token_ids, head.weight.shape[0])
        rows = hidden.reshape(-1, hidden.shape[-1])
        confidences = selected_log_confidences(rows, head, token_ids).exp_()
        return confidences.reshape(*hidden.shape[:-1], token_ids.numel())
    logits = selected_logits(hidden, head.weight, token_ids, **head.options)
    if over == "selection":
        return logits.softmax(-1)
    lse = linear_logsumexp(hidden, head.weight, **head.options)
    if operator_implementation(hidden) == "chunked":  # whose logits are rounded in 16 bits
        with torch.no_grad():
            missing = (logits.logsumexp(-1) - lse).clamp_(min=0.0)
        lse = lse + missing
    return (logits - lse.unsqueeze(-1)).exp_()
