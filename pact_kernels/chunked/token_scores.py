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
LEAST_KEPT_ROWS = 128
"""So many rows of both models' logits must fit, or they are formed twice in longer slabs: products
of fewer rows wait for the head."""
KEPT_TILE = 1024
"""Tokens of a tile, where logits are kept: it lies in the cache."""


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
    """Sums over rows of share * difference and share * P_aligned.

    A row's log-confidences need its log-sum-exp first. Where a slab of both models' logits fits
    into the workspace they are kept meanwhile, 4 NDV flops; elsewhere they are formed twice.
    """
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
    kept_bytes = 2 * aligned_hidden.itemsize * vocabulary + 4 * dtype.itemsize * KEPT_TILE
    keep = limit_bytes // kept_bytes >= min(num_rows, LEAST_KEPT_ROWS)
    tile = max(LEAST_TILE, limit_bytes // (4 * dtype.itemsize * LEAST_TILE))
    tile = min(vocabulary, KEPT_TILE if keep else tile)
    row_bytes = kept_bytes if keep else 4 * dtype.itemsize * tile
    rows_per_slab = balanced_rows(num_rows, row_bytes, limit_bytes)
    buffers = aligned_hidden.new_empty((2, rows_per_slab * vocabulary if keep else 0))
    for start, stop in slabs(num_rows, rows_per_slab):
        rows = slice(start, stop)
        readers = [_Reader(model.part(rows, slice(None)), softcap, logit_scale) for model in models]
        for reader, buffer in zip(readers, buffers, strict=True):
            if keep:
                reader.keep(buffer, tile)
            else:
                reader.lse = _lse(reader.model, softcap, logit_scale, limit_bytes)
        for low, high in slabs(vocabulary, tile):
            tokens = slice(low, high)
            aligned, base = (reader.log_confidences(tokens) for reader in readers)  # (M, T) each
            _add_scores_(difference[tokens], confidence[tokens], aligned, base, share[rows], mode)
            del aligned, base
    return difference, confidence


class _Reader:
    """Log-confidences of one model on a slab of M rows, tile by tile."""

    def __init__(self, model: _Model, softcap: float | None, logit_scale: float) -> None:
        self.model, self.softcap, self.logit_scale = model, softcap, logit_scale
        self.dtype = accumulator_dtype(model.hidden.dtype)
        self.lse: Tensor | None = None  # (M,)
        self.kept: dict[int, Tensor] = {}  # (M, T) by the tile's first token: logits, or in 16
        # bits the raw products that they are formed from again

    def keep(self, buffer: Tensor, tile: int) -> None:
        """Form all logits in the buffer (M V,), and their log-sum-exp."""
        num_rows, vocabulary = self.model.hidden.shape[0], self.model.weight.shape[0]
        by_tile = []
        for low, high in slabs(vocabulary, tile):
            raw = buffer[num_rows * low : num_rows * high].view(num_rows, high - low)
            part = self.model.part(slice(None), slice(low, high))
            torch.mm(part.hidden, part.weight.T, out=raw)
            self.kept[low] = raw
            by_tile.append(self._finished_(part, raw).logsumexp(-1))
        self.lse = torch.stack(by_tile).logsumexp(0)

    def log_confidences(self, tokens: slice) -> Tensor:
        """(M, T) in the accumulator dtype, once: what is kept is overwritten."""
        assert self.lse is not None
        part = self.model.part(slice(None), tokens)
        logits = self.kept.get(tokens.start)
        if logits is None:
            logits = self._finished_(part, part.hidden @ part.weight.T)
        elif logits.dtype != self.dtype:
            logits = self._finished_(part, logits)
        return logits.sub_(self.lse[:, None])

    def _finished_(self, part: _Model, raw: Tensor) -> Tensor:
        """Logits of raw products: the same tensor, unless that has 16 bits."""
        return finish_logits_(raw.to(self.dtype), part.bias, self.softcap, self.logit_scale)


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
