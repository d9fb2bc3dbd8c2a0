"""The chunk loop: losses of the output head and their gradients, a chunk of rows at a time.

One pass over chunks of M rows serves `linear_cross_entropy`, `pact_loss`, `linear_logsumexp` and
the vocabulary form of `pact_kl`. A chunk meets the vocabulary tile by tile (`_sweep`), which yields
its log-sum-exp and A = P W, the mean of the head's rows under its softmax. The rest concerns single
tokens of a row, and is added to it:

    Z   = softcap(logit_scale * (H_m W^T + b))     2 M D V flops, a tile at a time
    A   = (P * slope) W                            2 M D V flops, in the same pass
    dH  = alpha A - (onehot + smoothing) W + (sparse KL entries) W
    dW += P^T (alpha H_m) + ...                    2 M D V flops, a trainable head alone

alpha is a scale per row: 1 for the cross-entropy, + 2 z_loss lse, + the KL's factor where it runs
over the vocabulary. The KL adds K entries per row and no product with the vocabulary.

Legend: R positions, N rows (positions whose target is not ignored), D hidden size, V vocabulary,
K selected tokens, M chunk rows, B block rows (B <= M).
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from pact_kernels.chunked._kl_rows import KlRows
from pact_kernels.chunked._row_losses import RowFactors, RowLosses
from pact_kernels.chunked._sweep import Sweep, Swept, tile_tokens
from pact_kernels.common.chunks import accumulator_dtype, balanced_rows, bytes_left, chunks
from pact_kernels.common.requests import KlRequest, NeedsGrad, TermRequest
from pact_kernels.common.results import HeadLoss
from pact_kernels.common.rows import kept_rows
from pact_kernels.types import Head

BLOCK_FRACTION = 1 / 4
"""The part of the workspace, for what blocks of rows add to a chunk's sums."""


def head_loss(
    hidden: Tensor,  # (R, D)
    head: Head,  # (V, D)
    target: Tensor | None = None,  # (R,) int64; None keeps every position
    token_ids: Tensor | None = None,  # (K,)
    *,
    term: TermRequest,
    kl: KlRequest | None = None,
    row_grad: Tensor | None = None,  # (R,) factor on each row's gradient; None is 1
    needs_grad: NeedsGrad = (False, False, False),
    limit_bytes: int,
    num_rows: int | None = None,  # N where the host knows it, or R to leave rows where they are
) -> HeadLoss:
    """Row losses and, where needed, the gradient of sum_n row_grad_n (term_n + kl_weight kl_n)."""
    num_positions, weight = hidden.shape[0], head.weight
    if num_rows == num_positions:  # this loop drops ignored rows in any case
        num_rows = None
    kept = kept_rows(target, term.ignore_index, weight.shape[0], num_rows)  # (N,) or None for all
    num_rows = num_positions if kept is None else kept.numel()
    if kept is not None:
        target = None if target is None else target[kept]
        row_grad = None if row_grad is None else row_grad[kept]
    dtype = accumulator_dtype(hidden.dtype)
    values = hidden.new_zeros((3, num_rows), dtype=dtype)  # term, kl, gate
    grad_hidden = hidden.new_empty(hidden.shape if needs_grad[0] else (0,))
    if kept is not None:
        grad_hidden.zero_()  # the ignored rows
    grad_weight = hidden.new_empty(weight.shape if needs_grad[1] else (0,), dtype=dtype)
    if num_rows == 0:
        grad_weight.zero_()  # otherwise the first chunk writes to it
    grad_bias = hidden.new_zeros(weight.shape[:1] if needs_grad[2] else (0,), dtype=dtype)
    kl_rows = None
    if kl is not None and token_ids is not None:
        kl_rows = KlRows(kl, head, token_ids, kept, num_positions)
    loop = _Chunks(
        hidden=hidden,
        head=head,
        kept=kept,
        rows=RowLosses(
            term=term,
            head=head,
            kl_rows=kl_rows,
            target=target,
            row_grad=row_grad,
            token_ids=token_ids,
            held=hidden.dtype != dtype,
        ),
        gradients=(
            grad_hidden if needs_grad[0] else None,
            grad_weight if needs_grad[1] else None,
            grad_bias if needs_grad[2] else None,
        ),
    )
    for start, stop in chunks(num_rows, loop.allocate(num_rows, limit_bytes)):
        loop.chunk(slice(start, stop), values[:, start:stop])
    if kept is not None:
        values = values.new_zeros((3, num_positions)).index_copy_(1, kept, values)
    count = torch.full((), num_rows, device=hidden.device)
    term_values, kl_values, gate = (row.clone() for row in values.unbind(0))
    return HeadLoss(term_values, kl_values, gate, count, grad_hidden, grad_weight, grad_bias)


