"""Cross-entropy alone: ordinary fine-tuning, through the same fused op.

Legend: N rows, D hidden size.
"""

from __future__ import annotations

import torch
from torch import Tensor

import pact_kernels as pk
from pact_kernels.types import Head


class CrossEntropy:
    """An `Objective` without a reference; `kl` and `mean_gate` of its losses are 0."""

    needs_reference = False
    needs_post_only = False

    def __call__(
        self,
        hidden: Tensor,
        head: Head,
        target: Tensor,
        step: Tensor,
        reference: pk.ReferenceLogits | pk.ReferenceStates | None = None,
        *,
        num_items: int | Tensor | None = None,
    ) -> pk.PactLoss:
        """Loss of N answer rows; steps and a reference change nothing."""
        loss = pk.linear_cross_entropy(
            hidden, head.weight, target, num_items=num_items, **head.options
        )
        zero = torch.zeros((), device=loss.device)
        rows = torch.full((), target.numel(), device=loss.device)
        return pk.PactLoss(loss, loss.detach(), zero, rows, zero)
