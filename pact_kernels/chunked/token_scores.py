"""How far the aligned model's confidence in a token exceeds the base model's, tile by tile.

Legend: N rows, D hidden size, V vocabulary, M slab rows, T tokens of a vocabulary tile.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from pact_kernels.chunked.head_loss import head_loss
from pact_kernels.chunked.slab import accumulator_dtype, balanced_rows, finish_logits_, slabs
from pact_kernels.chunked.spec import HeadSpec

LEAST_TILE = 256
"""Rows and tokens of a tile, however small the workspace: smaller products are slow."""


class _Model(NamedTuple):
    """States of one model on the rows, and its head."""

    hidden: Tensor  # (N, D)
    weight: Tensor  # (V, D)
    bias: Tensor | None  # (V,)

    def part(self, rows: slice, tokens: slice) -> _Model:
        """The same for some rows and some tokens."""
        bias = None if self.bias is None else self.bias[tokens]
        return _Model(self.hidden[rows], self.weight[tokens], bias)


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
    """Sums over rows of share * difference and share * P_aligned; two passes, 8 NDV flops."""
    # softcap tanh(s z / softcap) / T has the same form: cap softcap / T and scale s / T.
    softcap = None if softcap is None else softcap / temperature
    logit_scale = logit_scale / temperature
    dtype = accumulator_dtype(aligned_hidden.dtype)
    models = (
        _Model(aligned_hidden, aligned_weight, aligned_bias),
        _Model(base_hidden, base_weight, base_bias),
    )
    num_rows, vocabulary = aligned_hidden.shape[0], aligned_weight.shape[0]
    difference = aligned_hidden.new_zeros(vocabulary, dtype=dtype)
    confidence = torch.zeros_like(difference)
    share = row_share.to(dtype)
    # Four M x T tiles live at once: two log-confidences, a probability, a difference.
    tile = min(vocabulary, max(LEAST_TILE, limit_bytes // (4 * dtype.itemsize * LEAST_TILE)))
    rows_per_slab = balanced_rows(num_rows, 4 * dtype.itemsize * tile, limit_bytes)
    for start, stop in slabs(num_rows, rows_per_slab):
        rows = slice(start, stop)
        lse = [
            _lse(model.part(rows, slice(None)), softcap, logit_scale, limit_bytes)
            for model in models
        ]  # twice (M,)
        for low, high in slabs(vocabulary, tile):
            tokens = slice(low, high)
            aligned, base = (
                _log_confidences(model.part(rows, tokens), row_lse, softcap, logit_scale, dtype)
                for model, row_lse in zip(models, lse, strict=True)
            )  # (M, T) each
            _add_scores_(difference[tokens], confidence[tokens], aligned, base, share[rows], mode)
            del aligned, base
    return difference, confidence


def _add_scores_(
    difference: Tensor,  # (T,), added to
    confidence: Tensor,  # (T,), added to
    aligned: Tensor,  # (M, T) log-confidences
    base: Tensor,  # (M, T), overwritten
    share: Tensor,  # (M,)
    mode: str,
) -> None:
    """Add one tile's share to the sums."""
    p_aligned = aligned.exp()  # (M, T)
    if mode == "p_diff":
        change = p_aligned - base.exp_()
    else:
        change = base.sub_(aligned).mul_(p_aligned)
    difference += share @ change
    confidence += share @ p_aligned


def _log_confidences(
    model: _Model,  # M rows, T tokens
    lse: Tensor,  # (M,)
    softcap: float | None,
    logit_scale: float,
    dtype: torch.dtype,
) -> Tensor:
    """(M, T) log-confidences of one vocabulary tile in the accumulator dtype."""
    logits = (model.hidden @ model.weight.T).to(dtype)
    return finish_logits_(logits, model.bias, softcap, logit_scale).sub_(lse[:, None])


def _lse(model: _Model, softcap: float | None, logit_scale: float, limit_bytes: int) -> Tensor:
    """(M,) log-sum-exp of the logits."""
    spec = HeadSpec.logsumexp(softcap=softcap, logit_scale=logit_scale)
    return head_loss(
        model.hidden,
        model.weight,
        None,
        model.bias,
        None,
        spec=spec,
        kl=None,
        row_grad=None,
        wanted=(False, False, False),
        limit_bytes=limit_bytes,
    ).term
