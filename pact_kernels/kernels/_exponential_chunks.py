"""The head's loss and gradient without a pass over its logits: chunks of exponentials.

    c      = z_y, the target's logit          `target_logits`: a gathered dot product, all rows
    s, q   = the KL's own part                `pact_kl`: a block of rows at once, nothing of size V
    E      = exp(z - c), l = its row sums     `exponential_chunk`: one product         2 M D V flops
    rho, patched E                            `finish_chunk`: a few entries of each row
    dH     = rho (E W)                        the vendor's product, `scale_states`     2 M D V flops
    dW    += E^T (rho H) in fp32              a trainable head alone                   2 M D V flops

E is written once and read once, twice with a trainable head. What has no logit to take exponentials
against, and what an epilogue cannot hold, keeps the loop over chunks of logits (`head_loss`): see
`takes_exponentials`.

Legend: R positions, N rows, D hidden size, V vocabulary, K selected tokens, M chunk rows.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from pact_kernels.common.chunks import ceil_div, chunks
from pact_kernels.common.requests import KlRequest, NeedsGrad, TermRequest
from pact_kernels.kernels._device.operands import MixedTarget
from pact_kernels.kernels._kernels.column_sums import launch_column_sums
from pact_kernels.kernels._kernels.exponential_chunk import (
    RowShift,
    launch_exponential_chunk,
    sum_tiles,
)
from pact_kernels.kernels._kernels.finish_chunk import (
    NO_CHUNK_KL,
    ChunkKl,
    ChunkRows,
    launch_finish_chunk,
)
from pact_kernels.kernels._kernels.linear_logsumexp import LEAST_EVEN_WIDTH
from pact_kernels.kernels._kernels.redo_rows import launch_redo_rows
from pact_kernels.kernels._kernels.scale_states import (
    ScaledStates,
    Smoothing,
    launch_scale_states,
)
from pact_kernels.kernels._kernels.target_logits import HeadSums, launch_target_logits
from pact_kernels.kernels._kl_rows import KlRows, cut, part_of
from pact_kernels.kernels._launch import configs
from pact_kernels.kernels._launch.gemm import accumulates_in_gemm, add_product_
from pact_kernels.kernels._launch.operands import in_unit_stride
from pact_kernels.kernels._launch.runtime import target_of, unit_stride
from pact_kernels.types import Head

ROW_MULTIPLE = 128
"""Chunks of whole GEMM tiles, where there are that many rows."""
ALIGNMENT = 8
"""Entries of bf16 that 16 bytes hold: where a chunk's rows start."""
USUAL_CHUNK_ROWS = 2048
"""On an H200 the second product took up to 9 % longer with 1024 rows at a time, up to 26 % with
1280, 1536, 2560 or 3072, whose tiles fill no whole waves, and as long with 4096."""
MOST_CHUNK_ROWS = 8192


def takes_exponentials(
    hidden: Tensor, head: Head, target: Tensor | None, term: TermRequest, kl: KlRequest | None
) -> bool:
    """Whether a call's chunks are exponentials here.

    They are of bf16 states on a target of `TAKES_EXPONENTIALS`, enough of them, and need a logit of
    each row: that of its target, or of a KL over the vocabulary alone. A soft cap leaves label
    smoothing without a constant gradient.
    """
    if hidden.dtype != torch.bfloat16 or not configs.TAKES_EXPONENTIALS[target_of(hidden).name]:
        return False
    if 4 * hidden.shape[0] * head.weight.numel() < configs.LEAST_EXPONENTIAL_FLOPS:
        return False
    if term.label_smoothing and head.softcap is not None:
        return False
    if term.kind == "cross_entropy":
        return target is not None
    return term.kind == "none" and kl is not None and kl.over == "vocabulary"


