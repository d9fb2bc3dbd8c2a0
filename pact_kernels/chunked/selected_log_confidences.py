"""Log-softmax over the vocabulary at the selected tokens, without a gradient.

Legend: N rows, D hidden size, V vocabulary, K selected tokens.
"""

from __future__ import annotations

from torch import Tensor

from pact_kernels.chunked.head_loss import head_loss
from pact_kernels.chunked.selected_logits import selected_logits
from pact_kernels.chunked.spec import HeadSpec


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
    """The logits in fp32 from gathered rows, the log-sum-exp from the chunk loop."""
    logits = selected_logits(
        hidden,
        weight.index_select(0, token_ids),
        None if bias is None else bias.index_select(0, token_ids),
        softcap=softcap,
        logit_scale=logit_scale,
        limit_bytes=limit_bytes,
    )
    spec = HeadSpec.logsumexp(softcap=softcap, logit_scale=logit_scale)
    lse = head_loss(
        hidden,
        weight,
        None,
        bias,
        None,
        spec=spec,
        kl=None,
        row_grad=None,
        wanted=(False, False, False),
        limit_bytes=limit_bytes,
    ).term
    return logits.sub_(lse[:, None])
