"""What an implementation is asked for: the term of the row loss, and the KL beside it.

Legend: N rows, D' hidden size of the reference, K selected tokens.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from torch import Tensor

from pact_kernels.types import GateConfig, Head

NeedsGrad = tuple[bool, bool, bool]
"""Whether the gradient by hidden, weight and bias is asked for."""
TermKind = Literal["cross_entropy", "logsumexp", "none"]
Over = Literal["selection", "vocabulary"]
"""What the KL's classes are: the K tokens alone, or with the rest of the vocabulary as one more."""


@dataclass(frozen=True, kw_only=True)
class TermRequest:
    """The term of the row loss beside the KL."""

    kind: TermKind
    ignore_index: int = -100
    label_smoothing: float = 0.0
    z_loss: float = 0.0


LOGSUMEXP = TermRequest(kind="logsumexp")
"""The log-sum-exp of every row."""


@dataclass(frozen=True, kw_only=True)
class KlRequest:
    """The KL term of the row loss. Row tensors have one entry per kept row, or one per position."""

    token_weights: Tensor  # (K,)
    step: Tensor  # (N,)
    reference_full: Tensor  # (N, K) logits, or (N, D') states where reference_head is given
    reference_post: Tensor | None  # likewise
    reference_head: Head | None  # (K, D') its rows of the selected tokens
    full_lse: Tensor | None  # (N,)
    post_lse: Tensor | None  # (N,)
    row_weight: Tensor | None  # (N,)
    gate: GateConfig | None
    over: Over
    temperature: float
    kl_weight: float
