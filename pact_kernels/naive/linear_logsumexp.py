"""log sum_v exp(z_v), from all logits."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from pact_kernels.naive.logits import logits


def linear_logsumexp(hidden: Tensor, weight: Tensor, **head: Any) -> Tensor:
    """(..., D), (V, D) -> (...)."""
    return logits(hidden, weight, **head).logsumexp(-1)
