"""The operator of the KL over the K selected tokens alone: `pact_kernels::selection_kl`.

4 NDK flops for the student's side. It sees the head's gathered rows (K, D); autograd scatters their
gradient into the head.

Legend: N rows, D hidden size, K selected tokens.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from pact_kernels.common.reduction import Reduction, divided, row_factor
from pact_kernels.common.requests import NeedsGrad
from pact_kernels.ops._operators.backend import backend
from pact_kernels.ops._operators.kl_arguments import KlArguments
from pact_kernels.ops._operators.row_loss import RowLossOperator, RowResult, Settings
from pact_kernels.types import Head


class SelectionKlArguments(NamedTuple):
    """What the operator takes."""

    hidden: Tensor
    """(N, D)"""
    head: Head
    """(K, D), the rows of the selected tokens."""
    kl: KlArguments


def selection_kl(arguments: SelectionKlArguments, reduction: Reduction) -> Tensor:
    """Call the operator: the reduced KL, or (N,) values."""
    return _operator(arguments, reduction)[0]


def _run(
    arguments: SelectionKlArguments,
    settings: Settings,
    row_grad: Tensor | None,
    needs_grad: NeedsGrad,
) -> RowResult:
    out = backend("selection_kl", settings.implementation).selection_kl(
        arguments.hidden,
        arguments.head,
        kl=arguments.kl.request(arguments.head),
        row_grad=row_grad,
        needs_grad=needs_grad,
        limit_bytes=settings.workspace_bytes,
    )
    num_rows = torch.full((), out.kl.shape[0], device=out.kl.device)
    gradients = (out.grad_hidden, out.grad_weight, out.grad_bias)
    return RowResult(out.kl, out.kl.new_empty((0, *out.kl.shape)), num_rows, gradients)


def _reduce(
    arguments: SelectionKlArguments, settings: Settings, needs_grad: NeedsGrad
) -> RowResult:
    denominator = settings.reduction.denominator(arguments.hidden.shape[0])
    row_grad = None
    if isinstance(denominator, float) and arguments.hidden.dtype != torch.float16:
        # A number rides on the KL's weight, which scales the gradient alone.
        kl = arguments.kl._replace(kl_weight=arguments.kl.kl_weight / denominator)
        arguments = arguments._replace(kl=kl)
    else:
        row_grad = row_factor(denominator, arguments.hidden)
    by_row = _run(arguments, settings, row_grad, needs_grad)
    loss = divided(by_row.loss.sum(), denominator)
    return by_row._replace(loss=loss, reports=loss.new_empty(0))


_operator = RowLossOperator("selection_kl", SelectionKlArguments, _run, _reduce, num_reports=0)
