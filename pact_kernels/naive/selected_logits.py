"""The selected columns of all logits, formed in fp32 however the inputs are rounded."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from pact_kernels.naive.logits import logits


def selected_logits(hidden: Tensor, weight: Tensor, token_ids: Tensor, **head: Any) -> Tensor:
    """(..., D), (V, D), (K,) -> (..., K)."""
    if hidden.dtype != torch.float64:
        hidden, weight = hidden.float(), weight.float()
    return logits(hidden, weight, **head)[..., token_ids]
