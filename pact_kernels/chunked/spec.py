"""What the chunk loop is asked for: the head and its row loss, and the KL beside it.

Legend: R positions, N rows (positions whose target is not ignored), D hidden size, V vocabulary,
K selected tokens.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, Literal

import torch
from torch import Tensor

from pact_kernels.chunked.selected_logits import selected_logits
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

    def log_weight(self, dtype: torch.dtype) -> Tensor:
        """(K,) log of the weights' positive parts; -inf for the others."""
        return self.token_weights.to(dtype).clamp(min=0.0).log_()

    def of_rows(self, kept: Tensor | None, num_rows: int, num_positions: int) -> KlSpec:
        """The same with one entry per kept row.

        Raises:
            ValueError: the row tensors have neither N nor R entries.
        """
        given = self.step.shape[0]
        if given == num_rows:
            return self
        if given != num_positions or kept is None:
            raise ValueError(
                f"step, reference and row_weight must have one entry per row, {num_rows} once ignored "
                f"targets are dropped (or one per position, {num_positions}), got {given}"
            )
        taken: dict[str, Any] = {"step": self.step.index_select(0, kept)}
        for name in ("reference_full", "reference_post", "full_lse", "post_lse", "row_weight"):
            value = getattr(self, name)
            taken[name] = None if value is None else value.index_select(0, kept)
        return replace(self, **taken)

    def reference_logits(
        self,
        rows: slice,
        *,
        dtype: torch.dtype,
        softcap: float | None,
        logit_scale: float,
        limit_bytes: int,
    ) -> tuple[Tensor, Tensor | None]:
        """Selected logits (M, K) of both references for some rows; log-confidences where lse is given."""

        def formed(source: Tensor, lse: Tensor | None) -> Tensor:
            block = source[rows].to(dtype)
            if self.reference_weight is not None:
                block = selected_logits(
                    block,
                    self.reference_weight.to(dtype),
                    self.reference_bias,
                    softcap=softcap,
                    logit_scale=logit_scale,
                    limit_bytes=limit_bytes,
                )
            return block if lse is None else block - lse[rows, None].to(dtype)

        over_vocabulary = self.over == "vocabulary"
        full = formed(self.reference_full, self.full_lse if over_vocabulary else None)
        if self.gate is None or self.reference_post is None:
            return full, None
        return full, formed(self.reference_post, self.post_lse if over_vocabulary else None)
