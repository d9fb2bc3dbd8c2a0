"""The operator of the KL over the K selected tokens alone: `pact_kernels::selection_kl`.

4 NDK flops for the student's side. It sees the head's gathered rows (K, D); autograd scatters their
gradient into the head.

Legend: N rows, D hidden size, K selected tokens.
"""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor

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


def selection_kl(
    arguments: SelectionKlArguments, *, reduce: bool, assumed_grad_output: Tensor | None
) -> Tensor:
    """Call the operator: the sum over rows, or (N,) values without `reduce`."""
    return _operator(arguments, reduce=reduce, assumed_grad_output=assumed_grad_output)[0]


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
    return RowResult((out.kl, out.gate), (), (out.grad_hidden, out.grad_weight, out.grad_bias))


_operator = RowLossOperator(
    "selection_kl", SelectionKlArguments, _run, num_rows_values=2, num_counts=0
)