class ExponentialChunks:
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
        self.hidden, self.head, self.term = unit_stride(hidden), in_unit_stride(head), term
        self.target, self.row_grad, self.kept, self.kl = target, row_grad, kept, kl
        self.token_ids = None if kl is None else token_ids
        self.num_rows = hidden.shape[0] if kept is None else kept.numel()
        even = hidden.shape[1] % LEAST_EVEN_WIDTH == 0
        crowded = head.softcap is not None
        self.config = configs.exponential_config(
            target_of(hidden), hidden.shape[1], crowded=crowded, even=even
        )
        self.kl_rows = None
        if kl is not None and token_ids is not None:
            self.kl_rows = KlRows(kl, self.head, token_ids, kept, hidden.shape[0])

    def run(
        self,
        values: Tensor,  # (3, N) term, kl and gate; filled
        gradients: tuple[Tensor, Tensor, Tensor],  # (R, D), (V, D), (V,); filled or added to
        needs_grad: NeedsGrad,
        limit_bytes: int,
    ) -> None:
        """Every chunk, with its gradients."""
        vocabulary = self.head.weight.shape[0]
        num_sums = sum_tiles(vocabulary, self.config)
        stride = -(-vocabulary // ALIGNMENT) * ALIGNMENT
        chunk_rows, block_rows = self._cut(limit_bytes, stride, num_sums, needs_grad)
        most = min(chunk_rows, self.num_rows)
        chunk = self.hidden.new_empty((most, stride))[:, :vocabulary]  # (M, V)
        sums = values.new_empty((num_sums * most,))
        row_values = values.new_empty((7, self.num_rows))
        shift = RowShift(row_values[0], row_values[1])
        smoothed = self._smoothing()
        target_logit, mean_logit = self._target_logits(row_values, shift, smoothed)
        for block_start, block_stop in chunks(self.num_rows, block_rows):
            block = slice(block_start, block_stop)
            kl = self._kl_of(block, values, shift)
            for start, stop in chunks(block_stop - block_start, chunk_rows):
                index = slice(block_start + start, block_start + stop)
                rows = ChunkRows(
                    target=_part(self.target, index),
                    target_logit=_part(target_logit, index),
                    mean_logit=_part(mean_logit, index),
                    row_grad=_part(self.row_grad, index),
                    row_weight=None if self.kl_rows is None else self.kl_rows.row_weight(index),
                    term=values[0, index],
                    kl=values[1, index],
                    scale=row_values[4, index],
                    target_scale=row_values[5, index],
                    target_entry=row_values[6, index],
                )
                self._chunk(
                    index,
                    chunk[: stop - start],
                    sums[: num_sums * (stop - start)].view(num_sums, stop - start),
                    RowShift(shift.log2[index], shift.above_target[index]),
                    rows,
                    self._chunk_kl(part_of(kl, slice(start, stop)), index),
                    smoothed,
                    gradients,
                    needs_grad,
                    limit_bytes,
                )
        if smoothed is not None:
            self._smooth_head(smoothed, gradients, needs_grad)

    def _chunk(
        self,
        index: slice,
        chunk: Tensor,  # (M, V)
        sums: Tensor,  # (tiles, M)
        shift: RowShift,  # (M,)
        rows: ChunkRows,
        kl: ChunkKl,
        smoothed: HeadSums | None,
        gradients: tuple[Tensor, Tensor, Tensor],
        needs_grad: NeedsGrad,
        limit_bytes: int,
    ) -> None:
        head, term = self.head, self.term
        grad_hidden, grad_weight, grad_bias = gradients
        kept = None if self.kept is None else self.kept[index]
        states = self.hidden[index] if kept is None else self.hidden.index_select(0, kept)  # (M, D)
        guarded = needs_grad[1] or needs_grad[2]  # sums over rows
        launch_exponential_chunk(
            states, head, chunk, shift, sums, config=self.config, guarded=guarded
        )
        launch_redo_rows(states, head, chunk, shift, sums, config=self.config)
        kl_weight = 1.0 if self.kl is None else self.kl.kl_weight
        launch_finish_chunk(chunk, head, shift, sums, rows, kl, request=term, kl_weight=kl_weight)
        raw = out = scaled = None
        if needs_grad[0]:
            out = grad_hidden if kept is not None else grad_hidden[index]
            raw = torch.empty_like(states) if kept is not None else out
            torch.mm(chunk, head.weight, out=raw)
        if needs_grad[1]:
            scaled = ScaledStates(states, torch.empty_like(states))
        smoothing = None
        if smoothed is not None:
            factor = term.label_smoothing / head.weight.shape[0] * head.logit_scale
            smoothing = Smoothing(smoothed.weight, factor)
        if any(needs_grad):
            launch_scale_states(
                raw,
                out,
                scaled,
                chunk if needs_grad[1] or needs_grad[2] else None,
                head.weight,
                kept,
                rows,
                smoothing,
                ignore_index=term.ignore_index,
            )
        if scaled is not None:
            first = index.start == 0
            add_product_(grad_weight, chunk, scaled.scaled, limit_bytes, first=first)
        if needs_grad[2]:
            launch_column_sums(chunk, rows.scale, grad_bias)

    def _chunk_kl(self, known: Tensor | MixedTarget | None, index: slice) -> ChunkKl:
        """What a chunk finishes of its KL."""
        if known is None or self.kl_rows is None:
            return NO_CHUNK_KL
        ids = self.kl_rows.ids(index), self.kl_rows.ids_stride
        if isinstance(known, Tensor):
            return ChunkKl(*ids, known, NO_CHUNK_KL.target)
        return ChunkKl(*ids, None, known)

    def _target_logits(
        self, row_values: Tensor, shift: RowShift, smoothed: HeadSums | None
    ) -> tuple[Tensor | None, Tensor | None]:
        """The rows' target logits and means (N,), and what their exponentials are taken against."""
        if self.target is None:
            return None, None
        target_logit, mean_logit = row_values[2], None if smoothed is None else row_values[3]
        launch_target_logits(
            self.hidden,
            self.head,
            smoothed,
            self.kept,
            self.target,
            shift,
            target_logit,
            mean_logit,
            ignore_index=self.term.ignore_index,
        )
        return target_logit, mean_logit

    def _kl_of(self, block: slice, values: Tensor, shift: RowShift) -> Tensor | MixedTarget | None:
        """The KL's own part for a block of rows: entries (B, K), or its target."""
        if self.kl_rows is None or self.kl is None or self.token_ids is None:
            return None
        kept = None if self.kept is None else self.kept[block]
        states = self.hidden[block] if kept is None else self.hidden.index_select(0, kept)
        target, ignore_index = _part(self.target, block), self.term.ignore_index
        if self.kl.over == "selection":
            return self.kl_rows.selection(
                states, block, values[:, block], target, ignore_index, by_product=True
            )
        mixed = self.kl_rows.mixed(states, block, values[2, block], target, ignore_index)
        if self.target is None:  # no target: against the largest selected logit
            largest = mixed.student.amax(1)
            shift.above_target[block] = largest
            shift.log2[block] = largest * math.log2(math.e)
        return mixed

    def _smoothing(self) -> HeadSums | None:
        """The head's sums over the vocabulary, where labels are smoothed."""
        if not self.term.label_smoothing:
            return None
        weight, bias = self.head.weight, self.head.bias
        return HeadSums(
            weight.sum(0, dtype=torch.float32),
            None if bias is None else bias.sum(dtype=torch.float32),
        )

    def _smooth_head(
        self,
        smoothed: HeadSums,
        gradients: tuple[Tensor, Tensor, Tensor],
        needs_grad: NeedsGrad,
    ) -> None:
        """Label smoothing's part of the gradients by weight and bias: the same for every token."""
        if not (needs_grad[1] or needs_grad[2]) or self.target is None:
            return
        factor = self.term.label_smoothing / self.head.weight.shape[0] * self.head.logit_scale
        counted = (self.target != self.term.ignore_index).float()  # (N,)
        by_row = factor * (counted if self.row_grad is None else counted * self.row_grad)
        if needs_grad[1]:
            hidden = self.hidden if self.kept is None else self.hidden.index_select(0, self.kept)
            hidden = hidden.masked_fill((counted == 0)[:, None], 0.0)  # 0 times NaN is no gradient
            gradients[1].sub_(by_row @ hidden.float())
        if needs_grad[2]:
            gradients[2].sub_(by_row.sum())

    def _cut(
        self, limit_bytes: int, stride: int, num_sums: int, needs_grad: NeedsGrad
    ) -> tuple[int, int]:
        """Rows of a chunk and of a block of the KL, within the limit."""
        width = self.hidden.shape[1]
        row_bytes = 2 * stride + 4 * num_sums
        if self.kept is not None:
            row_bytes += 4 * width  # copied states, and the product of the gradient
        if needs_grad[1]:
            row_bytes += 2 * width
            if not accumulates_in_gemm(self.hidden):
                row_bytes += 4 * width
        block_bytes = 0
        if self.kl_rows is not None:
            block_bytes = self.kl_rows.row_bytes()
            if self.kept is not None:
                block_bytes += 2 * width

        def rows_within(most: int) -> int:
            return rows_of_chunk(self.num_rows, most, favour_long=needs_grad[1])

        return cut(self.num_rows, limit_bytes, row_bytes, block_bytes, rows_within)


def rows_of_chunk(num_rows: int, most: int, *, favour_long: bool = False) -> int:
    """Rows of a chunk, of at most `most`: USUAL_CHUNK_ROWS, or all about equal in whole tiles.

    A gradient by the weight is read and written once a chunk: there the longest chunks are the best
    ones.
    """
    if most < ROW_MULTIPLE or num_rows <= ROW_MULTIPLE:
        return max(1, min(most, num_rows))
    most = min(most - most % ROW_MULTIPLE, MOST_CHUNK_ROWS)
    if not favour_long and min(num_rows, most) >= USUAL_CHUNK_ROWS:
        return USUAL_CHUNK_ROWS
    rows = ceil_div(num_rows, ceil_div(num_rows, most))
    return min(most, ceil_div(rows, ROW_MULTIPLE) * ROW_MULTIPLE)


def _part(tensor: Tensor | None, index: slice) -> Tensor | None:
    return None if tensor is None else tensor[index]
