"""Cross-entropy and the KL on the selected tokens, in one pass over the head.

Legend: B sequences, L positions, N rows, D hidden size, V vocabulary, K selected tokens.
"""

from __future__ import annotations

from typing import Any

import torch
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
from pact_kernels.ops._checks.kl import check_kl, check_kl_weight, resolve_temperature
from pact_kernels.ops._operators.head_loss import HeadLossArguments, head_loss
from pact_kernels.ops._operators.kl_arguments import KlArguments, gate_values
from pact_kernels.ops._operators.references import in_one_dtype, reference_arguments
from pact_kernels.types import GateConfig, Head, PactLoss, ReferenceLogits, ReferenceStates


def pact_loss(
    hidden: Tensor,
    weight: Tensor,
    target: Tensor,
    token_ids: Tensor,
    token_weights: Tensor | None,
    step: Tensor,
    reference: ReferenceLogits | ReferenceStates,
    *,
    kl_weight: float = 1.0,
    gate: GateConfig | None = GateConfig(),  # noqa: B008  (frozen)
    temperature: float | None = None,
    over: str = "selection",
    row_weight: Tensor | None = None,
    reduction: str = "mean",
    num_items: int | float | Tensor | None = None,
    bias: Tensor | None = None,
    ignore_index: int = -100,
    softcap: float | None = None,
    logit_scale: float = 1.0,
    label_smoothing: float = 0.0,
    z_loss: float = 0.0,
    process_group: Any = None,
) -> PactLoss:
    """cross_entropy + kl_weight * kl over the rows whose target is not ignored.

    The terms are those of `linear_cross_entropy` and `pact_kl`. They share two products with the
    vocabulary (three with a trainable head); the KL adds K entries per row to the logits' gradient.
    Only a reference that comes as states, with over="vocabulary", needs products of its own.
    Where step, reference and row_weight have one entry per kept row, their length tells the host
    how many there are and nothing waits for a GPU; else see `linear_cross_entropy`.

    Args:
        hidden: (N, D) or (B, L, D) the student's states.
        weight: (V, D) the student's head.
        target: (N,) or (B, L) int64, already shifted.
        token_ids: (K,) int64, distinct; or (N, K), a set for each row, see `pact_kl`.
        token_weights: (K,), used by over="selection"; None where token_ids are (N, K).
        step: int64 or int32, each row's step within its answer. step, reference and row_weight have
            one entry per row, in the order in which the rows stand in target once ignored ones are
            dropped, or one entry per position of target; so have token_ids (N, K).
        reference: logits (N, K) or states (N, D); no gradient reaches it.
        kl_weight: lambda.
        gate, temperature, over, row_weight: as in `pact_kl`.
        reduction: "mean" over the rows, "sum", or "none" for the shape of target with 0 where
            ignored.
        num_items: the denominator of both means instead of the number of rows, e.g. the rows of the
            whole optimiser step over all micro-batches and ranks.
        bias, ignore_index, softcap, logit_scale, label_smoothing, z_loss: as in
            `linear_cross_entropy`.
        process_group: over which the head's rows are sharded, see `vocabulary-parallel heads` in
            docs/guides/operators.md; weight and bias are then this process's part, or DTensors.

    Returns:
        PactLoss(loss, cross_entropy, kl, num_rows, mean_gate); only loss carries a gradient.

    Raises:
        ValueError: shapes, dtypes or numbers do not fit; on a CPU also targets or ids outside
            [0, V), ids given twice, or no positive weight for over="selection".
    """
    head = whole_or_local(Head(weight, bias, softcap, logit_scale), process_group)
    check_head(hidden, head)
    check_cross_entropy(label_smoothing, z_loss)
    check_reduction(reduction, num_items)
    flat_target = check_target(hidden, target)
    temperature, kl_weight = resolve_temperature(over, temperature), check_kl_weight(kl_weight)
    token_ids, token_weights, step, reference, row_weight = check_kl(
        hidden,
        head.weight,
        token_ids,
        token_weights,
        step,
        reference,
        row_weight,
        gate=gate,
        over=over,
        process_group=process_group,
        target=flat_target,
        ignore_index=ignore_index,
    )
    hidden, head = autocast_inputs(hidden, head)
    rows = hidden.reshape(-1, hidden.shape[-1])
    if process_group is not None:
        from pact_kernels.ops._parallel.losses import Kl, pact

        asked = Kl(
            token_ids=token_ids,
            token_weights=token_weights,
            step=step,
            reference=reference,
            row_weight=row_weight,
            gate=gate,
            over=over,
            temperature=temperature,
        )
        found = pact(
            rows,
            head,
            flat_target,
            asked,
            group=process_group,
            ignore_index=ignore_index,
            label_smoothing=label_smoothing,
            z_loss=z_loss,
            kl_weight=kl_weight,
            reduction=reduction,
            num_items=num_items,
        )
        if reduction != "none":
            return found
        loss, cross_entropy, kl = (each.reshape(target.shape) for each in found[:3])
        return PactLoss(loss, cross_entropy, kl, found.num_rows, found.mean_gate)
    if is_naive():
        return _dense(
            rows,
            head.weight,
            flat_target,
            token_ids,
            token_weights,
            step,
            reference,
            target.shape,
            row_weight=row_weight,
            gate=gate,
            reduction=reduction,
            num_items=num_items,
            ignore_index=ignore_index,
            label_smoothing=label_smoothing,
            z_loss=z_loss,
            kl_weight=kl_weight,
            over=over,
            temperature=temperature,
            **head.options,
        )
    # Where they have an entry per position, the reference's other positions are not read either.
    counted = None
    if isinstance(reference, ReferenceStates) and step.numel() == flat_target.numel():
        counted = flat_target != ignore_index
    num_rows = num_rows_hint(hidden, flat_target, ignore_index, step)
    values = head_loss(
        HeadLossArguments(
            rows,
            head,
            flat_target,
            token_ids,
            KlArguments(
                token_weights=token_weights,
                step=step,
                reference=reference_arguments(
                    reference, token_ids, head, over=over, counted=counted, num_rows=num_rows
                ),
                row_weight=row_weight,
                gate=gate_values(gate),
                over=over,
                temperature=temperature,
                kl_weight=kl_weight,
            ),
            kind="cross_entropy",
            ignore_index=ignore_index,
            label_smoothing=label_smoothing,
            z_loss=z_loss,
            num_rows=num_rows,
        ),
        reduction_of(reduction, num_items),
    )
    losses = [values.loss, *values.reports[:2].unbind()]
    mean_gate = values.reports[2]
    if reduction == "none":
        losses = [row.reshape(target.shape) for row in losses]
        mean_gate = mean_gate.sum() / values.num_rows.clamp(min=1)
    return PactLoss(losses[0], losses[1], losses[2], values.num_rows, mean_gate)


