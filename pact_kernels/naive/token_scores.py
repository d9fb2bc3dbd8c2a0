"""How far the aligned model's confidence in a token exceeds the base model's, from all logits."""

from __future__ import annotations

import torch
from torch import Tensor

from pact_kernels.naive.logits import logits


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
    """Mean over a sample's rows, then over samples, of difference and P_aligned: (V,) each."""
    numbers = softcap, logit_scale
    z_aligned = logits(aligned_hidden, aligned_weight, aligned_bias, *numbers) / temperature
    z_base = logits(base_hidden, base_weight, base_bias, *numbers) / temperature
    log_aligned, log_base = z_aligned.log_softmax(-1), z_base.log_softmax(-1)
    p_aligned = log_aligned.exp()
    if mode == "p_diff":
        change = p_aligned - log_base.exp()
    else:
        change = p_aligned * (log_base - log_aligned)
    members = [sample == s for s in sample.unique()]
    means = [(change[m].mean(0), p_aligned[m].mean(0)) for m in members]
    difference, confidence = zip(*means, strict=True)
    return torch.stack(difference).mean(0), torch.stack(confidence).mean(0)
