"""What an implementation of an operator returns.

Legend: R positions, N rows, D hidden size, V vocabulary, K selected tokens.
"""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor


class HeadLoss(NamedTuple):
    """Row values over all R positions, 0 where ignored, and gradients; an absent one is empty."""

    term: Tensor  # (R,) fp32, cross-entropy or log-sum-exp
    kl: Tensor  # (R,) before kl_weight
    gate: Tensor  # (R,)
    num_rows: Tensor  # () int64
    grad_hidden: Tensor  # (R, D) like hidden
    grad_weight: Tensor  # (V, D) fp32
    grad_bias: Tensor  # (V,) fp32


class ReducedHeadLoss(NamedTuple):
    """A reduced loss, and gradients of it; in fp16 of its sum. An absent one is empty."""

    loss: Tensor  # () fp32, term + kl_weight * kl
    reports: Tensor  # (3,) fp32: term and kl reduced likewise, and the mean gate
    num_rows: Tensor  # () int64
    grad_hidden: Tensor  # (R, D) like hidden
    grad_weight: Tensor  # (V, D) fp32
    grad_bias: Tensor  # (V,) fp32


class SelectionKl(NamedTuple):
    """Row values and gradients of the selected-token KL; an absent gradient is empty."""

    kl: Tensor  # (N,) fp32, times row_weight
    gate: Tensor  # (N,)
    grad_hidden: Tensor  # (N, D) like hidden
    grad_weight: Tensor  # (K, D) fp32
    grad_bias: Tensor  # (K,) fp32
