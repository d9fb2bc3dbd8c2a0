"""The chunk loop around the vendor's GEMM: losses of the output head and their gradients.

    Z   = H_m W^T                        the vendor's product, into the chunk      2 M D V flops
    KL and its gradient                  `pact_kl`: a block of rows at once, nothing of size V; over
                                         the vocabulary its target alone
    softmax, term, K + 1 classes         `chunk_loss`: one read of the chunk
    G   = d loss / d Z, in place         `chunk_gradient`: one read and write of the chunk
    dH  = G W                            the vendor's product, into its place     2 M D V flops
    dW += G^T H_m in fp32                a trainable head alone                   2 M D V flops

One chunk of logits, of at most the workspace cap, serves the whole call; its rows start at
multiples of 16 bytes. The KL, over the selection or the vocabulary, adds no product with the
vocabulary. What asks for no gradient and no KL streams instead (`linear_logsumexp`) and has no
chunk.

The loop never waits for the device where the number of rows is known to the host (`num_rows`).

Legend: R positions, N rows (positions whose target is not ignored), D hidden size, V vocabulary,
K selected tokens, M chunk rows.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from pact_kernels.common.chunks import chunks
from pact_kernels.common.reduction import Reduction
from pact_kernels.common.requests import KlRequest, NeedsGrad, TermRequest
from pact_kernels.common.results import HeadLoss, ReducedHeadLoss
from pact_kernels.common.rows import kept_rows
from pact_kernels.kernels._device.operands import MixedTarget, Softmax, SparseKl
from pact_kernels.kernels._exponential_chunks import (
    ROW_MULTIPLE,
    ExponentialChunks,
    takes_exponentials,
)
from pact_kernels.kernels._kernels.chunk_gradient import launch_chunk_gradient
from pact_kernels.kernels._kernels.chunk_loss import (
    NO_VOCABULARY_KL,
    VocabularyKl,
    launch_chunk_loss,
)
from pact_kernels.kernels._kernels.linear_logsumexp import launch_linear_logsumexp
from pact_kernels.kernels._kernels.row_reduction import (
    RowCount,
    RowSums,
    launch_row_count,
    launch_row_sums,
)
from pact_kernels.kernels._kl_rows import KlRows, cut, part_of
from pact_kernels.kernels._launch.gemm import accumulates_in_gemm, add_product_
from pact_kernels.kernels._launch.runtime import unit_stride
from pact_kernels.types import Head

ALIGNMENT_BYTES = 16
"""What a chunk's rows are aligned to: the widest access of a thread."""


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
    call = _Call(hidden, head, target, token_ids, term, kl, num_rows)
    if row_grad is not None:
        row_grad = row_grad.contiguous()  # that of a sum is one number, expanded
        row_grad = row_grad if call.kept is None else row_grad.index_select(0, call.kept)
    values, gradients = call.run(row_grad, needs_grad, limit_bytes, by_row=True)
    if call.kept is not None:
        values = values.new_zeros((3, hidden.shape[0])).index_copy_(1, call.kept, values)
    term_values, kl_values, gate = (row.clone() for row in values.unbind(0))
    return HeadLoss(term_values, kl_values, gate, call.count(), *gradients)


