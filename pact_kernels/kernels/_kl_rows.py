"""The KL of any block of rows on the device: one launch, or three where K is too large for it.

    K <= 256 (`configs.kl_config`)    `pact_kl`: logits from states, KL, gradient
    larger                            `selected_logits` of each state, `pact_kl` on the logits, and
                                      where dHidden is needed the product of its gradient

Legend: R positions, N rows, D hidden size, D' that of the reference, K selected tokens, B block
rows.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from pact_kernels.common.requests import KlRequest
from pact_kernels.common.rows import check_rows
from pact_kernels.kernels._device.operands import KlOut, MixedTarget, RowTensors, Selected
from pact_kernels.kernels._kernels.gathered_logits import launch_gathered_logits
from pact_kernels.kernels._kernels.pact_kl import fits_registers, launch_pact_kl
from pact_kernels.kernels._kernels.selected_logits import (
    launch_selected_gradient,
    launch_selected_logits,
)
from pact_kernels.kernels._launch.operands import in_unit_stride
from pact_kernels.kernels._launch.runtime import unit_stride
from pact_kernels.types import Head

NO_WEIGHT: Any = None
"""The weight of a head whose logits are given."""


KL_FRACTION = 1 / 4
"""The most of the workspace that a block of rows takes whose KL is formed before their chunks."""


def cut(
    num_rows: int,
    limit_bytes: int,
    row_bytes: int,
    block_bytes: int,
    rows_within: Callable[[int], int],
) -> tuple[int, int]:
    """Rows of a chunk, and of the block of chunks whose KL is one launch, within the limit.

    Args:
        row_bytes: of a row of a chunk.
        block_bytes: of a row of a block; 0 where there is none.
        rows_within: the rows of a chunk, of the most that fit.
    """
    reserved = min(int(limit_bytes * KL_FRACTION), num_rows * block_bytes)
    rows = rows_within((limit_bytes - reserved) // row_bytes)
    if num_rows * block_bytes <= reserved:
        return rows, max(1, num_rows)
    return rows, max(rows, (limit_bytes - rows * row_bytes) // block_bytes // rows * rows)


def part_of(known: Tensor | MixedTarget | None, index: slice) -> Tensor | MixedTarget | None:
    """Some rows of what is known of a block's KL."""
    if isinstance(known, MixedTarget):
        return MixedTarget(*(part[index] for part in known))
    return None if known is None else known[index]


