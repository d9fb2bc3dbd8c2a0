"""What the chunk loop is asked for: the head and its row loss, and the KL beside it.

Legend: N rows, D' hidden size of the reference, K selected tokens.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from torch import Tensor

from pact_kernels.types import GateConfig


@dataclass(frozen=True, kw_only=True)
class HeadSpec:
    """The head's map and the term of the row loss beside the KL."""

    term: Literal["cross_entropy", "logsumexp", "none"]
    ignore_index: int
    softcap: float | None
    logit_scale: float
    label_smoothing: float
    z_loss: float

    @classmethod
    def logsumexp(cls, *, softcap: float | None, logit_scale: float) -> HeadSpec:
        """The log-sum-exp of every row."""
        return cls(
            term="logsumexp",
            ignore_index=-100,
            softcap=softcap,
            logit_scale=logit_scale,
            label_smoothing=0.0,
            z_loss=0.0,
        )


@dataclass(frozen=True, kw_only=True)
class KlSpec:
    """The KL term of the row loss. Row tensors have one entry per kept row, or one per position."""

    token_weights: Tensor  # (K,)
    step: Tensor  # (N,)
    reference_full: Tensor  # (N, K) logits, or (N, D') states where reference_weight is given
    reference_post: Tensor | None
    reference_weight: Tensor | None  # (K, D') the reference's rows of the selected tokens
    reference_bias: Tensor | None  # (K,)
    full_lse: Tensor | None  # (N,)
    post_lse: Tensor | None  # (N,)
    row_weight: Tensor | None  # (N,)
    gate: GateConfig | None
    over: Literal["selection", "vocabulary"]
    temperature: float
    kl_weight: float
