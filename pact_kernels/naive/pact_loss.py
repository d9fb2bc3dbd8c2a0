"""Cross-entropy plus kl_weight times the KL, each by its own dense formula."""

from __future__ import annotations

from typing import Any, Unpack

import torch
from torch import Tensor

from pact_kernels.naive.linear_cross_entropy import linear_cross_entropy
from pact_kernels.naive.logits import reduce_rows
from pact_kernels.naive.pact_kl import pact_kl_rows
from pact_kernels.types import HeadOptions, PactLoss


def pact_loss(
    hidden: Tensor,
    weight: Tensor,
    target: Tensor,
    *args: Any,
    kl_weight: float = 1.0,
    ignore_index: int = -100,
    reduction: str = "mean",
    label_smoothing: float = 0.0,
    z_loss: float = 0.0,
    num_items: int | float | Tensor | None = None,
    gate: Any,
    temperature: float,
    over: str,
    row_weight: Tensor | None = None,
    **head: Unpack[HeadOptions],
) -> PactLoss:
    """Rows are the positions whose target is not ignored; the KL's arguments follow their order."""
    keep = target != ignore_index
    options: dict[str, Any] = {
        "ignore_index": ignore_index,
        "label_smoothing": label_smoothing,
        "z_loss": z_loss,
    }
    ce = linear_cross_entropy(
        hidden, weight, target, reduction=reduction, num_items=num_items, **options, **head
    )
    rows, c = pact_kl_rows(
        hidden[keep],
        weight,
        *args,
        gate=gate,
        temperature=temperature,
        over=over,
        row_weight=row_weight,
        **head,
    )
    kl_rows = torch.zeros(target.shape, dtype=rows.dtype, device=rows.device)
    kl = reduce_rows(kl_rows.masked_scatter(keep, rows), keep, reduction, num_items)
    num_rows = keep.sum()
    loss = ce + kl_weight * kl
    return PactLoss(loss, ce.detach(), kl.detach(), num_rows, c.sum() / num_rows.clamp(min=1))
