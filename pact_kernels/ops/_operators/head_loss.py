"""The operator behind every loss that needs the whole vocabulary: `pact_kernels::head_loss`.

4 NDV flops for a frozen head and 6 for a trainable one; 2 NDV more where each row is returned by
itself.

Legend: R positions, N rows (positions whose target is not ignored), D hidden size, V vocabulary,
K selected tokens.
"""

from __future__ import annotations

from typing import Any, NamedTuple

from torch import Tensor

from pact_kernels.common.requests import NeedsGrad, TermRequest
from pact_kernels.ops._operators.backend import backend
from pact_kernels.ops._operators.kl_request import kl_request
from pact_kernels.ops._operators.row_loss import RowLossOperator, RowResult
from pact_kernels.types import Head

ARGUMENTS = (
    "Tensor hidden",  # (R, D)
    "Tensor weight",  # (V, D)
    "Tensor? target",  # (R,)
    "Tensor? bias",  # (V,)
    "Tensor? token_ids",  # (K,); None: no KL
    "Tensor? token_weights",  # (K,)
    "Tensor? step",  # (N,)
    "Tensor? reference_full",  # (N, K) logits, or (N, D') states if reference_weight is given
    "Tensor? reference_post",  # likewise
    "Tensor? reference_weight",  # (K, D')
    "Tensor? reference_bias",  # (K,)
    "Tensor? full_lse",  # (N,)
    "Tensor? post_lse",  # (N,)
    "Tensor? row_weight",  # (N,)
    "str kind",  # "cross_entropy", "logsumexp" or "none"
    "int ignore_index",
    "float? softcap",
    "float logit_scale",
    "float label_smoothing",
    "float z_loss",
    "float[]? gate",  # the fields of GateConfig, in order
    "str over",
    "float temperature",
    "float kl_weight",
    "SymInt? num_rows",  # N where the host knows it, or R to leave rows where they are
)


class HeadLossValues(NamedTuple):
    """Results of the operator: sums, or (R,) values without `reduce`.

    `loss` alone is differentiable.
    """

    loss: Tensor
    """term + kl_weight * kl."""
    term: Tensor
    kl: Tensor
    gate: Tensor
    num_rows: Tensor
    """() int64"""


def head_loss(reduce: bool, hidden: Tensor, head: Head, **arguments: Any) -> HeadLossValues:
    """Call the operator; what is left out is None, or the value that switches its part off."""
    arguments |= {"hidden": hidden, **head._asdict()}
    off = {
        "ignore_index": -100,
        "label_smoothing": 0.0,
        "z_loss": 0.0,
        "over": "selection",
        "temperature": 1.0,
        "kl_weight": 1.0,
    }
    return HeadLossValues(*_operator(reduce, **{**off, **arguments}))


def streamed_logsumexp(
    rows: Tensor, head: Head, *, target: Tensor | None = None, num_rows: int | None = None
) -> Tensor:
    """(N, D), (V, D) -> (N,); 0 where a target (N,) is given and is -100: no product there."""
    return head_loss(False, rows, head, target=target, kind="logsumexp", num_rows=num_rows).loss


def _run(a: dict[str, Any], row_grad: Tensor | None, needs_grad: NeedsGrad) -> RowResult:
    head = Head(a["weight"], a["bias"], a["softcap"], a["logit_scale"])
    term = {name: a[name] for name in TermRequest.__dataclass_fields__}
    out = backend("head_loss", a["implementation"]).head_loss(
        a["hidden"],
        head,
        a["target"],
        a["token_ids"],
        term=TermRequest(**term),
        kl=None if a["token_ids"] is None else kl_request(a, head),
        row_grad=row_grad,
        needs_grad=needs_grad,
        limit_bytes=a["workspace_bytes"],
        num_rows=a["num_rows"],
    )
    loss = out.term + a["kl_weight"] * out.kl
    gradients = (out.grad_hidden, out.grad_weight, out.grad_bias)
    return RowResult((loss, out.term, out.kl, out.gate), (out.num_rows,), gradients)


_operator = RowLossOperator(
    "head_loss",
    ARGUMENTS,
    ("hidden", "weight", "bias"),
    _run,
    num_rows_values=4,
    num_counts=1,
)