def _dense(
    rows: Tensor,
    weight: Tensor,
    target: Tensor,
    token_ids: Tensor,
    token_weights: Tensor,
    step: Tensor,
    reference: ReferenceLogits | ReferenceStates,
    shape: torch.Size,
    *,
    row_weight: Tensor | None,
    **options: Any,
) -> PactLoss:
    """The dense formula; per-position arguments are cut to the kept rows first."""
    from pact_kernels.naive.pact_loss import pact_loss as dense

    keep = target != options["ignore_index"]
    if isinstance(reference, ReferenceStates):
        reference = in_one_dtype(reference)
    if step.numel() != int(keep.sum()):
        weight_of_head = reference.weight if isinstance(reference, ReferenceStates) else None
        reference = reference._replace(
            **{
                name: value[keep]
                for name, value in reference._asdict().items()
                if value is not None and value is not weight_of_head and name != "bias"
            }
        )
        step = step[keep]
        token_ids = token_ids if token_ids.dim() == 1 else token_ids[keep]
        row_weight = None if row_weight is None else row_weight[keep]
    out = dense(
        rows,
        weight,
        target,
        token_ids,
        token_weights,
        step,
        reference,
        row_weight=row_weight,
        **options,
    )
    if options["reduction"] != "none":
        return out
    return out._replace(
        loss=out.loss.reshape(shape),
        cross_entropy=out.cross_entropy.reshape(shape),
        kl=out.kl.reshape(shape),
    )
