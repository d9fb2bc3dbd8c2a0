"""KL of the selected tokens to the gated mixture of both references, alone.

Legend: N rows, D hidden size, V vocabulary, K selected tokens.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor

from pact_kernels.common.reduction import reduction_of
from pact_kernels.dispatch import is_naive
from pact_kernels.ops._checks.arguments import (
    autocast_inputs,
    check_head,
    check_reduction,
    whole_or_local,
)
from pact_kernels.ops._checks.kl import check_kl, resolve_temperature
from pact_kernels.ops._operators.head_loss import HeadLossArguments, head_loss
from pact_kernels.ops._operators.kl_arguments import KlArguments, gate_values
from pact_kernels.ops._operators.references import in_one_dtype, reference_arguments
from pact_kernels.ops._operators.selection_kl import SelectionKlArguments, selection_kl
from pact_kernels.types import GateConfig, Head, ReferenceLogits, ReferenceStates


def pact_kl(
    hidden: Tensor,
    weight: Tensor,
    token_ids: Tensor,
    token_weights: Tensor | None,
    step: Tensor,
    reference: ReferenceLogits | ReferenceStates,
    *,
    gate: GateConfig | None = GateConfig(),  # noqa: B008  (frozen)
    temperature: float | None = None,
    over: str = "selection",
    row_weight: Tensor | None = None,
    reduction: str = "mean",
    num_items: int | float | Tensor | None = None,
    bias: Tensor | None = None,
    softcap: float | None = None,
    logit_scale: float = 1.0,
    process_group: Any = None,
) -> Tensor:
    """KL of every row's target to the student's confidences on the K selected tokens, in nats.

    With u, f, p the selected logits of the student, of the reference on the full context and on the
    post-only input, and c the gate (`GateConfig`; 0 with gate=None; no gradient flows through it):

        over="selection":   m = (1 - c) f + c p,   q = normalise(softmax(m / T) max(weights, 0))
                            kl = T^2 sum_s q_s (log q_s - log softmax(u / T)_s)
        over="vocabulary":  K + 1 classes: the tokens' confidences and the rest of the mass, which
                            is at least 1e-6; q mixes the references' log-masses by c; both are
                            normalised to sum to 1
                            kl = sum_s q_s log(q_s / P_s) + q_rest log(q_rest / P_rest)

    Two properties of "selection": a common shift of all K logits is not penalised, and the weights
    make the loss positive even where student and reference agree. "vocabulary" is 0 exactly where
    the student's confidences are q. It needs the student's log-sum-exp, so it costs the products of
    a cross-entropy (inside `pact_loss` they are shared), and one product more for each context of a
    reference that comes as states. Source: arXiv 2603.07445 (selection); this package (vocabulary).

    Args:
        hidden: (N, D) or (B, L, D) the student's states; every position is a row.
        weight: (V, D) the student's head.
        token_ids: (K,) int64, distinct; or (N, K), a set for each row, over the vocabulary and with
            a reference of logits: what anyone's teacher stored of its most likely tokens.
        token_weights: (K,), used by over="selection": positive parts count, and there must be one.
            None where token_ids are (N, K).
        step: (N,) or (B, L) int64 or int32, each row's step within its answer.
        reference: logits (N, K) or states (N, D) of the same rows; no gradient reaches it.
        gate: the gate's settings, or None for the full-context reference alone.
        temperature: T; unset is 2 for "selection" and 1, the only one, for "vocabulary".
        over: "selection" or "vocabulary".
        row_weight: (N,) factor on each row's kl, or None.
        reduction: "mean" over the rows, "sum", or "none" for the rows.
        num_items: the mean's denominator instead of the number of rows.
        bias: (V,) or None.
        softcap: cap of softcap * tanh(z / softcap), or None.
        logit_scale: factor on the logits, before the cap.
        process_group: over which the head's rows are sharded, see `vocabulary-parallel heads` in
            docs/guides/operators.md; weight and bias are then this process's part, or DTensors.

    Returns:
        () or hidden's leading shape, fp32 (fp64 for fp64 inputs). A mean over no row is 0.

    Raises:
        ValueError: shapes, dtypes or numbers do not fit; on a CPU also ids outside [0, V) or given
            twice, or no positive weight for over="selection".
    """
    head = whole_or_local(Head(weight, bias, softcap, logit_scale), process_group)
    check_head(hidden, head)
    check_reduction(reduction, num_items)
    temperature = resolve_temperature(over, temperature)
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
    )
    rows = hidden.reshape(-1, hidden.shape[-1])
    if rows.shape[0] != step.shape[0]:
        raise ValueError(
            f"step must have one entry per row of hidden, {rows.shape[0]}, got {step.shape[0]}"
        )
    if process_group is not None:
        from pact_kernels.ops._parallel.losses import Kl, reduced, row_losses

        wanted = Kl(
            token_ids=token_ids,
            token_weights=token_weights,
            step=step,
            reference=reference,
            row_weight=row_weight,
            gate=gate,
            over=over,
            temperature=temperature,
        )
        rows, head = autocast_inputs(rows, head)
        found = row_losses(rows, head, None, wanted, process_group).kl
        assert found is not None
        loss = reduced(found, reduction, num_items, rows.shape[0])
        return loss.reshape(hidden.shape[:-1]) if reduction == "none" else loss
    if over == "vocabulary" or is_naive():  # the selection alone casts no more than K rows
        rows, head = autocast_inputs(rows, head)
    if is_naive():
        from pact_kernels.naive.pact_kl import pact_kl as dense

        if isinstance(reference, ReferenceStates):
            reference = in_one_dtype(reference)
        loss = dense(
            rows,
            head.weight,
            token_ids,
            token_weights,
            step,
            reference,
            reduction=reduction,
            num_items=num_items,
            gate=gate,
            temperature=temperature,
            over=over,
            row_weight=row_weight,
            **head.options,
        )
        return loss.reshape(hidden.shape[:-1]) if reduction == "none" else loss
    kl = KlArguments(
        token_weights=token_weights,
        step=step,
        reference=reference_arguments(reference, token_ids, head, over=over),
        row_weight=row_weight,
        gate=gate_values(gate),
        over=over,
        temperature=temperature,
    )
    asked = reduction_of(reduction, num_items)
    if over == "vocabulary":
        arguments = HeadLossArguments(rows, head, token_ids=token_ids, kl=kl)
        loss = head_loss(arguments, asked).loss
    else:
        rows, selected = autocast_inputs(rows, head.select(token_ids))
        loss = selection_kl(SelectionKlArguments(rows, selected, kl), asked)
    return loss.reshape(hidden.shape[:-1]) if reduction == "none" else loss
