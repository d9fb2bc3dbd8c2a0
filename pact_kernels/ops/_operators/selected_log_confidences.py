"""The operator of confidences that need no gradient: `pact_kernels::selected_log_confidences`.

2 N D V flops, with the selected logits from the same pass on a GPU.

Legend: N rows, D hidden size, V vocabulary, K selected tokens.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor

from pact_kernels.common.chunks import accumulator_dtype
from pact_kernels.dispatch import operator_implementation, workspace_bytes
from pact_kernels.ops._operators.backend import backend
from pact_kernels.ops._operators.library import register
from pact_kernels.types import Head


def selected_log_confidences(rows: Tensor, head: Head, token_ids: Tensor) -> Tensor:
    """(N, K) log-softmax over the vocabulary at the K tokens, fp32; not differentiable."""
    return _operator(
        rows,
        head.weight,
        head.bias,
        token_ids,
        head.softcap,
        head.logit_scale,
        workspace_bytes(rows.device),
        operator_implementation(rows),
    )


def _run(
    hidden: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    token_ids: Tensor,
    softcap: float | None,
    logit_scale: float,
    limit_bytes: int,
    implementation: str,
) -> Tensor:
    return backend("selected_log_confidences", implementation).selected_log_confidences(
        hidden, Head(weight, bias, softcap, logit_scale), token_ids, limit_bytes=limit_bytes
    )


def _fake(
    hidden: Tensor, weight: Tensor, bias: Tensor | None, token_ids: Tensor, *_: Any
) -> Tensor:
    shape = hidden.shape[0], token_ids.shape[0]
    return hidden.new_empty(shape, dtype=accumulator_dtype(hidden.dtype))


_operator = register(
    "selected_log_confidences",
    "(Tensor hidden, Tensor weight, Tensor? bias, Tensor token_ids, float? softcap, "
    "float logit_scale, int workspace_bytes, str implementation) -> Tensor",
    _run,
    _fake,
)
