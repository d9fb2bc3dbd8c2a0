"""The selected columns of all logits, formed in fp32 however the inputs are rounded."""

from __future__ import annotations

from typing import Unpack

import torch
from torch import Tensor

from pact_kernels.naive.logits import logits
from pact_kernels.types import HeadOptions


def selected_logits(
    hidden: Tensor, weight: Tensor, token_ids: Tensor, **head: Unpack[HeadOptions]
) -> Tensor:
    """(..., D), (V, D), (K,) -> (..., K); of ids (N, K) each row's own."""
    if hidden.dtype != torch.float64:
        hidden, weight = hidden.float(), weight.float()
    z = logits(hidden, weight, **head)
    return z[..., token_ids] if token_ids.dim() == 1 else z.gather(-1, token_ids)
