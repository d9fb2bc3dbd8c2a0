"""Log-softmax over the vocabulary at the selected tokens, from one pass over it.

Legend: N rows, D hidden size, V vocabulary, K selected tokens.
"""

from __future__ import annotations

from torch import Tensor

from pact_kernels.kernels._kernels.linear_logsumexp import launch_linear_logsumexp
from pact_kernels.kernels._launch.operands import in_unit_stride
from pact_kernels.kernels._launch.runtime import unit_stride
from pact_kernels.types import Head


def selected_log_confidences(
    hidden: Tensor,  # (N, D)
    head: Head,  # (V, D)
    token_ids: Tensor,  # (K,)
    *,
    limit_bytes: int,
) -> Tensor:  # (N, K) fp32
    """By the streaming kernel: a confidence and its denominator from the same products."""
    out = launch_linear_logsumexp(
        unit_stride(hidden), in_unit_stride(head), None, token_ids, limit_bytes=limit_bytes
    )
    return (out.selected - out.max[:, None]).sub_(out.sum_exp.log()[:, None])
