"""Log-softmax over the vocabulary at the selected tokens, without a gradient.

Legend: N rows, D hidden size, V vocabulary, K selected tokens.
"""

from __future__ import annotations

from torch import Tensor

from pact_kernels.chunked.head_loss import head_loss
from pact_kernels.chunked.selected_logits import selected_logits
from pact_kernels.common.requests import LOGSUMEXP
from pact_kernels.types import Head


def selected_log_confidences(
    hidden: Tensor,  # (N, D)
    head: Head,  # (V, D)
    token_ids: Tensor,  # (K,)
    *,
    limit_bytes: int,
) -> Tensor:  # (N, K) fp32
    """The logits in fp32 from gathered rows, the log-sum-exp from the chunk loop."""
    logits = selected_logits(hidden, head.select(token_ids), limit_bytes=limit_bytes)
    lse = head_loss(hidden, head, term=LOGSUMEXP, limit_bytes=limit_bytes).term
    return logits.sub_(lse[:, None])
