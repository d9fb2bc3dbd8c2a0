"""Log-softmax over the vocabulary at the selected tokens, without a gradient.

Legend: N rows, D hidden size, V vocabulary, K selected tokens.
"""

from __future__ import annotations

from torch import Tensor

from pact_kernels.chunked._target import normaliser
from pact_kernels.chunked.head_loss import head_loss
from pact_kernels.chunked.selected_logits import selected_logits
from pact_kernels.common.chunks import balanced_rows, chunks
from pact_kernels.common.requests import LOGSUMEXP
from pact_kernels.types import Head


def selected_log_confidences(
    hidden: Tensor,  # (N, D)
    head: Head,  # (V, D)
    token_ids: Tensor,  # (K,)
    *,
    limit_bytes: int,
) -> Tensor:  # (N, K) fp32
    """The logits in fp32 from gathered rows, the log-sum-exp from the chunk loop: at most 0."""
    logits = selected_logits(hidden, head.select(token_ids), limit_bytes=limit_bytes)
    lse = head_loss(hidden, head, term=LOGSUMEXP, limit_bytes=limit_bytes).term
    num_rows, row_bytes = logits.shape[0], 3 * logits.itemsize * logits.shape[1]
    for start, stop in chunks(num_rows, balanced_rows(num_rows, row_bytes, limit_bytes)):
        block = logits[start:stop]
        block.sub_(normaliser(lse[start:stop], block)[:, None])
    return logits