def reduced_head_loss(
    hidden: Tensor,  # (R, D)
    head: Head,  # (V, D)
    target: Tensor | None,  # (R,) int64
    token_ids: Tensor | None,  # (K,)
    *,
    term: TermRequest,
    kl: KlRequest | None,
    reduction: Reduction,
    needs_grad: NeedsGrad,
    limit_bytes: int,
    num_rows: int | None,
) -> ReducedHeadLoss:
    """The reduced loss and its gradient: besides what rows cost, two launches."""
    call = _Call(hidden, head, target, token_ids, term, kl, num_rows)
    fp32 = torch.float32
    row_grad = None
    if reduction.kind == "mean" and hidden.dtype != torch.float16 and any(needs_grad):
        row_grad = hidden.new_empty(call.num_rows, dtype=fp32)  # (N,)
    counted = hidden.new_empty((), dtype=torch.int64)
    count = RowCount(counted, hidden.new_empty((), dtype=fp32), row_grad)
    launch_row_count(
        call.target, reduction, count, num_rows=call.num_rows, ignore_index=term.ignore_index
    )
    values, gradients = call.run(row_grad, needs_grad, limit_bytes, by_row=False)
    sums = RowSums(hidden.new_empty((), dtype=fp32), hidden.new_empty(3, dtype=fp32))
    launch_row_sums(values, count, sums, kl_weight=None if kl is None else kl.kl_weight)
    return ReducedHeadLoss(sums.loss, sums.reports, counted, *gradients)


class _Call:
    """The rows of a call, and what runs them."""

    def __init__(
        self,
        hidden: Tensor,
        head: Head,
        target: Tensor | None,
        token_ids: Tensor | None,
        term: TermRequest,
        kl: KlRequest | None,
        num_rows: int | None,
    ) -> None:
        target, bias = (
            None if vector is None else vector.contiguous() for vector in (target, head.bias)
        )
        self.hidden, self.head = hidden, head._replace(bias=bias)
        self.token_ids, self.term, self.kl = token_ids, term, kl
        # (N,) or None for all
        self.kept = kept_rows(target, term.ignore_index, head.weight.shape[0], num_rows)
        if target is not None and self.kept is not None:
            target = target.index_select(0, self.kept)
        self.target = target
        self.num_rows = hidden.shape[0] if self.kept is None else self.kept.numel()

    def run(
        self,
        row_grad: Tensor | None,
        needs_grad: NeedsGrad,
        limit_bytes: int,
        *,
        by_row: bool,
    ) -> tuple[Tensor, tuple[Tensor, Tensor, Tensor]]:
        """Values (3, N) term, kl and gate, and the gradients (R, D), (V, D), (V,).

        Without a KL its rows are filled with 0 where they are returned, `by_row`.
        """
        hidden, head, term, kl = self.hidden, self.head, self.term, self.kl
        fp32 = torch.float32
        values = hidden.new_empty((3, self.num_rows), dtype=fp32)
        if term.kind == "none":
            values[0].zero_()
        if kl is None and by_row:
            values[1:].zero_()
        gradients = (
            hidden.new_empty(hidden.shape if needs_grad[0] else (0,)),
            hidden.new_empty(head.weight.shape if needs_grad[1] else (0,), dtype=fp32),
            hidden.new_zeros(head.weight.shape[:1] if needs_grad[2] else (0,), dtype=fp32),
        )
        if self.kept is not None and needs_grad[0]:
            gradients[0].zero_()  # the ignored rows
        if self.num_rows == 0:
            gradients[1].zero_()  # else the first chunk fills it
        given = hidden, head, self.token_ids, self.target, row_grad, self.kept, term, kl
        passes = any(needs_grad) or kl is not None or bool(term.label_smoothing)
        if passes and takes_exponentials(hidden, head, self.target, term, kl):
            ExponentialChunks(*given).run(values, gradients, needs_grad, limit_bytes)
        elif passes:
            _Loop(*given).run(values, gradients, needs_grad, limit_bytes)
        elif term.kind != "none":
            _Loop(*given).stream(values[0], limit_bytes)
        return values, gradients

    def count(self) -> Tensor:
        """() int64 rows that are not ignored, counted where they lie."""
        if self.target is None:
            return torch.full((), self.num_rows, device=self.hidden.device)
        return (self.target != self.term.ignore_index).sum()


