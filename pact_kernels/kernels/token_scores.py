"""How far the aligned model's confidence in a token exceeds the base model's, without logits.

Two passes over both heads: the streaming log-sum-exp of each model, then the sums.

Legend: N rows, D hidden size of the aligned model, D' of the base, V vocabulary.
"""

from __future__ import annotations

import torch
from torch import Tensor

from pact_kernels.kernels._kernels.linear_logsumexp import launch_linear_logsumexp
from pact_kernels.kernels._kernels.token_scores import Model, launch_token_scores
from pact_kernels.kernels._launch.operands import in_unit_stride
from pact_kernels.kernels._launch.runtime import unit_stride
from pact_kernels.types import Head


def token_scores(
    aligned_hidden: Tensor,  # (N, D)
    aligned: Head,  # (V, D)
    base_hidden: Tensor,  # (N, D')
    base: Head,  # (V, D')
    row_weight: Tensor,  # (N,) they sum to 1
    *,
    mode: str,
    limit_bytes: int,
) -> tuple[Tensor, Tensor]:  # (V,), (V,) fp32
    """Sums over rows of row_weight * difference and row_weight * P_aligned; 8 NDV flops."""

    def model(hidden: Tensor, head: Head) -> Model:
        hidden, head = unit_stride(hidden), in_unit_stride(head)
        out = launch_linear_logsumexp(hidden, head, limit_bytes=limit_bytes)
        return Model(hidden, head, out.max, out.sum_exp.log())

    return launch_token_scores(
        model(aligned_hidden, aligned),
        model(base_hidden, base),
        row_weight.to(torch.float32),
        mode=mode,
        limit_bytes=limit_bytes,
    )
