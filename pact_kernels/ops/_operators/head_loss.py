"""The operator behind every loss that needs the whole vocabulary: `pact_kernels::head_loss`.

4 NDV flops for a frozen head and 6 for a trainable one; 2 NDV more where each row is returned by
itself.

Legend: R positions, N rows (positions whose target is not ignored), D hidden size, V vocabulary,
K selected tokens.
"""

from __future__ import annotations

from typing import NamedTuple, cast

import torch
from torch import Tensor

from pact_kernels.common.reduction import Reduction, divided, row_factor
from pact_kernels.common.requests import NeedsGrad, TermKind, TermRequest
from pact_kernels.ops._operators.backend import backend
from pact_kernels.ops._operators.kl_arguments import KlArguments
from pact_kernels.ops._operators.row_loss import RowLossOperator, RowResult, Settings
from pact_kernels.types import Head


class HeadLossArguments(NamedTuple):
    """What the operator takes; what is left out is off."""

    hidden: Tensor
    """(R, D)"""
    head: Head
    """(V, D)"""
    target: Tensor | None = None
    """(R,); None keeps every position."""
    token_ids: Tensor | None = None
    """(K,); None: no KL."""
    kl: KlArguments = KlArguments()
    kind: str = "none"
    """The term beside the KL: "cross_entropy", "logsumexp" or "none"."""
    ignore_index: int = -100
    label_smoothing: float = 0.0
    z_loss: float = 0.0
    num_rows: int | None = None
    """N where the host knows it, or R to leave rows where they are."""

    def term(self) -> TermRequest:
        """The term beside the KL."""
        return TermRequest(
            kind=cast("TermKind", self.kind),
            ignore_index=self.ignore_index,
            label_smoothing=self.label_smoothing,
            z_loss=self.z_loss,
        )


class HeadLossValues(NamedTuple):
    """Results of the operator: reduced, or by row with reduction "none"."""

    loss: Tensor
    """() or (R,) term + kl_weight * kl; alone differentiable."""
    reports: Tensor
    """(3,) or (3, R): term and kl, reduced as the loss is, and the gate, its mean over rows."""
    num_rows: Tensor
    """() int64"""


BY_ROW = Reduction("none")


def head_loss(arguments: HeadLossArguments, reduction: Reduction = BY_ROW) -> HeadLossValues:
    """Call the operator."""
    return HeadLossValues(*_operator(arguments, reduction))


def streamed_logsumexp(
    rows: Tensor, head: Head, *, target: Tensor | None = None, num_rows: int | None = None
) -> Tensor:
    """(N, D), (V, D) -> (N,); 0 where a target (N,) is given and is -100: no product there."""
    arguments = HeadLossArguments(rows, head, target, kind="logsumexp", num_rows=num_rows)
    return head_loss(arguments).loss


def _run(
    arguments: HeadLossArguments,
    settings: Settings,
    row_grad: Tensor | None,
    needs_grad: NeedsGrad,
) -> RowResult:
    out = backend("head_loss", settings.implementation).head_loss(
        arguments.hidden,
        arguments.head,
        arguments.target,
        arguments.token_ids,
        term=arguments.term(),
        kl=arguments.kl.request(arguments.head),
        row_grad=row_grad,
        needs_grad=needs_grad,
        limit_bytes=settings.workspace_bytes,
        num_rows=arguments.num_rows,
    )
    loss = out.term + arguments.kl.kl_weight * out.kl
    gradients = (out.grad_hidden, out.grad_weight, out.grad_bias)
    return RowResult(loss, torch.stack((out.term, out.kl, out.gate)), out.num_rows, gradients)


def _reduce(arguments: HeadLossArguments, settings: Settings, needs_grad: NeedsGrad) -> RowResult:
    if settings.implementation == "triton":
        out = backend("head_loss", "triton").reduced_head_loss(
            arguments.hidden,
            arguments.head,
            arguments.target,
            arguments.token_ids,
            term=arguments.term(),
            kl=arguments.kl.request(arguments.head),
            reduction=settings.reduction,
            needs_grad=needs_grad,
            limit_bytes=settings.workspace_bytes,
            num_rows=arguments.num_rows,
        )
        return RowResult(out.loss, out.reports, out.num_rows, tuple(out[3:]))
    target, hidden = arguments.target, arguments.hidden
    counted = hidden.shape[0] if target is None else (target != arguments.ignore_index).sum()
    denominator = settings.reduction.denominator(counted)
    by_row = _run(arguments, settings, row_factor(denominator, hidden), needs_grad)
    loss, reports = by_row.loss.sum(), by_row.reports.sum(1)
    gate = reports[2] / by_row.num_rows.clamp(min=1)
    term, kl = divided(reports[:2], denominator).unbind()
    return by_row._replace(loss=divided(loss, denominator), reports=torch.stack((term, kl, gate)))


_operator = RowLossOperator("head_loss", HeadLossArguments, _run, _reduce, num_reports=3)
