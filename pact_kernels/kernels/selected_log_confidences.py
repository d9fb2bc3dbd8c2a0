"""Log-softmax over the vocabulary at the selected tokens, from one pass over it.

Legend: N rows, D hidden size, V vocabulary, K selected tokens.
"""

from __future__ import annotations

from torch import Tensor

from pact_kernels.kernels.linear_logsumexp import launch_linear_logsumexp
from pact_kernels.kernels.runtime import unit_stride


def selected_log_confidences(
    hidden: Tensor,  # (N, D)
    weight: Tensor,  # (V, D)
    bias: Tensor | None,  # (V,)
    token_ids: Tensor,  # (K,)
    *,
    softcap: float | None,
    logit_scale: float,
    limit_bytes: int,
) -> Tensor:  # (N, K) fp32
    """By the streaming kernel: a confidence and its denominator from the same products."""
    out = launch_linear_logsumexp(
        unit_stride(hidden),
        unit_stride(weight),
        None if bias is None else unit_stride(bias),
        None,
        token_ids,
        softcap=softcap,
        logit_scale=logit_scale,
        limit_bytes=limit_bytes,
    )
    return (out.selected - out.largest[:, None]).sub_(out.total.log()[:, None])
