"""Softmax confidences of the selected tokens, over the vocabulary or over the selection."""

from __future__ import annotations

from typing import Unpack

from torch import Tensor

from pact_kernels.naive.logits import logits
from pact_kernels.naive.selected_logits import selected_logits
from pact_kernels.types import HeadOptions


def selected_confidences(
    hidden: Tensor,
    weight: Tensor,
    token_ids: Tensor,
    *,
    over: str = "vocabulary",
    temperature: float = 1.0,
    **head: Unpack[HeadOptions],
) -> Tensor:
    """(..., D), (V, D), (K,) -> (..., K)."""
    if over == "selection":
        return (selected_logits(hidden, weight, token_ids, **head) / temperature).softmax(-1)
    return (logits(hidden, weight, **head) / temperature).softmax(-1)[..., token_ids]
