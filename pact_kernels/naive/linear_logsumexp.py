"""log sum_v exp(z_v), from all logits."""

from __future__ import annotations

from typing import Unpack

from torch import Tensor

from pact_kernels.naive.logits import logits
from pact_kernels.types import HeadOptions


def linear_logsumexp(hidden: Tensor, weight: Tensor, **head: Unpack[HeadOptions]) -> Tensor:
    """(..., D), (V, D) -> (...)."""
    return logits(hidden, weight, **head).logsumexp(-1)
