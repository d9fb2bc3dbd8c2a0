"""Cross-entropy of a linear head, without its logits."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from pact_kernels.common.reduction import reduction_of
from pact_kernels.dispatch import is_naive
from pact_kernels.ops._checks.arguments import (
    autocast_inputs,
    check_cross_entropy,
    check_head,
    check_reduction,
    check_target,
    num_rows_hint,
    whole_or_local,
)
from pact_kernels.ops._operators.head_loss import HeadLossArguments, head_loss
from pact_kernels.types import Head


def linear_cross_entropy(
    hidden: Tensor,
    weight: Tensor,
    target: Tensor,
    *,
    bias: Tensor | None = None,
    ignore_index: int = -100,
    reduction: str = "mean",
    softcap: float | None = None,
    logit_scale: float = 1.0,
    label_smoothing: float = 0.0,
    z_loss: float = 0.0,
    num_items: int | float | Tensor | None = None,
    process_group: Any = None,
) -> Tensor:
    """Cross-entropy of softcap(logit_scale (hidden weight^T + bias)) with the targets, in nats.

    With z a row's logits, y its target, e the label smoothing and lse = log sum_v exp(z_v):

        row = (1 - e)(lse - z_y) + e (lse - mean_v z_v) + z_loss lse^2

    Rows whose target is `ignore_index` are dropped before any product. On a GPU that is done for
    hidden (B, L, D) and waits for the device once; hidden (N, D) keeps its rows and waits for
    nothing, and an ignored row costs what another does. A weight that does not require a gradient
    gets no gradient work.

    Args:
        hidden: (N, D) or (B, L, D), fp32, bf16, fp16 or fp64.
        weight: (V, D), like hidden.
        target: (N,) or (B, L) int64, already shifted: the token that each state predicts.
        bias: (V,) or None.
        ignore_index: the target of positions that do not count.
        reduction: "mean" over counted rows, "sum", or "none" for the shape of target with 0 where
            ignored.
        softcap: cap of softcap * tanh(z / softcap), or None.
        logit_scale: factor on the logits, before the cap.
        label_smoothing: e, in [0, 1).
        z_loss: weight of lse^2.
        num_items: the mean's denominator instead of the number of counted rows, e.g. that of a
            whole optimiser step; a 0-d tensor stays on its device, and a 0 in it counts as 1.
        process_group: over which the head's rows are sharded, see `vocabulary-parallel heads` in
            docs/guides/operators.md; weight and bias are then this process's part, or DTensors.

    Returns:
        () or target's shape, fp32 (fp64 for fp64 inputs). A mean over no row is 0.

    Raises:
        ValueError: shapes, dtypes or numbers do not fit; on a CPU also a target outside [0, V).
    """
    head = whole_or_local(Head(weight, bias, softcap, logit_scale), process_group)
    check_head(hidden, head)
    check_cross_entropy(label_smoothing, z_loss)
    check_reduction(reduction, num_items)
    flat_target = check_target(hidden, target)
    hidden, head = autocast_inputs(hidden, head)
    if process_group is not None:
        from pact_kernels.ops._parallel.losses import cross_entropy

        loss = cross_entropy(
            hidden.reshape(-1, hidden.shape[-1]),
            head,
            flat_target,
            group=process_group,
            ignore_index=ignore_index,
            label_smoothing=label_smoothing,
            z_loss=z_loss,
            reduction=reduction,
            num_items=num_items,
        )
        return loss.reshape(target.shape) if reduction == "none" else loss
    if is_naive():
        from pact_kernels.naive.linear_cross_entropy import linear_cross_entropy as dense

        return dense(
            hidden,
            head.weight,
            target.long(),
            ignore_index=ignore_index,
            reduction=reduction,
            label_smoothing=label_smoothing,
            z_loss=z_loss,
            num_items=num_items,
            **head.options,
        )
    values = head_loss(
        HeadLossArguments(
            hidden.reshape(-1, hidden.shape[-1]),
            head,
            flat_target,
            kind="cross_entropy",
            ignore_index=ignore_index,
            label_smoothing=label_smoothing,
            z_loss=z_loss,
            num_rows=num_rows_hint(hidden, flat_target, ignore_index),
        ),
        reduction_of(reduction, num_items),
    )
    return values.loss.reshape(target.shape) if reduction == "none" else values.loss
