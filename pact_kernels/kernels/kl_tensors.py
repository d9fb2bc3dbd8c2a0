"""What the selected-token KL reads and fills.

Legend: N rows, D hidden size, K selected tokens.
"""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor


class KlOut(NamedTuple):
    """What the kernel fills; None is not written."""

    kl: Tensor  # (N,) fp32, times row_weight
    gate: Tensor  # (N,) fp32
    grad_hidden: Tensor | None  # (N, D) like hidden
    gradient: Tensor | None  # (N, K) fp32, see `launch_pact_kl`
    share: Tensor | None  # (N,) fp32, times row_weight and kl_weight


class RowTensors(NamedTuple):
    """What each row brings besides logits, in the order of the rows; None is its neutral value."""

    log_weight: Tensor  # (K,) fp32, shared by the rows: log of the tokens' weights
    step: Tensor  # (N,) int
    row_weight: Tensor | None  # (N,)
    row_grad: Tensor | None  # (N,)
    largest: Tensor | None  # (N,) of the student's logits, as `slab_loss.Softmax`
    total: Tensor | None  # (N,)
    full_lse: Tensor | None  # (N,)
    post_lse: Tensor | None  # (N,)
    target: Tensor | None  # (N,) int64; rows of ignore_index come out 0
    ignore_index: int


class SelectedSource(NamedTuple):
    """Selected logits, or what they are formed from."""

    values: Tensor  # (N, K) logits, or (N, D) states where weight is given
    weight: Tensor | None = None  # (K, D)
    bias: Tensor | None = None  # (K,)
