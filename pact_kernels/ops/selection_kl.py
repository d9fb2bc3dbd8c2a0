"""The operator of the KL over the K selected tokens alone: `pact_kernels::selection_kl`.

4 NDK flops for the student's side. It sees the head's gathered rows (K, D); autograd scatters their
gradient into the head.

Legend: N rows, D hidden size, K selected tokens.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor

from pact_kernels.chunked.spec import KlSpec
from pact_kernels.ops.backend import backend
from pact_kernels.ops.gate import gate_from_values
from pact_kernels.ops.row_loss import RowLossOperator, RowResult, Wanted

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


def selection_kl(reduce: bool, **arguments: Any) -> Tensor:
    """Call the operator: the sum over rows, or (N,) values without `reduce`."""
    return _operator(reduce, **arguments)[0]


def _run(a: dict[str, Any], row_grad: Tensor | None, wanted: Wanted) -> RowResult:
    fields: dict[str, Any] = {name: a.get(name) for name in KlSpec.__dataclass_fields__}
    fields |= {"gate": gate_from_values(a["gate"]), "over": "selection", "kl_weight": 1.0}
    out = backend("selection_kl", a["implementation"]).selection_kl(
        *(a[name] for name in ("hidden", "selected_weight", "selected_bias")),
        kl=KlSpec(**fields),
        softcap=a["softcap"],
        logit_scale=a["logit_scale"],
        row_grad=row_grad,
        wanted=wanted,
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
