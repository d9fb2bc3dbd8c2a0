"""The operator of the token scores: `pact_kernels::token_scores`, not differentiable.

Legend: N rows, D hidden size, V vocabulary.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor

from pact_kernels.common.chunks import accumulator_dtype
from pact_kernels.dispatch import operator_implementation, workspace_bytes
from pact_kernels.ops._operators.backend import backend
from pact_kernels.ops._operators.library import register
from pact_kernels.types import Head


def token_scores(
    aligned_hidden: Tensor,
    aligned: Head,
    base_hidden: Tensor,
    base: Head,
    row_weight: Tensor,
    *,
    mode: str,
) -> tuple[Tensor, Tensor]:
    """Sums over the rows, (V,) each; both heads are capped and scaled alike."""
    return _token_scores(
        aligned_hidden,
        aligned.weight,
        aligned.bias,
        base_hidden,
        base.weight,
        base.bias,
        row_weight,
        mode,
        aligned.softcap,
        aligned.logit_scale,
        workspace_bytes(aligned_hidden.device),
        operator_implementation(aligned_hidden),
    )


def _run(
    aligned_hidden: Tensor,
    aligned_weight: Tensor,
    aligned_bias: Tensor | None,
    base_hidden: Tensor,
    base_weight: Tensor,
    base_bias: Tensor | None,
    row_weight: Tensor,
    mode: str,
    softcap: float | None,
    logit_scale: float,
    limit_bytes: int,
    implementation: str,
) -> tuple[Tensor, Tensor]:
    return backend("token_scores", implementation).token_scores(
        aligned_hidden,
        Head(aligned_weight, aligned_bias, softcap, logit_scale),
        base_hidden,
        Head(base_weight, base_bias, softcap, logit_scale),
        row_weight,
        mode=mode,
        limit_bytes=limit_bytes,
    )


def _fake(aligned_hidden: Tensor, aligned_weight: Tensor, *_: Any) -> tuple[Tensor, Tensor]:
    dtype = accumulator_dtype(aligned_hidden.dtype)
    vocabulary = aligned_weight.shape[:1]
    return (
        aligned_weight.new_empty(vocabulary, dtype=dtype),
        aligned_weight.new_empty(vocabulary, dtype=dtype),
    )


_token_scores = register(
    "token_scores",
    "(Tensor aligned_hidden, Tensor aligned_weight, Tensor? aligned_bias, Tensor base_hidden, "
    "Tensor base_weight, Tensor? base_bias, Tensor row_weight, str mode, "
    "float? softcap, float logit_scale, int workspace_bytes, str implementation) "
    "-> (Tensor, Tensor)",
    _run,
    _fake,
)