@dataclass(kw_only=True)
class _Chunks:
    """One call's pass over its chunks."""

    hidden: Tensor  # (R, D)
    head: Head
    kept: Tensor | None  # (N,)
    rows: RowLosses
    gradients: tuple[Tensor | None, Tensor | None, Tensor | None]
    """By hidden (R, D), weight (V, D) and bias (V,). The rows of the first are written, the second
    is written to by the first chunk and then added to, as the third is from the beginning."""

    def allocate(self, num_rows: int, limit_bytes: int) -> int:
        """Make the buffers within the limit, and return the rows M of a chunk."""
        hidden, rows = self.hidden, self.rows
        vocabulary, width = self.head.weight.shape
        self.dtype = accumulator_dtype(hidden.dtype)
        narrow, wide = hidden.dtype.itemsize, self.dtype.itemsize
        grad_hidden, grad_weight, grad_bias = self.gradients
        self.sweep = Sweep(
            head=self.head,
            product=grad_hidden is not None,
            keep=grad_weight is not None or grad_bias is not None,
            uniform=rows.smoothing > 0,
            unselected=rows.unselected,
        )
        left = bytes_left(limit_bytes, rows.shared_bytes())
        # A block's row takes so much: `_finish_` gathers the targets' rows of the head.
        block_bytes = rows.row_bytes() + width * (narrow + wide * (narrow < wide))
        self.block_rows = max(1, min(int(left * BLOCK_FRACTION) // block_bytes, num_rows))
        left -= self.block_rows * block_bytes
        tile = tile_tokens(vocabulary, hidden, num_rows, left)
        row_bytes = narrow * width if self.kept is not None else 0  # gathered states
        if self.sweep.keep:
            row_bytes += rows.factor_bytes()
        if self.sweep.uniform and self.head.softcap is not None and narrow < wide:
            left -= wide * width * tile  # a tile of the head in fp32
        if grad_weight is not None and num_rows * narrow <= width * wide:
            self.sweep.lent = grad_weight
        chunk_rows = balanced_rows(num_rows, row_bytes + self.sweep.row_bytes(hidden, tile), left)
        if chunk_rows < num_rows and self.sweep.lent is not None:
            self.sweep.lent = None  # the gradient is empty for the first chunk alone
            row_bytes += self.sweep.row_bytes(hidden, tile)
            chunk_rows = balanced_rows(num_rows, row_bytes, left)
        chunk_rows = min(chunk_rows, max(num_rows, 1))
        self.sweep.allocate(hidden, chunk_rows, tile)
        self.in_place = self.kept is None and hidden.dtype == self.dtype
        sums = 0 if self.in_place or grad_hidden is None else chunk_rows
        self.sums = hidden.new_empty((sums, width), dtype=self.dtype)
        return chunk_rows

    def chunk(self, index: slice, values: Tensor) -> None:
        """Fill `values` (3, M) and the gradient of some rows, and add to the head's gradients."""
        kept = None if self.kept is None else self.kept[index]
        states = self.hidden[index] if kept is None else self.hidden[kept]  # (M, D)
        grad_hidden = self.gradients[0]
        out = None  # (M, D)
        if grad_hidden is not None:
            out = grad_hidden[index] if self.in_place else self.sums[: states.shape[0]]
        swept = self.sweep(states, self.rows.targets(index), out, self.rows.left_out(index))
        blocks = []
        for low, high in chunks(states.shape[0], self.block_rows):
            block, at = slice(low, high), slice(index.start + low, index.start + high)
            of_block = swept.rows(block)
            factors = self.rows(states[block], at, of_block, values[:, block])
            if out is not None:
                self._finish_(out[block], of_block, at, factors)
            if self.sweep.keep:
                blocks.append(factors)
        if self.sweep.keep:
            self._add_head_gradient_(states, index, swept.lse, RowFactors.joined(blocks))
        if grad_hidden is None or out is None or self.in_place:
            return
        if kept is None:
            grad_hidden[index] = out
        else:
            grad_hidden.index_copy_(0, kept, out.to(grad_hidden.dtype))

    def _finish_(self, out: Tensor, swept: Swept, index: slice, factors: RowFactors) -> None:
        """The sums (B, D) of a block become its gradient, in place."""
        target = self.rows.targets(index)
        out *= (factors.softmax * swept.norm)[:, None]
        if factors.target is not None and target is not None:
            head_rows = self.head.weight.index_select(0, target).to(out.dtype)  # (B, D)
            out.addcmul_(head_rows, factors.target[:, None])
        if factors.uniform is not None and swept.uniform is not None:
            out.addcmul_(swept.uniform, factors.uniform[:, None])
        if factors.sparse is not None and self.rows.kl_rows is not None:
            self.rows.kl_rows.add_gradient_(out, factors.sparse, index)

    def _add_head_gradient_(
        self, states: Tensor, index: slice, lse: Tensor, factors: RowFactors
    ) -> None:
        """Add a chunk's part to the gradients by weight and bias."""
        _, grad_weight, grad_bias = self.gradients
        first = index.start == 0
        self.sweep.add_weight_gradient_(
            grad_weight, grad_bias, states, factors.softmax, lse, factors.uniform, first=first
        )
        target, kl_rows = self.rows.targets(index), self.rows.kl_rows
        if factors.target is not None and target is not None:
            if grad_weight is not None:
                scaled = self.sweep.scaled[: states.shape[0]]  # (M, D)
                torch.mul(states, factors.target[:, None], out=scaled)
                grad_weight.index_put_((target,), scaled, accumulate=True)
            if grad_bias is not None:
                grad_bias.index_put_((target,), factors.target, accumulate=True)
        if factors.sparse is None or kl_rows is None:
            return
        token_ids = kl_rows.ids(index)
        if kl_rows.by_row:
            for low, high in chunks(states.shape[0], self.block_rows):
                ids, sparse = token_ids[low:high], factors.sparse[low:high]  # (B, K)
                if grad_weight is not None:
                    rows = states[low:high, None].to(self.dtype) * sparse[:, :, None]  # (B, K, D)
                    grad_weight.index_add_(0, ids.flatten(), rows.flatten(0, 1))
                if grad_bias is not None:
                    grad_bias.index_add_(0, ids.flatten(), sparse.flatten())
        else:
            if grad_weight is not None:
                of_tokens = factors.sparse.T @ states.to(self.dtype)  # (K, D)
                grad_weight.index_put_((token_ids,), of_tokens, accumulate=True)
            if grad_bias is not None:
                grad_bias.index_put_((token_ids,), factors.sparse.sum(0), accumulate=True)
