"""Scores from which the safety tokens are chosen, streamed over the vocabulary."""

from __future__ import annotations

import torch
from torch import Tensor

from pact_kernels.dispatch import is_naive
from pact_kernels.ops._checks.arguments import (
    INTEGERS,
    autocast_inputs,
    check_devices,
    check_head,
    check_temperature,
)
from pact_kernels.ops._operators import token_scores as operator
from pact_kernels.types import Head

MODES = ("p_diff", "pref_logratio")


@torch.no_grad()
def token_scores(
    aligned_hidden: Tensor,
    aligned_weight: Tensor,
    base_hidden: Tensor,
    base_weight: Tensor,
    sample: Tensor,
    *,
    mode: str = "p_diff",
    temperature: float = 1.0,
    aligned_bias: Tensor | None = None,
    base_bias: Tensor | None = None,
    softcap: float | None = None,
    logit_scale: float = 1.0,
) -> tuple[Tensor, Tensor]:
    """Mean over samples of the mean over a sample's rows, for every token of the vocabulary, of

        difference = P_aligned - P_base                              mode="p_diff"
                   = P_aligned (log P_base - log P_aligned)          mode="pref_logratio"
        confidence = P_aligned

    Nothing of size N x V is formed, and nothing is differentiable. Source: safety-token discovery
    of arXiv 2603.07445.

    Args:
        aligned_hidden: (N, D) states of the aligned model that predict the rows' tokens.
        aligned_weight: (V, D) its head.
        base_hidden: (N, D') states of the base model on the same rows.
        base_weight: (V, D') its head.
        sample: (N,) int64 or int32, the sample that each row belongs to; any numbering.
        mode: "p_diff" or "pref_logratio".
        temperature: both models' logits are divided by it.
        aligned_bias: (V,) or None.
        base_bias: (V,) or None.
        softcap: cap of softcap * tanh(z / softcap) of both heads, or None.
        logit_scale: factor on the logits of both heads, before the cap.

    Returns:
        difference (V,) and confidence (V,), fp32 (fp64 for fp64 inputs).

    Raises:
        ValueError: shapes, dtypes or numbers do not fit, or there is no row.
    """
    aligned = Head(aligned_weight, aligned_bias, softcap, logit_scale)
    base = Head(base_weight, base_bias, softcap, logit_scale)
    check_head(aligned_hidden, aligned, "aligned_hidden")
    check_head(base_hidden, base, "base_hidden")
    check_devices(aligned_hidden, "aligned_hidden", base_hidden=base_hidden, sample=sample)
    if sample.dtype not in INTEGERS:
        raise ValueError(f"sample must be int64 or int32, got {sample.dtype}")
    num_rows = sample.numel()
    if aligned_hidden.shape[:-1].numel() != num_rows or base_hidden.shape[:-1].numel() != num_rows:
        raise ValueError(
            f"aligned_hidden, base_hidden and sample must have the same rows, got "
            f"{tuple(aligned_hidden.shape)}, {tuple(base_hidden.shape)} and {tuple(sample.shape)}"
        )
    if num_rows == 0:
        raise ValueError("token_scores needs at least one row, got none")
    if aligned_weight.shape[0] != base_weight.shape[0]:
        raise ValueError(
            f"both heads must have one vocabulary, got {aligned_weight.shape[0]} and "
            f"{base_weight.shape[0]}: the base model is of another family"
        )
    if mode not in MODES:
        raise ValueError(f"mode must be one of {MODES}, got {mode!r}")
    check_temperature(temperature)
    sample = sample.reshape(-1).long()
    aligned_hidden, aligned = autocast_inputs(aligned_hidden.reshape(num_rows, -1), aligned)
    base_hidden, base = autocast_inputs(base_hidden.reshape(num_rows, -1), base)
    if is_naive():
        from pact_kernels.naive.token_scores import token_scores as dense

        return dense(
            aligned_hidden,
            aligned.weight,
            base_hidden,
            base.weight,
            sample,
            mode=mode,
            temperature=temperature,
            aligned_bias=aligned.bias,
            base_bias=base.bias,
            softcap=softcap,
            logit_scale=logit_scale,
        )
    return operator.token_scores(
        aligned_hidden,
        aligned.at_temperature(temperature),
        base_hidden,
        base.at_temperature(temperature),
        _row_weight(sample),
        mode=mode,
    )


def _row_weight(sample: Tensor) -> Tensor:
    """(N,) fp64: 1 / (rows of the row's sample * number of samples), without a device sync."""
    ordered, order = sample.sort()
    first = torch.ones_like(ordered)
    first[1:] = (ordered[1:] != ordered[:-1]).long()
    group = torch.empty_like(sample)
    group[order] = first.cumsum(0) - 1  # (N,) samples numbered from 0
    rows = torch.zeros_like(sample).scatter_add_(0, group, torch.ones_like(sample))
    return 1.0 / (rows[group] * first.sum()).to(torch.float64)
