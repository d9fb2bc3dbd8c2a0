"""The operator of the KL over the K selected tokens alone: `pact_kernels::selection_kl`.

4 NDK flops for the student's side. It sees the head's gathered rows (K, D); autograd scatters their
gradient into the head.

Legend: N rows, D hidden size, K selected tokens.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor

from pact_kernels.common.requests import NeedsGrad
from pact_kernels.ops._operators.backend import backend
from pact_kernels.ops._operators.kl_request import kl_request
from pact_kernels.ops._operators.row_loss import RowLossOperator, RowResult
from pact_kernels.types import Head

ARGUMENTS = (
    "Tensor hidden",  # (N, D)
    "Tensor selected_weight",  # (K, D)
    "Tensor? selected_bias",  # (K,)
    "Tensor token_weights",  # (K,)
    "Tensor step",  # (N,)
    "Tensor reference_full",  # (N, K) logits, or (N, D') states if reference_weight is given
    "Tensor? reference_post",  # likewise
    "Tensor? reference_weight",  # (K, D')
    "Tensor? reference_bias",  # (K,)
    "Tensor? row_weight",  # (N,)
    "float? softcap",
    "float logit_scale",
    "float[]? gate",  # the fields of GateConfig, in order
    "float temperature",
)


def selection_kl(reduce: bool, hidden: Tensor, selected: Head, **arguments: Any) -> Tensor:
    """Call the operator: the sum over rows, or (N,) values without `reduce`."""
    weight, bias, softcap, logit_scale = selected
    return _operator(
        reduce,
        hidden=hidden,
        selected_weight=weight,
        selected_bias=bias,
        softcap=softcap,
        logit_scale=logit_scale,
        **arguments,
    )[0]


def _run(a: dict[str, Any], row_grad: Tensor | None, needs_grad: NeedsGrad) -> RowResult:
    selected = Head(a["selected_weight"], a["selected_bias"], a["softcap"], a["logit_scale"])
    out = backend("selection_kl", a["implementation"]).selection_kl(
        a["hidden"],
        selected,
        kl=kl_request({**a, "over": "selection", "kl_weight": 1.0}, selected),
        row_grad=row_grad,
        needs_grad=needs_grad,
        limit_bytes=a["workspace_bytes"],
    )
    return RowResult((out.kl, out.gate), (), (out.grad_hidden, out.grad_weight, out.grad_bias))


_operator = RowLossOperator(
    "selection_kl",
    ARGUMENTS,
    ("hidden", "selected_weight", "selected_bias"),
    _run,
    num_rows_values=2,
    num_counts=0,
)
