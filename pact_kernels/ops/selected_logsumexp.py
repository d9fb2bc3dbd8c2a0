"""The operator of confidences that need no gradient: `pact_kernels::selected_logsumexp`.

2 N D V flops, with the selected logits from the same pass on a GPU.

Legend: N rows, D hidden size, V vocabulary, K selected tokens.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor

from pact_kernels.chunked.slab import accumulator_dtype
from pact_kernels.implementation import workspace_bytes
from pact_kernels.ops.backend import backend
from pact_kernels.ops.library import register


def selected_logsumexp(
    rows: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    token_ids: Tensor,
    *,
    softcap: float | None,
    logit_scale: float,
) -> tuple[Tensor, Tensor]:
    """(N, K) selected logits and (N,) log-sum-exps, fp32; not differentiable."""
    return _operator(
        rows, weight, bias, token_ids, softcap, logit_scale, workspace_bytes(rows.device)
    )


def _run(
    hidden: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    token_ids: Tensor,
    softcap: float | None,
    logit_scale: float,
    limit_bytes: int,
) -> tuple[Tensor, Tensor]:
    return backend("selected_logsumexp", hidden).selected_logsumexp(
        hidden,
        weight,
        bias,
        token_ids,
        softcap=softcap,
        logit_scale=logit_scale,
        limit_bytes=limit_bytes,
    )


def _fake(
    hidden: Tensor, weight: Tensor, bias: Tensor | None, token_ids: Tensor, *_: Any
) -> tuple[Tensor, Tensor]:
    rows, dtype = hidden.shape[0], accumulator_dtype(hidden.dtype)
    return (
        hidden.new_empty((rows, token_ids.shape[0]), dtype=dtype),
        hidden.new_empty((rows,), dtype=dtype),
    )


_operator = register(
    "selected_logsumexp",
    "(Tensor hidden, Tensor weight, Tensor? bias, Tensor token_ids, float? softcap, "
    "float logit_scale, int workspace_bytes) -> (Tensor, Tensor)",
    _run,
    _fake,
)
