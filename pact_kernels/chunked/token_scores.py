"""How far the aligned model's confidence in every token exceeds the base model's, streamed over the vocabulary.

Legend: N rows, D hidden size, V vocabulary, M slab rows, S samples, T vocabulary tile.
"""

from __future__ import annotations

import torch
from torch import Tensor

from pact_kernels.chunked.head_loss import head_loss
from pact_kernels.chunked.slab import accumulator_dtype, balanced_rows, finish_logits_, slabs
from pact_kernels.chunked.spec import HeadSpec


def token_scores(
    aligned_hidden: Tensor,  # (N, D)
    aligned_weight: Tensor,  # (V, D)
    aligned_bias: Tensor | None,  # (V,)
    base_hidden: Tensor,  # (N, D')
    base_weight: Tensor,  # (V, D')
    base_bias: Tensor | None,  # (V,)
    row_share: Tensor,  # (N,) weight of each row; they sum to 1
    *,
    mode: str,
    temperature: float,
    softcap: float | None,
    logit_scale: float,
    limit_bytes: int,
) -> tuple[Tensor, Tensor]:  # (V,), (V,) fp32
    """Weighted sums over rows of the difference and of P_aligned; two passes, 8 NDV flops for the pair."""
    dtype = accumulator_dtype(aligned_hidden.dtype)
    vocabulary = aligned_weight.shape[0]
    difference = aligned_hidden.new_zeros(vocabulary, dtype=dtype)
    confidence = torch.zeros_like(difference)
    models = (
        (aligned_hidden, aligned_weight, aligned_bias),
        (base_hidden, base_weight, base_bias),
    )
    share = row_share.to(dtype)
    num_rows = aligned_hidden.shape[0]
    # Four fp32 tiles (two log-confidences, a probability, a product) of M x T; rows as many as a slab has.
    tile = min(vocabulary, max(256, limit_bytes // (4 * dtype.itemsize * 256)))
    rows_per_slab = balanced_rows(num_rows, 4 * dtype.itemsize * tile, limit_bytes)
    for start, stop in slabs(num_rows, rows_per_slab):
        lse = [
            _lse(hidden[start:stop], weight, bias, softcap, logit_scale, temperature, limit_bytes)
            for hidden, weight, bias in models
        ]  # twice (M,)
        for low, high in slabs(vocabulary, tile):
            log_p = [
                _tile_logits(
                    hidden[start:stop], weight, bias, low, high, softcap, logit_scale, dtype
                )
                .div_(temperature)
                .sub_(row_lse[:, None])
                for (hidden, weight, bias), row_lse in zip(models, lse, strict=True)
            ]  # twice (M, T)
            aligned = log_p[0].exp()
            if mode == "p_diff":
                change = aligned - log_p[1].exp_()
            else:
                change = log_p[1].sub_(log_p[0]).mul_(aligned)
            difference[low:high] += share[start:stop] @ change
            confidence[low:high] += share[start:stop] @ aligned
    return difference, confidence


def _tile_logits(
    hidden: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    low: int,
    high: int,
    softcap: float | None,
    logit_scale: float,
    dtype: torch.dtype,
) -> Tensor:
    """Logits (M, T) of one vocabulary tile in the accumulator dtype."""
    logits = (hidden @ weight[low:high].T).to(dtype)
    return finish_logits_(logits, None if bias is None else bias[low:high], softcap, logit_scale)


def _lse(
    hidden: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    softcap: float | None,
    logit_scale: float,
    temperature: float,
    limit_bytes: int,
) -> Tensor:
    """(M,) log-sum-exp of logits / temperature."""
    spec = HeadSpec(
        term="logsumexp",
        ignore_index=-100,
        # softcap tanh(s z / softcap) / T has the same form: cap softcap / T and scale s / T.
        softcap=None if softcap is None else softcap / temperature,
        logit_scale=logit_scale / temperature,
        label_smoothing=0.0,
        z_loss=0.0,
    )
    out = head_loss(
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
    )
    return out.term