class _Loop:
    """One call's pass over its chunks; the tensors of rows have N entries, `hidden` R."""

    def __init__(
        self,
        hidden: Tensor,
        head: Head,
        token_ids: Tensor | None,
        target: Tensor | None,
        row_grad: Tensor | None,
        kept: Tensor | None,
        term: TermRequest,
        kl: KlRequest | None,
    ) -> None:
        self.hidden, self.head, self.token_ids, self.term = hidden, head, token_ids, term
        self.target, self.row_grad, self.kept = target, row_grad, kept
        self.num_rows = hidden.shape[0] if kept is None else kept.numel()
        self.kl, self.kl_rows = kl, None
        if kl is not None and token_ids is not None:
            self.kl_rows = KlRows(kl, head, token_ids, kept, hidden.shape[0])

    def rows(self, index: slice) -> Tensor:
        """(M, D) states of some rows, each contiguous."""
        if self.kept is not None:
            return self.hidden.index_select(0, self.kept[index])
        return unit_stride(self.hidden[index])

    def stream(self, values: Tensor, limit_bytes: int) -> None:
        """Fill the terms (N,) alone, without a chunk of logits."""
        term, size = self.term, self.hidden.element_size()
        gathered = size * self.hidden.shape[1] if self.kept is not None else 1
        head = self.head._replace(weight=unit_stride(self.head.weight))
        for start, stop in chunks(self.num_rows, max(ROW_MULTIPLE, limit_bytes // 2 // gathered)):
            index = slice(start, stop)
            target = None if self.target is None else self.target[index]
            with_target = term.kind == "cross_entropy"
            out = launch_linear_logsumexp(
                self.rows(index),
                head,
                target if with_target else None,
                limit_bytes=limit_bytes // 2,
            )
            value = out.lse
            if with_target:
                value = (out.max - out.at_target) + out.sum_exp.log()
            if with_target and term.z_loss:
                value = value + term.z_loss * out.lse.square()
            ignored = None if target is None else target == term.ignore_index
            values[index] = value if ignored is None else value.masked_fill_(ignored, 0.0)

    def run(
        self,
        values: Tensor,  # (3, N), filled
        gradients: tuple[Tensor, Tensor, Tensor],  # (R, D), (V, D), (V,); filled or added to
        needs_grad: NeedsGrad,
        limit_bytes: int,
    ) -> None:
        """Every chunk, with its gradients where any is needed."""
        weight = self.head.weight
        logits, chunk_rows, block_rows = self._allocate(limit_bytes, trained=needs_grad[1])
        grad_hidden, grad_weight, grad_bias = gradients
        kl: Tensor | MixedTarget | None = None  # of the block at hand
        for start, stop in _within_blocks(self.num_rows, block_rows, chunk_rows):
            index, place = slice(start, stop), start % block_rows
            if place == 0:
                kl = self._kl_of(slice(start, start + block_rows), values)
            rows, z = self.rows(index), logits[: stop - start]  # (M, D), (M, V)
            torch.mm(rows, weight.T, out=z)
            known = part_of(kl, slice(place, place + stop - start))
            self._chunk(z, index, values[:, index], known, gradient=any(needs_grad))
            if needs_grad[0] and self.kept is None:
                torch.mm(z, weight, out=grad_hidden[index])
            elif needs_grad[0] and self.kept is not None:
                grad_hidden.index_copy_(0, self.kept[index], z @ weight)
            if needs_grad[1]:
                if self.kept is None and self.target is not None:  # 0 times NaN is no gradient
                    ignored = self.target[index] == self.term.ignore_index
                    rows = rows.masked_fill(ignored[:, None], 0.0)
                add_product_(grad_weight, z, rows, limit_bytes, first=start == 0)
            if needs_grad[2]:
                grad_bias += z.sum(0, dtype=torch.float32)

    def _kl_of(self, block: slice, values: Tensor) -> Tensor | MixedTarget | None:
        """The KL's own part for a block of rows: entries (B, K), or its target."""
        if self.kl_rows is None or self.kl is None:
            return None
        block = slice(block.start, min(block.stop, self.num_rows))
        target = None if self.target is None else self.target[block]
        states, ignore_index = self.rows(block), self.term.ignore_index
        if self.kl.over == "vocabulary":
            return self.kl_rows.mixed(states, block, values[2, block], target, ignore_index)
        return self.kl_rows.selection(
            states, block, values[:, block], target, ignore_index, by_product=False
        )

    def _chunk(
        self,
        z: Tensor,
        index: slice,
        values: Tensor,
        known: Tensor | MixedTarget | None,
        *,
        gradient: bool,
    ) -> None:
        """Values (3, M) of a chunk (M, V), and its gradient in place."""
        term, head = self.term, self.head
        target = None if self.target is None else self.target[index]
        row_grad = None if self.row_grad is None else self.row_grad[index]
        row_max, sum_exp, softmax_factor, unused = values.new_empty((4, z.shape[0]))  # (M,) each
        softmax = Softmax(row_max, sum_exp)
        sparse, kl, kl_rows = None, NO_VOCABULARY_KL, self.kl_rows
        if known is not None and self.kl is not None and kl_rows is not None:
            ids = kl_rows.ids(index), kl_rows.ids_stride
            if isinstance(known, Tensor):
                sparse = SparseKl(*ids, known, None)
            else:
                sparse = SparseKl(*ids, torch.empty_like(known.student), softmax_factor)
                kl = VocabularyKl(
                    known,
                    kl_rows.row_weight(index),
                    float(self.kl.kl_weight),
                    values[1],
                    sparse.sparse,
                    softmax_factor,
                )
        losses = unused if term.kind == "none" else values[0]
        launch_chunk_loss(z, head, target, losses, softmax, kl, request=term)
        if gradient:
            launch_chunk_gradient(z, head, target, softmax, row_grad, sparse, request=term)

    def _allocate(self, limit_bytes: int, *, trained: bool) -> tuple[Tensor, int, int]:
        """The chunk's logits (M, V) within the limit, its rows aligned; M, and a block's rows."""
        hidden, vocabulary = self.hidden, self.head.weight.shape[0]
        size, width = hidden.element_size(), hidden.shape[1]
        multiple = ALIGNMENT_BYTES // size
        stride = -(-vocabulary // multiple) * multiple
        row_bytes = size * stride + 16
        if self.kept is not None or trained or self.hidden.stride(1) != 1:
            row_bytes += 2 * size * width  # copied states, and the product of the gradient
        block_bytes = 0
        if self.kl_rows is not None:
            gathered = self.kept is not None or self.hidden.stride(1) != 1
            block_bytes = self.kl_rows.row_bytes() + (size * width if gathered else 0)
            row_bytes += 4 * self.kl_rows.num_tokens  # entries over the vocabulary
        if trained and not accumulates_in_gemm(hidden):
            row_bytes += 4 * width
        rows, block_rows = cut(
            self.num_rows,
            limit_bytes,
            row_bytes,
            block_bytes,
            lambda most: rows_per_chunk(self.num_rows, most),
        )
        most = min(rows, self.num_rows)
        return hidden.new_empty((most, stride))[:, :vocabulary], rows, block_rows


def _within_blocks(num_rows: int, block_rows: int, chunk_rows: int) -> Iterator[tuple[int, int]]:
    """(start, stop) of every chunk; none reaches across a block's end."""
    for low, high in chunks(num_rows, block_rows):
        for start, stop in chunks(high - low, chunk_rows):
            yield low + start, low + stop


def rows_per_chunk(num_rows: int, most: int) -> int:
    """Rows of every chunk but the last: about equal, and whole GEMM tiles where they fit."""
    most = max(1, most)
    if most > ROW_MULTIPLE:
        most -= most % ROW_MULTIPLE
    rows = max(1, -(-num_rows // max(1, -(-num_rows // most))))
    return rows if most < ROW_MULTIPLE else -(-rows // ROW_MULTIPLE) * ROW_MULTIPLE