class KlRows:
    """The KL term of one call, with what all rows share made ready once.

    Args:
        kl: what is asked for.
        head: the student's (V, D); the KL alone gives its selected rows.
        token_ids: (K,), or (N, K) with a set for each row; None where the head is theirs alone.
        kept: (N,) positions of the rows, or None where every position is a row.
        num_positions: R.

    Raises:
        ValueError: the row tensors have neither N nor R entries.
    """

    def __init__(
        self,
        kl: KlRequest,
        head: Head,
        token_ids: Tensor | None,
        kept: Tensor | None,
        num_positions: int,
    ) -> None:
        num_rows = num_positions if kept is None else kept.numel()
        check_rows(kl.step.shape[0], num_rows, num_positions)
        self.by_row = token_ids is not None and token_ids.dim() == 2
        self.token_ids = token_ids
        if self.by_row:
            head = in_unit_stride(head)
        elif token_ids is not None:
            head = head.select(token_ids)
        self.kl, self.head = kl, head  # (V, D) with a set for each row, else (K, D)
        self.kept = None if kl.step.shape[0] == num_rows else kept
        self.token_weights = unit_stride(kl.token_weights)  # (K,)
        self.reference = kl.reference_head or head._replace(weight=NO_WEIGHT, bias=None)
        # A row's own logits are gathered before, and its reference's are given.
        weights = [h.weight for h in (head, self.reference) if h.weight is not None]
        self.in_one_launch = self.by_row or fits_registers(*weights)

    @property
    def num_tokens(self) -> int:
        """K"""
        return self.token_weights.numel()

    def ids(self, rows: slice) -> Tensor:
        """(B, K) of some rows, or (K,) of all."""
        assert self.token_ids is not None
        return self._taken(self.token_ids, rows) if self.by_row else self.token_ids

    @property
    def ids_stride(self) -> int:
        """Between rows' tokens."""
        return self.num_tokens if self.by_row else 0

    def row_weight(self, rows: slice) -> Tensor | None:
        """(B,) of some rows."""
        return self._maybe_taken(self.kl.row_weight, rows)

    def selection(
        self,
        states: Tensor,  # (B, D)
        rows: slice,
        values: Tensor,  # (3, B); kl and gate are written
        target: Tensor | None,  # (B,)
        ignore_index: int,
        *,
        by_product: bool,
    ) -> Tensor:
        """(B, K) fp32 gradient of the KL over the selection, by the logits or the raw products."""
        entries = values.new_empty((states.shape[0], self.num_tokens))
        self(
            states,
            rows,
            KlOut(values[1], values[2], None, entries),
            target=target,
            ignore_index=ignore_index,
            by_product=by_product,
        )
        return entries

    def mixed(
        self,
        states: Tensor,  # (B, D)
        rows: slice,
        gate: Tensor,  # (B,), written
        target: Tensor | None,  # (B,)
        ignore_index: int,
    ) -> MixedTarget:
        """What a KL over the vocabulary needs beside the student's log-sum-exps."""
        shape = states.shape[0], self.num_tokens
        mixed = MixedTarget(
            gate.new_empty(shape), gate.new_empty(shape), gate.new_empty(shape[:1]), gate
        )
        self(states, rows, mixed, target=target, ignore_index=ignore_index)
        return mixed

    def row_bytes(self) -> int:
        """Memory of a row of a block: what it keeps, and gathered or formed logits."""
        num_tokens = self.token_weights.numel()
        kept = 2 if self.kl.over == "vocabulary" else 1
        copies = kept + self.by_row if self.in_one_launch else kept + 3
        gathered = 0
        if self.kept is not None:
            gathered = 2 * self.kl.reference_full.shape[1] * self.kl.reference_full.element_size()
        return 4 * num_tokens * copies + gathered + 64

    def __call__(
        self,
        states: Tensor,  # (B, D)
        rows: slice,
        out: KlOut | MixedTarget,
        *,
        target: Tensor | None = None,  # (B,); rows of ignore_index come out 0
        ignore_index: int = -100,
        row_grad: Tensor | None = None,  # (B,)
        by_product: bool = False,
    ) -> None:
        """Fill `out` for some rows; see `launch_pact_kl`."""
        kl, head = self.kl, self.head
        student = Selected(states, head)
        if self.by_row:
            student = self._gathered(states, self.ids(rows))
        full = self._source(kl.reference_full, rows)
        post = None
        if kl.gate is not None and kl.reference_post is not None:
            post = self._source(kl.reference_post, rows)
        grad_hidden = gradient = None
        if isinstance(out, KlOut):
            grad_hidden, gradient = out.grad_hidden, out.gradient
        if not self.in_one_launch:
            student, full = self._formed(student), self._formed(full)
            post = None if post is None else self._formed(post)
            if isinstance(out, KlOut) and grad_hidden is not None:
                gradient = torch.empty_like(student.inputs) if gradient is None else gradient
                out = out._replace(gradient=gradient, grad_hidden=None)  # (B, K)
        launch_pact_kl(
            student,
            full,
            post,
            out,
            kl=kl,
            rows=RowTensors(
                token_weights=self.token_weights,
                step=self._taken(kl.step, rows),
                row_weight=self._maybe_taken(kl.row_weight, rows),
                row_grad=row_grad,
                full_lse=self._maybe_taken(kl.full_lse, rows),
                post_lse=self._maybe_taken(kl.post_lse, rows),
                target=target,
                ignore_index=ignore_index,
            ),
            by_product=by_product,
        )
        if grad_hidden is not None and gradient is not None and not self.in_one_launch:
            launch_selected_gradient(gradient, head.weight, grad_hidden)

    def _gathered(self, states: Tensor, ids: Tensor) -> Selected:
        """Each row's logits of its own tokens."""
        logits = states.new_empty(ids.shape, dtype=torch.float32)
        launch_gathered_logits(states, self.head, ids, logits)
        return Selected(logits, self.head._replace(weight=NO_WEIGHT, bias=None))

    def _source(self, values: Tensor, rows: slice) -> Selected:
        return Selected(self._taken(values, rows), self.reference)

    def _formed(self, source: Selected) -> Selected:
        """Logits (B, K) in fp32 instead of states; logits as they are."""
        if source.head.weight is None:
            return source
        shape = source.inputs.shape[0], source.head.weight.shape[0]
        logits = source.inputs.new_empty(shape, dtype=torch.float32)
        launch_selected_logits(source.inputs, source.head, logits)
        return Selected(logits, source.head._replace(weight=NO_WEIGHT))

    def _taken(self, tensor: Tensor, rows: slice) -> Tensor:
        """Entries of some rows of a row tensor."""
        taken = tensor[rows] if self.kept is None else tensor.index_select(0, self.kept[rows])
        return unit_stride(taken)

    def _maybe_taken(self, tensor: Tensor | None, rows: slice) -> Tensor | None:
        return None if tensor is None else self._taken(tensor, rows)
