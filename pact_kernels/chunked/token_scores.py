"""How far the aligned model's confidence in a token exceeds the base model's, tile by tile.

Legend: N rows, D hidden size, V vocabulary, M chunk rows, T tokens of a vocabulary tile.
"""

from __future__ import annotations

import torch
from torch import Tensor

from pact_kernels.chunked.head_loss import head_loss
from pact_kernels.common.chunks import accumulator_dtype, balanced_rows, chunks
from pact_kernels.common.requests import LOGSUMEXP
from pact_kernels.types import Head

LEAST_TILE = 256
"""Rows and tokens of a tile, however small the workspace: smaller products are slow."""
LEAST_KEPT_ROWS = 128
"""So many rows of both models' logits must fit, or they are formed twice in longer chunks: products
of fewer rows wait for the head."""
KEPT_TILE = 1024
"""Tokens of a tile, where logits are kept: it lies in the cache."""


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
    """Sums over rows of row_weight * difference and row_weight * P_aligned.

    A row's log-confidences need its log-sum-exp first. Where a chunk of both models' logits fits
    into the workspace they are kept meanwhile, 4 NDV flops; elsewhere they are formed twice.
    """
    dtype = accumulator_dtype(aligned_hidden.dtype)
    models = (aligned_hidden, aligned), (base_hidden, base)
    num_rows, vocabulary = aligned_hidden.shape[0], aligned.weight.shape[0]
    difference = aligned_hidden.new_zeros(vocabulary, dtype=dtype)
    confidence = torch.zeros_like(difference)
    row_weight = row_weight.to(dtype)
    # Four M x T tiles live at once: two log-confidences, a probability, a difference.
    kept_bytes = 2 * aligned_hidden.itemsize * vocabulary + 4 * dtype.itemsize * KEPT_TILE
    keep = limit_bytes // kept_bytes >= min(num_rows, LEAST_KEPT_ROWS)
    tile = max(LEAST_TILE, limit_bytes // (4 * dtype.itemsize * LEAST_TILE))
    tile = min(vocabulary, KEPT_TILE if keep else tile)
    row_bytes = kept_bytes if keep else 4 * dtype.itemsize * tile
    rows_per_chunk = balanced_rows(num_rows, row_bytes, limit_bytes)
    buffers = aligned_hidden.new_empty((2, rows_per_chunk * vocabulary if keep else 0))
    for start, stop in chunks(num_rows, rows_per_chunk):
        rows = slice(start, stop)
        readers = [_Reader(hidden[rows], head) for hidden, head in models]
        for reader, buffer in zip(readers, buffers, strict=True):
            if keep:
                reader.keep(buffer, tile)
            else:
                reader.lse = head_loss(
                    reader.states, reader.head, term=LOGSUMEXP, limit_bytes=limit_bytes
                ).term
        for low, high in chunks(vocabulary, tile):
            tokens = slice(low, high)
            log_aligned, log_base = (r.log_confidences(low, high) for r in readers)  # (M, T) each
            _add_scores_(
                difference[tokens],
                confidence[tokens],
                log_aligned,
                log_base,
                row_weight[rows],
                mode,
            )
            del log_aligned, log_base
    return difference, confidence


class _Reader:
    """Log-confidences of one model on a chunk of M rows, tile by tile."""

    def __init__(self, states: Tensor, head: Head) -> None:
        self.states, self.head = states, head  # (M, D), (V, D)
        self.dtype = accumulator_dtype(states.dtype)
        self.lse: Tensor | None = None  # (M,)
        self.kept: dict[int, Tensor] = {}  # (M, T) by the tile's first token: logits, or in 16
        # bits the raw products that they are formed from again

    def keep(self, buffer: Tensor, tile: int) -> None:
        """Form all logits in the buffer (M V,), and their log-sum-exp."""
        num_rows, vocabulary = self.states.shape[0], self.head.weight.shape[0]
        by_tile = []
        for low, high in chunks(vocabulary, tile):
            raw = buffer[num_rows * low : num_rows * high].view(num_rows, high - low)
            head = self.head.tile(low, high)
            torch.mm(self.states, head.weight.T, out=raw)
            self.kept[low] = raw
            by_tile.append(head.finish_(raw.to(self.dtype)).logsumexp(-1))
        self.lse = torch.stack(by_tile).logsumexp(0)

    def log_confidences(self, low: int, high: int) -> Tensor:
        """(M, T) in the accumulator dtype, once: what is kept is overwritten."""
        assert self.lse is not None
        head = self.head.tile(low, high)
        logits = self.kept.get(low)
        if logits is None:
            logits = head.finish_((self.states @ head.weight.T).to(self.dtype))
        elif logits.dtype != self.dtype:
            logits = head.finish_(logits.to(self.dtype))
        return logits.sub_(self.lse[:, None])


def _add_scores_(
    difference: Tensor,  # (T,), added to
    confidence: Tensor,  # (T,), added to
    aligned: Tensor,  # (M, T) log-confidences
    base: Tensor,  # (M, T), overwritten
    row_weight: Tensor,  # (M,)
    mode: str,
) -> None:
    """Add one tile to the sums."""
    p_aligned = aligned.exp()  # (M, T)
    if mode == "p_diff":
        change = p_aligned - base.exp_()
    else:
        change = base.sub_(aligned).mul_(p_aligned)
    difference += row_weight @ change
    confidence += row_weight @ p_aligned
